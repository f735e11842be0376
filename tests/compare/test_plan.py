"""What a comparison would run, and what it refuses before any run."""

import re
from pathlib import Path

import pytest

import runs
from egspo import registry
from egspo.compare.plan import Plan, parse_budget
from egspo.compose import ConfigError, recipes
from egspo.config import RLRun, parse_config

TOY = [
    *runs.SETTINGS,
    "optim.learning_rate=1e-3",
    "train={max_steps: 10, prompts_per_step: 4, num_generations: 4}",
]


def make(*overrides: str, objectives=("egspo", "wd1"), budget=None, with_search=True) -> Plan:
    return Plan([], [*TOY, *overrides], objectives, budget or {}, with_search)


def config(run) -> RLRun:
    return parse_config(RLRun, run.settings)


def test_by_default_the_budget_is_the_bases_and_the_search_tries_three_rates(tmp_path: Path):
    plan = make()
    assert (plan.samples, plan.batch, plan.eval_steps) == (160, 16, 1)
    rates = [candidate["optim.learning_rate"] for candidate in plan.candidates("wd1")]
    assert rates == [0.000333, 0.001, 0.003]
    assert make(with_search=False).candidates("wd1") == [{}]
    run = plan.final("egspo", {"optim.learning_rate": 0.003}, 7, tmp_path)
    parsed = config(run)
    assert (parsed.seed, parsed.optim.learning_rate, parsed.train.max_steps) == (7, 0.003, 10)
    assert (parsed.objective.name, parsed.objective.num_selected_steps) == ("egspo", 2)
    assert (run.limits, run.split) == ({"samples": 160}, "test")
    trial = plan.trial("egspo", {}, 0.25, tmp_path)
    # A quarter of 160 samples is two and a half iterations of 16.
    assert (trial.limits, trial.split, config(trial).seed) == ({"samples": 48}, "validation", 1000)


def test_another_objective_begins_with_its_own_settings(tmp_path: Path):
    run = make("objective.beta=0.1").final("wd1", {}, 0, tmp_path)
    assert run.settings["objective"] == {"name": "wd1"}


def test_what_an_objective_is_defined_with_is_set_but_it_is_evaluated_as_all(tmp_path: Path):
    plan = make(objectives=["just_grpo"])
    run = plan.final("just_grpo", {}, 0, tmp_path)
    assert config(run).sampler.remasking == "left_to_right"
    assert run.decoding == {"max_completion_length": 2, "block_length": 2, "diffusion_steps": 2}


def test_methods_of_a_file_and_their_own_candidates(tmp_path: Path):
    sections = [
        "compare.methods={a: {objective: {name: wd1, psi: 2.0}}, b: {objective: {name: espo}}}",
        "compare.grid={optim.learning_rate: [1e-3, 2e-3]}",
        "compare.own_grid={a: {objective.psi: [1.0, 4.0]}, b: {train.num_iterations: [1, 2]}}",
    ]
    plan = make(*sections, objectives=[])
    assert list(plan.methods) == ["a", "b"]
    assert [len(plan.candidates(label)) for label in plan.methods] == [4, 4]
    chosen = plan.candidates("a")[3]
    assert chosen == {"optim.learning_rate": 0.002, "objective.psi": 4.0}
    assert config(plan.final("a", chosen, 0, tmp_path)).objective.psi == 4.0
    assert config(plan.final("a", {}, 0, tmp_path)).objective.psi == 2.0


def test_a_yaml_file_is_a_method_too(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("objective: {name: wd1, psi: 3.0}\n", encoding="utf-8")
    plan = make(objectives=[str(file), "egspo"])
    assert list(plan.methods) == ["mine", "egspo"]
    assert config(plan.final("mine", {}, 0, tmp_path)).objective.psi == 3.0


def test_a_run_to_a_number_of_seconds_has_no_last_iteration(tmp_path: Path):
    plan = make("optim.lr_scheduler_type=constant", budget={"seconds": 5})
    run = plan.final("egspo", {}, 0, tmp_path)
    assert run.limits == {"samples": 160, "seconds": 5} and config(run).train.max_steps > 100_000
    assert plan.trial("egspo", {}, 0.25, tmp_path).limits == {"samples": 48, "seconds": 1.25}
    one = plan.final("egspo", {}, 0, tmp_path, ["samples"])
    assert one.limits == {"samples": 160} and one.settings == run.settings
    for kind, limit in (("samples", 48), ("seconds", 1.25)):
        trial = plan.trial("egspo", {}, 0.25, tmp_path, [kind])
        assert trial.limits == {kind: limit}
        assert trial.settings == plan.trial("egspo", {}, 0.25, tmp_path).settings


@pytest.mark.parametrize(
    ("overrides", "objectives", "budget", "words"),
    [
        ([], ["egspoo"], {}, "--objectives: 'egspoo' is no method; did you mean 'egspo'?"),
        (["compare.methods={}"], [], {}, "--objectives: none"),
        ([], ["wd1", "wd1"], {}, "--objectives: wd1, wd1 has a label twice"),
        (["compare.grids={}"], ["egspo"], {}, "compare.grids: unknown key; did you mean 'grid'?"),
        (["compare.rungs=[0.5, 0.25]"], ["egspo"], {}, "compare.rungs: [0.5, 0.25]; give rising shares"),
        (["compare.grid={objective.psi: []}"], ["wd1"], {}, "compare.grid.objective.psi: no value to try"),
        (
            ["compare.own_grid={wd1: {objective.psi: [1.0, 2.0]}}"],
            ["egspo", "wd1"],
            {},
            "candidates differ in number (egspo 3, wd1 6); every method gets the same search",
        ),
        (
            ["compare.own_grid={wd2: {objective.psi: [1.0]}}"],
            ["egspo", "wd1"],
            {},
            "compare.own_grid.wd2: no method of that name; did you mean 'wd1'?",
        ),
        (["compare=5"], ["egspo"], {}, "compare: 5"),
        (["compare.methods={x: {objective: wd1}}"], ["x"], {}, "objective: 'wd1'"),
        (["compare.methods={x: {objective: null}}"], ["x"], {}, "objective: "),
        (["compare.grid={objective.psi: [1.0]}"], ["egspo"], {}, "egspo: objective.psi: unknown key"),
        (
            ["compare.methods={big: {train: {prompts_per_step: 8}}}"],
            ["egspo", "big"],
            {},
            "big: 8 prompts of 4 completions are not the 16 samples of the others",
        ),
        (
            ["compare.methods={other: {task: {seed: 5}}}"],
            ["egspo", "other"],
            {},
            "other: task.seed: 5 is not the 0 of egspo; all share base, problems and evaluation",
        ),
        (
            ["compare.methods={other: {model: {init: tiny-1m}}}"],
            ["egspo", "other"],
            {},
            "other: model.init: 'tiny-1m' is not the 'tiny' of egspo",
        ),
        (
            ["compare.grid={eval.temperature: [0.0, 1.0]}"],
            ["egspo"],
            {},
            "egspo: eval.temperature: 1.0 is not the 0.0 of egspo",
        ),
        (
            ["optim.lr_scheduler_type=linear"],
            ["egspo"],
            {"seconds": 5},
            "egspo: optim.lr_scheduler_type: 'linear' needs a length known in advance",
        ),
    ],
)
def test_what_is_wrong_is_told_before_any_run(overrides, objectives, budget, words):
    with pytest.raises(ConfigError) as told:
        make(*overrides, objectives=objectives, budget=budget)
    assert words in str(told.value)


def test_a_run_that_goes_on_is_not_refused(tmp_path: Path):
    """As `resume: false` would do at the second rung, in a folder that the first began."""
    plan = make("resume=false")
    assert config(plan.final("egspo", {}, 0, tmp_path)).resume
    assert plan.shared() == make().shared()


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ConfigError) as told:
        make("compare.grid={objective.nothing: [1]}", objectives=["egspo", "wd1"])
    assert [line.partition(":")[0] for line in told.value.problems] == ["egspo", "wd1"]


def test_budgets_on_the_command_line():
    assert parse_budget(["samples=100", "seconds=2.5"]) == {"samples": 100, "seconds": 2.5}
    for wrong in ("samples", "steps=3", "100"):
        with pytest.raises(ValueError, match="--budget"):
            parse_budget([wrong])


@pytest.mark.parametrize("name", [name for name in recipes() if name.startswith("compare/")])
def test_a_shipped_comparison_has_every_objective_or_settings_of_one_in_it(name: str, tmp_path: Path):
    """Composed with what its first line names; the plan checks all methods with all candidates."""
    first = recipes()[name].read_text(encoding="utf-8").splitlines()[0]
    after = re.search(r"^# .*\(after ([^)]+)\)", first)
    plan = Plan([after[1], name], [], [], {})
    found = {config(plan.final(label, {}, 0, tmp_path)).objective.name for label in plan.methods}
    assert found == ({"egspo"} if name.endswith("-settings") else set(registry.names("objectives")))


def test_a_plan_tells_what_its_base_has_seen():
    base = [
        "model.model_name_or_path=tiny:countdown-sft",
        "task={name: countdown, prompt: compact, num_numbers: 3}",
    ]
    base += ["task={max_number: 30, min_target: 10, max_target: 60, operators: '+-*', num_train: 15000}"]
    base += ["sampler={max_completion_length: 8, block_length: 8, diffusion_steps: 8}"]
    base += [TOY[-1], runs.SETTINGS[-1]]
    plan = Plan([], base, ["egspo"], {})
    assert "691 of 1000 test problems before (task.seed: 3 then, 0 now)" in plan.seen
    assert f"note: {plan.seen}" in plan.describe()
    assert Plan([], [*base, "task.seed=3"], ["egspo"], {}).seen == ""
    assert make().seen == ""

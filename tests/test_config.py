"""Composition of settings, and that all that is wrong with them is told at once and clearly."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from huggingface_hub import constants

import runs
from egspo.compose import ConfigError, compose, find_recipe, parse_override, recipe_folder, recipes
from egspo.config import RLRun, SFTRun, load_config, parse_config, parse_section
from egspo.hub import hub_repository
from egspo.models.family import families
from egspo.sections import ModelConfig, SamplerConfig, SFTConfig, TrainConfig

RECIPES = recipes()
DEBUG = [name for name in RECIPES if name.startswith("debug/")]
PARTS = [name for name in RECIPES if not name.startswith(("debug/", "compare/"))]
MODELS = [name for name in RECIPES if name.startswith("models/")]
PAPER = [name for name in RECIPES if name.startswith("paper/")]
ACCELERATE = sorted((recipe_folder() / "accelerate").glob("*.yaml"))
ADAPTED = {"model_name_or_path": "tiny:sudoku-sft", "use_peft": True}


def settings(**sections) -> dict:
    """A complete RL configuration of the toy task, with sections replaced."""
    return {
        "output_dir": "runs/x",
        "model": {"init": "tiny"},
        "task": {"name": "toy"},
        "sampler": {"max_completion_length": 4, "block_length": 2, "diffusion_steps": 4},
        "objective": {"name": "egspo", "num_selected_steps": 2},
    } | sections


def problems(kind=RLRun, overrides: tuple[str, ...] = (), **sections) -> list[str]:
    """What is told about a configuration."""
    values = settings(**sections)
    for override in overrides:
        values = _merged(values, parse_override(override))
    with pytest.raises(ConfigError) as caught:
        parse_config(kind, values)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def _merged(left: dict, right: dict) -> dict:
    return left | {k: _merged(left.get(k, {}), v) if isinstance(v, dict) else v for k, v in right.items()}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ---- composition ---------------------------------------------------------------------------------------


def test_files_compose_from_left_to_right_and_overrides_come_last(tmp_path: Path):
    first = write(tmp_path / "a.yaml", "seed: 1\noptim: {learning_rate: 0.1, warmup_steps: 5}\n")
    second = write(tmp_path / "b.yaml", "optim: {learning_rate: 0.2}\n")
    values = compose([first, second], ["optim.warmup_steps=7", "train.max_steps=3"])
    assert values == {
        "seed": 1,
        "optim": {"learning_rate": 0.2, "warmup_steps": 7},
        "train": {"max_steps": 3},
    }


def test_a_later_override_wins(tmp_path: Path):
    assert compose([], ["seed=1", "seed=2"]) == {"seed": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),  # text to YAML 1.1, a number to everybody else
        ("3E5", 3e5),
        ("-2.5e+3", -2500.0),
        (".5e1", 5.0),
        ("12", 12),
        ("true", True),
        ("null", None),
        ("[6, 8]", [6, 8]),
        ("low_confidence", "low_confidence"),
        ("'1e-4'", "1e-4"),  # quoted: text was meant
        ("runs/1e-4", "runs/1e-4"),
        ("a=b", "a=b"),
        ("", None),
    ],
)
def test_values_are_read_as_yaml(text: str, value):
    read = parse_override(f"a.b={text}")["a"]["b"]
    assert read == value
    assert type(read) is type(value)


def test_scientific_numbers_are_numbers_in_files_too(tmp_path: Path):
    file = write(tmp_path / "a.yaml", "optim: {learning_rate: 1e-4}\ntrain: {max_steps: 1e2}\n")
    run = parse_config(RLRun, settings() | compose([file]))
    assert run.optim.learning_rate == 1e-4
    assert run.train.max_steps == 100


def test_recipes_are_found_by_name_and_files_by_path(tmp_path: Path):
    assert find_recipe("debug/toy") == recipe_folder() / "debug" / "toy.yaml"
    assert find_recipe("debug/toy.yaml") == recipe_folder() / "debug" / "toy.yaml"
    file = write(tmp_path / "mine.yaml", "seed: 1")
    assert find_recipe(file) == file


def test_another_objective_or_task_begins_afresh():
    """What a recipe sets for one means nothing to the next; the command line speaks of the last."""
    overrides = ["objective.beta=0.1", "objective.name=espo", "task.seed=3"]
    values = compose(["sudoku/task", "sudoku/rl"], overrides)
    assert values["objective"] == {"name": "espo", "beta": 0.1}
    assert values["task"] == compose(["sudoku/task"])["task"] | {"seed": 3}
    assert compose(["sudoku/task"], ["task.name=countdown"])["task"] == {"name": "countdown"}
    same = compose(["sudoku/rl"], ["objective.name=egspo", "objective.beta=0.1"])["objective"]
    assert same == compose(["sudoku/rl"])["objective"] | {"beta": 0.1}


def test_all_unreadable_sources_are_told_together(tmp_path: Path):
    broken = write(tmp_path / "broken.yaml", "model:\n  init: [tiny\n")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    empty, missing = write(tmp_path / "empty.yaml", ""), tmp_path / "missing.yaml"
    with pytest.raises(ConfigError) as caught:
        compose([broken, binary, empty, missing, "debug/tooy"], ["seed", "a=[", "seed=1"])
    lines = caught.value.problems
    assert lines[0].startswith(f"{broken}: not valid YAML (line 3, column 1: ")
    assert lines[1].startswith(f"{binary}: not valid YAML (")
    assert lines[2] == f"{empty}: holds no mapping of sections; write SECTION: {{KEY: VALUE}}"
    assert lines[3].startswith(f"{missing}: no such file or recipe; ")
    assert lines[4] == "debug/tooy: no such file or recipe; did you mean 'debug/toy'?"
    assert lines[5] == "'seed': neither a configuration file nor KEY=VALUE"
    assert lines[6] == "a: value '[' is not valid YAML; quote it"
    assert len(lines) == 7


# ---- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sed=1", "sed: unknown key; did you mean 'seed'?"),
        ("optim.learning_rat=1", "optim.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ("train.max_step=1", "train.max_step: unknown key; did you mean 'max_steps'?"),
        ("objective.epsilon_hi=1", "objective.epsilon_hi: unknown key; did you mean 'epsilon_high'?"),
        ("task.widht=2", "task.widht: unknown key; did you mean 'width'?"),
        ("objective.name=egpso", "objective.name: unknown objective 'egpso'; did you mean 'egspo'?"),
        ("task.name=sudok", "task.name: unknown task 'sudok'; did you mean 'sudoku'?"),
    ],
)  # fmt: skip
def test_an_unknown_key_suggests_the_nearest(override: str, line: str):
    assert problems(overrides=(override,)) == [line]


def test_a_key_like_no_other_lists_the_known_ones():
    (line,) = problems(overrides=("eval.zzz=1",))
    assert line == "eval.zzz: unknown key; known: limit, batch_size, temperature, remasking"


@pytest.mark.parametrize("bits", ["model.bf16=true", "model.dtype=bfloat16"])
def test_scored_positions_need_32_bits(bits: str):
    (line,) = problems(overrides=("sampler.score_positions=true", bits), model=dict(ADAPTED))
    assert line.startswith("sampler.score_positions: True compares confidences")
    assert line.endswith("use false, or model.dtype=float32 with model.bf16=false")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_that_are_trained_need_32_bits(dtype: str):
    (line,) = problems(overrides=(f"model.dtype={dtype}",))
    assert line.startswith(f"model.dtype: {dtype!r} without an adapter rounds most updates")
    assert parse_config(RLRun, settings(model=ADAPTED | {"dtype": dtype})).model.dtype == dtype


IMPOSSIBLE = [
    # override, the line that must be told
    (
        "sampler.max_completion_length=101",
        "sampler.max_completion_length: 101 is not a multiple of block_length 2; use 100 or 102",
    ),
    (
        "sampler.block_length=8",
        "sampler.max_completion_length: 4 is not a multiple of block_length 8; use 8",
    ),
    (
        "sampler.diffusion_steps=3",
        "sampler.diffusion_steps: 3 is not a multiple of the number of blocks, max_completion_length 4 / "
        "block_length 2 = 2; use 2 or 4",
    ),
    (
        "sampler.diffusion_steps=8",
        "sampler.diffusion_steps: 8 exceeds max_completion_length 4; use at most 4",
    ),
    (
        "sampler.temperature=0",
        "sampler.temperature: 0 explores nothing; training needs a temperature above 0",
    ),
    (
        "sampler={remasking: top_prob, score_positions: true}",
        "sampler.score_positions: True with remasking 'top_prob', which needs nothing more to be scored "
        "exactly; use false",
    ),
    (
        "sampler={score_positions: true, confidence_threshold: 0.9}",
        "sampler.score_positions: True with confidence_threshold 0.9, under which a step reveals a number of "
        "positions that is drawn too; use one of the two",
    ),
    (
        "objective.num_selected_steps=5",
        "objective.num_selected_steps: 5 exceeds sampler.diffusion_steps 4; use at most 4, or selection=all",
    ),
    ("train.num_generations=1", "train.num_generations: 1: Input should be greater than or equal to 2"),
    ("train.max_steps=-1", "train.max_steps: -1: Input should be greater than or equal to 1"),
    (
        "train.updates_per_rollout=3",
        "train.updates_per_rollout: 3 does not divide prompts_per_step 16; whole groups go to one update",
    ),
    (
        "train.load_best_model_at_end=true",
        "train.load_best_model_at_end: True needs validations; set eval_steps (now 0) between 1 and "
        "max_steps 100",
    ),
    (
        "model.model_name_or_path=x",
        "model.init: 'tiny' and model_name_or_path 'x'; set exactly one of the two",
    ),
    ("model.init=null", "model.init: None and model_name_or_path None; set exactly one of the two"),
    ("model.lora_r=8", "model.lora_r: 8 without an adapter to train; add use_peft=true"),
    (
        "model.use_peft=true",
        "model.init: 'tiny' with an adapter trains nothing but noise; drop use_peft and adapter",
    ),
    (
        "model={use_peft: false, lora_dropout: 0.1}",
        "model.lora_dropout: 0.1 would make the first ratio differ from 1; use 0 in RL (it acts in SFT)",
    ),
    ("task.reward_weights.match=.nan", "task.reward_weights.match: nan: Input should be a finite number"),
    ("task.reward_weights.best=1", "task.reward_weights: toy has no part 'best'; its parts: match, exact"),
    (
        "tracking.report_to=[trackio]",
        "tracking.report_to: 'trackio' is not installed; pip install trackio, or leave it out",
    ),
    ("model=tiny", "model: 'tiny' is not a section; write model.NAME=value or a mapping"),
    ("seed=x", "seed: 'x': Input should be a valid integer, unable to parse string as an integer"),
]


@pytest.mark.parametrize(("override", "line"), IMPOSSIBLE, ids=[override for override, _ in IMPOSSIBLE])
def test_what_is_impossible_names_field_value_and_remedy(override: str, line: str, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trackio" else name)
    assert problems(overrides=(override,)) == [line]


def test_a_sections_own_check_of_its_fields_is_told_in_a_line():
    task = {"name": "countdown", "min_target": 200, "max_target": 60}
    assert problems(task=task) == [
        "task: min_target 200 exceeds max_target 60; lower min_target to 60 or less"
    ]
    assert "task.num_numbers: 9: Input should be less than or equal to 6" in problems(
        task=task | {"num_numbers": 9}
    )


def test_validation_decodes_by_a_sampler_that_there_is():
    both = ("eval.remasking=margin", "sampler.confidence_threshold=0.9")
    assert problems(overrides=both) == [
        "eval.remasking: 'margin' for the sampler of validation, whose confidence_threshold: 0.9 with "
        "remasking 'margin', which does not go by confidence; use low_confidence or top_prob"
    ]
    # What is wrong with the sampler itself is told once.
    assert [line.partition(":")[0] for line in problems(overrides=("sampler.remasking=margin", both[1]))] == [
        "sampler.confidence_threshold"
    ]


def test_a_data_set_without_validation_split_is_refused():
    (line,) = problems(task={"name": "sudoku", "num_validation": 0})
    assert line == "task.num_validation: 0: Input should be greater than or equal to 1"


def test_steps_split_over_updates_must_divide():
    train = {"update_split": "steps", "updates_per_rollout": 2}
    (line,) = problems(train=train, objective={"name": "egspo", "num_selected_steps": 3})
    assert line == "train.updates_per_rollout: 2 does not divide the 3 selected steps"


def test_missing_and_broken_files_of_the_task_name_the_field(tmp_path: Path):
    (line,) = problems(task={"name": "sudoku", "data": str(tmp_path / "no.csv")})
    assert line.startswith(f"task.data: '{tmp_path}/no.csv': no such file: {tmp_path}/no.csv")
    # Rows are read when the task is: the error names field, file and line too.
    data = write(tmp_path / "puzzles.csv", "Puzzle,Solution\n1234,nonsense\n")
    run = parse_config(RLRun, settings(task={"name": "sudoku", "data": str(data)}))
    from egspo.tasks.sudoku import Task

    with pytest.raises(ValueError, match=f"task.data: {re.escape(str(data))}:2: "):
        Task(run.task).load("test")


def test_all_problems_are_told_together(tmp_path: Path):
    """Fields, what does not fit within a section, and what does not fit between sections, in one go."""
    lines = problems(
        overrides=("sed=1",),
        task={"name": "sudoku", "num_validation": 0, "data": "no.csv", "reward_weights": {"x": 1}},
        sampler={"max_completion_length": 20, "block_length": 8, "diffusion_steps": 6, "temperature": 0},
        objective={"name": "egspo", "num_selected_steps": 9},
        train={"num_generations": 1, "load_best_model_at_end": True},
        optim={"learning_rate": -1},
        model={"init": "huge"},
    )
    starts = [
        "model.init: 'huge': Input should be 'tiny'",
        "task.data: 'no.csv': no such file",
        "task.num_validation: 0: ",
        "sampler.max_completion_length: 20 is not a multiple of block_length 8; use 16 or 24",
        "objective.num_selected_steps: 9 exceeds sampler.diffusion_steps 6",
        "train.num_generations: 1: ",
        "train.load_best_model_at_end: True needs validations",
        "optim.learning_rate: -1: ",
        "sed: unknown key; did you mean 'seed'?",
        "task.reward_weights: sudoku has no part 'x'",
        "sampler.temperature: 0 explores nothing",
    ]
    for start in starts:
        assert [line for line in lines if line.startswith(start)], start
    assert len(lines) == len(starts)


def test_a_wrong_field_raises_no_second_complaint_about_its_default():
    """block_length 0 is wrong; that its default 32 does not divide the length 4 is nobody's concern."""
    (line,) = problems(overrides=("sampler.block_length=0",))
    assert line == "sampler.block_length: 0: Input should be greater than or equal to 1"
    (line,) = problems(overrides=("objective.num_selected_steps=0", "sampler.diffusion_steps=2"))
    assert line.startswith("objective.num_selected_steps: 0: ")


def test_everything_that_is_missing_is_told():
    with pytest.raises(ConfigError) as caught:
        parse_config(RLRun, {})
    lines = [
        f"{key}: missing; set it in a file or as {key}=VALUE"
        for key in ("output_dir", "model", "task", "objective")
    ]
    assert caught.value.problems == lines
    assert problems(task={})[0].startswith("task.name: missing; known: code, countdown, ")


def test_sft_needs_something_to_learn_from(tmp_path: Path):
    base = {"output_dir": "x", "model": {"init": "tiny"}}
    with pytest.raises(ConfigError, match=r"^task: missing; set task.name, sft.data or sft.dataset"):
        parse_config(SFTRun, base)
    data = write(tmp_path / "pairs.jsonl", "{}")
    run = parse_config(SFTRun, base | {"sft": {"data": str(data)}})
    assert run.task is None
    with pytest.raises(ConfigError, match=r"^sft.eval_steps: 5 validates on a task"):
        parse_config(SFTRun, base | {"sft": {"data": str(data), "eval_steps": 5}})
    wrong = {
        "data": str(tmp_path / "no"),
        "dataset": "name",
        "target_score": 0.5,
        "max_steps": 10,
        "eval_steps": 11,
    }
    with pytest.raises(ConfigError) as caught:
        parse_config(SFTRun, base | {"sft": wrong})
    assert caught.value.problems == [
        "sft.target_score: 0.5 needs validations; set eval_steps (now 11) between 1 and max_steps 10",
        f"sft.data: {tmp_path}/no and dataset 'name' are both set; keep one",
        f"sft.data: no such file: {tmp_path}/no; give the path of a JSON lines file",
        "sft.eval_steps: 11 validates on a task; set task.name, or 0",
    ]


def test_sections_check_themselves_when_made_directly():
    for make, wrong in (
        (SamplerConfig, {"max_completion_length": 5, "block_length": 2}),
        (ModelConfig, {}),
        (TrainConfig, {"prompts_per_step": 3, "updates_per_rollout": 2}),
        (SFTConfig, {"target_score": 0.5}),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong), "init")):
            make(**wrong)


def test_one_section_alone():
    sampler = parse_section(
        RLRun, "sampler", {"max_completion_length": 8, "block_length": 8, "diffusion_steps": 8}
    )
    assert (sampler.max_completion_length, sampler.temperature) == (8, 1.0)
    with pytest.raises(ConfigError, match=r"^sampler.stepps: unknown key"):
        parse_section(RLRun, "sampler", {"stepps": 8})


# ---- what is written down ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RLRun, SFTRun])
def test_the_resolved_configuration_reloads_as_it_is(kind, tmp_path: Path):
    values = settings(
        optim={"learning_rate": 1e-4, "adam_epsilon": 1e-8}, tracking={"report_to": ["tensorboard"]}
    )
    values["task"] = {"name": "sudoku", "blanks": [6, 8], "reward_weights": {"solved": 2.0}}
    if kind is SFTRun:
        del values["objective"]
    run = parse_config(kind, values)
    file = write(tmp_path / "config.json", run.model_dump_json(indent=2))
    again = load_config(kind, [file])
    assert again == run
    assert again.model_dump_json() == run.model_dump_json()
    # Every setting is there, those that nobody set included.
    assert json.loads(file.read_text())["optim"]["adam_beta2"] == 0.99


def test_sft_without_a_task_reloads_too(tmp_path: Path):
    data = write(tmp_path / "pairs.jsonl", "{}")
    values = {"output_dir": "x", "model": {"init": "tiny"}, "sft": {"data": str(data)}}
    run = parse_config(SFTRun, values)
    assert load_config(SFTRun, [write(tmp_path / "config.json", run.model_dump_json())]) == run


# ---- recipes -------------------------------------------------------------------------------------------


def test_there_are_recipes():
    assert len(DEBUG) >= 3
    assert PARTS


@pytest.mark.parametrize("name", DEBUG)
def test_a_debug_recipe_is_a_complete_run(name: str):
    run = load_config(RLRun, [name])
    shipped = (run.model.model_name_or_path or "").startswith("tiny:")
    assert run.model.init is not None or shipped, "a debug recipe needs no checkpoint"
    assert run.output_dir.parts[0] == "runs"


@pytest.mark.parametrize("name", PARTS)
def test_a_recipe_holds_known_settings(name: str):
    values = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
    for key, value in values.items():
        kinds = [kind for kind in (RLRun, SFTRun) if key in kind.model_fields]
        assert kinds, f"{name}: {key}"
        if isinstance(value, dict):
            parse_section(kinds[0], key, value)


@pytest.mark.parametrize("name", PARTS)
def test_a_recipe_is_complete_after_what_its_first_line_names(name: str):
    """``# What it is (after sudoku/task): …`` says what to compose it with."""
    first = RECIPES[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# "), "egspo list recipes shows the first line"
    if after := re.search(r"\(after ([^)]+)\)", first):
        values = yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))
        load_config(SFTRun if "sft" in values else RLRun, [*after[1].split(), name])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_recipe_composes_with_sft_and_rl(name: str):
    """Neither brings what the other does not know."""
    task = ["task.name=sudoku", "output_dir=x"]
    tuned = load_config(SFTRun, [name], [*task, "sft.max_steps=5"])
    trained = load_config(RLRun, [name, "objectives/egspo-sa-paper"], task)
    assert tuned.model == trained.model
    shape = (
        trained.sampler.max_completion_length,
        trained.sampler.diffusion_steps,
        trained.sampler.block_length,
    )
    assert shape == (256, 128, 32)
    assert (trained.model.lora_r, trained.model.lora_alpha, trained.model.dtype) == (128, 64, "bfloat16")
    assert hub_repository(trained.model.model_name_or_path)
    # Every target is a linear layer of the family's blocks.
    family = families()["llada" if "llada" in name else "dream"]
    assert set(trained.model.lora_target_modules) <= set(family.lora_targets)


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_is_the_published_setting_on_the_published_model(name: str):
    """Complete on its own, and of one mind with the parts that can be composed instead."""
    run = load_config(RLRun, [name])
    model, _, task = name.removeprefix("paper/").rpartition("-")
    assert run.task.name == task
    composed = load_config(
        RLRun, [f"models/{model}", "objectives/egspo-sa-paper"], [f"task.name={task}", "output_dir=x"]
    )
    for section in ("model", "objective", "optim", "sampler"):
        assert getattr(run, section) == getattr(composed, section), section
    published = compose(["objectives/egspo-sa-paper"])["train"]
    assert {key: getattr(run.train, key) for key in published} == published
    # 8 GPUs of 6 sequences, four optimizer steps on them.
    assert run.train.prompts_per_step * run.train.num_generations == 48
    assert run.output_dir.name == f"{model}-{task}"


ROWS = {
    "gsm8k": '{{"question": "What is {0} + 1?", "answer": "#### {0}"}}',
    "math500": '{{"problem": "What is {0} + 1?", "answer": "{0}"}}',
    "code": '{{"question": "Add {0} to x.", "test": "assert f(1) == {0} + 1"}}',
}


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_recipe_passes_a_dry_run_without_a_network(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    task = name.rpartition("-")[2]
    few = ["task.num_train=20", "task.num_validation=10", "task.num_test=10"]
    if task in ROWS:  # a data set of the hub: a few problems in its layout instead
        file = tmp_path / "problems.jsonl"
        file.write_text("".join(ROWS[task].format(i) + "\n" for i in range(40)), encoding="utf-8")
        few = [f"task.train_data={file}", "task.num_validation=10", "task.num_test=10"]
    before = sorted(tmp_path.iterdir())
    ended = runs.egspo("train", name, *few, "--dry-run")
    assert ended.code == 0, ended
    assert "rollout      48 completions x 128 passes = 6144 an iteration" in ended.out
    assert "updates      4 an iteration" in ended.out
    assert sorted(tmp_path.iterdir()) == before


def test_a_departure_of_a_paper_recipe_is_marked():
    """What differs from d1's and EGSPO's stated settings stands beside a comment that says so."""
    departs = (
        "lora_dropout",
        "load_in_4bit",
        "selection",
        "max_steps",
        "max_prompt_length",
        "load_best_model_at_end",
    )
    for name in PAPER:
        lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
        for key in departs:
            (line,) = [line for line in lines if line.strip().startswith(f"{key}:")]
            assert "published:" in line, (name, line)


@pytest.mark.parametrize("path", ACCELERATE, ids=[path.stem for path in ACCELERATE])
def test_accelerate_reads_its_files(path: Path):
    config = load_config_from_file(str(path))
    processes = int(re.match(r"[0-9]+", path.stem)[0]) if path.stem[0].isdigit() else 1
    assert config.num_processes == processes
    assert str(config.distributed_type).endswith("MULTI_GPU" if processes > 1 else "NO")
    assert f"--config_file recipes/accelerate/{path.name}" in path.read_text(encoding="utf-8")


def test_files_of_accelerate_are_no_recipes():
    assert len(ACCELERATE) >= 2
    assert not [name for name in RECIPES if name.startswith("accelerate")]
    with pytest.raises(ConfigError, match=r"^accelerate/single-gpu: no such file or recipe"):
        find_recipe("accelerate/single-gpu")


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_slurm_script_starts_a_process_a_gpu(nodes: int, tmp_path: Path):
    """With stand-ins for SLURM's own commands."""
    for command, does in {"srun": 'printf "%s\\n" "$@"', "scontrol": "seq -f node%g 5 7"}.items():
        (tmp_path / command).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / command).chmod(0o755)
    script = recipe_folder() / "slurm" / "train.sh"
    job = {"SLURM_JOB_ID": "71234", "SLURM_JOB_NODELIST": "node[5-7]", "SLURM_JOB_NUM_NODES": str(nodes)}
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_GPUS_ON_NODE": "4", **job}
    arguments = ["bash", str(script), "debug/toy", "train.max_steps=2"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=True)
    words = done.stdout.splitlines()
    assert words[-5:] == ["-m", "egspo", "train", "debug/toy", "train.max_steps=2"]
    assert {f"--ntasks={nodes}", f"--nnodes={nodes}", "--nproc_per_node=4", "torchrun"} <= set(words)
    # 20000 + 71234 mod 20000
    assert "--rdzv_endpoint=node5:31234" in words
    assert subprocess.run(arguments[:2], capture_output=True, env=environment, check=False).returncode == 2

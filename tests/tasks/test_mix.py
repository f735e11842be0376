"""Several tasks in one run: settings, dispatch, shares, and that no part touches another task's numbers."""

import json
from collections import Counter
from pathlib import Path

import pytest

import runs
from egspo import registry
from egspo.config import RLRun, SFTRun, parse_config, parse_section
from egspo.data import encode_problems, solved
from egspo.evaluation import evaluate, summarise
from egspo.rewards import TaskScorer
from egspo.tasks.base import SPLITS

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {"prompt": "compact", "num_train": 60, "num_validation": 20, "num_test": 10}
SUDOKU = {"name": "sudoku", **SMALL}
COUNTDOWN = {"name": "countdown", **SMALL, "max_number": 40}
TOY = {"name": "toy", "prompt": "compact"}


def mix(*tasks: dict, **settings):
    return registry.make_task(parse_section(RLRun, "task", {"name": "mix", "tasks": list(tasks), **settings}))


def told(*tasks, **settings) -> list[str]:
    """What is told about a mix in a configuration."""
    values = runs.RL | {"output_dir": "x", "task": {"name": "mix", "tasks": list(tasks), **settings}}
    with pytest.raises(ValueError) as caught:
        parse_config(RLRun, values)
    return str(caught.value).splitlines()


# ---- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"name": "sudok"}, "name: unknown task 'sudok'; did you mean 'sudoku'?"),
        ({"weight": 1}, "name: missing; known: "),
        ({**SUDOKU, "num_trian": 5}, "num_trian: unknown key; did you mean 'num_train'?"),
        ({**SUDOKU, "num_train": 0}, "num_train: 0: Input should be greater than or equal to 1"),
        ({**TOY, "weight": 0}, "weight: 0: Input should be greater than 0"),
        ({**TOY, "weight": float("inf")}, "weight: inf: Input should be a finite number"),
        ({**TOY, "wieght": 1}, "wieght: unknown key; did you mean 'weight'?"),
        ({**TOY, "label": "a/b"}, "label: 'a/b': String should match pattern"),
        ({**TOY, "prompt": "paper"}, "prompt: toy has no prompt 'paper'; use instruct or compact"),
        ({**TOY, "reward_weights": {"cells": 1}}, "reward_weights: toy has no part 'cells'"),
        (TOY, "label: two tasks are called 'toy'; give this one another"),
        ({"name": "mix", "tasks": [TOY]}, "name: a mix holds no mix; list its tasks beside the others"),
        ({"path": "no.py"}, "path: no such file: "),
    ],
)
def test_a_task_in_a_mix_is_checked_as_one_alone_and_named_by_its_place(entry: dict, line: str):
    (found,) = told(TOY if entry is TOY else COUNTDOWN, entry)
    assert found.startswith(f"task.tasks.1.{line}")


def test_all_that_is_wrong_with_a_mix_is_told_at_once():
    lines = told({**SUDOKU, "num_test": 0}, 5, {**TOY, "widht": 1}, data="no.jsonl")
    assert sorted(line.split(":")[0] for line in lines) == [
        "task.data",
        "task.tasks.0.num_test",
        "task.tasks.1",
        "task.tasks.2.widht",
    ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"data": __file__}, "a mix reads no file; set data in the entries of task.tasks"),
        ({"reward_weights": {"toy/match": 2.0}}, "a mix has no part 'toy/match'; set weights in the entries"),
        ({"step_reward_weights": {"match": 2.0}}, "a mix has no part 'match'; set weights in the entries"),
    ],
)
def test_what_belongs_to_a_task_is_not_set_on_the_mix(settings: dict, line: str):
    (found,) = told(TOY, **settings)
    assert line in found


def test_what_is_found_out_late_names_its_task_too():
    without = {"name": "custom", "reward": f"{EXAMPLES / 'rewards.py'}:capitals"}
    with pytest.raises(ValueError, match=r"^task\.tasks\.1\.train_data: custom has no train problems"):
        mix(TOY, without).load("test")


def test_seed_and_prompt_of_the_mix_are_those_of_all_tasks():
    task = mix({**TOY, "seed": 3}, {**COUNTDOWN, "prompt": "instruct"}, seed=5, prompt="compact")
    assert [(one.config.seed, one.config.prompt) for one in task.tasks.values()] == [(5, "compact")] * 2
    assert [one.config.seed for one in mix({**TOY, "seed": 3}, COUNTDOWN).tasks.values()] == [3, 0]


def test_the_settings_can_be_written_down_and_read_again():
    task = mix({**SUDOKU, "weight": 2}, {**COUNTDOWN, "label": "forty"}, seed=1)
    values = json.loads(task.config.model_dump_json())
    again = registry.make_task(parse_section(RLRun, "task", values))
    assert again.config == task.config
    assert [again.load(split) for split in SPLITS] == [task.load(split) for split in SPLITS]


def test_an_entry_is_changed_by_its_number(tmp_path: Path):
    file = tmp_path / "mix.yaml"
    file.write_text(json.dumps({"task": {"name": "mix", "tasks": [TOY, SUDOKU]}}))
    line = "task.tasks.1.num_train=7"
    ended = runs.egspo("train", "debug/toy", str(file), line, "task.prompt=compact", "--dry-run")
    # 80 pairs of digits to train on, and 7 puzzles.
    assert ended.code == 0 and "mix: 87 train, 30 validation" in ended.out.replace("\n", " "), ended
    assert "1 toy/match, 1 sudoku/cells" in ended.out
    ended = runs.egspo("train", "debug/toy", str(file), "task.tasks.2.seed=1", "--dry-run")
    assert (ended.code, ended.err) == (2, "egspo: tasks.2: there are 2 of them, numbered from 0\n")


# ---- problems ------------------------------------------------------------------------------------------


def test_every_problem_of_every_task_is_there_and_any_beginning_has_the_shares_of_the_whole():
    task = mix(SUDOKU, COUNTDOWN, TOY)
    for split in SPLITS:
        prompts, sizes = task.load(split), {}
        for label, one in task.tasks.items():
            own = [prompt for prompt in prompts if prompt.fields["task"] == label]
            assert [(p.id, p.messages, p.solution) for p in own] == [
                (f"{label}/{p.id}", p.messages, p.solution) for p in one.load(split)
            ]
            sizes[label] = len(own)
        assert sum(sizes.values()) == len(prompts)
        for num in range(1, len(prompts) + 1):
            counts = Counter(prompt.fields["task"] for prompt in prompts[:num])
            # A task's i-th problem stands at (i + 1/2) / n of the list: never one place off its share.
            assert all(abs(counts[name] - num * n / len(prompts)) <= 1 for name, n in sizes.items())


def test_two_settings_of_one_task_are_two_tasks():
    task = mix({**COUNTDOWN, "label": "small"}, {**COUNTDOWN, "label": "large", "max_number": 90})
    assert set(task.parts) == {
        f"{label}/{part}" for label in ("small", "large") for part in ("correct", "formed", "closeness")
    }
    assert task.max_number_token == 100  # the larger of max_number and max_target, of the larger task
    assert mix(TOY).max_number_token is None
    assert mix(TOY, {**COUNTDOWN, "max_target": 30}).max_number_token == 40


def test_a_task_whose_problems_say_task_themselves_cannot_be_mixed(tmp_path: Path):
    data = tmp_path / "own.jsonl"
    data.write_text('{"prompt": "a", "task": "x"}\n')
    (tmp_path / "mine.py").write_text("def f(completions, **_):\n    return [1.0] * len(completions)\n")
    task = mix(TOY, {"name": "custom", "data": str(data), "reward": f"{tmp_path / 'mine.py'}:f"})
    with pytest.raises(ValueError, match=r"^task\.tasks\.1\.name: own\.jsonl:1 has a field 'task'"):
        task.load("test")


# ---- grades --------------------------------------------------------------------------------------------


def test_grades_are_those_of_the_tasks_one_by_one_and_at_once():
    task = mix(SUDOKU, COUNTDOWN, TOY)
    prompts = task.load("test")
    texts = [prompt.solution if place % 3 else "7" for place, prompt in enumerate(prompts)]
    at_once = task.grade_all(texts, [prompt.fields for prompt in prompts])
    for text, prompt, grade in zip(texts, prompts, at_once, strict=True):
        label = prompt.fields["task"]
        own = {key: value for key, value in prompt.fields.items() if key != "task"}
        alone = task.tasks[label].grade(text, own)
        assert task.grade(text, prompt.fields) == grade
        assert (grade.correct, grade.extracted, grade.reason) == (
            alone.correct,
            alone.extracted,
            alone.reason,
        )
        assert grade.parts == {f"{label}/{name}": value for name, value in alone.parts.items()}
        assert grade.counts == {label: (int(alone.correct), 1)} | {
            f"{label}/{name}": pair for name, pair in alone.counts.items()
        }


def test_weights_of_parts_are_each_tasks_own():
    """Countdown's default is 1 for correct and 0.1 for formed, of which steps are rewarded by the former."""
    task = mix(
        {**COUNTDOWN, "reward_weights": {"closeness": 0.5}},
        {**TOY, "reward_weights": {"match": 3.0}, "step_reward_weights": {"exact": 4.0}},
    )
    assert task.reward_weights == {
        "countdown/correct": 1.0,
        "countdown/formed": 0.1,
        "countdown/closeness": 0.5,
        "toy/match": 3.0,
        "toy/exact": 0.0,
    }
    assert task.step_reward_weights == {
        "countdown/correct": 1.0,
        "countdown/formed": 0.0,
        "countdown/closeness": 0.5,
        "toy/match": 0.0,
        "toy/exact": 4.0,
    }


def test_rewards_are_those_of_each_task_and_other_tasks_parts_do_not_apply():
    task = mix(COUNTDOWN, TOY)
    prompts = task.load("test")[:6]
    totals, parts, _ = TaskScorer(task).final(prompts, [prompt.solution for prompt in prompts])
    assert totals == [1.0] * 6
    labels = [prompt.fields["task"] for prompt in prompts]
    assert set(labels) == {"countdown", "toy"}
    assert parts["toy/match"] == [1.0 if label == "toy" else None for label in labels]
    assert parts["countdown/correct"] == [None if label == "toy" else 1.0 for label in labels]


PUBLISHED = """

class Task(Task):
    name = "published"

    def paper_grade(self, completion, fields):
        return Grade(completion == "yes", {"sorted": 1.0}, None, "as published", {"places": (1, 2)})
"""


def test_the_published_graders_are_those_of_the_tasks(tmp_path: Path):
    file = tmp_path / "published.py"
    file.write_text((EXAMPLES / "my_task.py").read_text() + PUBLISHED)
    task = mix(TOY, {"path": str(file), "num_train": 5, "num_validation": 5, "num_test": 5})
    published, toy = (
        next(p for p in task.load("test") if p.fields["task"] == n) for n in ("published", "toy")
    )
    grade = task.paper_grade("yes", published.fields)
    assert (grade.correct, grade.reason) == (True, "as published")
    assert grade.parts == {"published/sorted": 1.0}
    assert grade.counts == {"published": (1, 1), "published/places": (1, 2)}
    with pytest.raises(ValueError, match="task 'toy' has no published grader"):
        task.paper_grade("1", toy.fields)


@pytest.mark.parametrize("fields", [{}, {"task": "sudok"}, {"task": ["toy"]}, {"task": None}])
def test_a_problem_of_no_task_is_a_data_error(fields: dict):
    with pytest.raises(ValueError, match=r"^task: .* is not in the mix; give one of sudoku, toy$"):
        mix(SUDOKU, TOY).grade("1", fields)


def test_saved_generations_are_graded_by_the_task_that_each_line_names(tmp_path: Path):
    file = tmp_path / "generations.jsonl"
    rows = [
        {"generation": "33", "task": "toy", "answer": "33"},
        {"generation": "1+2", "task": "countdown", "numbers": [1, 2], "target": 3},
        {"generation": "33", "answer": "33"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = json.dumps([{"name": "toy"}, {"name": "countdown", "prompt": "compact"}])
    ended = runs.egspo("grade", "--task", "mix", str(file), f"task.tasks={tasks}")
    verdicts = [json.loads(line) for line in ended.out.splitlines()[:-1]]
    assert [verdict["correct"] for verdict in verdicts] == [True, True, False]
    assert verdicts[2]["reason"] == "line 3: no field task"
    assert ended.out.splitlines()[-1].startswith("accuracy 0.6667 (2/3")


# ---- runs ----------------------------------------------------------------------------------------------

MIXED = {
    "name": "mix",
    "tasks": [{**TOY, "weight": 3}, {**COUNTDOWN, "max_number": 30, "max_target": 40, "operators": "+-"}],
}
CANVAS = {"sampler": {"max_completion_length": 8, "block_length": 8, "diffusion_steps": 4}}


def settings(base: dict, folder: Path, **sections) -> dict:
    return {**base, "output_dir": str(folder), "task": MIXED, **CANVAS, **sections}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """SFT on a mix of which the smaller task has the larger share, and RL from there."""
    folder = tmp_path_factory.mktemp("mix")
    sft = settings(runs.SFT, folder / "sft", sft={"max_steps": 60, "batch_size": 64, "eval_steps": 60})
    (folder / "sft.json").write_text(json.dumps(sft))
    rl = settings(runs.RL, folder / "rl", model={"model_name_or_path": str(folder / "sft/model")})
    # Two prompts a step, so that some iterations see one task only.
    rl["train"] = {"max_steps": 8, "prompts_per_step": 2, "num_generations": 4, "num_transcripts": 8}
    (folder / "rl.json").write_text(json.dumps(rl))
    for kind in ("sft", "train"):
        ended = runs.egspo(kind, str(folder / f"{'sft' if kind == 'sft' else 'rl'}.json"))
        assert ended.code == 0, ended
    return folder


def test_sft_learns_from_all_tasks(run: Path):
    summary = json.loads((run / "sft/eval/validation-000060.json").read_text())
    assert summary["task"] == "mix"
    counts = summary["counts"]
    assert counts["toy"]["of"] + counts["countdown"]["of"] == summary["n"] == 30
    assert counts["toy"]["right"] + counts["countdown"]["right"] == summary["correct"]
    # A toy task that is learnt within seconds alone, with three quarters of the examples here.
    assert counts["toy"]["share"] > 0.5


def test_metrics_hold_each_part_over_the_samples_that_it_applies_to(run: Path):
    lines, samples = runs.rows(run / "rl"), runs.rows(run / "rl", "transcripts.jsonl")
    keys = {f"reward/toy/{name}" for name in ("match", "exact")}
    keys |= {f"reward/countdown/{name}" for name in ("correct", "formed", "closeness")}
    seen = set()
    for line in lines:
        assert keys <= set(line)
        own = [sample for sample in samples if sample["step"] == line["step"]]
        assert len(own) == 8
        labels = {sample["id"].split("/")[0] for sample in own}
        seen.add(frozenset(labels))
        for key in keys:
            part = key.removeprefix("reward/")
            values = [sample["parts"][part] for sample in own if part in sample["parts"]]
            if part.split("/")[0] in labels:
                assert line[key] == pytest.approx(sum(values) / len(values))
            else:
                assert line[key] is None and not values
    # The test would show nothing if no iteration had been of one task alone.
    assert frozenset({"toy"}) in seen and frozenset({"toy", "countdown"}) in seen


def test_a_model_of_a_mix_is_evaluated_on_it_or_on_a_task_of_it_as_it_was_trained(run: Path):
    ended = runs.egspo("eval", str(run / "rl"), "--limit", "10")
    assert ended.code == 0 and ", toy " in ended.out and ", countdown " in ended.out
    for arguments, task, n in (
        (["--task", "countdown"], "countdown", 10),
        (["--task", "toy", "task.width=1"], "toy", 10),
    ):
        out = run / f"{task}.json"
        assert runs.egspo("eval", str(run / "rl"), *arguments, "--out", str(out)).code == 0
        summary = json.loads(out.read_text())
        assert (summary["task"], summary["n"]) == (task, n)
    # The compact prompt of training, not the default.
    assert all(len(item["prompt"]) == 2 for item in runs.rows(run, f"{task}.jsonl"))
    assert runs.egspo("report", str(run / "rl")).code == 0


def test_accuracy_by_task_adds_up(tiny_policy):
    task = mix(COUNTDOWN, TOY)
    prompts = task.load("test")
    config = parse_section(RLRun, "sampler", CANVAS["sampler"])
    _, items = evaluate(tiny_policy(), task, prompts, config)
    for place, item in enumerate(items):
        item["correct"] = place % 3 == 0
        label = prompts[place].fields["task"]
        item["counts"] = {label: [int(item["correct"]), 1]}
    summary = summarise(items, task)
    assert {name: count["of"] for name, count in summary["counts"].items()} == {"countdown": 10, "toy": 10}
    assert sum(count["right"] for count in summary["counts"].values()) == summary["correct"] == 7
    assert summary["task_version"] == "1 (countdown 3, toy 1)"


def test_a_task_without_solutions_has_no_place_in_sft(tiny_policy, tmp_path: Path):
    data = tmp_path / "own.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}"}) + "\n" for n in range(12)))
    (tmp_path / "mine.py").write_text("def f(completions, **_):\n    return [1.0] * len(completions)\n")
    own = {"name": "custom", "train_data": str(data), "reward": f"{tmp_path / 'mine.py'}:f"}
    own |= {"num_validation": 2, "num_test": 2}
    values = settings(runs.SFT, tmp_path / "x", task={"name": "mix", "tasks": [TOY, own]})
    task = registry.make_task(parse_config(SFTRun, values).task)
    with pytest.raises(ValueError, match=r"^task\.tasks: no problem of 'custom' has a solution"):
        encode_problems(tiny_policy(), solved(task), 20, "sft.max_prompt_length", task.train_weights)

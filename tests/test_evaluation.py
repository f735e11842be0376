"""Evaluation: the summary, that no batch or interruption changes an answer, few-shot prompts, the log."""

import contextlib
import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

import runs
from egspo import evaluation, registry
from egspo.answerlog import AnswerLog, fingerprints
from egspo.config import EvalConfig, SamplerConfig
from egspo.evaluation import draw_examples, evaluate, summarise
from egspo.ops.intervals import clustered_wilson, wilson
from egspo.policy import Policy
from egspo.sandbox import SandboxConfig
from egspo.tracking import write_evaluation

SAMPLER = SamplerConfig(max_completion_length=4, block_length=2, diffusion_steps=4)


def item(correct: bool, reward: float, index: int = 0, seed: int = 0, **counts: tuple[int, int]) -> dict:
    return {
        "index": index,
        "seed": seed,
        "correct": correct,
        "reward": reward,
        "counts": {name: list(pair) for name, pair in counts.items()},
    }


def test_the_summary_counts_by_hand():
    """Two of three right; cells 10 of 16 and 6 of 8 make 16 of 24; words only in the second: 1 of 4."""
    items = [
        item(True, 1.0, cells=(10, 16)),
        item(False, 0.25, 1, cells=(6, 8), words=(1, 4)),
        item(True, 0.5, 2),
    ]
    summary = summarise(items, registry.load_task("toy"))
    assert (summary["n"], summary["correct"]) == (3, 2)
    assert summary["accuracy"] == 2 / 3
    assert summary["ci95"] == list(wilson(2, 3))
    assert summary["reward"] == 1.75 / 3
    assert summary["counts"] == {
        "cells": {"right": 16, "of": 24, "share": 16 / 24},
        "words": {"right": 1, "of": 4, "share": 0.25},
    }
    # In the order in which they first occur, whatever the hash seed of the process.
    assert list(summary["counts"]) == ["cells", "words"]


def test_the_summary_of_nothing_divides_by_nothing():
    summary = summarise([], registry.load_task("toy"))
    assert (summary["n"], summary["accuracy"], summary["reward"]) == (0, 0.0, 0.0)


def answers(*right: str, seed: int = 0) -> list[dict]:
    """One word a problem: ``+`` for each right completion, ``-`` for each wrong one."""
    return [item(mark == "+", 0.0, i, seed) for i, word in enumerate(right) for mark in word]


def test_pass_at_k_is_a_mean_over_problems():
    """Of 4 completions 1, 0 and 4 are right: pass@1 is (1/4 + 0 + 1) / 3, pass@2 (1 - 3/6 + 0 + 1) / 3."""
    summary = summarise(answers("+---", "----", "++++"), registry.load_task("toy"), [1, 2])
    assert summary["pass_at_k"]["1"]["value"] == pytest.approx(1.25 / 3)
    assert summary["pass_at_k"]["2"]["value"] == pytest.approx(1.5 / 3)
    assert (summary["n"], summary["num_problems"], summary["accuracy"]) == (12, 3, 5 / 12)
    # Problems are the independent units, of values 1/4, 0 and 1 (pass@1), 1/2, 0 and 1 (pass@2).
    assert summary["ci95"] == pytest.approx(clustered_wilson([0.25, 0, 1], 12))
    assert summary["pass_at_k"]["1"]["ci95"] == pytest.approx(summary["ci95"])
    assert summary["pass_at_k"]["2"]["ci95"] == pytest.approx(clustered_wilson([0.5, 0, 1], 12))
    # Twelve answers of three problems tell less than twelve of twelve problems.
    assert summary["ci95"][1] - summary["ci95"][0] > 1.3 * (wilson(5, 12)[1] - wilson(5, 12)[0])


def test_seeds_have_rows_and_a_mean_with_students_interval():
    """Accuracies 1/2, 1 and 0 of three seeds: mean 1/2, s = 1/2, half width 4.3027 / 2 / sqrt(3) > 1/2."""
    found = answers("+", "-") + answers("+", "+", seed=4) + answers("-", "-", seed=5)
    summary = summarise(found, registry.load_task("toy"), [1], [["a"], ["b"], ["c"]])
    assert [row["seed"] for row in summary["by_seed"]] == [0, 4, 5]
    assert [row["accuracy"] for row in summary["by_seed"]] == [0.5, 1.0, 0.0]
    assert [row["fewshot"] for row in summary["by_seed"]] == [["a"], ["b"], ["c"]]
    assert summary["by_seed"][0]["ci95"] == list(wilson(1, 2))
    assert summary["over_seeds"] == {"accuracy": 0.5, "ci95": [0.0, 1.0]}
    # Both problems are asked by each seed: values 2/3 and 1/3.
    assert summary["ci95"] == pytest.approx(clustered_wilson([2 / 3, 1 / 3], 6))
    # pass@1 of a problem is the mean of its estimates by seed.
    assert summary["pass_at_k"]["1"]["value"] == pytest.approx(0.5)
    assert summarise(answers("+"), registry.load_task("toy"))["over_seeds"] is None


def test_evaluation_is_greedy_and_decodes_as_training_unless_told():
    trained = SAMPLER.model_copy(update={"temperature": 1.5, "remasking": "top_prob", "cfg_scale": 1.0})
    plain = EvalConfig().sampler(trained)
    assert plain == trained.model_copy(update={"temperature": 0.0})
    told = EvalConfig(temperature=0.5, remasking="random").sampler(trained)
    assert told == trained.model_copy(update={"temperature": 0.5, "remasking": "random"})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_batch_size_changes_an_item(tiny_policy, temperature: float):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact")
    sampler = SAMPLER.model_copy(update={"temperature": temperature})
    prompts = task.load("test")
    done: list[int] = []
    summary, whole = evaluate(policy, task, prompts, sampler, batch_size=64, seed=1)
    _, parts = evaluate(policy, task, prompts, sampler, batch_size=3, seed=1, progress=done.append)
    assert parts == whole
    assert done == [3, 6, 9, 10]
    assert [entry["index"] for entry in whole] == list(range(10))
    # A problem's text depends on its place and seed alone, so fewer problems are the first of them.
    _, few = evaluate(policy, task, prompts[:4], sampler, seed=1)
    assert few == whole[:4]
    _, other = evaluate(policy, task, prompts, sampler, seed=2)
    assert ([e["completion"] for e in other] == [e["completion"] for e in whole]) == (temperature == 0)
    assert summary["model"] == "test"
    assert (summary["split"], summary["seed"], summary["temperature"]) == ("test", 1, temperature)
    assert (summary["diffusion_steps"], summary["block_length"]) == (4, 2)


def test_samples_and_seeds_are_as_many_evaluations(tiny_policy):
    """The first sample of a seed is what one sample gives; no other answer changes it."""
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact")
    sampler = SAMPLER.model_copy(update={"temperature": 1.0})
    prompts = task.load("test")
    summary, items = evaluate(policy, task, prompts, sampler, 7, seed=[3, 1], num_samples=3)
    assert [(i["seed"], i["index"], i["sample"]) for i in items] == list(product([3, 1], range(10), range(3)))
    assert (summary["seeds"], summary["num_samples"], summary["n"]) == ([3, 1], 3, 60)
    assert list(summary["pass_at_k"]) == ["1", "3"]
    for seed in (3, 1):
        _, alone = evaluate(policy, task, prompts, sampler, seed=seed)
        assert [i for i in items if (i["seed"], i["sample"]) == (seed, 0)] == alone
    texts = {(i["seed"], i["sample"]): [] for i in items}
    for entry in items:
        texts[entry["seed"], entry["sample"]].append(entry["completion"])
    assert len({tuple(column) for column in texts.values()}) == 6
    _, again = evaluate(policy, task, prompts, sampler, 64, seed=[3, 1], num_samples=3)
    assert again == items


def test_what_cannot_differ_is_refused(tiny_policy):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact")
    prompts = task.load("test")
    same = "are all the same at temperature 0; set sampler.temperature=0.8, or another above 0"
    greedy = SAMPLER.model_copy(update={"temperature": 0.0})
    with pytest.raises(ValueError, match=f"^num_samples: 4 completions of a problem {same}, or draw one$"):
        evaluate(policy, task, prompts, greedy, num_samples=4)
    with pytest.raises(ValueError, match=f"^seeds: answers of 2 seeds {same}, or give one seed$"):
        evaluate(policy, task, prompts, greedy, seed=[0, 1])
    with pytest.raises(ValueError, match=r"^seeds: \[1, 1\]; give one or more, each once$"):
        evaluate(policy, task, prompts, SAMPLER, seed=[1, 1])
    with pytest.raises(ValueError, match=r"^pass_at_k: 5 is not between 1 and num_samples 4; draw at least"):
        evaluate(policy, task, prompts, SAMPLER, num_samples=4, pass_at_k=[1, 5])
    with pytest.raises(ValueError, match=r"^num_samples: 0; draw at least 1"):
        evaluate(policy, task, prompts, SAMPLER, num_samples=0)
    # Positions drawn at random differ at any temperature.
    drawn = greedy.model_copy(update={"remasking": "random"})
    assert evaluate(policy, task, prompts, drawn, num_samples=2)[0]["n"] == 20


# ---- few-shot ------------------------------------------------------------------------------------------


class Recorder(Policy):
    """Notes the chats that it is asked to encode."""

    def encode_prompts(self, prompts):
        self.chats = [*getattr(self, "chats", []), *prompts]
        return super().encode_prompts(prompts)


def test_examples_are_earlier_turns_of_the_chat(tiny_policy):
    task = registry.load_task("toy", prompt="compact")
    plain = tiny_policy()
    policy = Recorder(plain.model, plain.tokenizer, "test")
    prompts = task.load("test")
    summary, items = evaluate(policy, task, prompts, SAMPLER, seed=5, num_fewshot=2)
    examples = draw_examples(task, prompts, 2, 5)
    turns = [turn for e in examples for turn in (*e.messages, {"role": "assistant", "content": e.solution})]
    assert [list(chat) for chat in policy.chats] == [[*turns, *prompt.messages] for prompt in prompts]
    assert [entry["prompt"] for entry in items] == [prompt.messages[-1]["content"] for prompt in prompts]
    assert summary["num_fewshot"] == 2
    assert summary["by_seed"][0]["fewshot"] == [example.id for example in examples]
    # Examples are training problems, and others for another seed; greedy answers then differ by seed too.
    assert {e.id for e in examples} <= {p.id for p in task.load("train")}
    assert draw_examples(task, prompts, 2, 6) != examples
    greedy = SAMPLER.model_copy(update={"temperature": 0.0})
    two, _ = evaluate(plain, task, prompts, greedy, seed=[5, 6], num_fewshot=2)
    assert two["by_seed"][0]["fewshot"] == [example.id for example in examples]
    assert two["by_seed"][1]["fewshot"] != two["by_seed"][0]["fewshot"]


def test_a_system_message_stands_once(tiny_policy):
    class Told(type(registry.load_task("toy"))):
        def _prompt(self, pair):
            prompt = super()._prompt(pair)
            return replace(prompt, messages=({"role": "system", "content": "Repeat."}, *prompt.messages))

    task = Told(registry.load_task("toy", prompt="compact").config)
    plain = tiny_policy()
    policy = Recorder(plain.model, plain.tokenizer, "test")
    evaluate(policy, task, task.load("test")[:1], SAMPLER, num_fewshot=2)
    (chat,) = policy.chats
    assert [turn["role"] for turn in chat] == ["system", *["user", "assistant"] * 2, "user"]


def test_an_example_is_never_a_problem_that_is_asked(tiny_policy):
    task = registry.load_task("toy", prompt="compact")
    train = task.load("train")
    for seed in range(5):
        drawn = draw_examples(task, train[4:], 4, seed)
        assert sorted(example.id for example in drawn) == sorted(example.id for example in train[:4])
    # 10 digits: 100 pairs, of which 80 train.
    few = (
        "num_fewshot: 81 of the 80 solved training problems of toy that are not asked themselves; use 0 to 80"
    )
    with pytest.raises(ValueError, match=few):
        draw_examples(task, task.load("test"), 81, 0)

    class Unsolved(type(task)):
        def _prompt(self, pair):
            return replace(super()._prompt(pair), solution=None)

    with pytest.raises(ValueError, match="num_fewshot: 1, but the training problems of toy come without sol"):
        draw_examples(Unsolved(task.config), [], 1, 0)


# ---- the log -------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def logged(policy, task, file: Path, batch_size: int = 4, after: int | None = None, **settings):
    """Evaluate into a file as ``egspo eval`` does; die once ``after`` answers are there."""

    def progress(done: int) -> None:
        if after is not None and done >= after:
            raise Killed

    log = AnswerLog(file)
    sampler = SAMPLER.model_copy(update={"temperature": 1.0})
    prompts = task.load("test")
    summary, _ = evaluate(
        policy, task, prompts, sampler, batch_size, progress=progress, log=log, num_samples=2, **settings
    )
    log.finish(summary)


@pytest.mark.parametrize("torn", [0, 1, 300])
@pytest.mark.parametrize("batch_size", [4, 3, 64])
def test_a_killed_evaluation_goes_on(tiny_policy, tmp_path: Path, torn: int, batch_size: int):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact")
    logged(policy, task, tmp_path / "whole.json")
    file = tmp_path / "deep" / "cut.json"
    with pytest.raises(Killed):
        logged(policy, task, file, after=9)
    answers = file.with_suffix(".jsonl")
    assert len(answers.read_text().splitlines()) == 12
    assert not file.exists()
    # A kill in the middle of a write.
    text = answers.read_bytes()
    answers.write_bytes(text[: len(text) - torn])
    logged(policy, task, file, batch_size=batch_size)
    assert answers.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert json.loads(file.read_text()) == json.loads((tmp_path / "whole.json").read_text()) | {"name": "cut"}
    assert sorted(path.name for path in file.parent.iterdir()) == ["cut.json", "cut.jsonl"]


def test_what_is_there_is_not_done_again(tiny_policy, tmp_path: Path, monkeypatch):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact")
    file = tmp_path / "x.json"
    with pytest.raises(Killed):
        logged(policy, task, file, after=8)
    asked: list[int] = []
    real = evaluation._complete

    def counted(policy, task, questions, sampler):
        asked.append(len(questions))
        return real(policy, task, questions, sampler)

    monkeypatch.setattr(evaluation, "_complete", counted)
    logged(policy, task, file)
    assert asked == [4, 4, 4]
    # Finished: the same command tells the score again, also with other k of pass@k.
    logged(policy, task, file, pass_at_k=[2])
    assert asked == [4, 4, 4]
    assert list(json.loads(file.read_text())["pass_at_k"]) == ["2"]


def test_answers_of_another_evaluation_are_refused(tiny_policy, tmp_path: Path):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact")
    file = tmp_path / "x.json"
    other = "holds answers of other settings (differs in {}); choose another file, or delete it to begin anew"
    for kill in (8, None):
        with pytest.raises(Killed) if kill else contextlib.nullcontext():
            logged(policy, task, file, after=kill)
        before = file.with_suffix(".jsonl").read_bytes()
        for changed, settings in {
            "seed, seeds": {"seed": 1},
            "split": {"split": "train"},
            "fingerprints.problems, num_fewshot": {"num_fewshot": 1},
        }.items():
            with pytest.raises(ValueError, match=re.escape(other.format(changed))):
                logged(policy, task, file, **settings)
        # The same name with other weights, one of which moved.
        moved = tiny_policy()
        with torch.no_grad():
            moved.model.get_input_embeddings().weight[0, 0] += 1e-3
        with pytest.raises(ValueError, match=re.escape(other.format("fingerprints.weights"))):
            logged(moved, task, file)
        weighed = registry.load_task("toy", prompt="compact", reward_weights={"exact": 1.0})
        with pytest.raises(ValueError, match=re.escape(other.format("fingerprints.problems"))):
            logged(policy, weighed, file)
        rounded = tiny_policy()
        rounded.autocast = torch.bfloat16
        with pytest.raises(ValueError, match=re.escape(other.format("fingerprints.judges"))):
            logged(rounded, task, file)
        assert file.with_suffix(".jsonl").read_bytes() == before
    file.unlink()
    with pytest.raises(ValueError, match="nothing says which settings its answers are of"):
        logged(policy, task, file)


def test_what_judges_is_told_apart(tiny_policy, tmp_path: Path):
    policy = tiny_policy()

    def judges(name: str | None, sandbox: SandboxConfig | None = None, **settings) -> str:
        task = registry.load_task(name, **settings)
        if sandbox is not None:
            task.prepare(sandbox)
        return fingerprints(policy, task, [])["judges"]

    data, reward = tmp_path / "prompts.jsonl", tmp_path / "mine.py"
    data.write_text('{"prompt": "a"}\n')
    written = "def f(prompts, completions, **columns):\n    return [{} for _ in completions]\n"
    reward.write_text(written.format("0.5"))
    custom = {"data": data, "train_data": data, "reward": f"{reward}:f"}
    found = [judges("custom", **custom), judges("custom", **custom, correct_at=0.5)]
    assert judges("custom", **custom) == found[0]
    other = tmp_path / "other.py"
    other.write_text(written.format("0.7"))
    found += [judges("custom", **(custom | {"reward": f"{other}:f"}))]
    own = {"path": Path(__file__).parents[1] / "examples" / "my_task.py"}
    found += [judges(None, **own), judges(None, **own, reward_weights={"sorted": 2.0})]
    found += [
        judges("mbpp"),
        judges("mbpp", SandboxConfig(timeout=1)),
        judges("humaneval", SandboxConfig(memory_mb=99)),
    ]
    assert len(set(found)) == len(found) and judges("mbpp", SandboxConfig(workers=1)) == judges("mbpp")


def test_answers_that_were_deleted_take_their_summary_along(tiny_policy, tmp_path: Path):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact")
    file = tmp_path / "x.json"
    logged(policy, task, file)
    file.with_suffix(".jsonl").unlink()
    with pytest.raises(Killed):
        logged(policy, task, file, after=8, seed=1)
    assert not file.exists()


def test_answers_out_of_place_are_not_taken(tiny_policy, tmp_path: Path):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact")
    file = tmp_path / "x.json"
    logged(policy, task, file)
    answers = file.with_suffix(".jsonl")
    whole = answers.read_bytes()
    lines = whole.splitlines(keepends=True)
    for broken in (lines[:8] + lines[9:], [*lines[:9], b"[1]\n", *lines[10:]], [*lines, lines[0]]):
        answers.write_bytes(b"".join(broken))
        logged(policy, task, file)
        assert answers.read_bytes() == whole


def test_items_are_graded_by_the_task(tiny_policy):
    task = registry.load_task("toy", prompt="compact", reward_weights={"match": 1.0, "exact": 2.0})
    prompts = task.load("validation")
    summary, items = evaluate(tiny_policy(), task, prompts, SAMPLER)
    for prompt, entry in zip(prompts, items, strict=True):
        grade = task.grade(entry["completion"], prompt.fields)
        assert (entry["correct"], entry["extracted"], entry["reason"]) == (
            grade.correct,
            grade.extracted,
            grade.reason,
        )
        assert entry["reward"] == grade.parts["match"] + 2 * grade.parts["exact"]
        assert (entry["id"], entry["prompt"]) == (prompt.id, prompt.messages[-1]["content"])
    assert summary["correct"] == sum(entry["correct"] for entry in items)


def test_an_evaluation_on_disk_is_a_summary_and_a_line_a_problem(tiny_policy, tmp_path: Path):
    task = registry.load_task("toy", prompt="compact")
    summary, items = evaluate(tiny_policy(), task, task.load("test"), SAMPLER)
    write_evaluation(tmp_path / "deep" / "mine.json", summary, items)
    assert json.loads((tmp_path / "deep" / "mine.json").read_text()) == summary
    assert runs.rows(tmp_path, "deep/mine.jsonl") == items

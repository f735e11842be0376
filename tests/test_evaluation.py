"""Evaluation: the interval, the summary, and that neither the batch nor its neighbours change an item."""

import json
from pathlib import Path

import pytest

import runs
from egspo import registry
from egspo.config import EvalConfig, SamplerConfig
from egspo.evaluation import eval_sampler, evaluate, summarise, wilson
from egspo.tracking import write_evaluation

SAMPLER = SamplerConfig(max_completion_length=4, block_length=2, diffusion_steps=4)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17
        # (1998), table I, method 3 (score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(right: int, n: int, low: float, high: float):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)
    # The interval of the complement is the mirror image.
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_interval_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def item(correct: bool, reward: float, **counts: tuple[int, int]) -> dict:
    return {
        "correct": correct,
        "reward": reward,
        "counts": {name: list(pair) for name, pair in counts.items()},
    }


def test_the_summary_counts_by_hand():
    """Two of three right; cells 10 of 16 and 6 of 8 make 16 of 24; words only in the second: 1 of 4."""
    items = [
        item(True, 1.0, cells=(10, 16)),
        item(False, 0.25, cells=(6, 8), words=(1, 4)),
        item(True, 0.5),
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


def test_evaluation_is_greedy_and_decodes_as_training_unless_told():
    trained = SAMPLER.model_copy(update={"temperature": 1.5, "remasking": "top_prob", "cfg_scale": 1.0})
    plain = eval_sampler(trained, EvalConfig())
    assert plain == trained.model_copy(update={"temperature": 0.0})
    told = eval_sampler(trained, EvalConfig(temperature=0.5, remasking="random"))
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

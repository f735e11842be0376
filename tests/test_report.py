"""The report, drawn from small run folders written here in the documented format."""

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from egspo.report import write_report

HOSTILE = (
    "</pre><script src='https://evil.example/x.js'></script><img src=x onerror=alert(1)> \x1b[31m \ud800"
)
NUM_STEPS = 8


def config(objective: str = "egspo", **train) -> dict:
    return {
        "output_dir": "runs/x",
        "seed": 0,
        "model": {"model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct", "use_peft": True},
        "task": {"name": "sudoku"},
        "objective": {"name": objective, "num_selected_steps": 2},
        "train": {"max_steps": 60, **train},
    }


def iteration(step: int, random: np.random.Generator) -> dict:
    mean = 0.3 + 0.5 * step / 60 + 0.03 * random.normal()
    equal, kl = 0.2 * random.random(), None if step == 1 else 0.001 * step
    areas = {
        "reward": {"mean": mean, "std": 0.25, "zero_std_fraction": equal, "solved": mean**2, "cells": mean},
        "rollout": {"entropy_selected": 1.5 - step / 100, "entropy_all": 0.7 - step / 200},
        "steps": {"selected_mean_index": 2.5, "advantage_abs": 0.2 + 0.02 * random.random()},
        "loss": {"policy": 0.01 * random.normal(), "clip_fraction": 0.02, "kl": kl},
        "optim": {"grad_norm": 0.2 + 0.05 * random.random(), "learning_rate": 2e-4 / step},
        "time": {"rollout": 8.0, "reward": 0.5, "update": 4.0},
        "memory": {"peak_gb": 3.25},
    }
    values = {f"{area}/{name}": value for area, names in areas.items() for name, value in names.items()}
    return {"step": step, "time": 12.5 * step, "samples": 128 * step, "tokens": 2048 * step, **values}


def transcript(step: int, place: int, random: np.random.Generator) -> dict:
    entropy = [1.8 * math.exp(-t / 3) * (1 - step / 150) + 0.1 * random.random() for t in range(NUM_STEPS)]
    selected = [
        {"step": int(t), "entropy": entropy[t], "one_step": f"one-step text {t}", "step_reward": 0.25}
        | {"advantage": 0.3 * random.normal()}
        for t in sorted(random.choice(4, size=2, replace=False))
    ]
    return {
        "step": step,
        "id": f"train/{place}",
        "prompt": "Solve: 1 2 <mask> 4",
        "completion": f"completion {step}-{place}",
        "reward": min(1.0, (place + step // 20) / 4),
        "parts": {"cells": 0.5, "solved": 0.0},
        "correct": False,
        "reason": "row 2 repeats 3",
        "advantage": None,
        "entropy": entropy,
        "last_step": 6,
        "selected": selected,
    }


def evaluation(accuracy: float, split: str, step: int | None = None) -> dict:
    ends = [accuracy - 0.04, accuracy + 0.04]
    scores = {"n": 512, "accuracy": accuracy, "ci95": ends, "reward": 0.25}
    scores["counts"] = {"cells": {"right": 700, "of": 1000, "share": 0.7}}
    settings = {"task": "sudoku", "model": "base", "split": split, "diffusion_steps": NUM_STEPS}
    return {"name": "any", "step": step, **scores, **settings}


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def make_run(folder: Path, seed: int = 0, **settings) -> Path:
    random = np.random.default_rng(seed)
    (folder / "eval").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(**settings)))
    (folder / "metrics.jsonl").write_text(lines([iteration(step, random) for step in range(1, 61)]))
    logged = [transcript(step, place, random) for step in range(1, 61, 10) for place in range(4)]
    (folder / "transcripts.jsonl").write_text(lines(logged))
    for step in (0, 20, 40, 60):
        row = evaluation(0.4 + step / 300, "validation", step)
        (folder / "eval" / f"validation-{step:06d}.json").write_text(json.dumps(row))
    (folder / "eval" / "test-before.json").write_text(json.dumps(evaluation(0.391, "test")))
    (folder / "eval" / "test-after.json").write_text(json.dumps(evaluation(0.534, "test", 60)))
    return folder


def make_sft_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    settings = {"model": {"init": "tiny"}, "task": {"name": "sudoku"}, "optim": {"learning_rate": 2e-3}}
    (folder / "config.json").write_text(json.dumps(settings))
    keys = {"optim/grad_norm": 1.0, "optim/learning_rate": 2e-3, "time/update": 0.1}
    rows = [{"step": step, "time": step / 10, "loss/sft": 3 / step, **keys} for step in range(1, 21)]
    (folder / "metrics.jsonl").write_text(lines(rows))
    return folder


def report(*runs: Path) -> str:
    out = runs[0].parent / "out" / "report.html"
    assert write_report(runs, out) == out
    return out.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would see: tags, links, headings of panels, cells of tables."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.links, self.ids, self.open, self.cells, self.panels = set(), [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            assert not name.startswith("on"), f"<{tag} {name}> would run code"
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                self.links.append(value)
            if name == "id":
                self.ids.append(value)
        if tag in ("td", "h3"):
            (self.cells if tag == "td" else self.panels).append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1] += data
        elif "h3" in self.open:
            self.panels[-1] += data


ALL_PANELS = {
    *("Reward during training", "Validation accuracy", "Reward of logged samples", "Reward parts"),
    *("Groups with equal rewards", "Entropy by denoising step", "Steps selected for training"),
    *("Entropy over training", "Mean selected step", "Advantage by denoising step", "Size of the advantages"),
    *("Policy loss", "Gradient norm", "Clip fraction", "Distance to the reference", "Learning rate"),
    "Time per iteration",
}


def test_page_refers_to_nothing_outside_itself(tmp_path):
    text = report(make_run(tmp_path / "run"))
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "base", "form"}
    assert all(link.startswith("#") for link in page.links)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*[\"']?(.)", text))
    assert "currentColor" in text and "#010203" not in text  # figures take their ink from the page
    assert "://" not in text and "@import" not in text


def test_every_figure_is_drawn_with_unique_ids_that_exist(tmp_path):
    text = report(make_run(tmp_path / "run"))
    page = Page(text)
    assert set(page.panels) == ALL_PANELS and len(page.panels) == len(ALL_PANELS)
    assert text.count("<svg") == text.count("<figcaption>") == len(ALL_PANELS)
    assert len(page.ids) == len(set(page.ids))
    targets = [link[1:] for link in page.links] + re.findall(r"url\(#([^)]*)\)", text)
    assert targets and set(targets) <= set(page.ids)


def test_hostile_text_is_shown_and_not_run(tmp_path):
    run = make_run(tmp_path / "<b>run$^$", objective="<i>egspo</i>")
    row = transcript(70, 0, np.random.default_rng(0))
    row |= {
        "prompt": HOSTILE,
        "completion": HOSTILE,
        "reason": HOSTILE,
        "id": HOSTILE,
        "parts": {HOSTILE: 1.0},
    }
    row["selected"][0]["one_step"] = HOSTILE
    (run / "transcripts.jsonl").write_text(lines([row]))
    (run / "eval" / "<script>.json").write_text(json.dumps(evaluation(0.5, HOSTILE)))
    text = report(run)
    page = Page(text)
    assert not page.tags & {"script", "img", "i", "b"}
    assert (
        text.count("&lt;/pre&gt;&lt;script src=") == 7
    )  # five texts, one of them a part's name, one step, one split
    assert "\x1b" not in text and "␛[31m" in text


def test_numbers_are_those_of_the_files(tmp_path):
    run = make_run(tmp_path / "run")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    text = report(run)
    cells = Page(text).cells
    # 60 iterations of 128 samples and 12.5 s each: 7680 samples, 750 s
    expected = ["run", "39.1 [35.1, 43.1]", "53.4 [49.4, 57.4]", "+14.3", f"{last['reward/mean']:.3f}"]
    expected += ["60", "7,680", "12.5 min", "3.2 GB"]
    assert cells[: len(expected)] == expected
    assert "Objective: egspo · Task: sudoku · Model: GSAI-ML/LLaDA-8B-Instruct" in text
    assert "cells: 700 of 1000 (70.0 %), reward 0.250" in cells and "diffusion_steps 8" in cells


def test_transcripts_are_the_first_and_the_last(tmp_path):
    text = report(make_run(tmp_path / "run"))
    assert re.findall(r"<pre>completion (\d+-\d)</pre>", text) == ["1-0", "1-1", "51-2", "51-3"]
    assert text.count("<pre>one-step text") == 8  # four samples with two selected steps each


def test_several_runs_share_figures_and_keep_their_names(tmp_path):
    runs = [
        make_run(tmp_path / "egspo"),
        make_run(tmp_path / "other" / "egspo", seed=1, objective="diffu_grpo"),
    ]
    runs.append(make_sft_run(tmp_path / "sft"))
    page = Page(report(*runs))
    assert set(page.panels) >= ALL_PANELS | {"Fine-tuning loss"}
    assert {f"{tmp_path.name}/egspo", "other/egspo", "sft"} <= set(page.cells)
    assert {"egspo", "diffu_grpo", "supervised fine-tuning"} <= set(page.cells)
    place = page.cells.index("objective.name")
    assert page.cells[place : place + 4] == ["objective.name", '"egspo"', '"diffu_grpo"', "null"]


def test_sft_run_leaves_out_what_it_lacks(tmp_path):
    page = Page(report(make_sft_run(tmp_path / "sft")))
    assert page.panels == ["Fine-tuning loss", "Gradient norm", "Learning rate"]
    assert page.cells == ["sft", "0.150", "20", "2 s"]  # loss 3 / 20, 20 iterations of 0.1 s


def test_one_iteration_of_nulls_is_enough(tmp_path):
    run = make_sft_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 1, "reward/mean": null, "loss/policy": NaN}\n')
    assert Page(report(run)).panels == []


@pytest.mark.parametrize("file", ["metrics.jsonl", "transcripts.jsonl"])
def test_last_line_cut_short_is_dropped(tmp_path, file):
    run = make_run(tmp_path / "run")
    whole = report(run)
    with (run / file).open("a") as end:
        end.write('{"step": 61, "reward/mean": 0.')
    assert report(run) == whole


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path):
    run = make_run(tmp_path / "run")
    whole = report(run)
    text = (run / "metrics.jsonl").read_text()
    stale = lines([{"step": 60, "reward/mean": 99.0}])
    (run / "metrics.jsonl").write_text(stale + text)
    assert report(run) == whole


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("config.json", None, "run: not a run folder, config.json is missing; give"),
        ("metrics.jsonl", None, "run: not a run folder, metrics.jsonl is missing; give"),
        ("metrics.jsonl", "", "metrics.jsonl: no training iteration is recorded; let"),
        ("metrics.jsonl", '{"step": 1, "rew', "metrics.jsonl: no training iteration is recorded; let"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 3}\n', "metrics.jsonl: line 2 is not a JSON object"),
        ("metrics.jsonl", '{"step": 1}\n\n[2]\n', "metrics.jsonl: line 3 is not a JSON object with a step"),
        ("metrics.jsonl", '{"reward/mean": 1}\n', "metrics.jsonl: line 1 is not a JSON object with a step"),
        ("transcripts.jsonl", "\x00\n{}\n", "transcripts.jsonl: line 1 is not a JSON object with a step"),
        ("config.json", "{", "config.json: not a JSON object; restore"),
        ("eval/test-before.json", "[]", "test-before.json: not a JSON object; restore"),
    ],
)
def test_broken_folders_are_told_in_one_line(tmp_path, file, text, message):
    run = make_run(tmp_path / "run")
    (run / file).unlink() if text is None else (run / file).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        report(run)
    assert str(run) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_arguments_that_are_no_folders(tmp_path):
    with pytest.raises(ValueError, match=r"absent: no such folder; give"):
        report(tmp_path / "absent")
    with pytest.raises(ValueError, match="no run folder given"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="is a folder; give the name of the HTML file"):
        write_report([make_run(tmp_path / "run")], tmp_path)


def test_same_files_give_the_same_bytes(tmp_path):
    first, second = (report(make_run(tmp_path / place / "run")) for place in ("a", "b"))
    assert first == second


def test_a_long_run_makes_a_light_page(tmp_path):
    run = make_run(tmp_path / "run")
    random = np.random.default_rng(0)
    (run / "metrics.jsonl").write_text(lines([iteration(step, random) for step in range(1, 5001)]))
    assert len(report(run)) < 1_500_000

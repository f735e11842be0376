"""Golden curves: a refactor reproduces these numbers; a change of numbers writes new ones and says why.

    python tests/test_golden.py --write

runs the recipes anew and writes ``tests/golden/*.json``; commit them with the change that moved them.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("golden")
# Few iterations, and an epsilon that keeps Adam from making whole steps out of rounding: other CPUs round
# otherwise, and what moves one draw moves all that comes after. Two passes over each rollout, since the first
# loss of a policy on its own samples is zero.
SMOOTH = "optim.adam_epsilon=1e-4"
TOY = ("debug/toy", SMOOTH, "train.max_steps=3", "train.prompts_per_step=16", "train.eval_steps=0")
PASSES = ("train.num_iterations=2", "optim.learning_rate=3e-3")
RUNS = {
    "toy": (*TOY, *PASSES),
    "toy-places": (*TOY, *PASSES, "sampler.remasking=plackett_luce", "objective.beta=0.1"),
    "sudoku": (
        *("debug/sudoku", SMOOTH),
        *("task.blanks=[6, 8]", "train.max_steps=3", "train.eval_steps=0", "train.num_iterations=2"),
    ),
    "sudoku-sft": (
        *("model.init=tiny", "task={name: sudoku, prompt: compact, num_train: 200}", SMOOTH),
        *("sampler={max_completion_length: 16, block_length: 8, diffusion_steps: 8}", "sft.max_steps=6"),
        *("sft.batch_size=16", "optim.learning_rate=2e-3"),
    ),
}
EXACT = ("step", "samples", "tokens", "update/canvases")
CLOSE = ("reward/mean", "reward/std", "reward/one_step", "rollout/entropy_all", "rollout/entropy_selected")
LOSSES = ("loss/policy", "loss/sft", "loss/kl", "optim/grad_norm", "optim/learning_rate")


def curve(name: str, folder: Path) -> list[dict[str, float | None]]:
    """What the recipe logs of the keys that are compared."""
    from egspo import registry
    from egspo.config import RLRun, SFTRun, load_config
    from egspo.policy import build_policy
    from egspo.sft import SFTTrainer
    from egspo.trainer import Trainer

    kind, trainer = (SFTRun, SFTTrainer) if name.endswith("sft") else (RLRun, Trainer)
    recipes = [text for text in RUNS[name] if "=" not in text]
    overrides = [text for text in RUNS[name] if "=" in text]
    config = load_config(kind, recipes, [*overrides, f"output_dir={folder}"])
    task = registry.make_task(config.task)
    trainer(build_policy(config.model, config.seed, task.max_number_token), task, config).train()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: row[key] for key in (*EXACT, *CLOSE, *LOSSES) if key in row} for row in rows]


@pytest.mark.parametrize("name", RUNS)
def test_the_curve_is_the_golden_one(name: str, tmp_path: Path):
    golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    rows = curve(name, tmp_path)
    assert len(rows) == len(golden)
    for row, expected in zip(rows, golden, strict=True):
        assert row.keys() == expected.keys()
        for key, value in row.items():
            if key in EXACT or value is None or expected[key] is None:
                assert value == expected[key], (key, row["step"])
            else:
                # Advantages sum to zero, so that a surrogate loss nearly cancels: the rest of it is rounding.
                assert value == pytest.approx(expected[key], rel=1e-4, abs=1e-6), (key, row["step"])


def test_golden_curves_show_something():
    """A curve of zeros would be reproduced by anything."""
    for name in RUNS:
        rows = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert all(row["optim/grad_norm"] for row in rows), name
        assert len({row.get("reward/mean", row.get("loss/sft")) for row in rows}) > 1, name
        assert all(abs(row.get("loss/policy", 1)) > 1e-5 for row in rows), name


if __name__ == "__main__" and "--write" in sys.argv:
    FOLDER.mkdir(exist_ok=True)
    for each in RUNS:
        with tempfile.TemporaryDirectory() as scratch:
            lines = ",\n".join(json.dumps(row) for row in curve(each, Path(scratch)))
        (FOLDER / f"{each}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")

"""``benchmarks/seeds.py``: the table of any number of seeds."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import seeds


def row(seed: int, gain: float) -> dict:
    return {
        "seed": seed,
        "n": 4,
        "before": 0.5,
        "after": 0.5 + gain,
        "gain": gain,
        "samples": 1,
        "rl_seconds": 1,
    }


def test_eleven_seeds_have_an_interval_and_one_has_none(tmp_path: Path):
    """Gains of 0.0 to 0.1 vary by sqrt(0.0011); t with 10 degrees of freedom is 2.228."""
    seeds.write_table(tmp_path, "many", [row(seed, seed / 100) for seed in range(11)])
    half = 2.228 * (0.0011 / 11) ** 0.5
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["ci95"] == pytest.approx([0.05 - half, 0.05 + half], abs=1e-5)
    seeds.write_table(tmp_path, "one", [row(0, 0.1)])
    assert json.loads((tmp_path / "summary.json").read_text())["ci95"] is None
    assert "one seed" in (tmp_path / "README.md").read_text()

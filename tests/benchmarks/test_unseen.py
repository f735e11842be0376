"""``benchmarks/unseen.py`` on the folder that it was written for."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "results" / "screening-countdown"


def tell(folder: Path) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "unseen.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_both_kinds_of_problems_make_up_the_whole():
    told = tell(FOLDER)
    # As `egspo train` says of this base and task seed: it was trained on 691.
    assert told.startswith("309 of 1000 test problems were not trained on\n")
    first, samples, seconds = told.split("## At ")
    base = [float(share) for share in re.findall(r"(\S+)%", first)]
    comparison = json.loads((FOLDER / "comparison.json").read_text())
    curve = comparison["budgets"]["samples"]["egspo-sa"]["curve"]
    assert 0.309 * base[0] + 0.691 * base[1] == pytest.approx(100 * curve[0]["accuracy"], abs=0.1)
    for kind, part in (("samples", samples), ("seconds", seconds)):
        rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
        assert len(rows) == len(comparison["budgets"][kind])
        for label, seeds, new, old, difference in rows:
            known = comparison["budgets"][kind][label.removeprefix("| ")]
            assert int(seeds) == len(known["by_seed"])
            whole = 0.309 * float(new.removesuffix("%")) + 0.691 * float(old.removesuffix("%"))
            assert whole == pytest.approx(100 * known["mean"], abs=0.1)
            assert ("to" in difference) == (label != "| egspo-sa")


def test_what_cannot_be_compared_has_no_interval_or_no_difference(tmp_path: Path):
    """One seed that both have makes no interval; in seconds, the baseline has no curve to differ from."""
    for name in ("plan.json", "search.json", "comparison.json"):
        shutil.copy(FOLDER / name, tmp_path)
    for label in ("egspo-sa", "agrpo"):
        place = tmp_path / "curves" / label / "candidate-1"
        place.mkdir(parents=True)
        shutil.copy(FOLDER / "curves" / label / "candidate-1" / "seed-0.jsonl", place)
    cells = [
        line.split(" | ")[-1] for line in tell(tmp_path).splitlines() if line.startswith("| agrpo | 1 |")
    ]
    assert len(cells) == 2 and re.fullmatch(r"[+-]\d+\.\d \|", cells[0]) and cells[1] == " |"

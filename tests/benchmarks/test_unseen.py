"""``benchmarks/unseen.py`` on the folder that it was written for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "results" / "screening-countdown"


def test_both_kinds_of_problems_make_up_the_whole():
    command = [sys.executable, str(ROOT / "benchmarks" / "unseen.py"), str(FOLDER)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # As `egspo train` says of this base and task seed: it was trained on 691.
    assert told.startswith("309 of 1000 test problems were not trained on\n")
    _, samples, seconds = told.split("## At ")
    comparison = json.loads((FOLDER / "comparison.json").read_text())
    for kind, part in (("samples", samples), ("seconds", seconds)):
        rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
        assert len(rows) == len(comparison["budgets"][kind])
        for label, seeds, new, old, difference in rows:
            known = comparison["budgets"][kind][label.removeprefix("| ")]
            assert int(seeds) == len(known["by_seed"])
            whole = 0.309 * float(new.removesuffix("%")) + 0.691 * float(old.removesuffix("%"))
            assert whole == pytest.approx(100 * known["mean"], abs=0.1)
            assert ("to" in difference) == (label != "| egspo-sa")

"""Programs of public data sets: their reference solutions with their own tests, as a code task gives "
"them."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from egspo.sandbox import Program

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def read(name: str) -> list[dict[str, Any]]:
    """The rows of a public file; skips the test where it is not."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"public file {name} is not here")
    if name.endswith(".json"):
        return json.loads(path.read_text(encoding="utf-8"))
    text = gzip.decompress(path.read_bytes()).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def humaneval() -> dict[str, Program]:
    return {
        row["task_id"]: Program(
            source=row["prompt"] + row["canonical_solution"],
            setup=row["test"],
            tests=(f"check({row['entry_point']})",),
            entry_points=(row["entry_point"],),
        )
        for row in read("humaneval/HumanEval.jsonl.gz")
    }


def mbpp() -> dict[str, Program]:
    return {
        str(row["task_id"]): Program(
            source=row["code"], setup="\n".join(row["test_imports"]), tests=tuple(row["test_list"])
        )
        for row in read("mbpp/sanitized-mbpp.json")
    }


def leetcode() -> dict[str, Program]:
    return {
        row["task_id"]: Program(
            preamble=row["prompt"],
            source=row["completion"],
            setup=row["test"],
            tests=(f"check({row['entry_point']})",),
        )
        for row in read("code_rl/LeetCodeDataset-v0.2.0-train.jsonl.gz")
    }


def kodcode() -> dict[str, Program]:
    return {
        row["question_id"]: Program(
            source=row["solution"],
            setup=row["test_code"],
            tests=tuple(f"{name}()" for name in re.findall(r"^def (test_\w+)", row["test_code"], re.M)),
        )
        for row in read("code_rl/kodcode_demo.jsonl.gz")
        if row["solution_passes_here"]
    }

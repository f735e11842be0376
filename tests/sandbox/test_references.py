"""Reference solutions of public data sets pass their own tests, and near misses do not."""

import dataclasses

import pytest

from egspo.sandbox import Sandbox, SandboxConfig, tiers
from sandbox import references

WORKS = [name for name, works, _ in tiers() if works and name != "unsafe"]
pytestmark = pytest.mark.skipif(not WORKS, reason="no tier of the sandbox works here")
KNOWN = {"word-ladder-ii"}
"""Its test wants lists in the order of the solution's sets."""


@pytest.fixture(scope="module")
def box():
    with Sandbox(SandboxConfig(timeout=60, memory_mb=1024)) as made:
        yield made


def failures(box, programs) -> dict[str, str]:
    outcomes = zip(programs, box.run(list(programs.values())), strict=True)
    return {name: x.reason for name, x in outcomes if not x.correct and name not in KNOWN}


def some(programs: dict, count: int) -> dict:
    """Every so manyth, that many in all."""
    return dict(list(programs.items())[:: max(1, len(programs) // count)][:count])


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "leetcode", "kodcode"])
def test_some_reference_solutions_pass(box, name):
    assert failures(box, some(getattr(references, name)(), 16)) == {}


def test_trees_and_lists_pass(box):
    programs = references.leetcode()
    helped = {k: x for k, x in programs.items() if "ListNode" in x.source or "TreeNode" in x.source}
    assert len(helped) > 100
    assert failures(box, some(helped, 16)) == {}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "count"), [("humaneval", 164), ("mbpp", 427), ("leetcode", 1890), ("kodcode", 226)]
)
def test_all_reference_solutions_pass(box, name, count):
    programs = getattr(references, name)()
    assert len(programs) == count
    assert failures(box, programs) == {}


def test_a_solution_of_another_problem_fails(box):
    programs = list(some(references.mbpp(), 12).values())
    swapped = [
        dataclasses.replace(mine, source=other.source)
        for mine, other in zip(programs, [*programs[1:], programs[0]], strict=True)
    ]
    assert not any(x.correct for x in box.run(swapped))

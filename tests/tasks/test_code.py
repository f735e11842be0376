"""Programs out of completions, tests out of rows, verdicts from the sandbox: code, HumanEval and MBPP."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egspo import registry
from egspo.sandbox import SandboxConfig
from egspo.tasks.code import asked_for, find_program, split_tests

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no shared data sets here")
DOUBLE = {"question": "Double x.", "test": "assert f(2) == 4\nassert f(0) == 0\nassert f('a') == 'aa'"}
RIGHT = "def f(x):\n    return x * 2"
BLOCK = "<answer>\n```python\n{}\n```\n</answer>"


@pytest.fixture(scope="module")
def task():
    task = registry.load_task("code")
    try:
        task.prepare(SandboxConfig())
    except ValueError as error:
        pytest.skip(f"no sandbox works here: {error}")
    return task


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        (BLOCK.format("a = 1"), "a = 1"),
        ("<answer>a = 1</answer>", "a = 1"),
        ("```python\na = 1\n```", "a = 1"),
        ("```\na = 1\n```\nor\n```py\na = 2\n```", "a = 2"),
        ("```python\nb = 1\n```\n" + BLOCK.format("a = 1"), "a = 1"),
        (BLOCK.format("a = 1") + "\n```python\nb = 1\n```", "a = 1"),
        ("  ```python\n  a = 1\n  ```", "a = 1"),
        ("```python\na = 1\n```<|eot_id|>```python\nb = 1\n```", "a = 1"),
        # A block that never closes is passed over, also when another opens behind it.
        ("```python\na = 1\n```\n```python\nb = 1", "a = 1"),
        ("```python\nb = 1\n```python\na = 1\n```", "a = 1"),
        ("```python\na = 1", None),
        ("a = 1", None),
        ("", None),
        ("<answer></answer>", None),
        ("<answer>```python\na = 1</answer>", None),
    ],
)
def test_the_program_is_the_last_closed_block_of_the_answer(completion: str, program: str | None):
    assert find_program(completion)[0] == program


def test_a_bare_completion_is_the_program():
    assert find_program("a = 1\nb = 2<|endoftext|>c", bare=True)[0] == "a = 1\nb = 2"
    assert find_program(BLOCK.format("a = 1"), bare=True)[0] == "a = 1"


@given(st.text(alphabet="`\n python<answer>/=1 ", max_size=200), st.booleans())
def test_any_text_has_a_program_or_a_reason(text: str, bare: bool):
    program, reason = find_program(text, bare)
    assert (program is None) == bool(reason)


def test_a_check_of_asserts_alone_is_one_test_each():
    setup, tests = split_tests("def check(c):\n    assert c(1) == 2\n    assert c(2) == 3", "f")
    assert setup.startswith("def check")
    assert tests == ("c = f\nassert c(1) == 2", "c = f\nassert c(2) == 3")


def test_a_check_with_anything_else_is_one_test():
    test = "def check(c):\n    for x in range(3):\n        assert c(x) == x"
    assert split_tests(test, "Solution().f")[1] == ("check(Solution().f)",)


def test_functions_and_methods_are_tests():
    test = "def helper(): pass\ndef test_a(): pass\nclass TestB:\n    def test_c(self): pass"
    assert split_tests(test, None) == (test, ("test_a()", "TestB().test_c()"))
    # What tests nothing itself and others use is a helper.
    test = "def test_cases(): return [1]\ndef test_a():\n    for x in test_cases(): assert f(x)"
    assert split_tests(test, None) == (test, ("test_a()",))


FIXTURES = """
import unittest

class TestSetUp(unittest.TestCase):
    def setUp(self): self.x = 1
    def test_x(self): self.assertEqual(f(self.x), 2)

class TestMethod:
    def setup_method(self, method): self.x = 1
    def test_x(self): assert f(self.x) == 2

async def test_async(): assert f(1) == 2
"""


def test_what_a_test_needs_runs_before_it(task):
    fields = {"question": "Double x.", "test": FIXTURES}
    assert task.grade(BLOCK.format("def f(x): return 2 * x"), fields).counts["tests"] == (3, 3)
    assert task.grade(BLOCK.format("def f(x): return x"), fields).counts["tests"] == (0, 3)


def test_one_problem_in_two_wordings_is_in_one_split(tmp_path):
    """Twelve problems, each worded twice over the same tests."""
    rows = [
        {"question": f"{words} {n}.", "test": f"assert f(1) == {n}"}
        for n in range(12)
        for words in ("Return", "Write what returns")
    ]
    file = tmp_path / "code.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = registry.load_task("code", train_data=file, num_validation=5, num_test=4)
    tests = {split: {p.fields["test"] for p in task.load(split)} for split in ("train", "validation", "test")}
    assert {split: len(task.load(split)) for split in tests} == {"train": 14, "validation": 6, "test": 4}
    assert sum(map(len, tests.values())) == len(set.union(*tests.values())) == 12


@pytest.mark.parametrize(
    ("test", "entry_point", "names"),
    [
        ("", "f", ("f",)),
        ("", "Solution().solve", ("Solution",)),
        ("from solution import f, G\nimport solution\nfrom math import pi", None, ("f", "G")),
        ("assert f(1)", None, ()),
    ],
)
def test_a_problem_says_what_it_asks_for(test: str, entry_point: str | None, names: tuple[str, ...]):
    assert asked_for(test, entry_point) == names


def test_a_helper_of_the_prompt_is_not_replaced_by_the_program(task):
    """The test calls the prompt's own ``twice``; a program that redefines it cannot pass by that."""
    row = {
        "prompt": 'def twice(x):\n    return x * 2\n\n\ndef half(x):\n    """ Undo twice. """\n',
        "test": "def check(candidate):\n    assert twice(candidate(4)) == 4",
        "entry_point": "half",
    }
    humaneval = registry.load_task("humaneval")
    assert humaneval.grade(BLOCK.format("def half(x):\n    return x / 2"), row).correct
    cheat = "def twice(x):\n    return x\n\ndef half(x):\n    return x"
    assert not humaneval.grade(BLOCK.format(cheat), row).correct


def test_asserts_at_the_end_are_tests_and_what_lies_between_keeps_them_together():
    assert split_tests("x = 1\nassert f(x)\nassert g(x)", None) == ("x = 1", ("assert f(x)", "assert g(x)"))
    assert split_tests("assert f(1)\nx = 2\nassert f(x)", None) == ("", ("assert f(1)\nx = 2\nassert f(x)",))


@pytest.mark.parametrize(
    ("test", "entry_point", "message"),
    [
        ("assert (", None, "test: not Python"),
        ("x = 1", None, "test: tests nothing"),
        ("def check(c):\n    assert c(1)", None, "entry_point: missing"),
        ("\0", None, "test: not Python"),
    ],
)
def test_a_row_that_tests_nothing_says_so(test: str, entry_point: str | None, message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        split_tests(test, entry_point)


def test_the_reward_is_the_share_of_tests_that_pass(task):
    """x * 2 passes three tests; x + x too; x + 2 the first; abs(x) * 2 all but the text."""
    programs = [
        RIGHT,
        "f = lambda x: x + x",
        "def f(x): return x + 2",
        "def f(x): return abs(x) * 2",
        "f = 1",
    ]
    grades = task.grade_all([BLOCK.format(program) for program in programs], [DOUBLE] * 5)
    assert [grade.parts["tests"] for grade in grades] == [1, 1, 1 / 3, 2 / 3, 0]
    assert [grade.correct for grade in grades] == [True, True, False, False, False]
    assert [grade.counts["tests"] for grade in grades] == [(3, 3), (3, 3), (1, 3), (2, 3), (0, 3)]
    assert grades[0].extracted == RIGHT


def test_no_program_earns_nothing_and_says_why(task):
    nothing, broken = task.grade_all(["no idea", BLOCK.format("def f(")], [DOUBLE] * 2)
    assert (nothing.correct, nothing.reason, nothing.parts["format"]) == (False, "no closed block of code", 0)
    assert (broken.correct, broken.parts["format"]) == (False, 0)
    assert "SyntaxError" in broken.reason


def test_a_program_cannot_pass_by_ending_early_or_by_equality(task):
    cheats = [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "class A:\n    def __eq__(self, other): return True\ndef f(x): return A()",
        "print('passed')\ndef f(x): return 0",
    ]
    grades = task.grade_all([BLOCK.format(cheat) for cheat in cheats], [DOUBLE] * len(cheats))
    assert not any(grade.correct for grade in grades)


def test_grading_needs_a_sandbox_or_leave(monkeypatch):
    """Where no tier works, code tasks refuse to start unless told otherwise."""
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="allow_unsafe"):
        registry.load_task("code").prepare(SandboxConfig(tier="unsafe"))
    unsafe = registry.load_task("code")
    unsafe.prepare(SandboxConfig(tier="unsafe", allow_unsafe=True))
    assert unsafe.grade(BLOCK.format(RIGHT), DOUBLE).correct


def test_rows_of_three_layouts_become_problems(tmp_path):
    rows = [
        {
            "question": "Double x.",
            "test": "from solution import f\ndef test(): assert f(1) == 2",
            "solution": RIGHT,
        },
        {
            "query": "Double x, again.",
            "prompt": "import math",
            "test": "def check(c):\n    assert c(1) == 2",
            "entry_point": "f",
            "completion": RIGHT,
        },
        {"prompt": "Double x, once more.", "test": "assert f(1) == 2"},
        {"question": "Halve x.", "test": "assert f(2) == 1"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = registry.load_task("code", data=file, train_data=file, num_validation=1)
    prompts = task.load("test")
    assert [prompt.solution is None for prompt in prompts] == [False, False, True, True]
    assert prompts[1].fields["preamble"] == "import math"
    assert "import math" in prompts[1].messages[0]["content"]
    assert "def f(x)" in prompts[0].solution


def test_a_bare_body_completes_the_prompt_of_humaneval(task):
    row = {
        "prompt": 'import math\n\ndef f(x: int) -> int:\n    """ Double x. """\n',
        "test": "def check(candidate):\n    assert candidate(2) == 4",
        "entry_point": "f",
    }
    humaneval = registry.load_task("humaneval")
    for program in (
        "return x * 2",
        "    return x * 2",
        RIGHT,
        "import math\n\ndef f(x):\n    return math.ceil(x) * 2",
        "f: object = lambda x: x * 2",
        "if True:\n    def f(x):\n        return x * 2",
    ):
        assert humaneval.grade(BLOCK.format(program), row).correct, program
    assert not humaneval.grade(BLOCK.format("return x"), row).correct


def test_an_official_file_of_mbpp_has_all_its_splits(tmp_path):
    ids = {"few-shot": 3, "test": 11, "also test": 510, "validation": 511, "train": 601, "last": 974}
    rows = [
        {"task_id": number, "prompt": words, "code": RIGHT, "test_list": ["assert f(1) == 2"]}
        for words, number in ids.items()
    ]
    rows.append({"task_id": 700, "prompt": "test", "test_list": ["assert f(1) == 2"]})
    file = tmp_path / "mbpp.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    task = registry.load_task("mbpp", data=file)
    words = {
        split: [p.fields["prompt"] for p in task.load(split)] for split in ("train", "validation", "test")
    }
    # The last row's words are those of a test problem.
    assert words == {"train": ["train", "last"], "validation": ["validation"], "test": ["test", "also test"]}
    # The numbers as texts, as a CSV file has them.
    file.write_text(json.dumps([row | {"task_id": f"Mbpp/{row['task_id']}"} for row in rows]))
    task = registry.load_task("mbpp", data=file)
    assert [p.fields["prompt"] for p in task.load("validation")] == words["validation"]


def test_a_file_of_mbpp_without_numbers_or_lists_says_so(tmp_path):
    row = {"prompt": "Double x.", "code": RIGHT, "test_list": ["assert f(1) == 2"]}
    file = tmp_path / "mbpp.json"
    file.write_text(json.dumps([row]))
    task = registry.load_task("mbpp", data=file)
    assert len(task.load("test")) == 1
    with pytest.raises(ValueError, match="has no validation problem that is not in test too"):
        task.load("train")
    file.write_text(json.dumps([row | {"test_list": "assert f(1) == 2"}]))
    with pytest.raises(ValueError, match=r"test_list: .* give a list of asserts"):
        registry.load_task("mbpp", data=file).load("test")


@needs_data
@pytest.mark.parametrize(
    ("name", "settings", "split", "num"),
    [
        ("humaneval", {"data": "humaneval/HumanEval.jsonl.gz"}, "test", 164),
        ("mbpp", {"data": "mbpp/sanitized-mbpp.json"}, "test", 257),
        ("mbpp", {"data": "mbpp/sanitized-mbpp.json"}, "validation", 42),
        ("mbpp", {"data": "mbpp/sanitized-mbpp.json"}, "train", 120),
    ],
)
def test_reference_solutions_of_the_benchmarks_pass(task, name: str, settings: dict, split: str, num: int):
    benchmark = registry.load_task(name, **{key: DATA / file for key, file in settings.items()})
    benchmark.prepare(SandboxConfig(timeout=20))
    assert len(benchmark.load(split)) == num
    assert benchmark.validate(split) == []


@needs_data
def test_solutions_of_kodcode_and_leetcode_pass(task):
    """KodCode's flag says which of its solutions pass; of LeetCode the first hundred."""
    kodcode = registry.load_task(
        "code",
        data=DATA / "code_rl" / "kodcode_demo.jsonl.gz",
        train_data=DATA / "code_rl" / "kodcode_demo.jsonl.gz",
    )
    kodcode.prepare(SandboxConfig(timeout=20))
    # 226 of 232 pass when run in one process with their tests.
    assert len(kodcode.validate("test")) <= 12
    leetcode = registry.load_task("code", data=DATA / "code_rl" / "LeetCodeDataset-v0.2.0-test.jsonl.gz")
    leetcode.prepare(SandboxConfig(timeout=20))
    assert len(leetcode.validate("test", limit=100)) <= 3

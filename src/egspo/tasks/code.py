r"""Programs that pass tests: KodCode, LeetCodeDataset, or any file of problems with Python tests.

A row holds a question, a test and, if known, a solution, in one of these layouts:

- KodCode: ``question``, ``test`` (or ``test_code``: functions named ``test…``, which import from
  ``solution``), ``solution``;
- LeetCodeDataset: ``query``, ``test`` (a function ``check(candidate)``), ``entry_point``, ``completion``, and
  ``prompt``, the imports and helper classes that a program may rely on;
- any other: ``question`` or ``prompt``, ``test`` (asserts, or either of the above), and if it has them
  ``entry_point``, ``solution``, ``preamble``.

The program of a completion is its last closed block of code between ``` marks within the last closed
``<answer>``, else that whole answer, else the last closed block of the text. Tests run in the sandbox
(`egspo.sandbox`), each on its own: the reward is the share that pass, and a completion is correct if all do.
"""

import ast
import re
import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from egspo import answers
from egspo.hub import DatasetSplit
from egspo.records import Row
from egspo.sandbox import Outcome, Program, Sandbox, SandboxConfig
from egspo.tasks import base
from egspo.tasks.base import Part, Problem
from egspo.types import Grade

INSTRUCTION = """\
Solve this problem in Python.

{question}

Think it through, then give the whole program, with all its imports, in one block between these tags:
<answer>
```python
the program
```
</answer>"""
PUBLISHED_FORMAT = """
Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>
"""
"""System text of d1's training prompts (arXiv 2504.12216), which EGSPO uses for code."""
PUBLISHED = (
    PUBLISHED_FORMAT
    + """

You are a coding expert. You will be given a coding problem to solve. Solve it step by step. \n
{question}"""
)
_FENCE = re.compile(r"^[ \t]*```[ \t]*(?P<language>[\w+#.-]*)[ \t]*\r?$", re.MULTILINE)


class Task(base.DatasetTask):
    """Write a program that passes the problem's tests (KodCode, LeetCodeDataset, or a file)."""

    name = "code"
    description = "programs judged by tests: KodCode-Light-RL-10K, or a file of problems with tests"
    version = "2"
    source = "KodCode, arXiv 2503.02951; LeetCodeDataset, arXiv 2504.14655"
    parts: ClassVar[Mapping[str, Part]] = {
        "tests": Part("share of the tests that pass", 1.0),
        "solved": Part("1 if all tests pass", 0.0),
        "format": Part("1 for a closed block of code that Python can compile", 0.0, "format"),
    }
    grade_fields: ClassVar[tuple[str, ...]] = ("test",)
    hub: ClassVar[Mapping[str, tuple[DatasetSplit, ...]]] = {
        "train": (DatasetSplit("KodCode/KodCode-Light-RL-10K", "train"),)
    }
    _box: Sandbox | None = None

    def prepare(self, sandbox: SandboxConfig) -> None:
        if self._box is not None:
            self._box.close()
        self._box = Sandbox(sandbox)

    @property
    def judges(self) -> Mapping[str, Any]:
        limits = self._box.config if self._box else SandboxConfig()
        return {**super().judges, **limits.model_dump(include={"timeout", "memory_mb"})}

    def grade(self, completion: str, fields: Mapping[str, Any]) -> Grade:
        return self.grade_all([completion], [fields])[0]

    def grade_all(self, completions: Sequence[str], fields: Sequence[Mapping[str, Any]]) -> list[Grade]:
        if self._box is None:
            self.prepare(SandboxConfig())
        bare = self.config.prompt == "compact"
        found = [find_program(completion, bare) for completion in completions]
        programs = [self._program(source or "", row) for (source, _), row in zip(found, fields, strict=True)]
        given = [p for p, (source, _) in zip(programs, found, strict=True) if source is not None]
        outcomes = iter(self._box.run(given))
        return [
            _no_program(reason) if source is None else _grade(source, next(outcomes))
            for source, reason in found
        ]

    def _program(self, source: str, fields: Mapping[str, Any]) -> Program:
        """What the sandbox runs for a problem.

        Raises:
            ValueError: if the fields hold no test that can be read.
        """
        test, entry_point = _text(fields, "test"), fields.get("entry_point") or None
        setup, tests = split_tests(test, entry_point)
        return Program(source, tests, setup, fields.get("preamble") or "", asked_for(test, entry_point))

    def _parse(self, row: Row, split: str) -> Problem:
        leetcode = "query" in row
        question = row["query"] if leetcode else row.get("question", row.get("prompt"))
        if not isinstance(question, str) or not question.strip():
            raise ValueError("question: missing; give the problem as question or prompt")
        fields = {
            "question": question,
            "test": row.get("test") or row.get("test_code"),
            "entry_point": row.get("entry_point"),
            "preamble": (row.get("prompt") if leetcode else row.get("preamble")) or "",
        }
        split_tests(_text(fields, "test"), fields["entry_point"])
        return fields, row.get("completion" if leetcode else "solution")

    def _key(self, fields: Mapping[str, Any]) -> tuple[str, str]:
        return fields["question"], fields["test"]

    def _apart(self, fields: Mapping[str, Any]) -> set[Hashable]:
        """Question and tests: KodCode words one problem in several ways, with the same tests."""
        key = self._key(fields)
        return set(enumerate(key)) if isinstance(key, tuple) else {key}

    def _question(self, fields: Mapping[str, Any]) -> str:
        if self.config.prompt == "compact":
            return fields["question"]
        template = PUBLISHED if self.config.prompt == "paper" else INSTRUCTION
        return template.replace("{question}", self._worded(fields).strip())

    def _worded(self, fields: Mapping[str, Any]) -> str:
        """The problem as a worded prompt puts it."""
        given = fields["preamble"].strip()
        imports = f"\n\nThese lines stand before the program:\n```python\n{given}\n```" if given else ""
        return fields["question"] + imports

    def _completion(self, solution: str) -> str:
        solution = solution.replace("\r\n", "\n").strip()
        return (
            solution
            if self.config.prompt == "compact"
            else f"<answer>\n```python\n{solution}\n```\n</answer>"
        )


def find_program(completion: str, bare: bool = False) -> tuple[str | None, str]:
    """The program of a completion, or None and why; ``bare`` completions are programs and nothing else.

    Time is linear in the text.
    """
    text = answers.before_end(completion)
    answer = answers.last_answer_tag(text)
    block = next((block for block in (_last_block(part) for part in (answer, text) if part) if block), None)
    if answer is not None and "```" not in answer:
        block = answer
    if block is None and bare:
        block = text
    if block is None or not block.strip():
        return None, "no closed block of code"
    return textwrap.dedent(block.strip("\r\n")), ""


def _last_block(text: str) -> str | None:
    """Content of the last block that a line of ``` opens and another closes."""
    marks, last, start = _FENCE.finditer(text), None, None
    for mark in marks:
        if start is None:
            start = mark.end()
        elif not mark["language"]:
            last, start = text[start : mark.start()], None
        else:  # a new block opens before the last one closed
            start = mark.end()
    return last


@lru_cache(maxsize=65_536)
def split_tests(test: str, entry_point: str | None) -> tuple[str, tuple[str, ...]]:
    """Trusted test code as what runs first, and tests that pass or fail on their own.

    ``check(candidate)`` becomes one test for each of its asserts if it has nothing else, with ``entry_point``
    as the candidate; functions named ``test…`` and classes named ``Test…`` are called one by one; in plain
    code that ends in asserts each of these is a test, else all from the first assert on is one.

    Raises:
        ValueError: for code that is not Python, that tests nothing, or whose candidate is not known.
    """
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"test: not Python ({error}); give asserts, test functions or check(candidate)"
        ) from None
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    check = next((node for node in functions if node.name == "check"), None)
    if check is not None:
        if entry_point is None:
            raise ValueError("entry_point: missing; check(candidate) needs the name of what it tests")
        return test, tuple(_check_calls(test, check, entry_point))
    calls = [call for node in tree.body for call in _test_calls(node, tree)]
    if calls:
        return test, tuple(calls)
    first = next((i for i, node in enumerate(tree.body) if isinstance(node, ast.Assert)), None)
    if first is None:
        raise ValueError("test: tests nothing; give asserts, test functions or check(candidate)")
    setup, rest = tree.body[:first], tree.body[first:]
    alone = all(isinstance(node, ast.Assert) for node in rest)
    tests = [[node] for node in rest] if alone else [rest]
    return _written(setup), tuple(_written(nodes) for nodes in tests)


def asked_for(test: str, entry_point: str | None) -> tuple[str, ...]:
    """Names that a problem asks a program for, where it says them."""
    if entry_point is not None:
        return (re.split(r"\W", entry_point.strip(), maxsplit=1)[0],)
    imports = [node for node in ast.walk(ast.parse(test)) if isinstance(node, ast.ImportFrom)]
    return tuple(alias.name for node in imports if node.module == "solution" for alias in node.names)


def _written(nodes: list[ast.stmt]) -> str:
    return "\n".join(map(ast.unparse, nodes))


def _check_calls(test: str, check: ast.FunctionDef, entry_point: str) -> Iterator[str]:
    body = check.body
    if len(check.args.args) != 1 or not all(isinstance(node, ast.Assert) for node in body):
        yield f"check({entry_point})"
        return
    for node in body:
        yield f"{check.args.args[0].arg} = {entry_point}\n{ast.unparse(node)}"


def _test_calls(node: ast.stmt, tree: ast.Module) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test") and not _is_helper(node, tree):
        yield f"{node.name}()"
    if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test"):
        yield f"import asyncio\nasyncio.run({node.name}())"
    if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test"):
                yield _test_of_class(node, inner.name)


def _is_helper(function: ast.FunctionDef, tree: ast.Module) -> bool:
    """Whether a function tests nothing itself and others use it."""
    own = set(ast.walk(function))
    if any(isinstance(node, ast.Assert | ast.Raise) for node in own):
        return False
    used = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in own)
    return any(node.id == function.name for node in used)


def _test_of_class(node: ast.ClassDef, name: str) -> str:
    """A call of one test of a class, with what has to run before and after it."""
    if any(ast.unparse(base).endswith("TestCase") for base in node.bases):
        return f"{node.name}.setUpClass()\n{node.name}({name!r}).debug()"
    takes = {inner.name: len(inner.args.args) for inner in node.body if isinstance(inner, ast.FunctionDef)}
    lines = [f"case = {node.name}()"]
    if "setup_class" in takes:
        lines.append("case.setup_class()")
    if "setup_method" in takes:
        lines.append(f"case.setup_method({f'case.{name}' if takes['setup_method'] > 1 else ''})")
    lines.append(f"case.{name}()")
    if "teardown_method" in takes:
        lines.append(f"case.teardown_method({f'case.{name}' if takes['teardown_method'] > 1 else ''})")
    return "\n".join(lines) if len(lines) > 2 else f"{node.name}().{name}()"


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: {value!r:.60}; give Python code that tests a program")
    return value


def _no_program(reason: str) -> Grade:
    return Grade(False, dict.fromkeys(Task.parts, 0.0), None, reason)


def _grade(source: str, outcome: Outcome) -> Grade:
    parts = {
        "tests": outcome.passed / max(1, outcome.total),
        "solved": float(outcome.correct),
        "format": float(_compiles(source)),
    }
    return Grade(outcome.correct, parts, source, outcome.reason, {"tests": (outcome.passed, outcome.total)})


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True

"""One program against its tests: two contained processes, a verdict read line by line, a deadline.

The limit is of processor time, by ``RLIMIT_CPU``, so that a loaded machine refuses no right program; the
deadline is for what sleeps or waits.
"""

import contextlib
import json
import os
import select
import signal
import time
from typing import Any

from egspo.sandbox import payload
from egspo.sandbox.processes import START_SECONDS, ContainmentError, Process, Starter, wait_for
from egspo.sandbox.records import Outcome, Program, SandboxConfig

BY_THE_CLOCK = 4.0
"""Times its limit that a program may take by the clock: a loaded machine gives it a part of it."""
LARGEST_VERDICT = 1 << 22
_GONE_SECONDS = 0.5
_OVERDUE = ("signal 9", f"signal {signal.SIGXCPU.value}")
"""How the kernel ends what has used its processor time."""


class Verdict:
    """What the tests' process has said so far."""

    def __init__(self, total: int):
        self.total = total
        self.ready = self.ended = False
        self.began: float | None = None
        self.fatal: str | None = None
        self.errors: dict[int, str | None] = {}

    def read(self, line: bytes) -> bool:
        """Takes a line in; whether it says that both processes are ready."""
        facts = json.loads(line)
        self.ready = self.ready or "ready" in facts
        self.ended = self.ended or facts.get("end", False) or "fatal" in facts
        self.fatal = facts.get("fatal", self.fatal)
        if "test" in facts:
            self.errors[facts["test"]] = facts["error"]
        return "ready" in facts


def judge(starter: Starter, program: Program, config: SandboxConfig) -> Outcome:
    """Runs one program against its tests, whatever it does, within the limits.

    Raises:
        ContainmentError: if the machine would not run it contained.
    """
    if not program.tests:
        return Outcome(0, 0, "no tests")
    with contextlib.ExitStack() as stack:
        to_program, to_tester, verdict = (_pipe(stack) for _ in range(3))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        ends: dict[str, str] = {}
        tester = starter.start("tester", to_tester.reading, to_program.writing, verdict.writing)
        stack.callback(_end, ends, "tester", tester)
        other = starter.start("program", to_program.reading, to_tester.writing, nowhere)
        stack.callback(_end, ends, "program", other)
        for pipe, side in ((to_program, "reading"), (to_tester, "reading"), (verdict, "writing")):
            pipe.close(side)
        deadline = time.monotonic() + START_SECONDS
        # The program's process says nothing before it has its job, so nothing can precede that of the tests.
        for pipe, process, job in (
            (to_tester, tester, _tester_job(program)),
            (to_program, other, payload.packages()),
        ):
            _write(pipe.writing, process.preface + _frame(job), deadline)
            pipe.close("writing")
        said, late = _listen(verdict.reading, tester, len(program.tests), deadline, config.timeout)
        slow = said.began is not None and time.monotonic() - said.began > config.timeout / 2
        if not late:
            wait_for(other, _GONE_SECONDS if _is_gone(said) else 0.0)
    ends = {part: "late" if slow and (late or end in _OVERDUE) else end for part, end in ends.items()}
    return _outcome(said, ends, config)


def _end(ends: dict[str, str], part: str, process: Process) -> None:
    ends[part] = process.end()


class _Pipe:
    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.open = {"reading", "writing"}

    def close(self, *sides: str) -> None:
        for side in self.open & set(sides or ("reading", "writing")):
            os.close(getattr(self, side))
            self.open.discard(side)


def _pipe(stack: contextlib.ExitStack) -> _Pipe:
    pipe = _Pipe()
    stack.callback(pipe.close)
    return pipe


def _tester_job(program: Program) -> dict[str, Any]:
    return {
        "preamble": program.preamble,
        "source": program.source,
        "setup": program.setup,
        "tests": list(program.tests),
        "entry_points": list(program.entry_points),
        "paths": payload.packages(),
    }


def _frame(job: object) -> bytes:
    data = json.dumps(job).encode("ascii")
    return len(data).to_bytes(8, "big") + data


def _write(descriptor: int, data: bytes, deadline: float) -> None:
    """Writes what the reader takes until the deadline; a reader that has ended shows elsewhere."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    view = memoryview(data)
    while view and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        try:
            # No more than a writable pipe takes at once: the descriptor blocks, as its heirs need it.
            view = view[os.write(descriptor, view[: select.PIPE_BUF]) :]
        except OSError:
            return


def _listen(
    descriptor: int, tester: Process, total: int, deadline: float, timeout: float
) -> tuple[Verdict, bool]:
    """(what was said until the end of the verdict or of its process, whether the deadline came before)."""
    said, rest, size = Verdict(total), b"", 0
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(tester.fileno(), select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        ready = {x for x, _ in poll.poll(left * 1000)}
        if not ready:
            continue
        part = os.read(descriptor, 1 << 16) if descriptor in ready else b""
        size += len(part)
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if said.read(line):
                said.began = time.monotonic()
                deadline = said.began + BY_THE_CLOCK * timeout
        if said.ended or not part or size > LARGEST_VERDICT:
            return said, False
    return said, True


def _is_gone(said: Verdict) -> bool:
    words = [said.fatal, *said.errors.values()]
    return any(x is not None and "ended early" in x for x in words)


def _outcome(said: Verdict, ends: dict[str, str], config: SandboxConfig) -> Outcome:
    if not said.ready:
        why = next((x for x in ends.values() if not x.startswith(("exit", "signal"))), None)
        raise ContainmentError(why or f"the processes ended before they began ({ends})")
    passed = sum(error is None for error in said.errors.values())
    if said.fatal is not None:
        return Outcome(0, said.total, _explain(said.fatal, ends, config))
    failed = next((i for i in range(said.total) if said.errors.get(i, "") is not None), None)
    if failed is None:
        all_of = f"all {said.total} tests" if said.total > 1 else "its test"
        return Outcome(passed, said.total, f"passes {all_of}")
    if failed in said.errors:
        why = _explain(said.errors[failed], ends, config)
    else:
        why = _ended("the tests ended early", ends["tester"], config)
    return Outcome(passed, said.total, f"test {failed + 1} of {said.total}: {why}")


def _ended(words: str, end: str, config: SandboxConfig) -> str:
    return f"time limit of {config.timeout:g} s" if end == "late" else f"{words} ({end})"


def _explain(words: str, ends: dict[str, str], config: SandboxConfig) -> str:
    if words.endswith("ended early"):
        return _ended(words, ends["program"], config)
    if "MemoryError" in words:
        return f"memory limit of {config.memory_mb} MB ({words})"
    return words

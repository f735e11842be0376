"""What goes into the sandbox and what comes out of it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SandboxConfig(BaseModel):
    """Where code that a model wrote is executed, and its limits."""

    model_config = ConfigDict(extra="forbid")

    tier: Literal["auto", "bubblewrap", "kernel", "unsafe"] = Field(
        "auto", description="auto: the best that works here (egspo doctor tells)"
    )
    allow_unsafe: bool = Field(
        False, description="run programs without isolation where no tier works; only limits then hold them"
    )
    timeout: float = Field(
        5.0, gt=0, le=600, description="seconds of processor time that a program may take with all its tests"
    )
    memory_mb: int = Field(512, ge=64, description="memory of a program")
    workers: int | None = Field(None, ge=1, description="programs at a time; default: the cores there are")


@dataclass(frozen=True)
class Program:
    """A program that a model wrote, and the tests that judge it.

    ``source`` runs in a process of its own, after ``preamble`` (trusted: imports and helper classes that the
    problem gives). ``setup`` and ``tests`` are trusted code and run in another process, where every name that
    the program defines stands for its counterpart there: calls go over as plain data, and what comes back is
    rebuilt as builtins. ``preamble`` runs there too, so that both know the same helper classes. A test passes
    if it ends without an exception.

    ``entry_points`` are the names that the problem asks for, where it says them. Only these may then take the
    place of builtins, of common modules' functions and of the preamble's names in the tests.
    """

    source: str
    tests: tuple[str, ...]
    setup: str = ""
    preamble: str = ""
    entry_points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How many tests passed, and why the others did not."""

    passed: int
    total: int
    reason: str

    @property
    def correct(self) -> bool:
        return self.total > 0 and self.passed == self.total

"""Runs programs that a model wrote, contained and under limits; a failure is a recorded result."""

from egspo.sandbox.records import Outcome, Program, SandboxConfig

__all__ = ["Outcome", "Program", "SandboxConfig"]

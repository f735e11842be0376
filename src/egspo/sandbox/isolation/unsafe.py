"""Limits and nothing else: for programs that one would run oneself, where no other tier works."""

from egspo.sandbox import payload
from egspo.sandbox.processes import Forker, Starter
from egspo.sandbox.records import SandboxConfig

VARIANTS = {"limits": "nothing but the environment; limits on time, memory, open files and sizes of files"}


def starter(config: SandboxConfig, variant: str) -> Starter:
    """A warm process outside, as the user's own."""
    return Forker(payload.interpreter(), payload.lock(config, "none", b""), VARIANTS[variant])

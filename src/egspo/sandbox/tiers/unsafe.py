"""Limits and nothing else: for programs that one would run oneself, or where all else fails."""

from egspo.sandbox import payload
from egspo.sandbox.processes import Forker, Starter
from egspo.sandbox.records import SandboxConfig

ISOLATES = "nothing: limits on time, memory and files, and the environment"


def starter(config: SandboxConfig) -> Starter:
    return Forker(payload.interpreter(), payload.lock(config, "none", b""), ISOLATES)

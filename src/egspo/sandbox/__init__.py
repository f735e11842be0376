"""Runs programs that a model wrote, contained and under limits; a failure is a recorded result."""

from egspo.sandbox.box import Sandbox
from egspo.sandbox.isolation import tiers
from egspo.sandbox.processes import ContainmentError
from egspo.sandbox.records import Outcome, Program, SandboxConfig

__all__ = ["ContainmentError", "Outcome", "Program", "Sandbox", "SandboxConfig", "tiers"]

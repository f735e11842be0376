"""Python and the kernel alone: namespaces and a root of its own, or Landlock where those are denied."""

from egspo.sandbox import payload, seccomp
from egspo.sandbox.processes import Forker, Starter
from egspo.sandbox.records import SandboxConfig

VARIANTS = {
    "namespaces": "files, network, processes, users, IPC, environment by namespaces; system calls by seccomp",
    "landlock": "files by Landlock; network, signals, IPC and other system calls by seccomp; environment",
}


def starter(config: SandboxConfig, variant: str) -> Starter:
    """
    Raises:
        ContainmentError: if there is no filter for this processor.
    """
    files = "root" if variant == "namespaces" else "landlock"
    return Forker(payload.interpreter(), payload.lock(config, files, seccomp.assemble()), VARIANTS[variant])

"""Python and the kernel alone: namespaces and a root of its own, or Landlock where those are denied."""

from egspo.sandbox import payload, seccomp
from egspo.sandbox.processes import ContainmentError, Forker, Starter
from egspo.sandbox.records import SandboxConfig

ISOLATES = {
    "root": "files, network, processes, users, IPC and environment by namespaces; system calls by seccomp",
    "landlock": "files by Landlock; network, processes and other system calls by seccomp; environment",
}


def starter(config: SandboxConfig, files: str = "root") -> Starter:
    try:
        filtered = seccomp.assemble()
    except ValueError as error:
        raise ContainmentError(str(error)) from error
    return Forker(payload.interpreter(), payload.lock(config, files, filtered), ISOLATES[files])

"""bubblewrap (github.com/containers/bubblewrap): a warm process in a box, and in it a box of its own for each
process that it forks; where namespaces do not nest, one bubblewrap a process."""

import shutil

from egspo.sandbox import payload, seccomp
from egspo.sandbox.processes import Alone, ContainmentError, Forker, Starter
from egspo.sandbox.records import SandboxConfig

_SHARED = "files, network, processes, users, IPC and environment by bubblewrap"
VARIANTS = {
    "nested": f"{_SHARED} and again by namespaces of each process; system calls by seccomp",
    "single": f"{_SHARED}, one a process; system calls by seccomp",
}


def starter(config: SandboxConfig, variant: str) -> Starter:
    """
    Raises:
        ContainmentError: if there is no bubblewrap or no filter for this processor.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise ContainmentError("bwrap is not on PATH")
    nested = variant == "nested"
    lock = payload.lock(config, "root" if nested else "bubblewrap", seccomp.assemble())
    return (Forker if nested else Alone)(command(program, nested), lock, VARIANTS[variant])


def command(program: str, nested: bool) -> list[str]:
    """bubblewrap around the interpreter. ``nested``: with ``/proc``, to set up namespaces by."""
    paths, links = payload.visible()
    options = ["--unshare-all", "--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"]
    options += ["--uid", str(payload.NOBODY), "--gid", str(payload.NOBODY)]
    for name, value in payload.ENVIRONMENT.items():
        options += ["--setenv", name, value]
    for path in paths:
        options += ["--ro-bind", path, path]
    for link, target in links:
        options += ["--symlink", target, link]
    for path in payload.DEVICES:
        options += ["--dev-bind-try", path, path]
    options += ["--proc", "/proc"] if nested else []
    options += ["--size", str(payload.SCRATCH_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    return [program, *options, "--remount-ro", "/", "--", *payload.interpreter()]

"""bubblewrap (https://github.com/containers/bubblewrap): a warm process in a box, and a box of its own in it
for each process that it forks; where namespaces do not nest, a bubblewrap for each process."""

import shutil

from egspo.sandbox import payload, seccomp
from egspo.sandbox.processes import ContainmentError, Forker, Starter
from egspo.sandbox.records import SandboxConfig

ISOLATES = (
    "files, network, processes, users, IPC and environment by bubblewrap and again by namespaces for each "
    "process; system calls by seccomp"
)


def starter(config: SandboxConfig) -> Starter:
    """
    Raises:
        ContainmentError: if there is no bubblewrap or no filter for this processor.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise ContainmentError("bwrap is not on PATH")
    try:
        filtered = seccomp.assemble()
    except ValueError as error:
        raise ContainmentError(str(error)) from error
    return Forker(command(program, nested=True), payload.lock(config, "root", filtered), ISOLATES)


def command(program: str, nested: bool) -> list[str]:
    """bubblewrap around the interpreter. ``nested``: with what it takes to make namespaces inside."""
    paths, links = payload.visible()
    options = ["--unshare-all", "--new-session", "--die-with-parent", "--as-pid-1", "--clearenv"]
    for name, value in payload.ENVIRONMENT.items():
        options += ["--setenv", name, value]
    for path in paths:
        options += ["--ro-bind", path, path]
    for link, target in links:
        options += ["--symlink", target, link]
    for path in payload.DEVICES:
        options += ["--dev-bind-try", path, path]
    options += ["--proc", "/proc"] if nested else []
    options += [
        "--size",
        str(payload.SCRATCH_BYTES),
        "--tmpfs",
        "/tmp",
        "--remount-ro",
        "/",
        "--chdir",
        "/tmp",
    ]
    return [program, *options, "--", *payload.interpreter()]

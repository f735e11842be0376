"""Ways to contain a process, best first, and which of them work here.

A tier is a file of this folder with ``starter(config)``, which gives a `egspo.sandbox.processes.Starter` or
raises ContainmentError with the reason; its place in `TIERS` is its rank.
"""

import os
import tempfile
import threading

from egspo.sandbox.processes import ContainmentError, Starter
from egspo.sandbox.records import Program, SandboxConfig
from egspo.sandbox.tiers import bubblewrap, kernel, unsafe
from egspo.sandbox.trial import judge

TIERS = {"bubblewrap": bubblewrap, "kernel": kernel, "unsafe": unsafe}
REMEDY = "apt-get install bubblewrap, or set sandbox.allow_unsafe: true (--allow-unsafe)"

_found: dict[str, tuple[bool, str]] = {}
_lock = threading.Lock()


def choose(config: SandboxConfig) -> tuple[str, Starter]:
    """The name and a starter of the tier that the configuration asks for, or of the best that works.

    Raises:
        ValueError: if there is none.
    """
    asked = list(TIERS) if config.tier == "auto" else [config.tier]
    allowed = [name for name in asked if name != "unsafe" or config.allow_unsafe]
    if not allowed:
        raise ValueError("sandbox.tier: unsafe needs sandbox.allow_unsafe: true (--allow-unsafe)")
    failures = []
    for name in allowed:
        works, detail = probe(name)
        if works:
            return name, TIERS[name].starter(config)
        failures.append(f"{name}: {detail}")
    raise ValueError(f"sandbox.tier: no tier works here ({'; '.join(failures)}); {REMEDY}")


def tiers() -> list[tuple[str, bool, str]]:
    """(name, whether it works here, what it isolates or why it does not work), best first."""
    return [(name, *probe(name)) for name in TIERS]


def probe(name: str) -> tuple[bool, str]:
    """(whether a tier works here, what it isolates or why not), found out once by a program that tries."""
    with _lock:
        if name not in _found:
            _found[name] = _try(name)
        return _found[name]


def _try(name: str) -> tuple[bool, str]:
    config = SandboxConfig(timeout=20.0, memory_mb=512)
    starter = None
    try:
        starter = TIERS[name].starter(config)
        with tempfile.NamedTemporaryFile() as secret:
            tests = ["assert answer() == 42"]
            if name != "unsafe":
                tests.append(f"assert escapes({secret.name!r}, {os.getpid()}) == []")
            outcome = judge(starter, Program(source=_ATTEMPTS, tests=tuple(tests)), config)
        return (True, starter.isolates) if outcome.correct else (False, outcome.reason)
    except (ContainmentError, OSError) as error:
        return False, str(error)
    finally:
        if starter is not None:
            starter.close()


_ATTEMPTS = '''
import os, socket

def answer():
    return 42

def _works(action):
    try:
        action()
    except OSError:
        return False
    return True

def escapes(secret, process):
    """What works that should not: files, processes, network."""
    attempts = {
        "reads files": lambda: open(secret).close(),
        "writes files": lambda: open("/usr/x", "w").close(),
        "sees processes": lambda: os.listdir(f"/proc/{process}"),
        "signals processes": lambda: os.kill(process, 0),
        "makes processes": lambda: os._exit(0) if os.fork() == 0 else None,
        "opens sockets": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
    }
    return [name for name, action in attempts.items() if _works(action)]
'''

"""Ways to contain a process, best first, and which of them work here.

A tier is a file of this folder with ``VARIANTS`` (what each isolates, best first) and ``starter(config,
variant)``, which gives a `egspo.sandbox.processes.Starter` or raises ContainmentError with the reason. Its
place in `TIERS` is its rank.
"""

import os
import tempfile
import threading
from types import ModuleType

from egspo.sandbox.isolation import bubblewrap, kernel, unsafe
from egspo.sandbox.processes import ContainmentError, Starter
from egspo.sandbox.records import Program, SandboxConfig
from egspo.sandbox.trial import judge

TIERS = {"bubblewrap": bubblewrap, "kernel": kernel, "unsafe": unsafe}
REMEDY = "apt-get install bubblewrap, or set sandbox.allow_unsafe: true (--allow-unsafe)"

_found: dict[str, tuple[str | None, str]] = {}
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
        variant, detail = probe(name)
        if variant is not None:
            return name, TIERS[name].starter(config, variant)
        failures.append(f"{name}: {detail}")
    raise ValueError(f"sandbox.tier: {config.tier} does not work here ({'; '.join(failures)}); {REMEDY}")


def tiers() -> list[tuple[str, bool, str]]:
    """(name, whether it works here, what it isolates or why it does not work), best first."""
    found = [(name, *probe(name)) for name in TIERS]
    return [(name, variant is not None, detail) for name, variant, detail in found]


def probe(name: str) -> tuple[str | None, str]:
    """(variant of a tier that works here or None, what it isolates or why none works), tried out once."""
    with _lock:
        if name not in _found:
            module, failures = TIERS[name], []
            for variant in module.VARIANTS:
                failure = _failure(module, variant, strict=name != "unsafe")
                if failure is None:
                    _found[name] = variant, module.VARIANTS[variant]
                    break
                failures.append(f"{variant}: {failure}" if len(module.VARIANTS) > 1 else failure)
            else:
                _found[name] = None, "; ".join(dict.fromkeys(failures))
        return _found[name]


def _failure(module: ModuleType, variant: str, strict: bool) -> str | None:
    """Why a variant does not work: it does not run a program, or does not keep one from what it tries."""
    config = SandboxConfig(timeout=20.0)
    with tempfile.NamedTemporaryFile() as secret:
        attempt = f"found = escapes({secret.name!r}, {os.getpid()})\nassert not found, found"
        tests = ("assert answer() == 42", attempt) if strict else ("assert answer() == 42",)
        try:
            starter = module.starter(config, variant)
        except ContainmentError as error:
            return str(error)
        try:
            outcome = judge(starter, Program(source=_ATTEMPTS, tests=tests), config)
            return None if outcome.correct else outcome.reason
        except ContainmentError as error:
            return str(error)
        finally:
            starter.close()


_ATTEMPTS = """
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
    attempts = {
        "reads files": lambda: open(secret).close(),
        "writes files": lambda: open(os.__file__, "a").close(),
        "sees processes": lambda: os.listdir(f"/proc/{process}"),
        "signals processes": lambda: os.kill(process, 0),
        "makes processes": lambda: os._exit(0) if os.fork() == 0 else None,
        "opens sockets": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
    }
    return [name for name, action in attempts.items() if _works(action)]
"""

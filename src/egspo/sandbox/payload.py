"""What a contained process is started with: the code of the guest, its lock, the interpreter, its view."""

import marshal
import math
import os
import sys
import sysconfig
from functools import lru_cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from egspo.sandbox.records import SandboxConfig

GUEST = (
    "wire",
    "graph",
    "guards",
    "arrays",
    "handles",
    "connection",
    "pytest_style",
    "program",
    "tester",
    "jail",
    "roles",
)
"""Modules of the guest, each after those that it imports."""
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
NOBODY = 65534
SCRATCH_BYTES = 16 << 20
LARGEST_FILE = 16 << 20
OPEN_FILES = 64
PROCESSES = 64
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32")
_BOOT = """
import marshal, os, sys
def read(n):
    data = b""
    while len(data) < n:
        part = os.read(0, n - len(data))
        if not part:
            os._exit(3)
        data += part
    return data
payload = marshal.loads(read(int.from_bytes(read(8), "big")))
kind, package = type(sys), "egspo.sandbox.guest"
for name in ("egspo", "egspo.sandbox", package):
    sys.modules[name] = kind(name)
guest = sys.modules[package]
for name, code in payload.pop("modules"):
    module = sys.modules[f"{package}.{name}"] = kind(f"{package}.{name}")
    exec(code, module.__dict__)
    setattr(guest, name, module)
for name in [name for name in sys.modules if name.partition(".")[0] == "egspo"]:
    del sys.modules[name]
guest.roles.main(payload)
"""


def interpreter() -> list[str]:
    """The command that reads a payload from descriptor 0 and begins: no site, user's files or environment."""
    return [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT]


def pack(main: str, spec: dict[str, Any], part: str = "") -> bytes:
    """The payload, its length before it. ``main`` is ``forker``, or ``alone`` for one ``part``."""
    data = marshal.dumps({"modules": _modules(), "main": main, "part": part, "spec": spec})
    return len(data).to_bytes(8, "big") + data


@lru_cache(maxsize=1)
def _modules() -> list[tuple[str, Any]]:
    folder = Path(__file__).parent / "guest"
    loaders = {
        name: SourceFileLoader(f"egspo.sandbox.guest.{name}", str(folder / f"{name}.py")) for name in GUEST
    }
    return [(name, loader.get_code(loader.name)) for name, loader in loaders.items()]


def lock(config: SandboxConfig, files: str, filtered: bytes) -> dict[str, Any]:
    """The lock of a process; files by a ``root`` of its own, ``landlock``, ``bubblewrap`` or ``none``."""
    paths, links = visible()
    limits = {
        "CORE": 0,
        "CPU": math.ceil(config.timeout),
        "FSIZE": LARGEST_FILE,
        "NOFILE": OPEN_FILES,
        "AS": config.memory_mb << 20,
        "MSGQUEUE": 0,
    }
    if files in ("root", "bubblewrap"):
        # Elsewhere the count would be of all processes of the user.
        limits["NPROC"] = PROCESSES
    return {
        "files": files,
        "paths": paths,
        "links": links,
        "scratch_bytes": SCRATCH_BYTES,
        "limits": limits,
        "filter": filtered,
    }


def visible() -> tuple[list[str], list[list[str]]]:
    """(paths to show, [link, target] of the root): system libraries, the interpreter and its packages."""
    links = [[path, os.readlink(path)] for path in _SYSTEM if os.path.islink(path)]
    wanted = [path for path in _SYSTEM if os.path.isdir(path) and not os.path.islink(path)]
    for prefix in (sys.base_prefix, sys.prefix):
        # Not the whole prefix: an environment may have been made in a project's folder.
        wanted += [os.path.join(prefix, name) for name in ("bin", "lib", "lib64", "pyvenv.cfg")]
    wanted += [os.path.realpath(sys.executable), sysconfig.get_path("stdlib"), *packages()]
    shown: list[str] = []
    for path in wanted:
        for x in dict.fromkeys((path, os.path.realpath(path))):
            if os.path.exists(x) and not any(x == y or x.startswith(y + "/") for y in shown):
                shown.append(x)
    return [x for x in shown if not os.path.islink(x) or os.path.isfile(x)], links


def packages() -> list[str]:
    """The folders of installed packages."""
    return [x for x in dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib"))) if os.path.isdir(x)]

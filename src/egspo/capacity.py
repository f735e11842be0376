"""Memory that a process of this launch can have."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from egspo import launch

CUDA_RESERVE = 3 * 2**29
"""Of a device: its context, the libraries' workspaces, and what fragmentation takes."""
_CGROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """What one process of this launch can have; None where the system does not say.

    On CUDA the memory of its device that is free, less a reserve. Else the machine's, or what a control
    group leaves of it, shared among the processes of this machine.
    """
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info(launch.device())
        return free - CUDA_RESERVE
    known = [n for n in (_machine_bytes(), _group_bytes()) if n is not None]
    return min(known) // launch.local_world_size() if known else None


def _machine_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that can be had without swapping (Linux), else all of the machine's."""
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not all(name in getattr(os, "sysconf_names", {}) for name in names):
        return None
    return os.sysconf(names[0]) * os.sysconf(names[1])


def _group_bytes(root: Path = _CGROUPS) -> int | None:
    """What the control groups around this process (version 2, else 1) leave; None where nothing is set."""
    left = [n for folder in _groups(root) if (n := _left_in(folder)) is not None]
    return min(left) if left else None


def _groups(root: Path) -> Iterator[Path]:
    own = Path("/proc/self/cgroup")
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    inside = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), "/")
    folder = root / inside.strip("/")
    yield from (path for path in (folder, *folder.parents) if path.is_relative_to(root))
    yield root / "memory"


def _left_in(folder: Path) -> int | None:
    """Limit less use; file caches do not count, for they are given back."""
    for limit, use, caches in (
        ("memory.max", "memory.current", ("inactive_file", "active_file")),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    ):
        if (folder / limit).is_file() and (folder / use).is_file():
            most = (folder / limit).read_text(encoding="utf-8").strip()
            if not most.isdigit() or int(most) >= 2**60:
                return None
            used = int((folder / use).read_text(encoding="utf-8"))
            stat = folder / "memory.stat"
            rows = stat.read_text(encoding="utf-8").splitlines() if stat.is_file() else []
            cached = sum(int(number) for name, number in map(str.split, rows) if name in caches)
            return int(most) - used + cached
    return None

"""Locks the calling process up, by the kernel alone: namespaces, own root, Landlock, seccomp, limits.

Each function raises OSError with the step that failed; who calls it then ends without running anything.
"""

import ctypes
import os
import platform
import resource
import struct

NEW_NAMESPACES = 0x00020000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000
"""CLONE_NEWNS, NEWUSER, NEWPID, NEWNET, NEWIPC, NEWUTS."""
INSIDE = 65534
"""User and group that a contained process sees itself as."""
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_AT_RECURSIVE = 0x8000
_READ_ONLY_NOSUID = 1 | 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
SELF = 0x7FFFFFF1
"""As in `egspo.sandbox.seccomp`: the number of this process goes there."""
_LAST_CAPABILITY = 63
_READ_FILE_DIRECTORY_EXECUTE = 1 | 4 | 8
_FILE_RIGHTS = 1 | 2 | 4
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random")
MOUNT_POINTS = ("/proc", "/sys", "/mnt", "/tmp")
"""Where the new root is put before it becomes the root: the first that is there and holds nothing needed."""

_libc = ctypes.CDLL(None, use_errno=True)


def unshare() -> None:
    """New namespaces for this process, and a new pid namespace for its children."""
    user, group = os.geteuid(), os.getegid()
    _check("unshare", _libc.unshare(NEW_NAMESPACES))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE} {user} 1"),
        ("gid_map", f"{INSIDE} {group} 1"),
    ):
        _write(f"/proc/self/{name}", text)


def enter_root(paths: list[str], links: list[list[str]], scratch_bytes: int) -> None:
    """A root that holds ``paths`` read-only, a few devices, a ``/tmp`` of limited size, and nothing else."""
    root = next(x for x in MOUNT_POINTS if os.path.isdir(x) and not any(_under(x, path) for path in paths))
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in paths:
        _bind(path, root + path, os.path.isdir(path))
    for link, target in links:
        os.symlink(target, root + link)
    for path in DEVICES:
        if os.path.exists(path):
            _bind(path, root + path, False)
    os.mkdir(root + "/tmp")
    attributes = struct.pack("QQQQ", _READ_ONLY_NOSUID, 0, 0, 0)
    _syscall(_MOUNT_SETATTR, -100, root.encode(), _AT_RECURSIVE, attributes, len(attributes))
    size = f"size={scratch_bytes},mode=777,nr_inodes=1024"
    _mount("tmpfs", root + "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, size)
    os.chdir(root)
    _syscall(_PIVOT_ROOT[platform.machine()], b".", b".")
    _check("umount", _libc.umount2(b".", _MNT_DETACH))
    os.chdir("/tmp")


def restrict_files(paths: list[str]) -> None:
    """Landlock: read-only access to ``paths`` and devices, none elsewhere; no TCP, no signals to outside."""
    version = _syscall(_LANDLOCK_CREATE, None, 0, 1)
    rights = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    rules = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = _syscall(_LANDLOCK_CREATE, rules, size, 0)
    wanted = [(path, _READ_FILE_DIRECTORY_EXECUTE if os.path.isdir(path) else _FILE_RIGHTS) for path in paths]
    for path, allowed in [*wanted, *((path, 2 | 4) for path in DEVICES)]:
        if not os.path.exists(path):
            continue
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed & (rights if os.path.isdir(path) else 0x7), opened)
        _syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0)
        os.close(opened)
    no_new_privileges()
    _syscall(_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


def drop_capabilities() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = struct.pack("Ii", 0x20080522, 0)
    _syscall(_CAPSET[platform.machine()], header, bytes(24))


def no_new_privileges() -> None:
    _check("no_new_privs", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def die_with_parent() -> None:
    """SIGKILL when the process that forked this one ends."""
    _check("pdeathsig", _libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0))


def filter_calls(program: bytes) -> None:
    """Installs a seccomp filter, as `egspo.sandbox.seccomp` assembles it, for good."""
    no_new_privileges()
    program = program.replace(struct.pack("I", SELF), struct.pack("I", os.getpid()))
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    _check("seccomp", _libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0))


def limit(limits: dict[str, int]) -> None:
    """Hard limits by name of the ``RLIMIT_`` constants, no higher than those in force."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def lock(spec: dict) -> None:
    """All that a process which has its namespaces does before it runs what it shall contain."""
    if spec["files"] == "root":
        enter_root(spec["paths"], spec["links"], spec["scratch_bytes"])
        drop_capabilities()
    elif spec["files"] == "landlock":
        restrict_files(spec["paths"])
        drop_capabilities()
    limit(spec["limits"])
    if spec["filter"]:
        filter_calls(spec["filter"])


def _bind(source: str, target: str, is_directory: bool) -> None:
    os.makedirs(target if is_directory else os.path.dirname(target), exist_ok=True)
    if not is_directory:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
    _mount(source, target, None, _MS_BIND | _MS_REC)


def _under(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if x is None else x.encode() for x in (source, target, kind, data)]
    result = _libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3])
    _check(f"mount {target}", result)


def _syscall(number: int, *arguments: object) -> int:
    given = [ctypes.c_long(x) if isinstance(x, int) else x for x in arguments]
    return _check(f"syscall {number}", _libc.syscall(ctypes.c_long(number), *given))


def _check(step: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{step}: {os.strerror(code)}")
    return result


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)

"""How a contained process begins: descriptors, lock, part; alone, or forked off a warm process."""

import fcntl
import gc
import os
import select
import signal
import sys

from egspo.sandbox.guest import jail, program, tester

PARTS = {b"p": "program", b"t": "tester"}


def play(part: str, descriptors: tuple[int, int, int]) -> None:
    """The part of ``program`` or ``tester``, with descriptors for reading, writing and the verdict."""
    reading, writing, verdict = descriptors
    if part == "program":
        os.close(verdict)
        program.main(reading, writing)
    else:
        tester.main(reading, writing, verdict)


def take_over(descriptors: tuple[int, int, int]) -> tuple[int, int, int]:
    """Moves the descriptors to 3, 4 and 5, opens nothing on 0, 1 and 2, and closes all others."""
    moved = [_duplicate_above(x) for x in descriptors]
    for target, x in enumerate(moved, 3):
        os.dup2(x, target, inheritable=False)
    nothing = os.open(os.devnull, os.O_RDWR)
    for target in range(3):
        os.dup2(nothing, target)
    os.closerange(6, 65536)
    return 3, 4, 5


def _duplicate_above(descriptor: int) -> int:
    """A duplicate of 16 or more, out of the way of 0 to 5."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 16)


def alone(payload: dict) -> None:
    """The one part of a process that was started for it: descriptors 0, 1 and 2."""
    descriptors = take_over((0, 1, 2))
    jail.lock(payload["spec"])
    play(payload["part"], descriptors)
    os._exit(0)


def warm_up() -> None:
    """Imports what most programs and tests import, once for all."""
    import bisect  # noqa: F401
    import contextlib  # noqa: F401
    import copy  # noqa: F401
    import dataclasses  # noqa: F401
    import functools  # noqa: F401
    import heapq  # noqa: F401
    import itertools  # noqa: F401
    import random  # noqa: F401
    import string  # noqa: F401
    import typing  # noqa: F401

    gc.collect()
    gc.freeze()


def forker(payload: dict) -> None:
    """Forks a contained process for each request on socket 0: one byte for its part, and four descriptors.

    The fourth is a socket: at its end the process is killed, and its exit status is written there. This
    process holds no secret and reads nothing of what those that it forks are given.
    """
    import _socket
    import array

    control = _socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for target in range(3):
        os.dup2(nothing, target)
    os.close(nothing)
    signal.signal(signal.SIGCHLD, reap)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warm_up()
    control.send(b"r")
    while True:
        part, ancillary, _, _ = control.recvmsg(1, _socket.CMSG_SPACE(16))
        if not part:
            os._exit(0)
        descriptors = array.array("i", ancillary[0][2])
        if os.fork() == 0:
            try:
                control.close()
                supervise(PARTS[part], tuple(descriptors), payload["spec"])
            finally:
                os._exit(1)
        for x in descriptors:
            os.close(x)


def reap(*_: object) -> None:
    """Waits for children that have ended, so that none stays a zombie and their time is counted."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def supervise(part: str, descriptors: tuple[int, int, int, int], spec: dict) -> None:
    """Forks the contained process into namespaces of its own, and waits for its end or for word to end it."""
    *given, lifeline = descriptors
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        if spec["files"] == "root":
            jail.unshare()
        child = os.fork()
    except OSError as error:
        os.write(lifeline, b"E" + str(error).encode())
        return
    if child == 0:
        try:
            if spec["files"] == "none":
                os.setsid()
            else:
                jail.die_with_parent()
            jail.lock(spec)
        except BaseException as error:
            os.write(lifeline, b"E" + str(error).encode())
            os._exit(1)
        given = take_over(given)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        play(part, given)
        os._exit(0)
    for x in given:
        os.close(x)
    status = watch(child, lifeline)
    if spec["files"] == "none":
        end_group(child)
    os.write(lifeline, b"S" + str(os.waitstatus_to_exitcode(status)).encode())


def watch(child: int, lifeline: int) -> int:
    """Exit status of the child, killed when the lifeline is."""
    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    handle = os.pidfd_open(child) if hasattr(os, "pidfd_open") else None
    if handle is not None:
        poll.register(handle, select.POLLIN)
    while True:
        ready = {x for x, _ in poll.poll(None if handle is not None else 10)}
        if lifeline in ready:
            os.kill(child, 9)
            return os.waitpid(child, 0)[1]
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status


def end_group(child: int) -> None:
    """Kills what a process without namespaces left behind in its session."""
    try:
        os.killpg(child, 9)
    except OSError:
        return


def main(payload: dict) -> None:
    sys.dont_write_bytecode = True
    {"forker": forker, "alone": alone}[payload["main"]](payload)

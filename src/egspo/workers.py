"""Warm worker processes for calls that may hang or eat memory, each call under hard limits.

A worker is two processes. The outer one imports what is needed once and then only forwards; the inner one,
its fork, does the work and is replaced, within milliseconds, when a call exceeds its processor time, its
memory or ten times its time by the clock. No signal handler and no thread of the caller takes part, so a pool
works from any thread, from any rank, and in a forked child, which gets workers of its own.
"""

import atexit
import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from egspo import launch

START = 60.0
"""Seconds that a worker may take to start."""
BY_THE_CLOCK = 10
"""Times its processor time that a call may take by the clock: a loaded machine gives it a part of it."""
MOST = 8
"""Most workers that a pool starts unless told otherwise."""


class Overrun(Exception):
    """A call took more time or memory than it may."""


class Pool:
    """Workers that call the function that ``factory`` (``module:name``) returns.

    Args:
        factory: called without arguments in each worker, once; what it loads is shared by all calls.
        seconds: processor time of a call; by the clock it may take `BY_THE_CLOCK` times as much.
        megabytes: address space of a worker.
        size: workers at a time; default: this process's share of the cores. Each starts when it is
            first needed.
    """

    def __init__(self, factory: str, seconds: float, megabytes: int, size: int | None = None):
        self.size = size or min(MOST, launch.cores())
        self._limits = (factory, seconds, megabytes)
        self._forget()
        _POOLS.add(self)

    def _forget(self) -> None:
        """Start without workers: those of a parent process are not this one's."""
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._num = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        """Start one worker, if there is none, so that the first call need not wait for it.

        Raises:
            RuntimeError: if it does not start.
        """
        self._give(self._take())

    def call(self, *args: Any) -> Any:
        """What the function returns; arguments and value are JSON. Waits for a worker that is free.

        Raises:
            Overrun: if the call exceeded its time or memory; also if the function failed, with its reason.
            RuntimeError: if no worker starts.
        """
        worker = self._take()
        try:
            reply = worker.ask(json.dumps(args))
        except BaseException:
            self._drop(worker)
            raise
        self._give(worker)
        if "error" in reply:
            raise Overrun(reply["error"])
        return reply["value"]

    def close(self) -> None:
        """End all workers; a later call starts new ones."""
        with self._changed:
            workers, self._idle = list(self._all), []
            self._all, self._num = set(), 0
            self._changed.notify_all()
        for worker in workers:
            worker.close()

    def _take(self) -> "_Worker":
        with self._changed:
            while not self._idle and self._num >= self.size:
                self._changed.wait()
            if self._idle:
                return self._idle.pop()
            self._num += 1
        try:
            worker = _Worker(*self._limits)
        except BaseException:
            with self._changed:
                self._num -= 1
                self._changed.notify()
            raise
        with self._changed:
            self._all.add(worker)
        return worker

    def _give(self, worker: "_Worker") -> None:
        with self._changed:
            if worker in self._all:
                self._idle.append(worker)
                self._changed.notify()

    def _drop(self, worker: "_Worker") -> None:
        worker.close()
        with self._changed:
            if worker in self._all:
                self._all.remove(worker)
                self._num -= 1
                self._changed.notify()


_POOLS: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_POOLS):
        for worker in list(pool._all):
            worker.disown()
        pool._forget()


def _close_all() -> None:
    for pool in list(_POOLS):
        pool.close()


os.register_at_fork(after_in_child=_forget_all)
atexit.register(_close_all)


class _Worker:
    """The caller's end of an outer process."""

    def __init__(self, factory: str, seconds: float, megabytes: int):
        self._patience = BY_THE_CLOCK * seconds + 1.0
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        # -P: the current folder must not shadow modules. A session of its own: Ctrl-C is the caller's.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "egspo.workers", factory, str(seconds), str(megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )
        if _read_line(self._process.stdout.fileno(), START) is None:
            self.close()
            raise RuntimeError(f"a worker for {factory} did not start; its message stands above")

    def ask(self, line: str) -> dict[str, Any]:
        try:
            _write(self._process.stdin.fileno(), line.encode() + b"\n")
        except OSError:
            raise Overrun("the worker is gone") from None
        reply = _read_line(self._process.stdout.fileno(), self._patience)
        if reply is None:
            raise Overrun("the worker did not answer")
        return json.loads(reply)

    def close(self) -> None:
        """End both processes: the outer one ends its fork when its input ends."""
        self.disown()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def disown(self) -> None:
        """Close the pipes; in a forked child those of a process that is not its own."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _write(file: int, line: bytes) -> None:
    while line:
        line = line[os.write(file, line) :]


def _read_line(file: int, seconds: float) -> bytes | None:
    """One line from a pipe; None if it does not come in time or the other end is closed."""
    poll, end, read = select.poll(), time.monotonic() + seconds, b""
    poll.register(file, select.POLLIN)
    while not read.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        chunk = os.read(file, 65536)
        if not chunk:
            return None
        read += chunk
    return read


class _Fork:
    """The outer process's end of the inner one."""

    def __init__(self, function: Callable[..., Any], seconds: float, megabytes: int):
        request_read, self._request = os.pipe()
        self._reply, reply_write = os.pipe()
        self._patience = BY_THE_CLOCK * seconds
        self._process = os.fork()
        if self._process == 0:
            os.close(self._request)
            os.close(self._reply)
            try:
                _serve(function, seconds, megabytes << 20, request_read, reply_write)
            finally:
                os._exit(1)
        os.close(request_read)
        os.close(reply_write)

    def ask(self, line: bytes) -> bytes | None:
        with contextlib.suppress(OSError):
            _write(self._request, line)
        return _read_line(self._reply, self._patience)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._request)
        os.close(self._reply)


def _serve(function: Callable[..., Any], seconds: float, bytes_: int, request: int, reply: int) -> None:
    """Answer calls. Nobody handles SIGPROF: the kernel ends the process when time is over, also in C code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(request, "rb") as calls, os.fdopen(reply, "wb") as replies:
        for line in calls:
            signal.setitimer(signal.ITIMER_PROF, seconds)
            try:
                answer = {"value": function(*json.loads(line))}
            except MemoryError:
                os._exit(1)  # what is left of the memory is unknown; a fresh fork is cheap
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"[:200]}
            signal.setitimer(signal.ITIMER_PROF, 0)
            replies.write(json.dumps(answer).encode() + b"\n")
            replies.flush()


def _main(factory: str, seconds: float, megabytes: int) -> None:
    """The outer process: lines of standard input are calls, lines of standard output what they return."""
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no reply
        module, name = factory.split(":")
        function = getattr(importlib.import_module(module), name)()
        out.write(b"ready\n")
        out.flush()
        inner = None
        for line in sys.stdin.buffer:
            inner = inner or _Fork(function, seconds, megabytes)
            reply = inner.ask(line)
            if reply is None:
                inner.end()
                inner = None
                text = f"took more than {seconds:g} s or {megabytes} MB"
                reply = json.dumps({"error": text}).encode() + b"\n"
            out.write(reply)
            out.flush()
        if inner is not None:
            inner.end()


if __name__ == "__main__":
    _main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))

"""Starts contained processes, from a warm process that forks them or each by a command of its own."""

import array
import contextlib
import os
import select
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from egspo.sandbox import payload

START_SECONDS = 30.0
"""Longest wait for an interpreter to start."""
END_SECONDS = 10.0


class ContainmentError(RuntimeError):
    """The machine would not start or lock up a process."""


class Process(ABC):
    """A contained process, seen from outside. ``fileno()`` becomes readable when it has ended."""

    preface: bytes = b""
    """To be written to what it reads, before anything else."""

    @abstractmethod
    def fileno(self) -> int: ...

    @abstractmethod
    def end(self) -> str:
        """Kills it if it still runs, waits, and tells how it ended: ``exit N``, ``signal N`` or an error."""


class Starter(ABC):
    """Starts processes of one tier under one configuration."""

    isolates: str

    @abstractmethod
    def start(self, part: str, reading: int, writing: int, verdict: int) -> Process:
        """A process that plays ``program`` or ``tester`` over descriptors, which stay the caller's.

        Raises:
            ContainmentError: if it cannot be started.
        """

    @abstractmethod
    def close(self, forked: bool = False) -> None:
        """Frees what is held; ``forked`` in a child of the process that opened it: its processes go on."""


class Forker(Starter):
    """A warm process that forks contained ones (`egspo.sandbox.guest.roles.forker`), begun at first use."""

    def __init__(self, command: Sequence[str], spec: dict[str, Any], isolates: str):
        self.isolates = isolates
        self.command, self.spec = list(command), spec
        self.lock = threading.Lock()
        self.child: subprocess.Popen | None = None
        self.control: socket.socket | None = None

    def start(self, part: str, reading: int, writing: int, verdict: int) -> "Forked":
        ours, theirs = socket.socketpair()
        given = array.array("i", [reading, writing, verdict, theirs.fileno()])
        message = [part[:1].encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)]
        try:
            with self.lock:
                if self.child is not None and self.child.poll() is not None:
                    self._discard()
                if self.control is None:
                    self._open()
                try:
                    self.control.sendmsg(*message)
                except OSError:
                    self._discard()
                    self._open()
                    self.control.sendmsg(*message)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return Forked(ours)

    def _open(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self.child = subprocess.Popen(
                    self.command,
                    stdin=theirs,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=payload.ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                )
            self.control = ours
            ours.settimeout(START_SECONDS)
            ours.sendall(payload.pack("forker", self.spec))
            ready = ours.recv(1)
        except OSError as error:
            ready, words = b"", str(error)
        else:
            words = ""
        if ready != b"r":
            if self.child is not None:
                self.child.kill()
            words = (self.child and _last_line(self.child.stderr.read())) or words or "ended at once"
            self._discard()
            raise ContainmentError(words)
        self.child.stderr.close()
        ours.settimeout(None)

    def _discard(self) -> None:
        if self.control is not None:
            # The warm process ends when this does.
            self.control.close()
        if self.child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(END_SECONDS)
            self.child.kill()
            self.child.wait()
            self.child.stderr.close()
        self.control = self.child = None

    def close(self, forked: bool = False) -> None:
        if not forked:
            with self.lock:
                self._discard()
            return
        self.lock = threading.Lock()
        if self.control is not None:
            self.control.close()
        if self.child is not None:
            # Another process's child: not to be waited for.
            self.child.returncode = 0
        self.control = self.child = None


class Forked(Process):
    """A process that a `Forker` made, held by a socket to the one that watches it."""

    def __init__(self, lifeline: socket.socket):
        self.lifeline = lifeline

    def fileno(self) -> int:
        return self.lifeline.fileno()

    def end(self) -> str:
        words = b""
        with self.lifeline:
            self.lifeline.settimeout(END_SECONDS)
            with contextlib.suppress(OSError):
                # Reaches the watcher whoever else has the socket, a forked child of this process for one.
                self.lifeline.shutdown(socket.SHUT_WR)
                while part := self.lifeline.recv(4096):
                    words += part
        text = words.decode("utf-8", "replace")
        return _exit_words(int(text[1:])) if text[:1] == "S" else text[1:] or "could not be forked"


class Alone(Starter):
    """Processes started each by its own command, which ends with them; slower, and needs nothing nested."""

    def __init__(self, command: Sequence[str], spec: dict[str, Any], isolates: str):
        self.isolates = isolates
        self.command, self.spec = list(command), spec

    def start(self, part: str, reading: int, writing: int, verdict: int) -> "Started":
        try:
            child = subprocess.Popen(
                self.command,
                stdin=reading,
                stdout=writing,
                stderr=verdict,
                env=payload.ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise ContainmentError(str(error)) from error
        return Started(child, payload.pack("alone", self.spec, part))

    def close(self, forked: bool = False) -> None:
        """Nothing is held between runs."""


class Started(Process):
    """A process that `Alone` made."""

    def __init__(self, child: subprocess.Popen, preface: bytes):
        self.child, self.preface = child, preface
        self.handle = os.pidfd_open(child.pid)

    def fileno(self) -> int:
        return self.handle

    def end(self) -> str:
        os.close(self.handle)
        self.child.kill()
        return _exit_words(self.child.wait())


def wait_for(process: Process, seconds: float) -> bool:
    """Whether the process ends within that time."""
    poll = select.poll()
    poll.register(process.fileno(), select.POLLIN)
    until = time.monotonic() + seconds
    return bool(poll.poll(max(0.0, until - time.monotonic()) * 1000))


def _exit_words(code: int) -> str:
    # bubblewrap and shells report a signal as 128 + its number.
    signal = -code if code < 0 else code - 128 if code > 128 else 0
    return f"signal {signal}" if signal else f"exit {code}"


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""

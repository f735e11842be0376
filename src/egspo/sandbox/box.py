"""The sandbox: programs in, outcomes out."""

import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from egspo import launch
from egspo.sandbox import isolation
from egspo.sandbox.processes import ContainmentError, Starter
from egspo.sandbox.records import Outcome, Program, SandboxConfig
from egspo.sandbox.trial import judge


class Sandbox:
    """Runs programs that a model wrote against tests, contained by the best tier that works here.

    It can be used from several threads, which share its ``workers``, and goes on in a forked child, which
    starts processes of its own. `close` ends what it started; so does the end of the process.

    Raises:
        ValueError: if the tier does not work here, or none does and ``allow_unsafe`` is not set.
    """

    def __init__(self, config: SandboxConfig):
        self.config = config
        self.tier, starter = isolation.choose(config)
        self.isolates = starter.isolates
        self._state = _State(starter)
        self._finalizer = weakref.finalize(self, _State.close, self._state)

    def run(self, programs: Sequence[Program]) -> list[Outcome]:
        """The outcome of each program, in their order; equal ones run once.

        Raises:
            ContainmentError: if the machine ceases to run processes contained; never for what a program does.
            ValueError: after `close`.
        """
        if not self._finalizer.alive:
            raise ValueError("the sandbox is closed; make another")
        different = list(dict.fromkeys(programs))
        workers = self.config.workers or launch.cores()
        pool = self._state.pool(workers)
        outcomes = pool.map(self._judge, different)
        found = dict(zip(different, outcomes, strict=True))
        return [found[program] for program in programs]

    def _judge(self, program: Program) -> Outcome:
        try:
            return judge(self._state.starter, program, self.config)
        except ContainmentError:
            # Raised before the program begins: the warm process may have died since the last one.
            return judge(self._state.starter, program, self.config)

    def close(self) -> None:
        self._finalizer()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _State:
    """What a sandbox holds of the system, in the process that opened it."""

    def __init__(self, starter: Starter):
        self.starter = starter
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.threads: ThreadPoolExecutor | None = None
        _STATES.add(self)

    def pool(self, workers: int) -> ThreadPoolExecutor:
        with self.lock:
            if self.threads is None:
                self.threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
            return self.threads

    def forget(self) -> None:
        """In a forked child: the threads are not there, and the processes are the parent's."""
        self.lock, self.threads = threading.Lock(), None
        self.starter.close(forked=True)
        self.process = os.getpid()

    def close(self) -> None:
        if self.threads is not None:
            self.threads.shutdown(wait=True, cancel_futures=True)
        self.starter.close()


_STATES: weakref.WeakSet = weakref.WeakSet()


def _forget_all() -> None:
    for state in list(_STATES):
        state.forget()


os.register_at_fork(after_in_child=_forget_all)

"""Many runs over few cores: one process a run, its output in a file, none left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock

import torch

from egspo import launch
from egspo.compare import RunFailed
from egspo.compare.plan import Run
from egspo.tracking import write_whole

DIVERGED = "diverged"
"""What a run that became infinite is recorded as; any other failure ends the comparison."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # glibc gives memory back and asks for it again at every step unless told not to.
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "TOKENIZERS_PARALLELISM": "false",
}


def default_at_once() -> int:
    """One run a core; one in all where there is a GPU, on which they would crowd."""
    return 1 if torch.cuda.is_available() else launch.cores()


class Jobs:
    """Runs processes, ``at_once`` at a time; each result is told as it comes.

    ``slowdown``: of this machine (`egspo.compare.speed`), told to every run.
    """

    def __init__(self, at_once: int):
        self.at_once, self.slowdown = at_once, 1.0
        self._running: set[subprocess.Popen] = set()
        self._lock, self._stopping = Lock(), False

    def run(self, runs: Sequence[Run], done: Callable[[Run], None]) -> None:
        """Run all; ``done`` is called from threads, one call at a time.

        Raises:
            RunFailed: if one fails other than by divergence, with the end of its output; the others that
                had begun by then are stopped.
        """
        with ThreadPoolExecutor(self.at_once) as pool:
            futures = [pool.submit(self._one, run, done) for run in runs]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stop(futures)
                raise

    def _one(self, run: Run, done: Callable[[Run], None]) -> None:
        folder = Path(run.settings["output_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            folder / "run.json", json.dumps(asdict(replace(run, slowdown=self.slowdown)), indent=2) + "\n"
        )
        command = [sys.executable, "-m", "egspo.compare.worker", str(folder), str(os.getpid())]
        with (folder / "output.log").open("w", encoding="utf-8") as log:
            with self._lock:
                if self._stopping:
                    return
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | ENVIRONMENT,
                )
                self._running.add(process)
            process.wait()
        with self._lock:
            self._running.discard(process)
            if self._stopping:
                return
            self._check(run, folder, process.returncode)
            done(run)

    def _check(self, run: Run, folder: Path, code: int) -> None:
        if code == 0:
            return
        said = (folder / "output.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = said[-1] if said else "no output"
        if code < 0:
            last = f"it was ended by {signal.Signals(-code).name}"
        raise RunFailed(f"{run.label}: its run failed: {last} (all of it: {folder / 'output.log'})")

    def _stop(self, futures) -> None:
        with self._lock:
            self._stopping = True
            for future in futures:
                future.cancel()
            for process in self._running:
                process.terminate()
        for process in list(self._running):
            process.wait()

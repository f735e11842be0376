"""Worker processes: what they return, what ends them, and that none is left behind."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from egspo.workers import BY_THE_CLOCK, Overrun, Pool

FOLDER = str(Path(__file__).parent)
FACTORY = "test_workers:factory"


def factory():
    """What the workers of these tests do."""
    kept = []

    def work(kind: str, value):
        if kind == "double":
            return 2 * value
        if kind == "hang":
            return len(str(9**9**9))  # one operation of the interpreter: no handler of a signal would run
        if kind == "sleep":
            time.sleep(value)
        if kind == "hoard":
            kept.append(bytearray(value))
        if kind == "leave":
            os._exit(0)
        if kind == "print":
            print("no reply", flush=True)
        if kind == "pid":
            return os.getpid()
        if kind == "fail":
            raise KeyError(value)
        return None

    return work


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", FOLDER)
    pool = Pool(FACTORY, seconds=0.4, megabytes=2048, size=2)
    yield pool
    pool.close()


def children() -> set[int]:
    """Processes below this one, with theirs."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # pid (name) state parent …; a name may hold anything
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return below - {os.getpid()}


def test_a_call_returns_what_the_function_returns(pool):
    assert pool.call("double", 21) == 42
    assert pool.call("double", "ab") == "abab"


def test_what_a_library_prints_is_no_reply(pool):
    assert pool.call("print", 0) is None
    assert pool.call("double", 1) == 2


@pytest.mark.parametrize(("kind", "value"), [("hang", 0), ("sleep", 60), ("hoard", 4 << 30), ("leave", 0)])
def test_a_call_beyond_its_limits_ends_and_the_next_one_works(pool, kind, value):
    pool.start()
    start = time.monotonic()
    with pytest.raises(Overrun, match=r"took more than 0\.4 s or 2048 MB"):
        pool.call(kind, value)
    assert time.monotonic() - start < 0.4 * BY_THE_CLOCK + 4
    assert pool.call("double", 3) == 6


def test_a_call_that_waits_for_its_turn_is_not_ended(pool):
    """As one does that shares its core; 0.4 s is its processor time."""
    assert pool.call("sleep", 1.2) is None


def test_a_function_that_fails_says_why(pool):
    with pytest.raises(Overrun, match="KeyError: 'why'"):
        pool.call("fail", "why")


def test_threads_share_the_workers(pool):
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda i: pool.call("double", i), range(200))) == list(range(0, 400, 2))
        assert len(set(threads.map(lambda _: pool.call("pid", 0), range(50)))) <= 2


def test_a_thread_that_overruns_does_not_stop_another(pool):
    outcomes = []

    def overrun():
        with pytest.raises(Overrun):
            pool.call("hang", 0)
        outcomes.append("ended")

    thread = threading.Thread(target=overrun)
    thread.start()
    assert [pool.call("double", i) for i in range(20)] == list(range(0, 40, 2))
    thread.join()
    assert outcomes == ["ended"]


def test_a_forked_child_has_workers_of_its_own(pool):
    ours = pool.call("pid", 0)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        theirs = pool.call("pid", 0)
        os.write(write, str(theirs).encode())
        pool.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(read, 100)) != ours
    assert pool.call("pid", 0) == ours
    os.close(read)
    os.close(write)


def test_closing_leaves_no_process_and_no_file(pool):
    processes, files = children(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        pool.call("double", 1)
        with pytest.raises(Overrun):
            pool.call("hang", 0)
        assert children() > processes
        pool.close()
        assert children() == processes
        assert len(os.listdir("/proc/self/fd")) == files


def test_workers_end_with_their_process():
    code = (
        f"from egspo.workers import Pool; p = Pool({FACTORY!r}, 1, 1024); print(p.call('pid', 0), flush=True)"
    )
    kill = "; import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    for end in ("", kill):
        done = subprocess.run(
            [sys.executable, "-c", code + end],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([FOLDER, *sys.path])},
        )
        pid = int(done.stdout)
        for _ in range(100):
            if not os.path.exists(f"/proc/{pid}"):
                break
            time.sleep(0.05)
        assert not os.path.exists(f"/proc/{pid}")


def test_a_factory_that_does_not_exist_is_told(capfd):
    with pytest.raises(RuntimeError, match="a worker for nowhere:factory did not start"):
        Pool("nowhere:factory", 1.0, 512).start()
    assert "nowhere" in capfd.readouterr().err

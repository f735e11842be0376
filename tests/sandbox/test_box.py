"""The sandbox as its users hold it: order, equal programs, threads, forks, the choice of a tier, and "
"its end."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from egspo.sandbox import Program, Sandbox, SandboxConfig, isolation, tiers
from egspo.sandbox.processes import ContainmentError
from egspo.sandbox.records import Outcome
from sandbox.hostile import EXHAUSTIONS, VERDICTS

WORKS = [name for name, works, _ in tiers() if works and name != "unsafe"]
needs_tier = pytest.mark.skipif(not WORKS, reason="no tier of the sandbox works here")


def adding(n: int) -> Program:
    return Program(f"def f(x): return x + {n}", ("assert f(1) == 2", "assert f(0) == 1"))


def descendants() -> set[int]:
    """Processes that descend from this one, zombies too."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found, size = {os.getpid()}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found - {os.getpid()}


def eventually(condition, seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


@needs_tier
@pytest.mark.parametrize("tier", WORKS)
def test_nothing_is_left_behind(tier, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    isolation.probe(tier)
    before = descendants()
    descriptors = sorted(os.listdir("/proc/self/fd"))
    box = Sandbox(SandboxConfig(tier=tier, timeout=1, workers=4))
    box.run([adding(1)])
    # One that watched the program may still be ending: nothing new is to stay beside these.
    warm = descendants(), sorted(os.listdir("/proc/self/fd"))
    hostile = ("forks without end", "threads without end", "a thread left over", "an endless loop", "a sleep")
    programs = [Program(EXHAUSTIONS[name].source, EXHAUSTIONS[name].tests) for name in hostile]
    programs += [Program(x.source, x.tests, x.setup) for x in list(VERDICTS.values())[-8:]]
    assert not any(x.correct for x in box.run([*programs, adding(2)]))
    assert eventually(lambda: descendants() <= warm[0])
    assert sorted(os.listdir("/proc/self/fd")) == warm[1]
    box.close()
    assert eventually(lambda: descendants() <= before)
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
    assert list(tmp_path.iterdir()) == []


@needs_tier
@pytest.mark.parametrize("tier", WORKS)
def test_processor_time_is_what_ends_a_program(tier):
    """What waits, as a right program does on a loaded machine, may take longer by the clock."""
    takes = "import time\ndef f(x):\n    time.sleep(x)\n    return x + 1\n"
    with Sandbox(SandboxConfig(tier=tier, timeout=1, workers=2)) as box:
        waits, sleeps = box.run([Program(takes, (f"assert f({x}) == {x + 1}",)) for x in (2, 60)])
        assert waits.correct
        assert sleeps.reason == "test 1 of 1: time limit of 1 s"
        (works,) = box.run([Program("def f(x):\n    while True: pass\n", ("assert f(1) == 2",))])
        assert works.reason == "test 1 of 1: time limit of 1 s"


@needs_tier
def test_outcomes_stand_in_the_order_of_their_programs():
    with Sandbox(SandboxConfig(workers=3)) as box:
        outcomes = box.run([adding(n) for n in (3, 1, 2, 1)])
        assert [x.correct for x in outcomes] == [False, True, False, True]
        assert box.run([]) == []


@needs_tier
def test_equal_programs_run_once(monkeypatch):
    ran = []

    def judge(starter, program, config):
        ran.append(program)
        return Outcome(1, 1, "")

    monkeypatch.setattr("egspo.sandbox.box.judge", judge)
    with Sandbox(SandboxConfig(workers=1)) as box:
        assert len(box.run([adding(1), adding(2), adding(1), adding(1)])) == 4
    assert ran == [adding(1), adding(2)]


@needs_tier
def test_threads_share_a_sandbox():
    found = {}
    with Sandbox(SandboxConfig(workers=2)) as box:
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: box.run([adding(n), adding(n + 10)])}))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {n: [x.correct for x in outcomes] for n, outcomes in found.items()} == {
        n: [n == 1, False] for n in range(4)
    }


@needs_tier
def test_a_forked_child_has_processes_of_its_own():
    box = Sandbox(SandboxConfig(workers=2))
    assert box.run([adding(1)])[0].correct
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if box.run([adding(1), adding(2)])[0].correct else 2
            box.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    # The child's end took nothing of the parent's.
    assert box.run([adding(1)])[0].correct
    box.close()


@needs_tier
def test_the_warm_process_is_replaced_when_it_dies():
    with Sandbox(SandboxConfig(workers=1)) as box:
        assert box.run([adding(1)])[0].correct
        box._state.starter.child.kill()
        box._state.starter.child.wait()
        assert box.run([adding(1)])[0].correct


@needs_tier
@pytest.mark.parametrize("tier", WORKS)
def test_all_ends_when_the_harness_is_killed(tier):
    code = (
        "from egspo.sandbox import *\n"
        f"box = Sandbox(SandboxConfig(tier={tier!r}, timeout=60))\n"
        "box.run([Program('f = 1', ('assert f',))]); print('ready', flush=True)\n"
        "box.run([Program('while True: pass', ('f',)), Program('import time; time.sleep(60)', ('f',))])"
    )
    before = descendants()
    harness = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert harness.stdout.readline() == b"ready\n"
    started = descendants() - before
    # The forker, its boxes' watchers and the boxes' four processes (bubblewrap has one more outside).
    assert eventually(lambda: len(started | (descendants() - before)) >= 10, 20)
    family = descendants() - before
    harness.kill()
    harness.wait()
    harness.stdout.close()
    assert eventually(lambda: not any(Path(f"/proc/{process}").exists() for process in family), 20)


@needs_tier
def test_a_closed_sandbox_says_so():
    box = Sandbox(SandboxConfig(workers=1))
    box.close()
    box.close()
    with pytest.raises(ValueError, match="closed"):
        box.run([adding(1)])


def without(monkeypatch, *names: str) -> None:
    """As on a machine where these tiers cannot start."""

    def fails(config, variant):
        raise ContainmentError("denied here")

    for name in names:
        monkeypatch.setattr(isolation.TIERS[name], "starter", fails)
    monkeypatch.setattr(isolation, "_found", {})


def test_the_next_tier_is_taken_where_the_best_does_not_work(monkeypatch):
    if "kernel" not in WORKS:
        pytest.skip("the kernel tier does not work here")
    without(monkeypatch, "bubblewrap")
    with Sandbox(SandboxConfig(workers=1)) as box:
        assert box.tier == "kernel" and "files" in box.isolates
        assert box.run([adding(1)])[0].correct
    assert ("bubblewrap", False, "nested: denied here; single: denied here") in tiers()


def test_without_isolation_it_refuses_unless_told(monkeypatch):
    without(monkeypatch, "bubblewrap", "kernel")
    with pytest.raises(ValueError) as error:
        Sandbox(SandboxConfig())
    message = str(error.value)
    assert "\n" not in message and "bubblewrap: nested: denied here" in message and "kernel: " in message
    assert "apt-get install bubblewrap" in message and "allow_unsafe" in message
    with Sandbox(SandboxConfig(allow_unsafe=True, workers=1)) as box:
        assert box.tier == "unsafe" and box.run([adding(1)])[0].correct


def test_the_unsafe_tier_is_not_had_by_its_name_alone():
    with pytest.raises(ValueError, match="allow_unsafe"):
        Sandbox(SandboxConfig(tier="unsafe"))


def test_a_machine_that_ceases_to_contain_is_no_outcome(monkeypatch):
    """Else it would pass for a program's failure and train a model."""
    if not WORKS:
        pytest.skip("no tier of the sandbox works here")
    with Sandbox(SandboxConfig(workers=1)) as box:
        box._state.starter.command = ["/usr/bin/false"]
        with pytest.raises(ContainmentError):
            box.run([adding(1)])

"""Short programs that the sandbox judges a second, in each tier that works here.

    python benchmarks/sandbox_speed.py

Different programs with three tests each, as many at a time as there are cores. `Sandbox.run` is timed after
one warm-up program; the table goes to ``benchmarks/results/sandbox.json``. On a machine with other work
(``load_before``) the processor time is what to compare: programs a second on a core with nothing else to do.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

from egspo.sandbox import Program, Sandbox, SandboxConfig, tiers

TESTS = ("assert f(1) == 2", "assert f([3, 1]) == [1, 3]", "assert f('a') == 'aa'")
SOURCE = """
def f(x):
    '''Variant {n}.'''
    if isinstance(x, int):
        return x + 1
    return sorted(x) if isinstance(x, list) else 2 * x
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=300)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/sandbox.json"))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    rows = [measure(name, options.programs, cores) for name, works, _ in tiers() if works]
    summary = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{cores} cores, Linux {platform.release()}, Python {platform.python_version()}",
        "rows": rows,
    }
    options.results.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=2))


def measure(tier: str, count: int, cores: int) -> dict:
    """Programs a second of one tier, by the clock and by the processor time that they and the caller take."""
    programs = [Program(SOURCE.format(n=n), TESTS) for n in range(count + 1)]
    with Sandbox(SandboxConfig(tier=tier, allow_unsafe=True, workers=cores)) as box:
        box.run(programs[:1])
        load, processor, began = os.getloadavg()[0], processor_seconds(), time.perf_counter()
        outcomes = box.run(programs[1:])
        seconds = time.perf_counter() - began
        # The last processes may take a moment to end.
        time.sleep(1)
        processor = processor_seconds() - processor
    assert all(outcome.correct for outcome in outcomes)
    return {
        "tier": tier,
        "isolates": box.isolates,
        "programs": count,
        "seconds": round(seconds, 2),
        "programs_per_second": round(count / seconds, 1),
        "processor_ms_per_program": round(1000 * processor / count, 1),
        "programs_per_processor_second": round(count / processor, 1),
        "load_before": round(load, 1),
    }


def processor_seconds() -> float:
    """Processor time of this process, of its descendants, and of what they have waited for."""
    times, parents = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        process = int(file.parent.name)
        parents[process], times[process] = int(fields[1]), sum(map(int, fields[11:15]))
    family, size = {os.getpid()}, 0
    while len(family) > size:
        size = len(family)
        family |= {process for process, parent in parents.items() if parent in family}
    return sum(times.get(process, 0) for process in family) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

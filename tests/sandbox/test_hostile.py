"""No program passes without solving its problem, gets out, or outlives its limit, in any tier that "
"works."""

import os
import time
from pathlib import Path

import pytest

from egspo.sandbox import Outcome, Program, Sandbox, SandboxConfig, isolation
from egspo.sandbox.trial import BY_THE_CLOCK
from sandbox.forgeries import HIDING, REBUILT
from sandbox.hostile import ESCAPES, EXHAUSTIONS, VERDICTS, Hostile, escape

SOLVED = Program("def f(x): return x + 1", ("assert f(1) == 2", "assert f(10) == 11"))
TIMEOUT = 2.0
CONTAINED = [
    (name, variant) for name, way in isolation.TIERS.items() for variant in way.VARIANTS if name != "unsafe"
]


def opened(name: str, variant: str) -> Sandbox:
    """A sandbox of one variant of a tier, also where a better one works; skips the test where it does "
    "not."""
    way = isolation.TIERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(way, "VARIANTS", {variant: way.VARIANTS[variant]})
        patch.setattr(isolation, "_found", {})
        found, detail = isolation.probe(name)
        if found is None:
            pytest.skip(f"the {name} tier ({variant}) does not work here: {detail}")
        return Sandbox(SandboxConfig(tier=name, timeout=TIMEOUT, allow_unsafe=True, workers=4))


@pytest.fixture(scope="module", params=[*CONTAINED, ("unsafe", "limits")], ids="-".join)
def box(request):
    with opened(*request.param) as made:
        yield made


@pytest.fixture(scope="module", params=CONTAINED, ids="-".join)
def contained(request):
    with opened(*request.param) as made:
        yield made


def run(box: Sandbox, *hostiles: Hostile) -> list[Outcome]:
    return box.run([Program(h.source, h.tests, h.setup, "", h.entry_points) for h in hostiles])


def check(hostiles: dict[str, Hostile], outcomes: list[Outcome]) -> None:
    found = dict(zip(hostiles, outcomes, strict=True))
    assert {name: x for name, x in found.items() if x.passed} == {}
    assert {name: x for name, x in found.items() if hostiles[name].reason not in x.reason} == {}


@pytest.mark.parametrize("hostiles", [VERDICTS, REBUILT, HIDING], ids=["verdicts", "rebuilt", "hiding"])
def test_no_verdict_is_forged(box, hostiles):
    check(hostiles, run(box, *hostiles.values()))


def test_nothing_is_reached_outside(contained, tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("expected: 2", encoding="utf-8")
    monkeypatch.setenv("SECRET", "in the environment")
    before = Path(os.__file__).stat().st_size, sorted(os.listdir(tmp_path))
    hostiles = {name: escape(source, os.getpid(), str(tmp_path)) for name, source in ESCAPES.items()}
    check(hostiles, run(contained, *hostiles.values()))
    assert (Path(os.__file__).stat().st_size, sorted(os.listdir(tmp_path))) == before


def test_limits_hold(contained):
    check(EXHAUSTIONS, run(contained, *EXHAUSTIONS.values()))


def test_one_program_delays_no_other_beyond_its_limit(box):
    endless = Program("def f(x):\n    while True: pass", ("assert f(1) == 2",))
    box.run([SOLVED])
    began = time.monotonic()
    outcomes = box.run([endless, *[SOLVED] * 20])
    # A busy machine takes longer for the one limit of processor time, but no longer than this.
    assert time.monotonic() - began < BY_THE_CLOCK * TIMEOUT + 3
    assert [x.correct for x in outcomes] == [False] + [True] * 20
    assert "time limit" in outcomes[0].reason

"""``benchmarks/gradient_quality.py``: statistics against plain loops, estimates against enumeration."""

import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

import runs
from egspo import registry
from egspo.metrics import Meter
from egspo.ops.selection import SELECTIONS, Draws
from egspo.policy import load_policy
from egspo.rollout import pad_prompts, rollout
from egspo.trainer import Trainer

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gradient_quality  # noqa: E402
from gradient.arms import BASELINE, REFERENCE, make_arm, parse_arms, run_settings, table  # noqa: E402
from gradient.exact import enumerated_ascent, outcomes  # noqa: E402
from gradient.measure import Plan, Store, measure  # noqa: E402
from gradient.probe import Probe  # noqa: E402
from gradient.quality import Blocks, quality, with_errors  # noqa: E402


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model that earns about half of the toy task's reward."""
    folder = tmp_path_factory.mktemp("base")
    runs.sft(folder, "task.num_symbols=3", "sft.max_steps=12")
    return folder / "model"


def toy(base: Path, *overrides: str) -> tuple[Probe, dict]:
    settings = run_settings("toy", 3, 8, [*gradient_quality.SMALL_TOY, *overrides])
    arm = make_arm(BASELINE, "egspo", settings)
    return Probe(load_policy(base), registry.make_task(arm.config.task), arm), settings


@pytest.fixture(scope="module")
def truth(base) -> torch.Tensor:
    """The enumerated gradient of that model under the command's rule."""
    return enumerated_ascent(toy(base)[0])


def arms_of(settings: dict, *names: str):
    lines = table(2, 1)
    return [make_arm(name, lines[name], settings) for name in names]


# ---- the statistics ------------------------------------------------------------------------------------


def blocks_of(estimates: torch.Tensor, reference: torch.Tensor) -> Blocks:
    """``[B, n, P]`` estimates and ``[R, P]`` means of the reference."""
    dots = estimates @ reference.T
    squares = estimates.square().sum(-1)
    means = estimates.mean(1)
    return Blocks(
        dots=dots.mean(1),
        cosines=(dots / squares.sqrt()[..., None]).mean(1),
        squares=squares.mean(1),
        products=means @ means.T,
        rollout=torch.full((len(estimates),), 20.0, dtype=torch.float64),
        update=torch.full((len(estimates),), 10.0, dtype=torch.float64),
        reference=reference @ reference.T,
    )


def noisy(seed: int = 0, blocks: int = 5, batches: int = 3, size: int = 7):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(size, generator=generator, dtype=torch.float64)
    noise = torch.randn(blocks, batches, size, generator=generator, dtype=torch.float64)
    reference = truth + torch.randn(blocks - 1, size, generator=generator, dtype=torch.float64)
    return 2 * truth + 3 * noise, reference


def test_quality_is_the_literal_computation():
    # Products of means over all pairs of different blocks, written as loops over the vectors themselves.
    estimates, reference = noisy()
    means = estimates.mean(1)
    pairs = list(itertools.permutations(range(5), 2))
    known = list(itertools.permutations(range(4), 2))
    norm2 = sum(float(reference[r] @ reference[s]) for r, s in known) / len(known)
    mean2 = sum(float(means[a] @ means[b]) for a, b in pairs) / len(pairs)
    dot2 = sum(
        float(means[a] @ reference[r]) * float(means[b] @ reference[s]) for a, b in pairs for r, s in known
    ) / (len(pairs) * len(known))
    vectors = list(estimates.flatten(0, 1))
    square = sum(float(g @ g) for g in vectors) / 15
    along = sum(float(g @ r) for g in vectors for r in reference) / 60
    cosine = sum(float(g @ r / g.norm()) for g in vectors for r in reference) / 60
    snr = dot2 / norm2 / (square - mean2)
    found = quality(blocks_of(estimates, reference))
    expected = {
        "cosine_of_mean": along / math.sqrt(norm2 * mean2),
        "bias_square": (mean2 - 2 * along + norm2) / norm2,
        "cosine": cosine / math.sqrt(norm2),
        "efficiency": along / math.sqrt(norm2 * square),
        "snr": snr,
        "snr_per_1000_passes": 1000 * snr / (20 + 3 * 10),
        "snr_per_1000_update_passes": 1000 * snr / (3 * 10),
        "scale": along / norm2,
        "rollout_canvases": 20.0,
        "update_canvases": 10.0,
    }
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_known_gradient_is_one_block():
    # Without noise in the reference, |G|^2 is its own square, and only pairs of batches' blocks must differ.
    estimates, reference = noisy()
    truth, means = reference[:1], estimates.mean(1) @ reference[0]
    pairs = list(itertools.permutations(range(5), 2))
    dot2 = sum(float(means[a] * means[b]) for a, b in pairs) / len(pairs)
    found = quality(blocks_of(estimates, truth))
    variance = float(estimates.square().sum(-1).mean()) - sum(
        float(estimates[a].mean(0) @ estimates[b].mean(0)) for a, b in pairs
    ) / len(pairs)
    assert found["snr"] == pytest.approx(dot2 / float(truth[0] @ truth[0]) / variance, rel=1e-10)


def test_signal_to_noise_is_that_of_the_distribution():
    # g = 2 G + 3 z has |E g . G|^2 / |G|^2 = 4 |G|^2 and a variance of 9 for each of 50 dimensions; the noise
    # of the reference, here as large as G itself, is no part of it.
    values, truths = [], []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        estimates, reference = noisy(seed, blocks=10, batches=10, size=50)
        truth = torch.randn(50, generator=generator, dtype=torch.float64)
        values.append(quality(blocks_of(estimates, reference))["snr"])
        truths.append(4 * float(truth @ truth) / (9 * 50))
    ratios = torch.tensor(values) / torch.tensor(truths)
    # Over seeds the ratio has a standard deviation of about 0.05, so its mean one of 0.008. The square of the
    # mean of the nine noisy blocks would make |G|^2 larger by 1/9.
    assert float(ratios.std()) < 0.1
    assert abs(float(ratios.mean()) - 1) < 0.03


def test_intervals_cover():
    # The efficiency of the same distribution, 95 % intervals: 190 of 200 expected, 180 is three sigma below.
    covered = 0
    for seed in range(200):
        estimates, reference = noisy(seed, blocks=12, batches=5, size=30)
        truth = torch.randn(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        norm = float(truth.norm())
        expected = 2 * norm / math.sqrt(4 * norm**2 + 9 * 30)
        value, half = with_errors(blocks_of(estimates, reference))["efficiency"]
        covered += abs(value - expected) < half
    assert covered >= 180


def test_a_ratio_to_itself_is_one_without_error():
    blocks = blocks_of(*noisy())
    found = with_errors(blocks, blocks)
    assert found["snr_ratio"] == pytest.approx((1.0, 0.0))
    assert found["snr"][1] > 0


# ---- the estimates -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["low_confidence", "top_prob", "left_to_right"])
def test_enumeration_agrees_with_rollouts(base, rule):
    probe, settings = toy(base, f"sampler.remasking={rule}")
    with torch.no_grad():
        finals, chance = outcomes(probe.policy, probe.problems.encoded[0], probe.config.sampler)
    assert float(chance.sum()) == pytest.approx(1, abs=1e-5)
    expected = dict(zip(map(tuple, finals.tolist()), chance.tolist(), strict=True))
    made = sample(probe, settings, num=4000)
    likely = sorted(expected, key=expected.get)[-5:]
    assert sum(expected[final] for final in likely) > 0.3
    for final in likely:
        share = sum(final == tuple(row) for row in made) / 4000
        # Five standard deviations.
        assert abs(share - expected[final]) < 5 * math.sqrt(expected[final] / 4000)


def sample(probe: Probe, settings: dict, num: int) -> list[list[int]]:
    encoded = [probe.problems.encoded[0]] * num
    sampler = probe.config.sampler.model_copy(update={"early_stop": False})
    made = rollout(probe.policy, *pad_prompts(probe.policy, encoded), torch.arange(num), sampler)
    return made.final.tolist()


def test_positions_that_are_drawn_are_not_enumerated(base):
    probe, _ = toy(base, "sampler.remasking=random")
    with pytest.raises(ValueError, match=r"sampler\.remasking: 'random' draws positions"):
        enumerated_ascent(probe)


def test_all_steps_approach_the_enumerated_gradient(base, truth, tmp_path):
    probe, settings = toy(base)
    arms = arms_of(settings, BASELINE, REFERENCE)
    plan, store = Plan(60, 20), Store(tmp_path / "results", tmp_path / "cache")
    store.keep_reference(truth[None])
    measure(probe, arms, truth[None], store, plan)
    found = {name: with_errors(blocks) for name, blocks in store.blocks(plan).items()}
    value, half = found[REFERENCE]["bias_square"]
    assert abs(value) < 2 * half and half < 0.1
    scale, half = found[REFERENCE]["scale"]
    assert abs(scale - 1) < 2 * half < 0.4
    assert found[BASELINE]["update_canvases"][0] < 0.7 * found[REFERENCE]["update_canvases"][0]
    # Half of the steps is missing.
    assert found[BASELINE]["bias_square"][0] > 2 * found[BASELINE]["bias_square"][1]


def test_the_trainer_takes_the_very_step(base):
    """The estimate is minus the gradient that ``Trainer.update`` hands to its optimizer."""
    probe, settings = toy(base)
    arm = arms_of(settings, BASELINE)[0]
    before = [p.detach().clone() for p in probe.parameters]
    estimate = probe.estimate(arm, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, probe.parameters, strict=True))
    trainer = Trainer(load_policy(base), registry.make_task(arm.config.task), arm.config)
    trainer.optimizer = torch.optim.SGD(trainer.policy.model.parameters(), lr=1.0)
    meter = Meter()
    trainer.update(trainer.collect(1, meter), meter)
    rate = arm.config.optim.learning_rate
    moved = torch.cat(
        [(a - b).flatten() for a, b in zip(trainer.policy.model.parameters(), before, strict=True)]
    )
    torch.testing.assert_close(
        moved / rate, estimate.vector, rtol=0, atol=2e-3 * float(estimate.vector.abs().max())
    )
    # Two steps of 24 completions; no more than K = 1 view of each in the update.
    assert estimate.rollout == 48 and 0 < estimate.update <= 24


# ---- going on ------------------------------------------------------------------------------------------


def test_an_interrupted_measurement_goes_on(base, truth, tmp_path):
    plan = Plan(8, 4, blocks=4)
    probe, settings = toy(base)
    arms = arms_of(settings, BASELINE, REFERENCE)

    def fresh(name: str) -> Store:
        store = Store(tmp_path / name / "results", tmp_path / name / "cache")
        store.keep_reference(truth[None])
        return store

    whole, cut = fresh("whole"), fresh("cut")
    measure(probe, arms, truth[None], whole, plan)

    def stop(text: str) -> None:
        if "block 2" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(probe, arms, truth[None], cut, plan, stop)
    # And in the midst of writing a line of the next block.
    with cut.file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(whole.lines()[0] | {"batch": 5}) + '\n{"arm": "egs')
    assert len(cut.lines()) == 2 * 2 * (2 + 1)
    calls = []
    count(probe, calls)
    measure(probe, arms, truth[None], cut, plan)
    assert calls == [(arm.name, step) for step in (5, 6, 7, 8) for arm in arms]
    assert sorted(map(json.dumps, cut.lines())) == sorted(map(json.dumps, whole.lines()))
    # An arm that is added later sees the same batches, and nothing is measured twice.
    calls.clear()
    more = [*arms, *arms_of(settings, "random-1")]
    measure(probe, more, truth[None], cut, plan)
    assert calls == [("random-1", step) for step in range(1, 9)]
    assert cut.blocks(plan)["random-1"].dots.shape == (4, 1)


def count(probe: Probe, calls: list) -> None:
    """Note which estimates are made."""
    made = probe.estimate

    def estimate(arm, step):
        calls.append((arm.name, step))
        return made(arm, step)

    probe.estimate = estimate


# ---- arms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["sudoku", "countdown", "toy"])
def test_every_objective_has_an_arm(task):
    settings = run_settings(task, 4, 8, [])
    arms = gradient_quality.known_arms({}, settings)
    measured = {arm.config.objective.name for arm in arms}
    surrogate = settings["sampler"].get("remasking", "low_confidence") == "low_confidence"
    assert surrogate == (task != "countdown")
    assert measured == set(registry.names("objectives")) - ({"vospo"} if surrogate else set())
    rules = {arm.config.objective.selection for arm in arms if arm.config.objective.name == "egspo"}
    assert rules == {*SELECTIONS, *get_args(Draws)}
    for arm in arms:
        train = arm.config.train
        assert arm.config.objective.beta == 0 and train.num_iterations * train.updates_per_rollout == 1
        assert arm.agrees(json.loads(json.dumps(arm.settings)))
    names = [name for arm in arms for name in (arm.name, *arm.also)]
    assert len(names) == len(set(names)) and arms[0].name == BASELINE and "lambda-0.5" in names


def test_an_arm_of_the_command_line():
    settings = run_settings("countdown", 4, 8, [])
    lines = parse_arms(
        ["mine=egspo,selection=random,sampler.remasking=top_prob", "far=mdpo,masked_weight=false"]
    )
    mine, far = (make_arm(name, line, settings) for name, line in lines.items())
    assert (mine.config.objective.selection, mine.config.sampler.remasking) == ("random", "top_prob")
    assert mine.config.objective.num_selected_steps == 3
    # Published 8 of 128 steps, of which Countdown has 8.
    assert far.config.objective.num_selected_steps == 8 and not far.config.objective.masked_weight
    other = make_arm("mine", "egspo,selection=uniform", settings)
    assert not mine.agrees(other.settings)
    with pytest.raises(ValueError, match="--arms: 'mine'"):
        parse_arms(["mine"])
    with pytest.raises(ValueError, match=r"objective\.selektion: unknown key"):
        make_arm("mine", "egspo,selektion=all", settings)


def rows(page: str) -> list[str]:
    """Lines of the table less its head."""
    return [line for line in page.splitlines() if line.startswith("| ")][1:]


def test_the_command(tmp_path, monkeypatch, capsys):
    arguments = [
        "gradient_quality.py", "--exact", "--prompts", "3", "--batches", "4", "--blocks", "4",
        "--reference-batches", "4", "--only", "all-steps,mine", "--results", str(tmp_path / "results"),
        "--cache", str(tmp_path / "cache"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [*arguments, "--arms", "mine=egspo,selection=random,baseline=none"])
    gradient_quality.main()
    page = capsys.readouterr().out
    assert "| all-steps |" in page and "| egspo-sa |" in page
    summary = json.loads((tmp_path / "results" / "gradient-toy" / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["arms"]) == {"egspo-sa", "all-steps", "mine"} and summary["reference"] == "enumerated"
    # Published measurements stand in for a cache that is gone, and an arm once added is known by its name:
    # nothing is measured again.
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(Probe, "estimate", None)
    monkeypatch.setattr(sys, "argv", arguments)
    gradient_quality.main()
    again = capsys.readouterr().out
    assert rows(again) == rows(page) and len(rows(page)) == 3
    assert again.count("    python gradient_quality.py --exact") == 2 and "--arms mine=egspo" in again
    monkeypatch.setattr(sys, "argv", [*arguments, "task.seed=3"])
    with pytest.raises(SystemExit, match=r"task: .* give another --label"):
        gradient_quality.main()
    # The cache alone, with results elsewhere, holds vectors of this task and no other.
    shutil.rmtree(tmp_path / "results")
    monkeypatch.setattr(sys, "argv", [*arguments, "task.seed=3", "--only", "all-steps"])
    with pytest.raises(SystemExit, match=r"task: .* give another --label"):
        gradient_quality.main()
    assert not (tmp_path / "results" / "gradient-toy" / "setup.json").exists()
    monkeypatch.setattr(sys, "argv", [*arguments, "--batches", "5"])
    with pytest.raises(SystemExit, match="--batches: 5; give a multiple of the 4 blocks"):
        gradient_quality.main()

"""The package against the literal implementation in literal.py: sampler, loss and gradient of EGSPO-SA."""

import copy
import itertools

import pytest
import torch

import literal
from egspo.config import SamplerConfig
from egspo.likelihood import score
from egspo.objectives import egspo
from egspo.ops.advantages import BASELINES
from egspo.ops.reveal import REMASKING
from egspo.ops.selection import SELECTIONS
from egspo.rollout import pad_prompts, rollout
from egspo.types import Proxy, Rewards

PROMPTS = [[40, 41, 42], [50, 51, 52, 53, 54]]
GROUP = 3
# So many tokens end the text that some samples end early and others do not.
END_IDS = tuple(range(60, 75))


def make_policy(build, dtype=torch.float64):
    policy = build(seed=1, dtype=dtype)
    policy.end_token_ids = END_IDS
    return policy


def make_sampler(**settings):
    plain = {"max_completion_length": 6, "diffusion_steps": 4, "block_length": 6, "temperature": 0.9}
    return SamplerConfig(**(plain | {"early_stop": False} | settings))


def both_rollouts(policy, sampler):
    """Two groups from the package's sampler and from the literal one."""
    prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
    seeds = torch.arange(len(prompts)) + 10
    trajectory = rollout(policy, *pad_prompts(policy, prompts), seeds, sampler, proxy=Proxy())
    samples = [
        literal.rollout(policy.model, prompt, seed, sampler, policy.mask_token_id, END_IDS)
        for prompt, seed in zip(prompts, seeds.tolist(), strict=True)
    ]
    return trajectory, samples


def assert_same(trajectory, samples, atol):
    for n, sample in enumerate(samples):
        assert trajectory.final[n].tolist() == sample.canvas
        assert trajectory.states[n].tolist() == sample.canvases
        assert trajectory.one_step[n].tolist() == sample.one_step
        assert int(trajectory.last_step[n]) == sample.last_step
        for t, places in enumerate(sample.revealed):
            assert trajectory.revealed[n, t].nonzero().flatten().tolist() == sorted(places)
            assert [int(trajectory.reveal_order[n, i]) for i in places] == list(range(len(places)))
        token_logp = [sample.token_logp[i] for i in range(len(sample.canvas))]
        for name, values in [
            ("token_logp", token_logp),
            ("position_logp", sample.position_logp),
            ("entropy", sample.entropy),
        ]:
            assert getattr(trajectory, name)[n].tolist() == pytest.approx(values, abs=atol), name


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("rule", REMASKING)
def test_sampler(tiny_policy, rule, temperature):
    sampler = make_sampler(remasking=rule, temperature=temperature)
    assert_same(*both_rollouts(make_policy(tiny_policy), sampler), atol=1e-10)


@pytest.mark.parametrize(
    "settings", [{"cfg_scale": 1.5}, {"block_length": 3}, {"block_length": 2, "diffusion_steps": 6}]
)
@pytest.mark.parametrize("rule", ["low_confidence", "plackett_luce"])
def test_sampler_with_guidance_and_blocks(tiny_policy, rule, settings):
    sampler = make_sampler(remasking=rule, **settings)
    assert_same(*both_rollouts(make_policy(tiny_policy), sampler), atol=1e-10)


def test_sampler_in_float32(tiny_policy):
    assert_same(*both_rollouts(make_policy(tiny_policy, torch.float32), make_sampler()), atol=1e-5)


def reward(canvas):
    """An arbitrary number for each text."""
    end = next((i for i, token in enumerate(canvas) if token in END_IDS), len(canvas))
    return sum((7 * token + 3 * i) % 11 for i, token in enumerate(canvas[:end])) / 20


@pytest.fixture(scope="module")
def rolled_out(tiny_policy):
    """Policy, sampler and rollouts of most tests of the loss: two blocks, 2, 1, 2 and 1 tokens a step."""
    policy, sampler = make_policy(tiny_policy), make_sampler(block_length=3)
    return policy, sampler, *both_rollouts(policy, sampler)


def both_losses(policy, sampler, trajectory, samples, settings):
    """(loss, gradient, counts of clipped and all ratios) of both implementations, after an update."""
    reference, policy = policy.model, copy.deepcopy(policy)
    policy.freeze_reference()
    perturb(policy.model)
    config = egspo.Config(name="egspo", **settings)
    objective = egspo.Objective(config)
    candidates, values = objective.candidates(trajectory), None
    if candidates is not None:
        values = torch.tensor(
            [
                [reward(s.one_step[t]) for t in row]
                for s, row in zip(samples, candidates.index.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )
    finals = torch.tensor([reward(s.canvas) for s in samples], dtype=torch.float64)
    advantages = objective.advantages(Rewards(finals, {}, GROUP, trajectory.num_steps, candidates, values))
    views = objective.views(trajectory, objective.select(trajectory, advantages), advantages, 0)
    scores = score(policy, views, sampler, with_exact_kl=objective.wants_exact_kl)
    with policy.reference() as frozen:
        reference_scores = score(frozen, views, sampler)
    output = objective.loss(scores, reference_scores, views)
    ours = output.loss / objective.denominator(views)
    theirs, counts = literal.loss(
        policy.model, reference, samples, reward, config, sampler, GROUP, policy.mask_token_id
    )
    parameters = list(policy.model.parameters())
    return (
        (ours, torch.autograd.grad(ours, parameters), output.metrics["loss/clip_fraction"]),
        (theirs, torch.autograd.grad(theirs, parameters), counts),
    )


def perturb(model):
    """As an update does: ratios differ from 1, and some are clipped."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            change = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * parameter.std() * change)


def assert_losses_equal(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-11)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)
    assert ours[2] == theirs[2]
    assert max(float(g.abs().max()) for g in ours[1]) > 1e-4


# Every selection with every baseline; the other settings take turns.
OTHERS = [
    {"ratio": ratio, "aggregation": aggregation, "step_advantage_schedule": schedule, **rest}
    for (ratio, aggregation, schedule), rest in zip(
        itertools.product(["step", "token"], ["sum", "mean"], ["constant", "linear"]),
        itertools.cycle(
            [
                {"step_advantage_weight": 0.5, "normalise_step_advantage": True},
                {"step_advantage_weight": 0.0},
                {"step_advantage_weight": 0.8, "beta": 0.3, "kl": "k3"},
            ]
        ),
        strict=False,
    )
]
SETTINGS = [
    {
        "selection": selection,
        "baseline": baseline,
        "num_selected_steps": 2 + n % 2,
        **OTHERS[(3 * n) % len(OTHERS)],
    }
    for n, (selection, baseline) in enumerate(itertools.product(SELECTIONS, BASELINES))
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_loss_and_gradient(rolled_out, settings):
    ours, theirs = both_losses(*rolled_out, settings)
    assert_losses_equal(ours, theirs)
    clipped, ratios = theirs[2]
    assert 0 < clipped < ratios


@pytest.mark.parametrize("ratio", ["step", "token"])
@pytest.mark.parametrize("aggregation", ["sum", "mean"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "exact"])
def test_kl(rolled_out, kl, aggregation, ratio):
    settings = {"beta": 0.5, "kl": kl, "aggregation": aggregation, "ratio": ratio, "num_selected_steps": 2}
    assert_losses_equal(*both_losses(*rolled_out, settings))


@pytest.mark.parametrize("ratio", ["step", "token"])
@pytest.mark.parametrize("rule", REMASKING)
def test_remasking_in_the_loss(tiny_policy, rule, ratio):
    policy, sampler = make_policy(tiny_policy), make_sampler(remasking=rule, block_length=3, cfg_scale=0.5)
    settings = {"ratio": ratio, "num_selected_steps": 3}
    assert_losses_equal(*both_losses(policy, sampler, *both_rollouts(policy, sampler), settings))


def test_the_samples_cover_what_the_loss_can_meet(rolled_out):
    _, _, trajectory, samples = rolled_out
    assert trajectory.revealed[0].sum(1).tolist() == [2, 1, 2, 1]
    assert {sample.last_step for sample in samples} == {1, 2, 3}

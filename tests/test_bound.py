"""What top-K drops is bounded by the entropy of the dropped steps: both sides computed on enumerable MDPs.

The inequalities and their constant ``C = 2 max|A| max|dlogits| / temperature`` are derived in docs/method.md.
``max|dlogits|`` is the largest norm of the gradient of one logit by the parameters: 1 for a table.
"""

import itertools
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from egspo.config import SamplerConfig
from egspo.likelihood import score
from egspo.objectives import egspo
from egspo.types import Rewards, Steps
from mdp import MASK, A, B, World, flat_gradient, rewards, tabular_policy, transformer_policy

STEPS = 3


def make_world(rule, temperature=1.0, policy=None, steps=STEPS):
    sampler = SamplerConfig(
        max_completion_length=3,
        diffusion_steps=steps,
        block_length=3,
        temperature=temperature,
        remasking=rule,
        position_temperature=0.3,
    )
    return World(policy or tabular_policy(), sampler)


def largest_logit_gradient(world):
    """``max|dlogits|`` over every state that is visited, position and token."""
    canvases = {canvas for path in world.paths for canvas in path.canvases}
    logits = torch.cat([world.logits(canvas).flatten() for canvas in canvases])
    return max(float(flat_gradient(z, world.policy).norm()) for z in logits[logits > -torch.inf])


def constant(world, dlogits=1.0):
    return 2 * float(rewards(world).abs().max()) * dlogits / world.sampler.temperature


def dropped(world, returns, steps=None, **settings):
    """The part of the expected gradient that comes from steps that are not kept, and which these are."""
    plain = {"selection": "all", "step_advantage_weight": 0.0, "baseline": "none"}
    objective = egspo.Objective(egspo.Config(name="egspo", **(plain | settings)))
    trajectory, chance = world.trajectory(), world.probabilities()
    advantages = objective.advantages(Rewards(returns, {}, 1, trajectory.num_steps))
    kept = steps or objective.select(trajectory, advantages)
    keep = torch.zeros_like(trajectory.reveal_step).scatter_add(1, kept.index, kept.mask.long())
    out = trajectory.informative & (keep == 0)
    index = torch.arange(trajectory.num_steps).expand_as(out)
    views = objective.views(trajectory, Steps(index, out), advantages, 0)
    views = replace(views, weight=views.weight * chance[:, None])
    loss = objective.loss(score(world.policy, views, world.sampler), None, views).loss
    return -flat_gradient(loss, world.policy), out


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("model", ["table", "transformer"])
def test_score_of_a_state_is_bounded_by_its_entropy(model, temperature):
    # E_a ||d log pi(a|s)|| <= (2 / temperature) max|dlogits| H(s), in every state, for joint actions too.
    policy = tabular_policy() if model == "table" else transformer_policy()
    world = make_world("top_prob", temperature, policy, steps=2)
    dlogits = largest_logit_gradient(world)
    assert dlogits == 1 if model == "table" else dlogits > 1
    for canvas, step in {(path.canvases[t], t) for path in world.paths for t in range(2)}:
        actions = world.actions(canvas, step)
        chances = torch.stack([a.logp.detach() for a in actions]).exp()
        norms = torch.stack([flat_gradient(a.logp, policy).norm() for a in actions])
        entropy = float(-(chances * chances.log()).sum())
        bound = 2 * dlogits / temperature * entropy
        # Seen: 20 to 48 % of the bound in a table, 2 to 11 % in a transformer.
        assert 0.02 * bound < float((chances * norms).sum()) <= bound


@pytest.mark.parametrize("rule", ["left_to_right", "random", "top_prob", "entropy", "margin"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_steps_fixed_beforehand_drop_no_more_than_their_entropy(rule, temperature):
    # ||E sum_{t not in S} A grad log pi|| <= C sum_{t not in S} E[H_t] for every set S.
    world = make_world(rule, temperature)
    chance, entropy = world.probabilities(), world.trajectory().entropy
    for kept in itertools.chain.from_iterable(itertools.combinations(range(STEPS), k) for k in range(STEPS)):
        index = torch.tensor([[*kept, 0]]).expand(len(chance), -1)
        mask = torch.tensor([[*(True for _ in kept), False]]).expand(len(chance), -1)
        lost, out = dropped(world, rewards(world), Steps(index, mask))
        bound = constant(world) * float((chance[:, None] * entropy * out).sum())
        # Seen: 0.5 to 21 % of the bound; contributions of different signs and states cancel in part.
        assert 0.004 * bound < float(lost.norm()) <= bound


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_drawn_positions_add_their_entropy(temperature):
    # Plackett-Luce positions are a softmax too, whose logits are top probabilities over position_temperature.
    world = make_world("plackett_luce", temperature)
    canvases = {canvas for path in world.paths for canvas in path.canvases}
    tops = [
        world.logits(canvas)[i].softmax(-1).amax()
        for canvas in canvases
        for i in range(3)
        if canvas[i] == MASK
    ]
    strength = (
        max(float(flat_gradient(p, world.policy).norm()) for p in tops) / world.sampler.position_temperature
    )
    largest = float(rewards(world).abs().max())
    trajectory, chance = world.trajectory(), world.probabilities()
    for t in range(STEPS):
        others = torch.tensor([[u for u in range(STEPS) if u != t]]).expand(len(chance), -1)
        lost, out = dropped(world, rewards(world), Steps(others, torch.ones_like(others, dtype=torch.bool)))
        tokens = constant(world) * float((chance * trajectory.entropy[:, t] * out[:, t]).sum())
        surprise = -(chance * trajectory.position_logp[:, t] * out[:, t]).sum()
        assert 0 < float(lost.norm()) <= tokens + 2 * largest * strength * float(surprise)


@pytest.mark.parametrize("rule", ["left_to_right", "random", "top_prob"])
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("num_selected", [1, 2])
def test_top_k_drops_no_more_than_the_bound(rule, temperature, num_selected):
    world = make_world(rule, temperature)
    chance, trajectory = world.probabilities(), world.trajectory()
    lost, out = dropped(world, rewards(world), selection="top_entropy", num_selected_steps=num_selected)
    size = float(lost.norm())
    # Whether a step is dropped depends on the entropies after it, hence on its own action: its surprisal
    # stands for its entropy, or its entropy counts by the largest chance, over its actions, of being dropped.
    surprisal = constant(world) * float((chance[:, None] * token_surprisal(trajectory) * out).sum())
    worst = constant(world) * float((chance[:, None] * trajectory.entropy * chance_of_drop(world, out)).sum())
    assert size <= surprisal
    assert size <= worst
    # Something is really lost: 1 to 49 % of the gradient's norm, 1 to 13 % of the bound.
    assert size > 0.005 * float(world.gradient(rewards(world)).norm())
    assert size > 0.01 * surprisal


def token_surprisal(trajectory):
    """``[paths, steps]``: minus the log-probability of the tokens of each step."""
    return trajectory.position_logp - trajectory.step_logp


def chance_of_drop(world, out):
    """``[paths, steps]``: largest probability, over the actions of its state, that the step is dropped."""
    chance = world.probabilities().tolist()
    by_action, total = defaultdict(float), defaultdict(float)
    for path, p, row in zip(world.paths, chance, out.tolist(), strict=True):
        for t in range(STEPS):
            total[t, path.key[:t], path.key[t]] += p
            by_action[t, path.key[:t], path.key[t]] += p * row[t]
    worst = defaultdict(float)
    for (t, past, action), p in by_action.items():
        worst[t, past] = max(worst[t, past], p / total[t, past, action])
    return torch.tensor([[worst[t, path.key[:t]] for t in range(STEPS)] for path in world.paths])


@pytest.mark.parametrize("num_selected", [1, 2])
def test_no_other_choice_leaves_less_entropy(num_selected):
    world = make_world("random")
    entropy = world.trajectory().entropy
    _, out = dropped(world, rewards(world), selection="top_entropy", num_selected_steps=num_selected)
    informative = world.trajectory().informative
    left = (entropy * out).sum(1)
    for kept in itertools.combinations(range(STEPS), num_selected):
        other = informative.clone()
        other[:, list(kept)] = False
        assert bool((left <= (entropy * other).sum(1) + 1e-12).all())


def test_entropy_alone_does_not_bound_what_top_k_drops():
    # Step 0 writes b once in a hundred times; only then is step 1 uncertain, so that only then is step 0
    # dropped, where its score is large: 0.01 * |d log pi(b)| = 0.01 * 0.99 * sqrt(2) = 0.014 is lost, while
    # C * 0.01 * H_0 = 2 * 0.01 * 0.056 = 0.0011. The surprisal, log 100, is enough: 2 * 0.01 * 4.6 = 0.092.
    policy = tabular_policy(length=2, vocab=3)
    table = policy.model.table.data.zero_()
    table[MASK + 3 * MASK, 0] = torch.tensor([0.99, 1.0, 0.01]).log()
    table[A + 3 * MASK, 1, B] = -30.0
    sampler = SamplerConfig(
        max_completion_length=2, diffusion_steps=2, block_length=2, remasking="left_to_right", temperature=1.0
    )
    world = World(policy, sampler)
    returns = torch.tensor([float(path.final[0] == B) for path in world.paths], dtype=torch.float64)
    lost, out = dropped(world, returns, selection="top_entropy", num_selected_steps=1)
    assert [bool(row[0]) for row in out] == [path.final[0] == B for path in world.paths]
    assert float(lost.norm()) == pytest.approx(0.01 * 0.99 * 2**0.5, rel=1e-6)
    trajectory, weight = world.trajectory(), world.probabilities()[:, None] * out
    assert 2 * float((weight * trajectory.entropy).sum()) < float(lost.norm()) / 10
    assert float(lost.norm()) < 2 * float((weight * token_surprisal(trajectory)).sum())

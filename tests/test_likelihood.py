"""The update sees the rollout's log-probabilities; padding and microbatches change nothing."""

from dataclasses import replace

import pytest
import torch

from egspo.config import SamplerConfig
from egspo.likelihood import guided_logits, microbatches, score, score_in_microbatches, separate
from egspo.objectives import egspo
from egspo.ops.reveal import REMASKING
from egspo.rollout import pad_prompts, rollout
from egspo.types import Rewards

PROMPTS = [[40, 41, 42], [40, 41, 42], [50, 51, 52, 53, 54], [50, 51, 52, 53, 54]]


def make_sampler(**settings):
    plain = {"max_completion_length": 6, "diffusion_steps": 4, "block_length": 3, "temperature": 0.9}
    return SamplerConfig(**(plain | settings))


def make_objective(**settings):
    plain = {"selection": "all", "step_advantage_weight": 0.0}
    return egspo.Objective(egspo.Config(name="egspo", **(plain | settings)))


def make_views(policy, sampler, objective=None):
    """A rollout of two groups of two and its views; rewards 0, 1, 2, …"""
    objective = objective or make_objective()
    trajectory = rollout(policy, *pad_prompts(policy, PROMPTS), torch.arange(4), sampler)
    rewards = Rewards(torch.arange(4.0, dtype=torch.float64), {}, 2, trajectory.num_steps)
    advantages = objective.advantages(rewards)
    return trajectory, objective.views(trajectory, objective.select(trajectory, advantages), advantages, 0)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("rule", REMASKING)
def test_the_first_ratio_is_one(tiny_policy, rule, temperature, cfg_scale):
    policy, objective = tiny_policy(), make_objective()
    policy.end_token_ids = (-1,)
    sampler = make_sampler(remasking=rule, temperature=temperature, cfg_scale=cfg_scale)
    trajectory, views = make_views(policy, sampler)
    with torch.no_grad():
        scores = score(policy, views, sampler)
    # No text ends, so every position is scored by exactly one step.
    torch.testing.assert_close(scores.token_logp.sum(1), trajectory.token_logp, rtol=0, atol=1e-5)
    drawn = (
        trajectory.position_logp if rule == "plackett_luce" else torch.zeros_like(trajectory.position_logp)
    )
    torch.testing.assert_close(scores.position_logp, drawn, rtol=0, atol=1e-5)
    metrics = objective.loss(scores, None, views).metrics
    assert metrics["loss/ratio"][0] / metrics["loss/ratio"][1] == pytest.approx(1, abs=1e-5)
    assert metrics["loss/clip_fraction"] == (0.0, 16.0)


def loss_and_gradient(policy, objective, sampler, chunks):
    """Summed over microbatches, as the trainer does."""
    policy.model.zero_grad()
    total = 0.0
    for chunk in chunks:
        scores = score(policy, chunk, sampler, with_exact_kl=objective.wants_exact_kl)
        reference = None
        if objective.config.beta:
            with policy.reference() as frozen:
                reference = score(frozen, chunk, sampler)
        loss = objective.loss(scores, reference, chunk).loss
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([p.grad.flatten() for p in policy.model.parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ratio": "token"},
        {"selection": "top_entropy", "num_selected_steps": 2, "beta": 0.3, "kl": "exact"},
    ],
)
@pytest.mark.parametrize("rule", ["low_confidence", "plackett_luce"])
@pytest.mark.parametrize("microbatch_size", [1, 3, 5])
def test_the_microbatch_changes_no_gradient(tiny_policy, rule, settings, microbatch_size):
    policy, sampler = tiny_policy(dtype=torch.float64), make_sampler(remasking=rule)
    objective = make_objective(**settings)
    _, views = make_views(policy, sampler, objective)
    policy.freeze_reference()
    move(policy.model)
    views = replace(views, weight=views.weight / objective.denominator(views))
    loss, gradient = loss_and_gradient(policy, objective, sampler, [views])
    assert float(gradient.abs().max()) > 1e-3
    alone = separate(views, objective.active(views))
    for chunks in (microbatches(views, microbatch_size), microbatches(alone, microbatch_size)):
        chunks = list(chunks)
        assert len(chunks) > 1
        other_loss, other_gradient = loss_and_gradient(policy, objective, sampler, chunks)
        assert other_loss == pytest.approx(loss, abs=1e-12)
        torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-12)


def move(model):
    """Away from the policy that acted, so that ratios differ from 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def test_microbatches_hold_at_most_so_many_canvases(tiny_policy):
    policy, sampler = tiny_policy(), make_sampler()
    _, views = make_views(policy, sampler)
    assert views.scored.shape[:2] == (4, 4)
    # A sample's four views stay together: two samples fit into ten canvases.
    assert [len(chunk) for chunk in microbatches(views, 10)] == [2, 2]
    assert [len(chunk) for chunk in microbatches(views, 1)] == [1] * 4
    active = make_objective().active(views)
    chunks = list(microbatches(separate(views, active), 5))
    assert all(len(chunk) == 5 for chunk in chunks[:-1]) and sum(map(len, chunks)) == int(active.sum())


def test_views_without_weight_cost_no_forward_pass(tiny_policy):
    policy, sampler, rows = tiny_policy(), make_sampler(), []
    _, views = make_views(policy, sampler)
    weight = views.weight.clone()
    weight[0], weight[2, 1] = 0, 0
    policy.model.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    whole = score(policy, views, sampler)
    some = score(policy, replace(views, weight=weight), sampler)
    assert rows == [16, 11]
    torch.testing.assert_close(some.token_logp[weight != 0], whole.token_logp[weight != 0], rtol=0, atol=1e-5)
    assert torch.count_nonzero(some.token_logp[weight == 0]) == 0


def test_only_scored_positions_are_asked_for(tiny_policy):
    policy, sampler, places = tiny_policy(), make_sampler(), []
    policy.model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: places.append(args[0].shape[1])
    )
    _, views = make_views(policy, sampler)
    places.clear()
    score(policy, views, sampler)
    # Steps reveal two tokens or one, of a sequence of eleven.
    assert places == [2]


def with_prompts(trajectory, side, extra):
    """The same trajectory with its prompts padded otherwise."""
    prompts = [
        row[mask].tolist() for row, mask in zip(trajectory.prompt_ids, trajectory.prompt_mask, strict=True)
    ]
    longest = max(map(len, prompts)) + extra
    pads = [[1] * (longest - len(p)) for p in prompts]
    ids = [pad + p if side == "left" else p + pad for p, pad in zip(prompts, pads, strict=True)]
    real = [
        [False] * len(pad) + [True] * len(p) if side == "left" else [True] * len(p) + [False] * len(pad)
        for p, pad in zip(prompts, pads, strict=True)
    ]
    return replace(trajectory, prompt_ids=torch.tensor(ids), prompt_mask=torch.tensor(real))


@pytest.mark.parametrize("rule", ["low_confidence", "plackett_luce"])
def test_padding_on_either_side_changes_no_loss(tiny_policy, rule):
    policy, sampler, objective = tiny_policy(), make_sampler(remasking=rule, cfg_scale=0.5), make_objective()
    trajectory, _ = make_views(policy, sampler)
    move(policy.model)
    found = []
    for side, extra in (("left", 0), ("left", 3), ("right", 0), ("right", 2)):
        padded = with_prompts(trajectory, side, extra)
        advantages = objective.advantages(Rewards(torch.arange(4.0), {}, 2, 4))
        views = objective.views(padded, objective.select(padded, advantages), advantages, 0)
        found.append(loss_and_gradient(policy, objective, sampler, [views]))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-4, atol=1e-5)


def test_scores_in_microbatches(tiny_policy):
    policy, sampler = tiny_policy(dtype=torch.float64), make_sampler(remasking="plackett_luce")
    _, views = make_views(policy, sampler)
    whole, parts = score(policy, views, sampler), score_in_microbatches(policy, views, sampler, 4)
    assert not parts.token_logp.requires_grad
    torch.testing.assert_close(parts.view_logp, whole.view_logp, rtol=0, atol=1e-12)


def test_no_pass_without_gradients_has_more_canvases_than_a_microbatch(tiny_policy):
    policy, sampler = tiny_policy(), make_sampler()
    _, views = make_views(policy, sampler)
    assert views.scored.shape[:2] == (4, 4)  # a sample has more views than a microbatch
    sizes = []
    policy.model.register_forward_pre_hook(
        lambda model, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    scores = score_in_microbatches(policy, views, sampler, 3)
    assert sizes == [3, 3, 3, 3, 3, 1]
    torch.testing.assert_close(scores.token_logp, score(policy, views, sampler).token_logp.detach())


def test_exact_kl_is_that_of_the_whole_distribution(tiny_policy):
    policy, sampler = tiny_policy(dtype=torch.float64), make_sampler(temperature=0.7)
    _, views = make_views(policy, sampler)
    policy.freeze_reference()
    assert float(score(policy, views, sampler, with_exact_kl=True).exact_kl.detach().abs().max()) < 1e-12
    move(policy.model)
    kl = score(policy, views, sampler, with_exact_kl=True).exact_kl.detach()
    prompt = views.inputs.shape[2] - views.scored.shape[2]
    n, t, i = (int(x) for x in views.scored.nonzero()[5])
    args = views.inputs[n, t][None], views.attention_mask[n][None], torch.tensor([[prompt + i]])

    def distribution(who):
        logits = who.logits(*args)[0, 0] / 0.7
        logits[policy.mask_token_id] = -1e9
        return logits.softmax(-1)

    p = distribution(policy).detach()
    with policy.reference() as frozen:
        q = distribution(frozen)
    allowed = torch.arange(len(p)) != policy.mask_token_id
    assert float(kl[n, t, i]) == pytest.approx(float((p * (p / q).log())[allowed].sum()), rel=1e-6)
    assert torch.count_nonzero(kl[~views.scored]) == 0


def test_guidance(tiny_policy):
    # u + (1 + w)(c - u): at w = 0 the conditional logits, and 1.5 times the way from u to c at w = 0.5.
    policy = tiny_policy(dtype=torch.float64)
    inputs = torch.tensor([[40, 41, 2, 2]])
    blind = torch.tensor([[2, 2, 2, 2]])
    attention, positions = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[2, 3]])
    assert policy.mask_token_id == 2
    with torch.no_grad():
        c, u = policy.logits(inputs, None, positions), policy.logits(blind, None, positions)
        assert torch.equal(guided_logits(policy, inputs, attention, positions, 2, 0.0), c)
        guided = guided_logits(policy, inputs, attention, positions, 2, 0.5)
    torch.testing.assert_close(guided, u + 1.5 * (c - u))


def test_separated_views_are_the_active_ones(tiny_policy):
    policy, sampler = tiny_policy(), make_sampler(remasking="plackett_luce")
    _, views = make_views(policy, sampler)
    active = torch.zeros(4, 4, dtype=torch.bool)
    active[1, 2], active[3, 0] = True, True
    alone = separate(views, active)
    rows, steps = torch.tensor([1, 3]), torch.tensor([2, 0])
    for name in (
        "inputs",
        "scored",
        "weight",
        "advantages",
        "step",
        "order",
        "targets",
        "old_token_logp",
        "old_position_logp",
    ):
        assert torch.equal(getattr(alone, name).squeeze(1), getattr(views, name)[rows, steps]), name
    assert torch.equal(alone.attention_mask, views.attention_mask[rows])


@pytest.mark.parametrize("with_exact_kl", [False, True])
def test_views_without_weight_cost_nothing(tiny_policy, with_exact_kl, monkeypatch):
    # A microbatch of samples without an advantage, as when a cached rollout is corrected.
    policy, sampler = tiny_policy(), make_sampler()
    _, views = make_views(policy, sampler)
    monkeypatch.setattr(policy, "logits", None)
    nothing = score(policy, replace(views, weight=views.weight * 0), sampler, with_exact_kl)
    assert nothing.token_logp.shape == views.scored.shape
    assert torch.count_nonzero(nothing.token_logp) == torch.count_nonzero(nothing.view_logp) == 0
    assert (nothing.exact_kl is not None) == with_exact_kl

"""TraceRL: slices of a trace, each scored from its first state, against a loop over tokens."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import runs
from egspo.likelihood import score
from egspo.objectives import egspo, tracerl
from egspo.types import Steps
from mdp import flat_gradient
from traces import kl, loss_of, make_case, surrogate, views_of

EXACT = {"rtol": 0, "atol": 1e-10}


def make_objective(**settings):
    return tracerl.Objective(tracerl.Config(name="tracerl", **settings))


def literal_loss(case, config):
    """Slices of s steps, each the mean over its tokens, but the sum of the KL to the old policy."""
    advantages, slices = case.outcome_advantages(config.scale == "std"), []
    for i in range(len(case.trajectory.final)):
        for first in range(0, case.sampler.diffusion_steps, config.steps_per_slice):
            terms, moved = [], 0.0
            for place in range(case.length(i)):
                if not first <= int(case.trajectory.reveal_step[i, place]) < first + config.steps_per_slice:
                    continue
                new, old, reference = (
                    case.logp(who, i, first, place, 1.0) for who in (case.policy, case.old, case.reference)
                )
                terms.append(
                    surrogate(new - old.detach(), advantages[i], config.epsilon, config.epsilon_high)
                    + config.beta * kl(config.kl, new, reference)
                )
                moved = moved + kl("k3", new, old)
            if terms and advantages[i] != 0:
                slices.append(sum(terms) / len(terms) + config.beta_old * moved)
    return sum(slices) / len(slices)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps_per_slice": 2},
        {"steps_per_slice": 4, "beta": 0.3, "beta_old": 0.0, "epsilon": 0.02, "epsilon_high": 0.05},
        {"steps_per_slice": 1, "beta": 0.1, "beta_old": 0.2, "kl": "k2", "scale": "none"},
        # More steps than there are: one slice, scored on the canvas that is all masked.
        {"beta_old": 0.5},
    ],
)
def test_loss_and_gradient_are_those_of_the_loop(tiny_policy, settings):
    case, objective = make_case(tiny_policy), make_objective(**settings)
    output = loss_of(objective, case, views_of(objective, case))
    expected = literal_loss(case, objective.config)
    torch.testing.assert_close(output.loss, expected, **EXACT)
    found, wanted = (flat_gradient(value, case.policy) for value in (output.loss, expected))
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(found, wanted, **EXACT)


def test_what_is_clipped_and_how_far_the_policy_moved_are_logged(tiny_policy):
    case, objective = make_case(tiny_policy), make_objective(steps_per_slice=3, epsilon=0.0, epsilon_high=0.0)
    views = views_of(objective, case)
    metrics = loss_of(objective, case, views).metrics
    assert set(metrics) == set(objective.metric_keys)
    with torch.no_grad():
        gap = (score(case.policy, views, case.sampler.model_copy(update={"temperature": 1.0})).token_logp
               - views.old_token_logp)[views.scored]  # fmt: skip
    advantage = views.advantages[..., None].expand_as(views.scored)[views.scored]
    # Without any slack every ratio that moved the right way is cut off.
    assert metrics["loss/clip_fraction"] == (float((gap * advantage > 0).sum()), float(len(gap)))
    assert metrics["loss/ratio"] == (pytest.approx(float(gap.exp().sum())), float(len(gap)))
    count = float(views.scored.any(-1).sum())
    assert metrics["loss/kl_old"] == (pytest.approx(float((torch.expm1(-gap) + gap).sum())), count)
    assert metrics["loss/kl"] == (0.0, count)


def test_slices(tiny_policy):
    case, objective = make_case(tiny_policy), make_objective(steps_per_slice=4)
    trajectory = case.trajectory
    steps = objective.select(trajectory, torch.zeros_like(trajectory.entropy))
    views = objective.views(trajectory, steps, torch.ones_like(trajectory.entropy), 0)
    # Steps 0-3 and 4-5; the second only where something of the text is revealed in it.
    for i in range(len(trajectory.final)):
        written = trajectory.reveal_step[i, : case.length(i)]
        late = bool((written >= 4).any())
        assert steps.index[i].tolist() == [0, 4 if late else 0]
        assert steps.mask[i].tolist() == [True, late]
        length = trajectory.final.shape[1]
        assert views.inputs[i, 0, -length:].tolist() == [case.old.mask_token_id] * length
        if late:
            assert views.inputs[i, 1, -length:].tolist() == case.canvas(i, 4)
        # Each token of the text is scored in exactly one slice, tokens behind the end in none.
        assert views.scored[i].sum(0).tolist() == [k < case.length(i) for k in range(length)]
        assert views.weight[i, 0] == pytest.approx(1 / int((written < 4).sum()))
    assert not steps.mask[:, 1].all() and steps.mask[:, 1].any()
    assert objective.denominator(views) == float(steps.mask.sum())
    assert objective.num_views(case.sampler) == 2


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_completions_without_an_advantage_are_left_out_of_everything(tiny_policy, beta):
    case, objective = make_case(tiny_policy), make_objective(steps_per_slice=2, beta=beta, beta_old=0.5)
    steps = objective.select(case.trajectory, torch.zeros_like(case.trajectory.entropy))
    advantages = torch.ones_like(case.trajectory.entropy)
    advantages[1:] = 0
    views = objective.views(case.trajectory, steps, advantages, 0)
    assert torch.equal(objective.active(views).any(1).nonzero(), torch.tensor([[0]]))
    assert objective.denominator(views) == float(steps.mask[0].sum())


def test_updates_may_share_out_slices(tiny_policy):
    case, objective = make_case(tiny_policy), make_objective(steps_per_slice=2)
    trajectory = case.trajectory
    steps = objective.select(trajectory, torch.zeros_like(trajectory.entropy))
    advantages = objective.advantages(case.rewards())
    whole = objective.views(trajectory, steps, advantages, 0)
    for k in range(3):
        part = Steps(steps.index[:, k : k + 1], steps.mask[:, k : k + 1])
        views = objective.views(trajectory, part, advantages, 0)
        assert torch.equal(views.scored, whole.scored[:, k : k + 1])
        assert torch.equal(views.inputs, whole.inputs[:, k : k + 1])
        assert torch.equal(views.weight, whole.weight[:, k : k + 1])


def test_slices_of_one_step_are_all_steps(tiny_policy):
    # At temperature 1 the rollout's log-probabilities are the old policy's; texts without an end, so that no
    # step holds tokens behind it; one token a step, so that the mean over a step is its sum.
    case = make_case(tiny_policy, temperature=1.0, diffusion_steps=8)
    case.old.end_token_ids = (-1,)
    everything = torch.ones_like(case.trajectory.completion_mask)
    trajectory = replace(
        case.trajectory, completion_mask=everything, last_step=torch.full_like(case.trajectory.last_step, 7)
    )
    case = replace(case, trajectory=trajectory)
    slices = make_objective(steps_per_slice=1, scale="none", beta_old=0.0)
    steps = egspo.Objective(
        egspo.Config(
            name="egspo",
            selection="all",
            step_advantage_weight=0.0,
            baseline="same_step",
            ratio="token",
            epsilon=0.2,
            epsilon_high=0.2,
        )
    )
    found, wanted = (loss_of(o, case, views_of(o, case)).loss for o in (slices, steps))
    # The mean over 8 slices of 6 samples, and the sum over steps averaged over samples.
    torch.testing.assert_close(found, wanted / 8, **EXACT)
    gradients = [flat_gradient(value, case.policy) for value in (found, wanted / 8)]
    torch.testing.assert_close(*gradients, **EXACT)


def test_on_the_first_update_the_old_policy_is_the_policy(tiny_policy):
    case, objective = make_case(tiny_policy), make_objective(steps_per_slice=2, beta_old=3.0)
    views = views_of(objective, case)
    same = replace(case, old=case.policy)
    again = views_of(objective, same)
    alone = replace(views, old_token_logp=None, old_position_logp=None)
    outputs = [loss_of(objective, case, v) for v in (again, alone)]
    gradients = [flat_gradient(output.loss, case.policy) for output in outputs]
    torch.testing.assert_close(*gradients, **EXACT)
    assert outputs[1].metrics["loss/kl_old"][0] == 0


def test_forward_passes_of_a_run(tmp_path):
    # Two steps in slices of two, of one: one and two canvases for each sample with an advantage.
    for size, passes in ((2, 1), (1, 2)):
        (row,) = runs.train(
            tmp_path / str(size),
            "train.max_steps=1",
            "objective.name=tracerl",
            f"objective.steps_per_slice={size}",
        )
        trained = round(16 * (1 - row["steps/skipped_samples_fraction"]))
        assert trained > 0
        # A text that ends with its first token may leave the second slice empty.
        assert trained * (1 if passes == 1 else 1.5) <= row["update/canvases"] <= trained * passes


def test_several_updates_move_the_ratio(tmp_path):
    (row,) = runs.train(tmp_path, "train.max_steps=1", "objective.name=tracerl", "train.num_iterations=3")
    assert row["loss/ratio"] != 1.0
    assert row["loss/kl_old"] > 0


@pytest.mark.parametrize(
    ("sampler", "train", "message"),
    [
        ({"cache": "prefix"}, {}, "sampler.cache: 'prefix', but tracerl scores slices"),
        ({}, {"update_split": "steps", "updates_per_rollout": 2}, "2 does not divide the 3 slices"),
        ({}, {"update_split": "steps", "updates_per_rollout": 3}, None),
        ({}, {}, None),
    ],
)
def test_problems(sampler, train, message):
    sampler = SimpleNamespace(
        **({"diffusion_steps": 20, "cache": "none", "score_positions": False} | sampler)
    )
    train = SimpleNamespace(**({"update_split": "samples", "updates_per_rollout": 1} | train))
    found = make_objective().problems(sampler, train)
    assert [message in line for line in found] == ([True] if message else [])


def test_bad_settings():
    for settings in ({"steps_per_slice": 0}, {"beta_old": -1}, {"kl": "exact"}, {"epsilon": 1.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            make_objective(**settings)

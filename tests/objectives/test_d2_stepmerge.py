"""d2-StepMerge: a trace in N segments, each scored from its first state, against a loop over tokens."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import runs
from egspo.objectives import d2_stepmerge, tracerl
from egspo.ops import noise
from mdp import flat_gradient
from traces import kl, loss_of, make_case, surrogate, views_of

EXACT = {"rtol": 0, "atol": 1e-10}


def make_objective(**settings):
    return d2_stepmerge.Objective(d2_stepmerge.Config(name="d2_stepmerge", **settings))


def hidden_prompt(case, i, rate, iteration):
    """The prompt with some tokens masked; the uniform numbers are counted from its end."""
    width, prompt = case.trajectory.prompt_ids.shape[1], case.prompt(i)
    chance = noise.uniform(case.trajectory.seeds[i : i + 1], noise.VIEWS, iteration, width)[0].tolist()
    mask = case.old.mask_token_id
    return [mask if chance[len(prompt) - 1 - k] < rate else token for k, token in enumerate(prompt)]


def literal_loss(case, config, iteration=0):
    """Mean over all tokens of the batch."""
    advantages, total, count = case.outcome_advantages(config.scale == "std"), 0.0, 0
    steps, segments = case.sampler.diffusion_steps, config.num_segments
    for i in range(len(case.trajectory.final)):
        prompt = hidden_prompt(case, i, config.p_mask_prompt, iteration)
        for place in range(case.length(i)):
            at = int(case.trajectory.reveal_step[i, place])
            first = max(int(n * steps / segments) for n in range(segments) if int(n * steps / segments) <= at)
            new, old, reference = (
                case.logp(who, i, first, place, 1.0, prompt)
                for who in (case.policy, case.old, case.reference)
            )
            total = total + surrogate(new - old.detach(), advantages[i], config.epsilon, config.epsilon_high)
            total, count = total + config.beta * kl(config.kl, new, reference), count + 1
    return total / count


@pytest.mark.parametrize(
    ("settings", "iteration"),
    [
        ({"num_segments": 3}, 0),
        # 6 steps in 4 segments: 0, 1 and 2, 3, 4 and 5.
        ({"num_segments": 4, "beta": 0.3, "kl": "k2", "epsilon": 0.02, "epsilon_high": 0.05}, 0),
        ({"num_segments": 6, "beta": 0.0, "scale": "std"}, 0),
        ({"num_segments": 2, "p_mask_prompt": 0.4}, 1),
    ],
)
def test_loss_and_gradient_are_those_of_the_loop(tiny_policy, settings, iteration):
    case, objective = make_case(tiny_policy), make_objective(**settings)
    output = loss_of(objective, case, views_of(objective, case, iteration))
    expected = literal_loss(case, objective.config, iteration)
    torch.testing.assert_close(output.loss, expected, **EXACT)
    found, wanted = (flat_gradient(value, case.policy) for value in (output.loss, expected))
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(found, wanted, **EXACT)
    assert set(output.metrics) == set(objective.metric_keys)


@pytest.mark.parametrize(
    ("segments", "steps", "edges"),
    [
        (1, 6, [0, 6]),
        (2, 5, [0, 2, 5]),
        (4, 6, [0, 1, 3, 4, 6]),
        (16, 64, [*range(0, 65, 4)]),
        (5, 5, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_segments(segments, steps, edges):
    objective = make_objective(num_segments=segments)
    assert objective.boundaries(steps) == edges
    assert objective.num_views(SimpleNamespace(diffusion_steps=steps)) == segments


def test_one_segment_is_the_mean_field_estimate(tiny_policy):
    # Every token of the text scored once, on the prompt as it is and a canvas that is all masked.
    case, objective = make_case(tiny_policy), make_objective(num_segments=1)
    views = views_of(objective, case)
    trajectory, width = case.trajectory, case.trajectory.prompt_ids.shape[1]
    assert views.inputs.shape[1] == 1
    assert torch.equal(views.inputs[:, 0, :width], trajectory.prompt_ids)
    assert bool((views.inputs[:, 0, width:] == case.old.mask_token_id).all())
    assert torch.equal(views.scored[:, 0], trajectory.completion_mask)
    assert objective.denominator(views) == float(trajectory.completion_mask.sum())


def test_as_many_segments_as_steps_score_tokens_where_they_were_drawn(tiny_policy):
    # At temperature 1 the old log-probabilities are then the rollout's own.
    case = make_case(tiny_policy, temperature=1.0)
    views = views_of(make_objective(num_segments=6), case)
    written = case.trajectory.token_logp * case.trajectory.completion_mask
    torch.testing.assert_close(views.old_token_logp.sum(1), written, **EXACT)


def test_equal_slices_are_those_of_tracerl(tiny_policy):
    case = make_case(tiny_policy)
    d2 = views_of(make_objective(num_segments=3), case)
    trace = views_of(tracerl.Objective(tracerl.Config(name="tracerl", steps_per_slice=2)), case)
    assert torch.equal(d2.inputs, trace.inputs) and torch.equal(d2.scored, trace.scored)
    assert torch.equal(d2.old_token_logp, trace.old_token_logp)


def test_masked_prompts(tiny_policy):
    case = make_case(tiny_policy)
    objective, width = make_objective(num_segments=2, p_mask_prompt=0.5), case.trajectory.prompt_ids.shape[1]
    passes = [views_of(objective, case, k).inputs[:, :, :width] for k in range(2)]
    assert not torch.equal(*passes)
    for inputs in passes:
        # The same for all segments of a sample, padding left as it is.
        assert torch.equal(inputs[:, 0], inputs[:, 1])
        masked = inputs[:, 0] == case.old.mask_token_id
        assert bool((masked <= case.trajectory.prompt_mask).all()) and masked.any()
        assert bool((masked | (inputs[:, 0] == case.trajectory.prompt_ids)).all())
    # Of the sample alone: more padding changes nothing.
    i, extra = 4, torch.zeros(1, 2, dtype=torch.long)
    alone = case.trajectory[i : i + 1]
    longer = replace(
        alone,
        prompt_ids=torch.cat([extra, alone.prompt_ids], dim=1),
        prompt_mask=torch.cat([extra > 0, alone.prompt_mask], dim=1),
    )
    steps = objective.select(longer, torch.zeros_like(longer.entropy))
    inputs = objective.views(longer, steps, torch.zeros_like(longer.entropy), 1).inputs
    assert torch.equal(inputs[0, :, 2 : 2 + width], passes[1][i])


def test_forward_passes_of_a_run(tmp_path):
    for segments in (1, 2):
        (row,) = runs.train(
            tmp_path / str(segments),
            "train.max_steps=1",
            "objective.name=d2_stepmerge",
            f"objective.num_segments={segments}",
        )
        # With a KL term every sample counts; a text of one token may leave the second segment empty.
        assert 16 * (1 if segments == 1 else 1.5) <= row["update/canvases"] <= 16 * segments


@pytest.mark.parametrize(
    ("sampler", "train", "message"),
    [
        (
            {"diffusion_steps": 8},
            {},
            "objective.num_segments: 16 exceeds sampler.diffusion_steps 8; use at most",
        ),
        ({"cache": "dual"}, {}, "sampler.cache: 'dual', but d2_stepmerge scores slices"),
        ({}, {"update_split": "steps", "updates_per_rollout": 3}, "3 does not divide the 16 slices"),
        ({}, {"update_split": "steps", "updates_per_rollout": 4}, None),
    ],
)
def test_problems(sampler, train, message):
    sampler = SimpleNamespace(
        **({"diffusion_steps": 64, "cache": "none", "score_positions": False} | sampler)
    )
    train = SimpleNamespace(**({"update_split": "samples", "updates_per_rollout": 1} | train))
    found = make_objective().problems(sampler, train)
    assert [message in line for line in found] == ([True] if message else [])


def test_bad_settings():
    for settings in ({"num_segments": 0}, {"p_mask_prompt": 1.0}, {"kl": "exact"}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            make_objective(**settings)

"""SPG's draws and loss, against a literal loop over the paper's formula."""

import math
from types import SimpleNamespace

import pytest
import torch
from completions import (
    DOUBLE,
    MASK,
    canvases_of_a_run,
    check_against,
    made_up_logp,
    made_up_scores,
    make_trajectory,
    views_of,
)
from pydantic import ValidationError

from egspo.config import SamplerConfig
from egspo.objectives import spg

# A completion of all three blocks, one that ends within the second, one of a single token.
LENGTHS, ADVANTAGES = [6, 3, 1], [0.75, -0.5, -0.25]


def make_objective(**settings):
    return spg.Objective(spg.Config(name="spg", **settings))


def test_defaults_are_the_method():
    config = spg.Config(name="spg")
    assert (config.num_draws, config.masking, config.mixture_weight) == (2, "block", 0.5)
    assert (config.eubo_power, config.p_mask_context, config.beta) == (1.5, 0.15, 0.0)
    assert (config.baseline, config.scale) == ("same_step", "none")


@pytest.mark.parametrize("num", [1, 2, 3])
def test_number_of_views(num, tmp_path):
    objective = make_objective(num_draws=num)
    assert objective.num_views(SamplerConfig()) == num
    views = views_of(objective, make_trajectory(), ADVANTAGES)
    assert views.scored.shape == (3, num, 6) and bool(views.scored.any(-1).all())
    canvases, asked = canvases_of_a_run(tmp_path, "objective.name=spg", f"objective.num_draws={num}")
    assert canvases == asked <= 16 * num and canvases % num == 0
    # There is no ratio: nothing is scored before the updates of several passes.
    assert not objective.wants_old_scores


def check_block_draw(scored, size):
    """A completion's scored tokens, nothing perturbed: some of one block, and all after it. The block."""
    first = min(k for k in range(size) if scored[k]) // 2
    # The chosen block may start with a token that was left; all that follows it is masked.
    assert all(scored[k] for k in range(2 * (first + 1), size))
    return first


def test_a_draw_masks_a_part_of_one_block_and_all_after_it():
    objective, num = make_objective(p_mask_context=0.0, num_draws=3), 600
    trajectory = make_trajectory(lengths=(5,) * num)
    views = views_of(objective, trajectory, [1.0] * num)
    assert torch.equal(views.inputs[:, :, 2:] == MASK, views.scored | ~trajectory.completion_mask[:, None])
    assert not bool((views.scored & ~trajectory.completion_mask[:, None]).any())
    assert torch.equal(views.inputs[:, :, :2], trajectory.prompt_ids[:, None].expand(-1, 3, -1))
    counts = torch.zeros(3, 3)
    for row in views.scored.tolist():
        blocks = [check_block_draw(scored, 5) for scored in row]
        # Three draws visit the three blocks that the completion reaches.
        assert sorted(blocks) == [0, 1, 2]
        for scored, block in zip(row, blocks, strict=True):
            counts[block, sum(scored[2 * block : 2 * block + 2])] += 1
    # One or two tokens of a block equally often; the last block holds one token.
    assert counts[:2, 1:].flatten().tolist() == pytest.approx([num / 2] * 4, abs=60)
    assert counts[2].tolist() == [0, num, 0]


def test_draws_return_to_a_block_where_a_completion_has_too_few():
    views = views_of(make_objective(p_mask_context=0.0, num_draws=3), make_trajectory(), ADVANTAGES)
    blocks = sorted(check_block_draw(scored, 3) for scored in views.scored[1].tolist())
    assert blocks in ([0, 0, 1], [0, 1, 1])
    assert views.scored[2].tolist() == [[True] + [False] * 5] * 3


def test_random_masking_takes_any_part_of_the_completion():
    num = 2000
    trajectory = make_trajectory(lengths=(4,) * num)
    views = views_of(make_objective(masking="random", num_draws=1), trajectory, [1.0] * num)
    counts = torch.bincount(views.scored[:, 0].sum(1), minlength=7)
    assert counts[[0, 5, 6]].tolist() == [0, 0, 0]
    assert counts[1:5].tolist() == pytest.approx([num / 4] * 4, abs=80)


def test_context_is_perturbed_lightly_and_what_is_masked_of_it_is_scored():
    num = 3000
    trajectory = make_trajectory(lengths=(6,) * num)
    views = views_of(make_objective(num_draws=1), trajectory, [1.0] * num)
    masked = views.inputs[:, 0] == MASK
    assert torch.equal(masked[:, 2:], views.scored[:, 0])
    prompt = masked[1:, :2]  # the first sample's is padded
    assert float(prompt.double().mean()) == pytest.approx(0.15, abs=0.02)
    # Where the last block was drawn its block and the one before it tell: 0.15 of the first two blocks.
    last = ~views.scored[:, 0, 4:].all(1)
    assert float(views.scored[last, 0, :4].double().mean()) == pytest.approx(0.15, abs=0.03)


def test_draws_depend_on_the_sample_and_the_pass_alone():
    objective, trajectory = make_objective(), make_trajectory(lengths=(6, 6, 6))
    views = views_of(objective, trajectory, ADVANTAGES)
    alone = views_of(objective, trajectory[1:2], ADVANTAGES[1:2])
    assert torch.equal(alone.inputs, views.inputs[1:2])
    assert not torch.equal(views_of(objective, trajectory, ADVANTAGES, iteration=1).inputs, views.inputs)


def literal(views, logp, advantages, mix, power):
    """The formula: one number a completion, averaged over tokens of the batch."""
    total = torch.zeros((), dtype=DOUBLE)
    num = views.scored.shape[1]
    for i, n in enumerate(LENGTHS):
        sets = [[k for k in range(6) if views.scored[i, v, k]] for v in range(num)]
        lower = sum(logp[i, v, k] / len(sets[v]) for v in range(num) for k in sets[v]) / num
        value = lower
        if advantages[i] < 0:
            upper, seen = torch.zeros((), dtype=DOUBLE), sorted(set().union(*sets))
            for k in seen:
                inner = sum(
                    n / len(sets[v]) * logp[i, v, k].exp() ** power for v in range(num) if k in sets[v]
                )
                upper = upper + (inner / num).log() / power / len(seen)
            value = mix * upper + (1 - mix) * lower
        total = total - n * advantages[i] * value / sum(LENGTHS)
    return total


@pytest.mark.parametrize(
    "settings",
    [{}, {"mixture_weight": 1.0}, {"mixture_weight": 0.0}, {"eubo_power": 1.0}, {"masking": "random"}],
)
@pytest.mark.parametrize("num_draws", [1, 2, 4])
def test_loss_is_the_formula(settings, num_draws):
    objective = make_objective(**settings, num_draws=num_draws)
    views = views_of(objective, make_trajectory(), ADVANTAGES, iteration=1)
    logp = made_up_logp(views, 0, 2.0)
    mix, power = objective.config.mixture_weight, objective.config.eubo_power
    expected = literal(views, logp, ADVANTAGES, mix, power)
    check_against(objective, views, made_up_scores(logp), None, expected)


def test_without_bad_completions_it_weighs_the_lower_bound():
    # Every A >= 0: likelihood training with the advantages as weights, whatever the upper bound's settings.
    advantages = [0.75, 0.0, 0.25]
    losses = []
    for settings in ({}, {"mixture_weight": 1.0, "eubo_power": 3.0}):
        objective = make_objective(**settings)
        views = views_of(objective, make_trajectory(), advantages)
        logp = made_up_logp(views, 0)
        losses.append(float(objective.loss(made_up_scores(logp), None, views).loss.detach()))
    elbo = (logp.sum(-1) / views.scored.sum(-1)).mean(1).detach()
    weighted = -sum(n * a * float(e) for n, a, e in zip(LENGTHS, advantages, elbo, strict=True)) / 10
    assert losses == pytest.approx([weighted] * 2)


def test_the_upper_bound_pulls_most_where_a_bad_token_was_likely():
    # Of a token's two draws the gradient of the upper bound goes with p^b, that of the lower is even.
    objective = make_objective(mixture_weight=1.0, eubo_power=2.0, masking="random")
    views = views_of(objective, make_trajectory(lengths=(1,)), [-1.0])
    logp = torch.zeros(1, 2, 6, dtype=DOUBLE)
    logp[0, :, 0] = torch.tensor([math.log(0.9), math.log(0.1)])
    logp.requires_grad_()
    (gradient,) = torch.autograd.grad(objective.loss(made_up_scores(logp), None, views).loss, logp)
    # p^2: 0.81 and 0.01 of 0.82.
    assert gradient[0, :, 0].tolist() == pytest.approx([0.81 / 0.82, 0.01 / 0.82])


@pytest.mark.parametrize(
    "settings", [{"num_draws": 0}, {"mixture_weight": 1.1}, {"eubo_power": 0.5}, {"masking": "blocks"}]
)
def test_bad_settings(settings):
    with pytest.raises(ValidationError, match=next(iter(settings))):
        make_objective(**settings)


def test_problems():
    found = make_objective(beta=0.1).problems(SamplerConfig(), SimpleNamespace(update_split="steps"))
    assert found == [
        "train.update_split: steps, but spg trains on whole completions; use samples",
        "objective.beta: 0.1, but spg knows no reference; use 0",
    ]

"""EGSPO-SA's hooks by hand; tests/test_literal.py runs them against a literal implementation."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from egspo.config import SamplerConfig
from egspo.objectives import egspo
from egspo.types import Rewards, Scores, Steps, Trajectory
from handmade import make_views

MASK = 9
DOUBLE = torch.float64


def make_objective(**settings):
    return egspo.Objective(egspo.Config(name="egspo", **settings))


def make_trajectory(remasking="random"):
    """Two samples, two blocks of two positions: both tokens of the first block, then one and one. The second
    sample's text ends in its first block."""
    return Trajectory(
        prompt_ids=torch.tensor([[0, 7], [6, 7]]),
        prompt_mask=torch.tensor([[False, True], [True, True]]),
        final=torch.tensor([[1, 2, 3, 4], [5, 8, 3, 4]]),
        reveal_step=torch.tensor([[0, 0, 1, 2], [0, 0, 2, 1]]),
        reveal_order=torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]),
        token_logp=torch.tensor([[-1.0, -2.0, -3.0, -4.0], [-0.5, -1.5, -2.5, -3.5]], dtype=DOUBLE),
        position_logp=torch.tensor([[-0.1, -0.2, -0.3], [-0.4, -0.5, -0.6]], dtype=DOUBLE),
        entropy=torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]], dtype=DOUBLE),
        score_norm=torch.ones(2, 3, dtype=DOUBLE),
        one_step=None,
        completion_mask=torch.tensor([[True] * 4, [True, True, False, False]]),
        last_step=torch.tensor([2, 0]),
        steps_taken=torch.tensor([3, 3]),
        seeds=torch.tensor([0, 1]),
        mask_token_id=MASK,
        block_length=2,
        draws_positions=remasking == "plackett_luce",
    )


def picked(steps):
    return [
        [int(t) for t, m in zip(*row, strict=True) if m] for row in zip(steps.index, steps.mask, strict=True)
    ]


def test_defaults_are_the_method():
    config = egspo.Config(name="egspo")
    assert (config.num_selected_steps, config.selection, config.step_advantage_weight) == (
        8,
        "top_entropy",
        0.5,
    )
    assert (config.epsilon, config.epsilon_high, config.ratio, config.aggregation) == (
        0.2,
        0.5,
        "step",
        "sum",
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # EGSPO without stepwise advantages needs no one-step completions.
        ({"step_advantage_weight": 0.0}, None),
        # Published baseline: of the selected steps.
        ({"baseline": "same_rank", "num_selected_steps": 2}, [[1, 2], [0]]),
        ({"baseline": "none", "num_selected_steps": 1}, [[1], [0]]),
        # Baselines at the same step: of every step that the group has in common.
        ({"baseline": "leave_one_out", "num_selected_steps": 1}, [[0, 1, 2], [0]]),
        ({"baseline": "same_step", "num_selected_steps": 1}, [[0, 1, 2], [0]]),
    ],
)
def test_candidates(settings, expected):
    objective = make_objective(**settings)
    found = objective.candidates(make_trajectory())
    assert (found is None) == (expected is None) == (objective.proxy is None)
    assert expected is None or picked(found) == expected


@pytest.mark.parametrize("selection", ["entropy_sampled", "top_and_sampled"])
@pytest.mark.parametrize("baseline", ["none", "batch", "same_rank"])
def test_the_steps_that_are_drawn_are_those_that_are_judged(selection, baseline):
    objective = make_objective(selection=selection, baseline=baseline, num_selected_steps=2)
    drawn = set()
    for seed in range(50):
        trajectory = replace(make_trajectory(), seeds=torch.tensor([seed, seed + 100]))
        judged = objective.candidates(trajectory)
        values = torch.full(judged.mask.shape, 0.25, dtype=DOUBLE)
        earned = Rewards(torch.tensor([1.0, 0.5], dtype=DOUBLE), {}, 2, 3, judged, values)
        advantages = objective.advantages(earned)
        trained = objective.select(trajectory, advantages)
        assert picked(trained) == picked(judged)
        if baseline == "none":
            assert advantages.gather(1, trained.index)[trained.mask].ne(0).all()
        drawn |= set(picked(trained)[0])
    assert drawn == {0, 1, 2}  # not those of the highest entropy alone


def make_rewards(steps=None, values=None):
    values = None if values is None else torch.tensor(values, dtype=DOUBLE)
    return Rewards(torch.tensor([1.0, 0.0], dtype=DOUBLE), {}, 2, 3, steps, values)


ALL = Steps(torch.tensor([[0, 1, 2], [0, 0, 0]]), torch.tensor([[True] * 3, [True, False, False]]))
VALUES = [[0.2, 0.4, 0.6], [0.8, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # 1.5 r - 0.5 v: sample 0: 1.4, 1.3, 1.2; sample 1: -0.4, ended. Less the other's, where there is one.
        ({}, [[1.8, 1.3, 1.2], [-1.8, 0, 0]]),
        ({"baseline": "same_step"}, [[0.9, 0, 0], [-0.9, 0, 0]]),
        ({"baseline": "none"}, [[1.4, 1.3, 1.2], [-0.4, 0, 0]]),
        (
            {"baseline": "none", "normalise_step_advantage": True},
            [[1.4 / 1.5, 1.3 / 1.5, 0.8], [-0.4 / 1.5, 0, 0]],
        ),
        # lambda_t = 0, 0.5 / 3, 1 / 3: 1, 1 + (1 - 0.4) / 6 = 1.1, 1 + (1 - 0.6) / 3; 0 for sample 1.
        ({"baseline": "none", "step_advantage_schedule": "linear"}, [[1, 1.1, 1 + 0.4 / 3], [0, 0, 0]]),
    ],
)
def test_advantages(settings, expected):
    advantages = make_objective(**settings).advantages(make_rewards(ALL, VALUES))
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=DOUBLE))


def test_published_baseline_compares_ranks():
    # Selected steps (1, 2) and (0): returns 1.3, 1.2 and -0.4. Mean of the firsts 0.45; no other second.
    steps = Steps(torch.tensor([[1, 2], [0, 0]]), torch.tensor([[True, True], [True, False]]))
    advantages = make_objective(baseline="same_rank").advantages(
        make_rewards(steps, [[0.4, 0.6], [0.8, 0.0]])
    )
    expected = torch.tensor([[0, 0.85, 0], [-0.85, 0, 0]], dtype=DOUBLE)
    torch.testing.assert_close(advantages, expected)


def test_without_stepwise_advantages_every_step_has_the_same():
    advantages = make_objective(step_advantage_weight=0.0).advantages(make_rewards())
    assert advantages.tolist() == [[1.0] * 3, [-1.0] * 3]


@pytest.mark.parametrize("baseline", ["none", "same_step", "leave_one_out", "same_rank", "batch"])
def test_egspo_is_the_special_case_of_weight_0(baseline):
    # Stepwise returns of weight 0 are the rewards, whatever the one-step completions earn.
    complete = Steps(torch.arange(3).expand(2, 3), torch.ones(2, 3, dtype=torch.bool))
    objective = make_objective(step_advantage_weight=0.0, baseline=baseline)
    stepwise = objective.advantages(make_rewards(complete, [[0.2, 0.4, 0.6], [0.8, 0.1, 0.3]]))
    torch.testing.assert_close(objective.advantages(make_rewards()), stepwise)


def test_views_show_the_chosen_steps():
    advantages = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]], dtype=DOUBLE)
    objective = make_objective(num_selected_steps=2)
    steps = objective.select(make_trajectory(), advantages)
    assert picked(steps) == [[1, 2], [0]]
    views = objective.views(make_trajectory(), steps, advantages, 0)
    assert views.inputs[0].tolist() == [[0, 7, 1, 2, MASK, MASK], [0, 7, 1, 2, 3, MASK]]
    assert views.inputs[1, 0].tolist() == [6, 7, MASK, MASK, MASK, MASK]
    assert views.attention_mask.tolist() == [[False] + [True] * 5, [True] * 6]
    none = [False] * 4
    assert views.scored[0].tolist() == [[False, False, True, False], [False, False, False, True]]
    assert views.scored[1].tolist() == [[True, True, False, False], none]
    assert views.weight.tolist() == [[1, 1], [1, 0]]
    assert views.advantages.tolist() == [[20, 30], [40, 0]]
    assert views.old_token_logp[0].tolist() == [[0, 0, -3, 0], [0, 0, 0, -4]]
    # A draw of positions that the policy does not shape is not scored.
    assert views.order is None and torch.count_nonzero(views.old_position_logp) == 0


def test_drawn_positions_are_scored_among_the_candidates_of_their_block():
    objective = make_objective(selection="all")
    trajectory = make_trajectory("plackett_luce")
    steps = objective.select(trajectory, torch.zeros(2, 3))
    views = objective.views(trajectory, steps, torch.zeros(2, 3), 0)
    # -1: could have been drawn; -2: of another block, or revealed before.
    assert views.order[0].tolist() == [[1, 0, -2, -2], [-2, -2, 0, -1], [-2, -2, -2, 0]]
    assert views.old_position_logp.tolist() == [[-0.1, -0.2, -0.3], [-0.4, 0, 0]]


def make_scores(views, ratios):
    """Scores under which the scored tokens have these ratios."""
    log = torch.tensor([[[math.log(r) if r else 0.0 for r in row] for row in ratios]], dtype=DOUBLE)
    return Scores((views.old_token_logp + log).requires_grad_(), torch.zeros(1, 3, dtype=DOUBLE))


RATIOS = [[1.25, 1.6, 0], [0, 0, 0.7], [0, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "loss", "clipped", "ratios"),
    [
        # Step 0: 1.25 * 1.6 = 2, cut at 1.5: -1.5 * 2. Step 1: 0.7, cut at 0.8: 0.8 * 4. Weights 1/2, 1/4.
        ({}, -3 / 2 + 3.2 / 4, 2, (2 + 0.7, 2)),
        # Token by token: 1.25, 1.6 (cut), 0.7 (cut).
        ({"ratio": "token"}, -(2.5 + 3) / 2 + 3.2 / 4, 2, (1.25 + 1.6 + 0.7, 3)),
        # Averaged: the geometric mean of step 0 is sqrt(2), uncut.
        ({"aggregation": "mean"}, -2 * math.sqrt(2) / 2 + 3.2 / 4, 1, (math.sqrt(2) + 0.7, 2)),
        ({"ratio": "token", "aggregation": "mean"}, -(2.5 + 3) / 2 / 2 + 3.2 / 4, 2, (3.55, 3)),
        ({"epsilon": 0.5, "epsilon_high": 2.0}, -4 / 2 + 2.8 / 4, 0, (2.7, 2)),
    ],
)
def test_loss(settings, loss, clipped, ratios):
    views = make_views()
    output = make_objective(**settings).loss(make_scores(views, RATIOS), None, views)
    assert float(output.loss.detach()) == pytest.approx(loss)
    assert output.metrics["loss/clip_fraction"] == (clipped, ratios[1])
    assert output.metrics["loss/ratio"] == (pytest.approx(ratios[0]), ratios[1])
    assert output.metrics["loss/policy"] == (pytest.approx(loss), 0.0)
    assert set(output.metrics) == set(egspo.Objective.metric_keys)


def test_kl_is_added_with_its_weight():
    # Reference over policy 2 and 1 in step 0, 1/2 in step 1: k3 = e^d - 1 - d with d their logarithms.
    views = make_views()
    scores = make_scores(views, [[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    reference = make_scores(views, [[2, 1, 0], [0, 0, 0.5], [0, 0, 0]])
    first, second = 2 - 1 - math.log(2), 0.5 - 1 - math.log(0.5)
    output = make_objective(beta=0.1).loss(scores, reference, views)
    policy = -2 / 2 + 4 / 4
    assert float(output.loss.detach()) == pytest.approx(policy + 0.1 * (first / 2 + second / 4))
    assert output.metrics["loss/kl"] == (pytest.approx(first + second), 2.0)
    mean = make_objective(beta=0.1, aggregation="mean").loss(scores, reference, views)
    assert float(mean.loss.detach()) == pytest.approx(policy + 0.1 * (first / 2 / 2 + second / 4))


@pytest.mark.parametrize("settings", [{"beta": 0.1, "kl": "exact"}, {"beta": 0.0, "kl": "exact"}])
def test_exact_kl_is_asked_for_only_if_used(settings):
    assert make_objective(**settings).wants_exact_kl == (settings["beta"] > 0)


def test_padding_contributes_nothing():
    views = make_views()
    scores = make_scores(views, RATIOS)
    (gradient,) = torch.autograd.grad(
        make_objective(ratio="token").loss(scores, None, views).loss, scores.token_logp
    )
    assert torch.count_nonzero(gradient[0, 2]) == 0
    assert torch.count_nonzero(gradient[~views.scored]) == 0


def test_a_drawn_position_choice_is_part_of_the_ratio():
    views = make_views(
        order=torch.tensor([[[0, 1, -1], [-2, -2, 0], [-2] * 3]]),
        old_position_logp=torch.tensor([[-1.0, 0.0, 0.0]], dtype=DOUBLE),
    )
    scores = make_scores(views, [[1.25, 1, 0], [0, 0, 1], [0, 0, 0]])
    moved = torch.tensor([[math.log(1.1) - 1, 0.0, 0.0]], dtype=DOUBLE)
    scores = Scores(scores.token_logp, moved)
    # 1.25 * 1.1 as one ratio; 1.25 + 1 + 1.1 and 1 + 1 as several.
    step = make_objective().loss(scores, None, views).loss
    assert float(step.detach()) == pytest.approx(-1.375 * 2 / 2 + 4 / 4)
    token = make_objective(ratio="token").loss(scores, None, views).loss
    assert float(token.detach()) == pytest.approx(-3.35 * 2 / 2 + 2 * 4 / 4)


def test_only_views_that_can_pull_are_active():
    views = make_views(advantages=torch.tensor([[0.0, -4.0, 5.0]], dtype=DOUBLE))
    assert make_objective().active(views).tolist() == [[False, True, False]]
    assert make_objective(beta=0.1).active(views).tolist() == [[True, True, False]]
    assert make_objective().denominator(views) == 1.0


def test_groups_of_equal_rewards_can_be_left_out_with_their_kl():
    # Two groups of two; the first earned the same, so that its step values alone tell its steps apart.
    steps = Steps(torch.tensor([[0, 1]] * 4), torch.ones(4, 2, dtype=torch.bool))
    values = torch.tensor([[0.2, 0.4], [0.8, 0.4], [0.2, 0.4], [0.8, 0.4]], dtype=DOUBLE)
    rewards = Rewards(torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=DOUBLE), {}, 2, 3, steps, values)
    kept = make_objective(beta=0.1).advantages(rewards)
    assert kept[:2].ne(0).any()
    objective = make_objective(beta=0.1, drop_equal_groups=True)
    dropped = objective.advantages(rewards)
    assert torch.equal(dropped[:2], torch.zeros(2, 3, dtype=DOUBLE)) and torch.equal(dropped[2:], kept[2:])
    views = make_views(advantages=torch.tensor([[0.0, -4.0, 5.0]], dtype=DOUBLE))
    assert objective.active(views).tolist() == [[False, True, False]]
    assert make_objective(beta=0.1).active(views).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("settings", "sampler", "train", "message"),
    [
        ({"num_selected_steps": 9}, {}, {}, "num_selected_steps: 9 exceeds sampler.diffusion_steps 8"),
        ({"aggregation": "mean"}, {"remasking": "plackett_luce"}, {}, "aggregation: mean does not fit"),
        (
            {"num_selected_steps": 8},
            {},
            {"update_split": "steps", "updates_per_rollout": 3},
            "3 does not divide the 8 selected steps",
        ),
        (
            {"step_value_samples": 4, "step_value_passes": 2},
            {},
            {},
            "step_value_samples: 4 with step_value_passes 2, which completes greedily",
        ),
        (
            {"step_value_samples": 4},
            {"temperature": 0.0},
            {},
            "step_value_samples: 4 at sampler.temperature 0",
        ),
        ({"step_value_passes": 2}, {"cache": "dual"}, {}, "step_value_passes: 2 with sampler.cache 'dual'"),
        ({"entropy_left": 0.3}, {}, {}, "entropy_left: 0.3 does nothing without selection=adaptive; use 0.1"),
        (
            {"step_value_samples": 4, "step_advantage_weight": 0.0},
            {},
            {},
            "step_value_samples: 4 does nothing without a step_advantage_weight; use 0",
        ),
        (
            {"step_value_passes": 2, "step_advantage_weight": 0.0},
            {},
            {},
            "step_value_passes: 2 does nothing without a step_advantage_weight; use 1",
        ),
    ],
)
def test_problems(settings, sampler, train, message):
    lengths = {"max_completion_length": 8, "diffusion_steps": 8, "block_length": 8}
    train = SimpleNamespace(**({"update_split": "samples", "updates_per_rollout": 1} | train))
    found = make_objective(**settings).problems(SamplerConfig(**(lengths | sampler)), train)
    assert len(found) == 1 and message in found[0]
    assert make_objective().problems(SamplerConfig(**lengths), SimpleNamespace(update_split="samples")) == []

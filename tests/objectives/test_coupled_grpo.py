"""coupled-GRPO: complementary masks, the combined estimate and its formula as a loop, its cost."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from egspo.config import SamplerConfig
from egspo.objectives import coupled_grpo, diffu_grpo
from egspo.ops import noise
from sequences import (
    DOUBLE,
    MASK,
    assert_same_loss,
    draw_views,
    literal_token_loss,
    make_rewards,
    make_trajectory,
    normalised,
    random_logp,
    scores_of,
)

REWARDS = make_rewards(1.0, 0.0, 0.5, 1.0)
# Leave one out of two: the difference.
ADVANTAGES = [1.0, -1.0, -0.5, 0.5]
TOKENS = [4, 2, 3, 1]


def make_objective(**settings):
    return coupled_grpo.Objective(coupled_grpo.Config(name="coupled_grpo", **settings))


def test_defaults_are_the_published_ones():
    config = coupled_grpo.Config(name="coupled_grpo")
    assert (config.num_pairs, config.min_mask_rate, config.max_mask_rate) == (1, 0.2, 0.8)
    assert (config.epsilon, config.epsilon_high, config.beta, config.kl) == (0.5, 0.5, 0.01, "k3")
    assert (config.baseline, config.scale, config.mask_weight, config.aggregation) == (
        "leave_one_out",
        "none",
        "inverse_rate",
        "tokens",
    )


@pytest.mark.parametrize("pairs", [1, 3])
@pytest.mark.parametrize("iteration", [0, 2])
def test_masks_of_a_pair_are_complements(pairs, iteration):
    trajectory = make_trajectory()
    views = draw_views(make_objective(num_pairs=pairs), trajectory, REWARDS, iteration)
    assert views.inputs.shape == (4, 1 + 2 * pairs, 8)
    masked = views.inputs[:, :, 4:] == MASK
    assert masked[:, 0].all()
    for pair in range(pairs):
        assert torch.equal(masked[:, 1 + 2 * pair], ~masked[:, 2 + 2 * pair])
    assert torch.equal(views.scored, masked & trajectory.completion_mask[:, None])
    # Each token of a completion is scored once without context and once a pair.
    expected = (1 + pairs) * trajectory.completion_mask
    assert torch.equal(views.scored.sum(1), expected)
    prompts = trajectory.prompt_ids[:, None].expand(-1, 1 + 2 * pairs, -1)
    assert torch.equal(views.inputs[:, :, :4], prompts)
    assert views.advantages[:, 0].tolist() == ADVANTAGES


def test_rates_are_uniform_in_their_range_and_weights_their_inverses():
    rows = 4000
    one = make_trajectory()[:1]
    trajectory = replace(one[torch.zeros(rows, dtype=torch.long)], seeds=torch.arange(rows))
    views = draw_views(make_objective(), trajectory, make_rewards(*[0.0, 1.0] * (rows // 2)), 1)
    rate = 0.2 + 0.6 * noise.uniform(trajectory.seeds, noise.VIEWS, 2, 1)[:, 0]
    masked = views.inputs[:, 1, 4:] == MASK
    # Mean 1/2; standard error of 4000 rates and 16000 places below 0.005.
    assert float(rate.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(masked.double().mean()) == pytest.approx(0.5, abs=0.02)
    # Correlated with the rate: E[m | t] = t.
    assert float(masked.double().mean(1)[rate > 0.65].mean()) == pytest.approx(0.725, abs=0.03)
    for view, inverse in ((1, 1 / rate), (2, 1 / (1 - rate))):
        some = views.scored[:, view].any(1)
        torch.testing.assert_close(views.weight[some, view], inverse[some])
        assert torch.count_nonzero(views.weight[~some, view]) == 0
    assert (views.weight[:, 0] == 1).all()
    plain = draw_views(make_objective(mask_weight="one"), make_trajectory(), REWARDS)
    assert torch.equal(plain.weight, plain.scored.any(-1).double())


def literal_estimates(logp, views, rates, pairs):
    """Of each token, from the definition: which mask it is in, and at what rate."""
    found = {}
    for i in range(4):
        for k in range(TOKENS[i]):
            total = logp[i, 0, k]
            for p in range(pairs):
                if views.inputs[i, 1 + 2 * p, 4 + k] == MASK:
                    total = total + logp[i, 1 + 2 * p, k] / rates[p][i]
                else:
                    total = total + logp[i, 2 + 2 * p, k] / (1 - rates[p][i])
            found[i, k] = total / (pairs + 1)
    return found


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("aggregation", ["tokens", "completions"])
@pytest.mark.parametrize("beta", [0.0, 0.01])
@pytest.mark.parametrize("several_updates", [False, True])
def test_formula_as_a_loop(pairs, aggregation, beta, several_updates):
    objective = make_objective(num_pairs=pairs, aggregation=aggregation, beta=beta)
    trajectory = make_trajectory()
    views = normalised(objective, draw_views(objective, trajectory, REWARDS, 1))
    logp, old, ref = (random_logp(views, seed) for seed in range(3))
    if several_updates:
        zeros = torch.zeros(views.weight.shape, dtype=DOUBLE)
        views = replace(views, old_token_logp=old, old_position_logp=zeros)
    rates = [
        0.2 + 0.6 * noise.uniform(trajectory.seeds, noise.VIEWS, 2 * (pairs + p), 1)[:, 0]
        for p in range(pairs)
    ]

    def literal(logp):
        now = literal_estimates(logp, views, rates, pairs)
        before = literal_estimates(old if several_updates else logp.detach(), views, rates, pairs)
        base = literal_estimates(ref, views, rates, pairs)
        total = 0.0
        for i, k in now:
            token = literal_token_loss(now[i, k], before[i, k], base[i, k], ADVANTAGES[i], 0.5, beta)
            total = total + token / (sum(TOKENS) if aggregation == "tokens" else 4 * TOKENS[i])
        return total

    assert_same_loss(objective, views, logp, ref if beta else None, literal)


def test_equal_log_probabilities_on_all_canvases_are_those_of_diffu_grpo():
    """The plain average of log-probabilities that do not depend on the context is the mean-field estimate."""
    objective = make_objective(mask_weight="one", baseline="same_step")
    views = normalised(objective, draw_views(objective, make_trajectory(), REWARDS))
    other = diffu_grpo.Objective(diffu_grpo.Config(name="diffu_grpo", beta=0.01, p_mask_prompt=0.0))
    single = normalised(other, draw_views(other, make_trajectory(), REWARDS))
    logp, old, ref = (random_logp(single, seed) for seed in range(3))
    single = replace(single, old_token_logp=old, old_position_logp=torch.zeros(4, 1, dtype=DOUBLE))
    zeros = torch.zeros(views.weight.shape, dtype=DOUBLE)
    views = replace(views, old_token_logp=old * views.scored, old_position_logp=zeros)
    ours = objective.loss(scores_of(logp * views.scored), scores_of(ref * views.scored), views)
    theirs = other.loss(scores_of(logp), scores_of(ref), single)
    torch.testing.assert_close(ours.loss, theirs.loss)
    for key, (total, count) in theirs.metrics.items():
        assert ours.metrics[key] == (pytest.approx(total), count)


@pytest.mark.parametrize(
    "settings",
    [{"num_pairs": 0}, {"min_mask_rate": 0.0}, {"max_mask_rate": 1.0}, {"mask_weight": "inverse"}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        coupled_grpo.Config(name="coupled_grpo", **settings)


def test_an_empty_range_of_rates_is_refused():
    lengths = {"max_completion_length": 8, "diffusion_steps": 8, "block_length": 8}
    found = make_objective(min_mask_rate=0.6, max_mask_rate=0.4).problems(
        SamplerConfig(**lengths), SimpleNamespace(update_split="samples")
    )
    assert found == ["objective.min_mask_rate: 0.6 exceeds max_mask_rate 0.4; use at most that"]

"""diffu-GRPO: what is masked, its formula as a loop, its cost."""

from dataclasses import replace

import pytest
import torch

import runs
from egspo.objectives import diffu_grpo
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

# Advantages 0.5, -0.5 and -0.25, 0.25.
REWARDS = make_rewards(1.0, 0.0, 0.5, 1.0)
ADVANTAGES = [0.5, -0.5, -0.25, 0.25]
TOKENS = [4, 2, 3, 1]


def make_objective(**settings):
    return diffu_grpo.Objective(diffu_grpo.Config(name="diffu_grpo", **settings))


def test_defaults_are_the_published_ones():
    config = diffu_grpo.Config(name="diffu_grpo")
    assert (config.p_mask_prompt, config.epsilon, config.epsilon_high, config.beta) == (0.15, 0.5, 0.5, 0.04)
    assert (config.baseline, config.scale, config.kl, config.aggregation) == (
        "same_step",
        "none",
        "k3",
        "tokens",
    )


def test_the_completion_is_masked_as_a_whole_and_scored_up_to_its_end():
    trajectory = make_trajectory()
    views = draw_views(make_objective(), trajectory, REWARDS)
    assert views.inputs.shape == (4, 1, 8)
    assert (views.inputs[:, 0, 4:] == MASK).all()
    assert views.scored[:, 0].equal(trajectory.completion_mask)
    assert views.advantages[:, 0].tolist() == ADVANTAGES


def test_prompt_tokens_are_masked_with_their_probability_and_anew_in_each_pass():
    rows = 4000
    one = make_trajectory()[:1]
    trajectory = replace(one[torch.zeros(rows, dtype=torch.long)], seeds=torch.arange(rows))
    objective = make_objective(baseline="none")
    rewards = make_rewards(*[1.0] * rows)
    passes = [draw_views(objective, trajectory, rewards, n).inputs[:, 0, :4] == MASK for n in range(2)]
    # The padded place never; the others in 15 % of 12000 draws, standard error 0.33 points.
    assert not passes[0][:, 0].any()
    for masked in passes:
        assert float(masked[:, 1:].double().mean()) == pytest.approx(0.15, abs=0.015)
    both = (passes[0] & passes[1])[:, 1:].double().mean()
    assert float(both) == pytest.approx(0.15**2, abs=0.006)
    never = draw_views(make_objective(p_mask_prompt=0.0), make_trajectory(), REWARDS)
    assert torch.equal(never.inputs[:, 0, :4], make_trajectory().prompt_ids)
    always = draw_views(make_objective(p_mask_prompt=1.0), make_trajectory(), REWARDS)
    assert torch.equal(always.inputs[:, 0, :4] == MASK, make_trajectory().prompt_mask)


def test_masked_prompt_tokens_count_from_the_prompts_end():
    # Place k from the end is masked if number k of the sample's stream is below p.
    trajectory = make_trajectory(padding=3)
    views = draw_views(make_objective(p_mask_prompt=0.5), trajectory, REWARDS, iteration=2)
    uniform = noise.uniform(trajectory.seeds, noise.VIEWS, 2, 6)
    for i in range(4):
        for k in range(6):
            expected = bool(uniform[i, k] < 0.5) and bool(trajectory.prompt_mask[i, 5 - k])
            assert bool(views.inputs[i, 0, 5 - k] == MASK) == expected


@pytest.mark.parametrize("aggregation", ["tokens", "completions"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("several_updates", [False, True])
def test_formula_as_a_loop(aggregation, beta, several_updates):
    objective = make_objective(aggregation=aggregation, beta=beta)
    views = normalised(objective, draw_views(objective, make_trajectory(), REWARDS))
    logp, old, ref = (random_logp(views, seed) for seed in range(3))
    if several_updates:
        views = replace(views, old_token_logp=old, old_position_logp=torch.zeros(4, 1, dtype=DOUBLE))

    def literal(logp):
        total = 0.0
        for i in range(4):
            for k in range(TOKENS[i]):
                before = old[i, 0, k] if several_updates else logp[i, 0, k].detach()
                token = literal_token_loss(logp[i, 0, k], before, ref[i, 0, k], ADVANTAGES[i], 0.5, beta)
                total = total + token / (sum(TOKENS) if aggregation == "tokens" else 4 * TOKENS[i])
        return total

    assert_same_loss(objective, views, logp, ref if beta else None, literal)


def test_metrics_are_means_over_tokens_and_the_kl_over_completions():
    objective = make_objective(beta=0.1)
    views = normalised(objective, draw_views(objective, make_trajectory(), REWARDS))
    old = -2.0 * views.scored.double()
    views = replace(views, old_token_logp=old, old_position_logp=torch.zeros(4, 1, dtype=DOUBLE))
    # Ratio 2 in the first sample (4 tokens, clipped above as A > 0), 1/4 in the second (2 tokens, clipped
    # below as A < 0), 2 in the third (3 tokens, A < 0: not clipped), 1 in the last.
    log_ratio = torch.tensor([2.0, 0.25, 2.0, 1.0], dtype=DOUBLE).log()[:, None, None] * views.scored
    scores = scores_of(old + log_ratio)
    metrics = objective.loss(scores, scores_of(old), views).metrics
    assert metrics["loss/ratio"] == (pytest.approx(4 * 2 + 2 * 0.25 + 3 * 2 + 1), 10.0)
    assert metrics["loss/clip_fraction"] == (6.0, 10.0)
    # k3 with d = -log rho: 1/2 - 1 + log 2 for 7 tokens, 4 - 1 - log 4 for 2.
    kl = 7 * (-0.5 + torch.log(torch.tensor(2.0, dtype=DOUBLE))) + 2 * (
        3 - torch.log(torch.tensor(4.0, dtype=DOUBLE))
    )
    assert metrics["loss/kl"] == (pytest.approx(float(kl)), 4.0)
    # -(1.5 A) for 4 tokens, -(0.5 A) for 2, -(2 A) for 3, -A for 1; over 10 tokens.
    policy = -(4 * 1.5 * 0.5 + 2 * 0.5 * -0.5 + 3 * 2 * -0.25 + 0.25) / 10
    assert metrics["loss/policy"] == (pytest.approx(policy), 0.0)


def test_its_gradient_is_that_of_the_mean_field_likelihood():
    """Before any update, without KL: sum_k A grad log p_k, over the tokens (d2 with one segment)."""
    objective = make_objective(beta=0.0, p_mask_prompt=0.0)
    views = normalised(objective, draw_views(objective, make_trajectory(), REWARDS))
    logp = random_logp(views, 0)
    weight = torch.tensor(ADVANTAGES, dtype=DOUBLE)[:, None, None] / sum(TOKENS)
    leaf = logp.requires_grad_()
    (gradient,) = torch.autograd.grad(objective.loss(scores_of(leaf), None, views).loss, leaf)
    torch.testing.assert_close(gradient * views.scored, -weight * views.scored)


@pytest.mark.parametrize(
    "settings",
    [
        {"p_mask_prompt": 1.5},
        {"p_mask_prompt": -0.1},
        {"epsilon": 1.0},
        {"kl": "exact"},
        {"aggregation": "sum"},
        {"scale": "mean"},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        diffu_grpo.Config(name="diffu_grpo", **settings)


def test_shares_of_steps_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train.update_split: steps, but diffu_grpo trains on whole"):
        runs.rl_config(tmp_path, "objective.name=diffu_grpo", "train.update_split=steps")

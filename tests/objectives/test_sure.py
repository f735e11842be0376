"""SURE against its formula in a literal loop, what it counts as success, and what it replays."""

import itertools
from collections import Counter

import pytest
import torch
from completions import (
    DOUBLE,
    MASK,
    check_against,
    made_up_logp,
    made_up_scores,
    make_trajectory,
    views_of,
)

import runs
from egspo.config import SamplerConfig
from egspo.objectives import sure
from egspo.sections import TrainConfig
from egspo.types import Rewards

# A completion that fills the canvas, one that ends early, one of a single token.
LENGTHS, MANY = [6, 3, 1], 3000
SURE = ("objective.name=sure", "objective.num_replayed=8", "train.updates_per_rollout=2")


def make_objective(**settings):
    return sure.Objective(sure.Config(name="sure", **settings))


def make_rewards(*final: float, group: int) -> Rewards:
    return Rewards(torch.tensor(final, dtype=DOUBLE), {}, group, 4)


def test_a_success_counts_as_its_share_of_the_group():
    rewards = make_rewards(1.0, 0.9, 1.2, 0.0, 0.0, 0.99, 1.0, 1.0, 1.0, group=3)
    # Two of three, none of three, three of three succeed: G over the number of successes.
    expected = [1.5, 0, 1.5, 0, 0, 0, 1, 1, 1]
    found = make_objective().advantages(rewards)
    assert found.shape == (9, 4) and found[:, 0].tolist() == found[:, 3].tolist() == expected
    # 0.7 + 0.2 + 0.1 is a little less than 1.
    rounded = make_objective().advantages(make_rewards(sum([0.7, 0.2, 0.1]), 0.0, group=2))
    assert rounded[:, 0].tolist() == [2, 0]
    lower = make_objective(min_reward=0.9).advantages(rewards)
    assert lower[:, 0].tolist() == [1, 1, 1, 0, 0, 3, 1, 1, 1]


@pytest.mark.parametrize("num_draws", [1, 3])
def test_loss_is_the_mean_log_probability_of_masked_tokens(num_draws):
    objective, advantages = make_objective(num_draws=num_draws), [1.0, 0.0, 3.0]
    views = views_of(objective, make_trajectory(LENGTHS), advantages)
    logp = made_up_logp(views, seed=1)
    expected = torch.zeros((), dtype=DOUBLE)
    for i, size in enumerate(LENGTHS):
        elbo = torch.zeros((), dtype=DOUBLE)
        for v in range(num_draws):
            masked = [k for k in range(6) if views.inputs[i, v, 2 + k] == MASK and k < size]
            elbo = elbo + size / len(masked) * sum(logp[i, v, k] for k in masked) / num_draws
        expected = expected - advantages[i] * elbo / size / len(LENGTHS)
    output = check_against(objective, views, made_up_scores(logp), None, expected)
    total, count = output.metrics["loss/elbo"]
    assert count == num_draws * 3 and total < 0


def test_views_show_the_prompt_and_hide_what_they_score_and_what_follows_the_end():
    trajectory = make_trajectory(LENGTHS)
    views = views_of(make_objective(num_draws=2), trajectory, [1.0] * 3)
    assert torch.equal(views.inputs[:, :, :2], trajectory.prompt_ids[:, None].expand(-1, 2, -1))
    hidden = views.inputs[:, :, 2:] == MASK
    assert torch.equal(hidden, views.scored | ~trajectory.completion_mask[:, None])
    assert bool(views.scored.any(-1).all()) and bool((views.targets == trajectory.final[:, None]).all())


def test_all_sizes_of_a_mask_and_all_masks_of_a_size_are_equally_likely():
    trajectory = make_trajectory((3,) * MANY, length=4)
    views = views_of(make_objective(), trajectory, [1.0] * MANY)
    seen = Counter(tuple(row) for row in views.scored[:, 0, :3].tolist())
    for row in itertools.product([False, True], repeat=3):
        size = sum(row)
        share = {0: 0, 1: 1 / 9, 2: 1 / 9, 3: 1 / 3}[size]
        # Standard error of a third of 3000: 26.
        assert seen[row] == pytest.approx(share * MANY, abs=105)
    other = views_of(make_objective(), trajectory, [1.0] * MANY, iteration=1)
    assert not torch.equal(other.scored, views.scored)


def test_settings_that_mean_nothing_are_refused():
    sampler = SamplerConfig()
    (found,) = make_objective(beta=0.1).problems(sampler, TrainConfig())
    assert "objective.beta: 0.1" in found and "use 0" in found
    (found,) = make_objective().problems(sampler, TrainConfig(update_split="steps", updates_per_rollout=2))
    assert "train.update_split" in found
    (found,) = make_objective().problems(SamplerConfig(score_positions=True), TrainConfig())
    assert "sampler.score_positions: True" in found and "use false" in found
    (found,) = make_objective(num_replayed=0, max_kept=7).problems(sampler, TrainConfig())
    assert "objective.max_kept: 7 does nothing" in found


def test_the_cost_of_an_update_is_what_is_replayed(tmp_path):
    """Whatever the rollouts brought, once there is a success: 2 updates of 8 completions, 3 masks each."""
    settings = (*SURE, "objective.num_draws=3", "objective.min_reward=-1", "train.max_steps=2")
    runs.train(tmp_path, *settings)
    assert [row["update/canvases"] for row in runs.rows(tmp_path)] == [48, 48]
    kept = [row["replay/completions"] for row in runs.rows(tmp_path)]
    assert 0 < kept[0] <= 16 and kept[0] < kept[1] <= 32
    assert all(0 < row["replay/problems"] <= 4 * row["step"] for row in runs.rows(tmp_path))


def test_without_replay_an_update_trains_on_the_rollout(tmp_path):
    runs.train(tmp_path, "objective.name=sure", "objective.num_replayed=0", "objective.min_reward=-1")
    assert [row["update/canvases"] for row in runs.rows(tmp_path)] == [16, 16]
    assert "replay/completions" not in runs.rows(tmp_path)[0]


def test_without_a_success_nothing_changes_and_that_is_told(tmp_path, capsys):
    before = runs.trainer(tmp_path / "other").policy.model.state_dict()
    runs.trainer(tmp_path / "run", *SURE, "objective.min_reward=9", "train.max_steps=10").train()
    told = "".join(capsys.readouterr())
    assert told.count("no completion has earned objective.min_reward yet") == 1
    trainer = runs.trainer(tmp_path / "run", *SURE, "objective.min_reward=9", "train.max_steps=10")
    trainer.train()
    # The updates that were left out count, as the schedule of the learning rate does.
    assert trainer.num_updates == 20
    for row in runs.rows(tmp_path / "run"):
        assert row["replay/completions"] == 0 and row["update/canvases"] is None
    after = runs.trainer(
        tmp_path / "third", f"model.model_name_or_path={tmp_path / 'run' / 'model'}", "model.init=null"
    )
    for name, value in after.policy.model.state_dict().items():
        assert torch.equal(value, before[name])

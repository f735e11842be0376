"""MDPO: returns of every step from one-step completions, against a loop over steps and tokens."""

import math
from types import SimpleNamespace

import pytest
import torch

import runs
from egspo.config import SamplerConfig
from egspo.objectives import mdpo
from egspo.types import Proxy, Rewards, Steps
from mdp import flat_gradient
from traces import GROUP, kl, loss_of, make_case, surrogate, views_of

EXACT = {"rtol": 0, "atol": 1e-10}
DOUBLE = torch.float64


def make_objective(**settings):
    return mdpo.Objective(mdpo.Config(name="mdpo", **settings))


def case_of(tiny_policy, objective, **settings):
    return make_case(tiny_policy, objective.proxy, **settings)


def literal_advantages(values, size):
    """``values[i]`` are the rewards of the one-step completions of the states 0 … T, the last is the text."""
    steps = len(values[0]) - 1
    returns = []
    for v in values:
        row = []
        for t in range(steps):
            later = v[t + 2 :] if t < steps - 1 else v[-1:]
            row.append(v[t + 1] - v[t] + sum(later) / len(later))
        returns.append(row)
    advantages = []
    for i, row in enumerate(returns):
        group = returns[i // size * size : i // size * size + size]
        found = []
        for t, own in enumerate(row):
            mean = sum(peer[t] for peer in group) / size
            spread = math.sqrt(sum((peer[t] - mean) ** 2 for peer in group) / (size - 1))
            found.append((own - mean) / (spread + 1e-4))
        advantages.append(found)
    return advantages


def values_of(case, config):
    """Rewards r_{-1} … r_{T-1}."""
    found = []
    for i, final in enumerate(case.trajectory.final.tolist()):
        one_step = case.trajectory.one_step[i].tolist()
        # Behind the last informative step every one-step completion has the text of the completion.
        values = [case.reward(canvas) for canvas in one_step]
        found.append([0.0, *values] if config.actions == "predicted" else [*values, case.reward(final)])
    return found


def actions_of(case, config, i, step):
    """Places and tokens of a step's action."""
    at, tokens = case.trajectory.reveal_step[i].tolist(), case.trajectory.final[i].tolist()
    if config.actions == "revealed":
        return [(k, tokens[k]) for k in range(len(tokens)) if at[k] == step]
    drawn = case.trajectory.one_step[i, step].tolist()
    return [(k, drawn[k]) for k in range(len(tokens)) if at[k] >= step]


def literal_loss(case, config):
    """Mean over samples; the group's K steps of largest |A|, each over its tokens, by L / m_t."""
    advantages, total = literal_advantages(values_of(case, config), GROUP), 0.0
    samples, length = len(case.trajectory.final), case.sampler.max_completion_length
    for i in range(samples):
        group = advantages[i // GROUP * GROUP : i // GROUP * GROUP + GROUP]
        last = [case.last_step(j) for j in range(i // GROUP * GROUP, i // GROUP * GROUP + GROUP)]
        size = [
            sum(abs(row[t]) for row, end in zip(group, last, strict=True) if t <= end)
            for t in range(len(group[0]))
        ]
        chosen = sorted(range(len(size)), key=lambda t: -size[t])[: config.num_selected_steps]
        for step in chosen:
            if step > case.last_step(i):
                continue
            masked = sum(at >= step for at in case.trajectory.reveal_step[i].tolist())
            weight = length / masked if config.masked_weight else 1.0
            action = actions_of(case, config, i, step)
            for place, token in action:
                new, old, reference = (
                    case.logp(who, i, step, place, case.sampler.temperature, token=token)
                    for who in (case.policy, case.old, case.reference)
                )
                counts = math.exp(float(old.detach())) if config.actions == "predicted" else 1.0
                ratio = surrogate(
                    new - old.detach(), advantages[i][step], config.epsilon, config.epsilon_high
                )
                term = weight * ratio + config.beta * kl(config.kl, new, reference)
                total = total + counts * term / len(action) / samples
    return total


@pytest.mark.parametrize(
    "settings",
    [
        {"num_selected_steps": 2},
        {"num_selected_steps": 6, "beta": 0.2},
        {"num_selected_steps": 4, "masked_weight": False, "epsilon": 0.02, "epsilon_high": 0.05},
    ],
)
@pytest.mark.parametrize("actions", ["predicted", "revealed"])
def test_loss_and_gradient_are_those_of_the_loop(tiny_policy, actions, settings):
    objective = make_objective(actions=actions, **settings)
    case = case_of(tiny_policy, objective)
    output = loss_of(objective, case, views_of(objective, case))
    expected = literal_loss(case, objective.config)
    torch.testing.assert_close(output.loss, expected, **EXACT)
    found, wanted = (flat_gradient(value, case.policy) for value in (output.loss, expected))
    assert wanted.norm() > 1e-3
    torch.testing.assert_close(found, wanted, **EXACT)
    assert set(output.metrics) == set(objective.metric_keys)


def make_rewards(values, masks, size=2):
    """Values of the states 0 … T of each sample; ``masks`` is how many of them are rewarded."""
    steps = len(values[0]) - 1
    mask = torch.tensor([[t < n for t in range(steps)] for n in masks])
    index = torch.arange(steps).expand(len(values), -1).masked_fill(~mask, 0)
    known = torch.tensor([v[:-1] for v in values], dtype=DOUBLE) * mask
    final = torch.tensor([v[-1] for v in values], dtype=DOUBLE)
    return Rewards(final, {}, size, steps, Steps(index, mask), known)


def test_advantages_by_hand():
    # Sample 0 rises from 0 to 1 at the second of three steps: r = 0, 1, 1; sample 1 never: 0, 0, 0.
    # R = (0 - 0) + (1 + 1) / 2 = 1, (1 - 0) + 1 = 2, (1 - 1) + 1 = 1, against 0, 0, 0.
    rewards = make_rewards([[0, 0, 1, 1], [0, 0, 0, 0]], [3, 3])
    # Mean 1/2, 1, 1/2; the deviation of (1, 0) is sqrt(1/2), that of (2, 0) sqrt(2).
    near, far = 0.5 / (math.sqrt(0.5) + 1e-4), 1 / (math.sqrt(2) + 1e-4)
    found = make_objective(actions="revealed", num_selected_steps=3).advantages(rewards)
    wanted = torch.tensor([[near, far, near], [-near, -far, -near]], dtype=DOUBLE)
    torch.testing.assert_close(found, wanted, **EXACT)
    # A group of two has equal sizes up to the 1e-4: the second step's spread is largest.
    chosen = make_objective(actions="revealed", num_selected_steps=1).advantages(rewards)
    assert chosen.abs().gt(0).tolist() == [[False, True, False]] * 2


def test_after_the_end_a_step_is_worth_the_completion():
    # Sample 1 ends at step 0: only its state 0 is rewarded, 0.2, and what follows is its final 0.6.
    rewards = make_rewards([[0.2, 0.4, 0.1, 1.0], [0.2, 0.6, 0.6, 0.6]], [3, 1])
    found = make_objective(actions="revealed", num_selected_steps=3).advantages(rewards)
    wanted = literal_advantages([[0.2, 0.4, 0.1, 1.0], [0.2, 0.6, 0.6, 0.6]], 2)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=DOUBLE), **EXACT)


def test_steps_are_ranked_by_those_that_can_be_trained_on():
    # Both texts end at step 0; R of the first is (1 - 1.5) + 1 there and 1 at the steps behind it.
    rewards = make_rewards([[1.5, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]], [1, 1])
    found = make_objective(actions="revealed", num_selected_steps=1).advantages(rewards)
    assert found.abs().gt(0).tolist() == [[True, False, False]] * 2


def test_groups_choose_their_own_steps():
    # The first group differs at the last step alone, the second in the first state already.
    values = [[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    found = make_objective(actions="revealed", num_selected_steps=1).advantages(make_rewards(values, [3] * 4))
    chosen = found.abs().gt(0)
    assert chosen.sum(1).tolist() == [1] * 4
    # R of sample 0: 0 + 1/2, 0 + 1, 1 + 1; of sample 2: 1 + 0, -1 + 0, 0 + 0.
    assert chosen.long().argmax(1).tolist() == [2, 2, 0, 0]


def test_equal_rewards_leave_nothing_to_train_on():
    rewards = make_rewards([[0.3, 0.1, 0.7]] * 4, [2] * 4, 4)
    found = make_objective(actions="revealed", num_selected_steps=2).advantages(rewards)
    assert torch.count_nonzero(found) == 0


def test_a_prediction_is_rewarded_as_the_step_drew_it():
    # Of two steps each; sample 1 ends at step 0, where its prediction has the text of the completion already.
    known = torch.tensor([[0.3, 0.9], [0.6, 0.0]], dtype=DOUBLE)
    mask = torch.tensor([[True, True], [True, False]])
    final = torch.tensor([0.9, 0.6], dtype=DOUBLE)
    rewards = Rewards(final, {}, 2, 2, Steps(torch.tensor([[0, 1], [0, 0]]), mask), known)
    found = make_objective(num_selected_steps=2).advantages(rewards)
    wanted = literal_advantages([[0.0, 0.3, 0.9], [0.0, 0.6, 0.6]], 2)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=DOUBLE), **EXACT)


def test_selected_are_steps_with_an_advantage_before_the_end(tiny_policy):
    objective = make_objective(num_selected_steps=3)
    case = case_of(tiny_policy, objective)
    trajectory = case.trajectory
    candidates = objective.candidates(trajectory)
    advantages = objective.advantages(case.rewards(candidates))
    steps = objective.select(trajectory, advantages)
    for i in range(len(trajectory.final)):
        wanted = [t for t in range(case.last_step(i) + 1) if advantages[i, t] != 0]
        assert steps.index[i][steps.mask[i]].tolist() == wanted
        # Transcripts look up the selected among the rewarded.
        assert set(wanted) <= set(candidates.index[i][candidates.mask[i]].tolist())
    assert objective.proxy == Proxy(own=True) and make_objective(actions="revealed").proxy == Proxy()
    assert objective.num_views(case.sampler) == 3


def test_forward_passes_of_a_run(tmp_path):
    settings = ["objective.name=mdpo", "objective.num_selected_steps=1"]
    (row,) = runs.train(tmp_path, "train.max_steps=1", *settings)
    trained = round(16 * (1 - row["steps/skipped_samples_fraction"]))
    assert row["update/canvases"] == trained > 0
    assert row["loss/ratio"] == pytest.approx(1, abs=1e-5)
    assert row["reward/one_step"] is not None


@pytest.mark.parametrize(
    ("steps", "train", "message"),
    [
        (4, {}, "objective.num_selected_steps: 8 exceeds sampler.diffusion_steps 4; use at most 4"),
        (16, {"update_split": "steps", "updates_per_rollout": 3}, "3 does not divide the 8 selected steps"),
        (16, {"update_split": "steps", "updates_per_rollout": 4}, None),
    ],
)
def test_problems(steps, train, message):
    found = problems_of(make_objective(), steps, train)
    assert [message in line for line in found] == ([True] if message else [])


def problems_of(objective, steps, train, **settings):
    sampler = SamplerConfig(max_completion_length=16, diffusion_steps=steps, block_length=8, **settings)
    train = SimpleNamespace(**({"update_split": "samples", "updates_per_rollout": 1} | train))
    return objective.problems(sampler, train)


def test_predictions_are_of_the_whole_canvas_and_of_tokens():
    (cached,) = problems_of(make_objective(), 16, {}, cache="dual")
    assert cached.startswith("sampler.cache: 'dual', but a cached step does not predict the whole canvas")
    (placed,) = problems_of(make_objective(), 16, {}, score_positions=True)
    assert placed.startswith("sampler.score_positions: True, but mdpo scores no choice of positions")
    for settings in ({"cache": "dual"}, {"score_positions": True}):
        assert problems_of(make_objective(actions="revealed"), 16, {}, **settings) == []


def test_bad_settings():
    for settings in ({"num_selected_steps": 0}, {"kl": "exact"}, {"epsilon": -0.1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            make_objective(**settings)

"""Completions at once of the states of a rollout, against a plain loop over samples, steps and positions."""

import itertools
import math

import pytest
import torch

import literal
import runs
from egspo import registry
from egspo.config import SamplerConfig
from egspo.objectives import egspo
from egspo.ops import noise
from egspo.rewards import TaskScorer, score_batch
from egspo.rollout import pad_prompts, rollout
from egspo.types import Proxy

PROMPTS = [[40, 41, 42], [50, 51, 52, 53, 54], [60], [70, 71]]


def make_sampler(**settings) -> SamplerConfig:
    plain = {"max_completion_length": 8, "diffusion_steps": 6, "block_length": 4, "temperature": 0.9}
    return SamplerConfig(**(plain | {"early_stop": False} | settings))


def roll(policy, sampler, proxy, **settings):
    inputs = pad_prompts(policy, PROMPTS)
    return rollout(policy, *inputs, torch.arange(4), sampler, proxy=proxy, **settings)


def completed(policy, prompt, canvas, sampler, tokens_of) -> list[int]:
    """A canvas whose masked positions have what ``tokens_of(logits, allowed, position)`` says."""
    mask = policy.mask_token_id
    logits, allowed = literal.logits_at(policy.model, prompt, canvas, sampler, mask)
    return [tokens_of(logits[i], allowed, i) if token == mask else token for i, token in enumerate(canvas)]


def best(logits, allowed, place) -> int:
    return int(literal.log_probabilities(logits, allowed, 1.0).argmax())


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 1.5}, {"remasking": "left_to_right"}])
def test_drawn_completions(tiny_policy, settings):
    policy, sampler, number = tiny_policy(seed=1, dtype=torch.float64), make_sampler(**settings), 3
    found = roll(policy, sampler, Proxy(num_samples=number)).one_step
    states, length = roll(policy, sampler, None).states, sampler.max_completion_length
    assert found.shape == (4, 6, number, length)
    for n, prompt in enumerate(PROMPTS):
        for t in range(sampler.diffusion_steps):
            numbers = noise.uniform(torch.tensor([n]), noise.FILLINGS, t, number * length)[0].tolist()
            for k in range(number):

                def drawn(logits, allowed, place, k=k, numbers=numbers):
                    acting = literal.log_probabilities(logits, allowed, sampler.temperature)
                    return literal.draw_token(acting, numbers[k * length + place])

                expected = completed(policy, prompt, states[n, t].tolist(), sampler, drawn)
                assert found[n, t, k].tolist() == expected
    assert len({tuple(row) for row in found[:, 0].flatten(0, 1).tolist()}) > 4


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 1.5}, {"temperature": 0.0}, {"early_stop": True}])
def test_what_a_step_draws_itself(tiny_policy, settings):
    """Of which it reveals some: those the finished text has."""
    policy, sampler = tiny_policy(seed=1, dtype=torch.float64), make_sampler(**settings)
    trajectory = roll(policy, sampler, Proxy(own=True))
    assert torch.equal(trajectory.final, roll(policy, sampler, None).final)
    for n, prompt in enumerate(PROMPTS):
        for t in range(int(trajectory.steps_taken[n])):
            numbers = noise.uniform(torch.tensor([n]), noise.TOKENS, t, len(trajectory.final[n]))[0].tolist()

            def own(logits, allowed, place, numbers=numbers):
                if sampler.temperature == 0:
                    return best(logits, allowed, place)
                acting = literal.log_probabilities(logits, allowed, sampler.temperature)
                return literal.draw_token(acting, numbers[place])

            found, state = trajectory.one_step[n, t].tolist(), trajectory.states[n, t].tolist()
            assert found == completed(policy, prompt, state, sampler, own)
            shown = trajectory.revealed[n, t]
            assert torch.equal(trajectory.one_step[n, t][shown], trajectory.final[n][shown]) and shown.any()


@torch.no_grad()
@pytest.mark.parametrize("passes", [2, 3, 20])
@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 1.5}])
def test_completions_in_a_few_passes(tiny_policy, passes, settings):
    policy, sampler = tiny_policy(seed=1, dtype=torch.float64), make_sampler(**settings)
    found = roll(policy, sampler, Proxy(num_passes=passes)).one_step
    states, mask = roll(policy, sampler, None).states, policy.mask_token_id
    for n, prompt in enumerate(PROMPTS):
        for t in range(sampler.diffusion_steps):
            canvas = states[n, t].tolist()
            for left in range(passes, 1, -1):
                masked = [i for i, token in enumerate(canvas) if token == mask]
                logits, allowed = literal.logits_at(policy.model, prompt, canvas, sampler, mask)

                def later(i, logits=logits, allowed=allowed):
                    sure = float(literal.log_probabilities(logits[i], allowed, 1.0).max())
                    return i // sampler.block_length, -sure

                for i in sorted(masked, key=later)[: math.ceil(len(masked) / left)]:
                    canvas[i] = best(logits[i], allowed, i)
            assert found[n, t].tolist() == completed(policy, prompt, canvas, sampler, best)
    one_pass = roll(policy, sampler, Proxy()).one_step
    assert not torch.equal(found, one_pass)
    assert torch.equal(found[:, -1], one_pass[:, -1])  # little is left to see


@pytest.mark.parametrize("proxy", [Proxy(num_samples=2), Proxy(num_passes=2)])
def test_how_states_are_judged_changes_nothing_else_and_depends_on_the_sample_alone(tiny_policy, proxy):
    policy, sampler = tiny_policy(), make_sampler(early_stop=True)
    plain, judged = roll(policy, sampler, None), roll(policy, sampler, proxy)
    assert torch.equal(plain.final, judged.final) and torch.equal(plain.reveal_step, judged.reveal_step)
    torch.testing.assert_close(plain.token_logp, judged.token_logp)
    parts = roll(policy, sampler, proxy, batch_size=1)
    assert torch.equal(parts.one_step, judged.one_step)
    assert not (judged.one_step == policy.mask_token_id)[judged.informative].any()


def test_draws_at_temperature_zero_are_the_greedy_completion(tiny_policy):
    policy, sampler = tiny_policy(), make_sampler(temperature=0.0)
    drawn, greedy = (roll(policy, sampler, proxy).one_step for proxy in (Proxy(num_samples=2), Proxy()))
    assert torch.equal(drawn, greedy[:, :, None].expand_as(drawn))


def test_what_does_not_go_together(tiny_policy):
    several = {"num_samples": 4}, {"num_passes": 2}, {"own": True}
    for first, second in itertools.combinations(several, 2):
        with pytest.raises(ValueError, match=r"num_samples: .* with num_passes .*; use one of the three"):
            Proxy(**first, **second)
    with pytest.raises(ValueError, match=r"num_passes: 2 with sampler\.cache 'dual'"):
        roll(tiny_policy(), make_sampler(cache="dual"), Proxy(num_passes=2))


def test_no_pass_is_made_where_nothing_is_masked(tiny_policy):
    policy, sampler = tiny_policy(), make_sampler(diffusion_steps=8)
    calls = []
    policy.model.register_forward_hook(lambda *_: calls.append(1))
    roll(policy, sampler, Proxy(num_passes=3))
    # One token a step: 8 to 3 positions are masked in six steps, then 2 and 1, of which each pass takes one.
    assert len(calls) == 6 * 3 + 2 + 1


def test_a_state_is_worth_the_mean_reward_of_its_completions(tiny_policy):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact", num_symbols=3)
    prompts = [prompt for prompt in task.load("train")[:2] for _ in range(2)]
    encoded = policy.encode_prompts([prompt.messages for prompt in prompts])
    objective = egspo.Objective(egspo.Config(name="egspo", num_selected_steps=2, step_value_samples=5))
    assert objective.proxy == Proxy(num_samples=5)
    sampler = make_sampler(max_completion_length=4, block_length=4, diffusion_steps=4, temperature=3.0)
    inputs = (*pad_prompts(policy, encoded), torch.arange(4))
    trajectory = rollout(policy, *inputs, sampler, proxy=objective.proxy)
    scorer, candidates = TaskScorer(task), objective.candidates(trajectory)
    scored = score_batch(scorer, policy, trajectory, prompts, candidates, 2)
    for i, prompt in enumerate(prompts):
        for k, step in enumerate(candidates.index[i].tolist()):
            texts = policy.decode(trajectory.one_step[i, step])
            values = [task.grade(text, prompt.fields).parts["match"] for text in texts]
            expected = sum(values) / 5 if candidates.mask[i, k] else 0.0
            assert float(scored.rewards.step_values[i, k]) == pytest.approx(expected)
            assert scored.one_step_texts[i][k] == texts[0]


def test_training_with_each_proxy_sees_the_same_rollout_and_other_values(tmp_path):
    """First iterations of one seed; the reward that states are judged by is logged."""
    first = {}
    for name, settings in {
        "greedy": [],
        "drawn": ["objective.step_value_samples=4"],
        "passes": ["objective.step_value_passes=2"],
        "adaptive": ["objective.selection=adaptive", "objective.entropy_left=0.5"],
    }.items():
        runs.trainer(tmp_path / name, "train={max_steps: 1, prompts_per_step: 32}", *settings).train()
        (first[name],) = runs.rows(tmp_path / name)
    assert len({row["reward/mean"] for row in first.values()}) == 1
    values = {name: row["reward/one_step"] for name, row in first.items()}
    assert len({values["drawn"], values["greedy"], values["passes"]}) == 3
    assert values["adaptive"] == values["greedy"]
    assert first["adaptive"]["update/canvases"] < first["greedy"]["update/canvases"]

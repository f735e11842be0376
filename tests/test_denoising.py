"""Shortcuts of the sampler: early stop, several tokens a step by confidence, cached keys and values."""

from dataclasses import replace

import pytest
import torch

import runs
from egspo.config import ConfigError, RLRun, parse_section
from egspo.likelihood import correct, score_in_microbatches
from egspo.metrics import warnings
from egspo.models.layers import KVCache
from egspo.ops.reveal import reveal_schedule
from egspo.policy import load_policy
from egspo.rollout import generate, pad_prompts, rollout
from egspo.sections import SamplerConfig
from egspo.types import Proxy, Steps
from egspo.views import step_views

PROMPTS = [[40, 41, 42], [50, 51, 52, 53, 54], [60], [70, 71]]
RECORDS = ("final", "reveal_step", "token_logp", "entropy", "one_step", "last_step", "completion_mask")


def make_sampler(**settings):
    plain = {"max_completion_length": 12, "diffusion_steps": 9, "block_length": 4, "temperature": 0.9}
    return SamplerConfig(**(plain | settings))


def sample(policy, sampler, num=4, **settings):
    prompts = pad_prompts(policy, (PROMPTS * num)[:num])
    return rollout(policy, *prompts, torch.arange(num), sampler, proxy=Proxy(), **settings)


def counted(policy):
    """Tokens that went through the model, by pass, from now on."""
    passes = []
    model = policy.model

    def note(module, args, kwargs, output):
        start, end = kwargs.get("window") or (0, kwargs["input_ids"].shape[1])
        passes.append(len(kwargs["input_ids"]) * (end - start))

    model.register_forward_hook(note, with_kwargs=True)
    return passes


def ending_policy(tiny_policy, bias=2.0, **arguments):
    """A policy that likes to end its texts."""
    policy = tiny_policy(**arguments)
    head = policy.model.get_output_embeddings()
    extra = torch.zeros(head.out_features, dtype=head.weight.dtype)
    extra[policy.end_token_ids[0]] = bias
    head.register_parameter("bias", torch.nn.Parameter(extra))
    return policy


# ---- early stop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("remasking", ["low_confidence", "left_to_right", "plackett_luce"])
def test_stopping_early_changes_nothing_that_counts(tiny_policy, remasking):
    policy = ending_policy(tiny_policy, dtype=torch.float64)
    passes = counted(policy)
    whole = sample(policy, make_sampler(remasking=remasking, early_stop=False), num=24)
    cost = sum(passes)
    passes.clear()
    short = sample(policy, make_sampler(remasking=remasking), num=24)
    assert sum(passes) < 0.8 * cost
    assert bool((short.steps_taken < 9).any()) and bool((short.steps_taken > 3).any())
    assert torch.equal(short.last_step, whole.last_step)
    assert torch.equal(short.completion_mask, whole.completion_mask)
    text, steps = whole.completion_mask, whole.informative
    for name in ("final", "reveal_step", "reveal_order"):
        assert torch.equal(getattr(short, name)[text], getattr(whole, name)[text]), name
    torch.testing.assert_close(short.token_logp[text], whole.token_logp[text], rtol=0, atol=1e-12)
    for name in ("entropy", "position_logp", "step_logp"):
        found, wanted = getattr(short, name)[steps], getattr(whole, name)[steps]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert torch.equal(short.one_step[steps], whole.one_step[steps])
    assert torch.equal(short.states[steps], whole.states[steps])


def test_what_was_not_denoised_is_filled_with_ends(tiny_policy):
    policy = ending_policy(tiny_policy)
    trajectory = sample(policy, make_sampler(), num=24)
    assert policy.mask_token_id not in trajectory.final
    filled = trajectory.reveal_step >= trajectory.steps_taken[:, None]
    assert bool(filled.any()) and not bool((filled & trajectory.completion_mask).any())
    assert bool((trajectory.final[filled] == policy.end_token_ids[0]).all())
    assert bool((trajectory.token_logp[filled] == 0).all())
    later = torch.arange(9) >= trajectory.steps_taken[:, None]
    assert bool((trajectory.entropy[later] == 0).all())
    assert not bool((later & trajectory.informative).any())


# ---- confidence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("remasking", ["low_confidence", "top_prob"])
def test_what_is_confident_is_revealed_at_once(tiny_policy, remasking):
    policy, threshold = ending_policy(tiny_policy, bias=2.0, dtype=torch.float64), 0.3
    settings = {"remasking": remasking, "diffusion_steps": 12, "temperature": 0.0, "early_stop": False}
    trajectory = sample(policy, make_sampler(confidence_threshold=threshold, **settings))
    several = False
    for n, prompt in enumerate(PROMPTS):
        for t in range(int(trajectory.steps_taken[n])):
            # Greedy, so both rules go by the probability of the best token, with the mask ruled out.
            state = trajectory.states[n, t]
            logits = policy.logits(torch.cat([torch.tensor(prompt), state])[None])[0, len(prompt) :]
            logits[:, policy.mask_token_id] = -torch.inf
            best = logits.softmax(-1).amax(-1)
            hidden = [i for i in range(12) if state[i] == policy.mask_token_id]
            block = [i for i in hidden if i // 4 == hidden[0] // 4]
            wanted = {i for i in block if best[i] > threshold} or {max(block, key=lambda i: float(best[i]))}
            assert {i for i in range(12) if trajectory.revealed[n, t, i]} == wanted
            several |= len(wanted) > 1
    assert several and bool((trajectory.steps_taken < 12).any())


def test_the_schedule_is_the_least_that_a_step_reveals(tiny_policy):
    policy = tiny_policy(dtype=torch.float64)
    plain = sample(policy, make_sampler(early_stop=False))
    high = sample(policy, make_sampler(early_stop=False, confidence_threshold=0.999999))
    for name in RECORDS:
        assert torch.equal(getattr(high, name), getattr(plain, name)), name
    # Anything passes: a step for each of the three blocks.
    low = sample(policy, make_sampler(early_stop=False, confidence_threshold=1e-9))
    assert low.steps_taken.tolist() == [3] * 4
    assert bool((low.revealed[:, :3].sum(2) == 4).all())
    torch.testing.assert_close(low.step_logp.sum(1), low.token_logp.sum(1))


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_shortcuts_do_not_depend_on_the_batch(tiny_policy, cache):
    policy = ending_policy(tiny_policy, bias=2.0, dtype=torch.float64)
    sampler = make_sampler(confidence_threshold=0.2, cache=cache, diffusion_steps=12)
    whole = sample(policy, sampler, num=12)
    assert len(set(whole.steps_taken.tolist())) > 2
    parts = sample(policy, sampler, num=12, batch_size=5)
    for name in RECORDS:
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-12)


# ---- caches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_refreshed_at_each_step_is_none(tiny_policy, cache):
    policy = tiny_policy()
    plain = sample(policy, make_sampler())
    fresh = sample(policy, make_sampler(cache=cache, cache_refresh_steps=1))
    for name in RECORDS:
        assert torch.equal(getattr(fresh, name), getattr(plain, name)), name
    assert (plain.cache, fresh.cache) == ("none", cache)


@pytest.mark.parametrize("refresh", [None, 2])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_cached_steps_are_what_a_window_against_an_older_pass_gives(tiny_policy, cache, refresh):
    policy = tiny_policy(dtype=torch.float64)
    sampler = make_sampler(cache=cache, cache_refresh_steps=refresh, early_stop=False)
    trajectory = sample(policy, sampler)
    prompts, mask = pad_prompts(policy, PROMPTS)
    offset = prompts.shape[1]
    attention = torch.cat([mask, torch.ones(4, 12, dtype=torch.bool)], dim=1)
    kept, guess = None, None
    for t, (start, end, _) in enumerate(reveal_schedule(12, 4, 9)):
        inputs = torch.cat([prompts, trajectory.states[:, t]], dim=1)
        whole = t % 3 == 0 or (refresh is not None and t % 3 % refresh == 0)
        if whole:
            kept = KVCache()
            logits = policy.logits(inputs, attention, cache=kept)[:, offset:]
            assert torch.equal(logits, policy.logits(inputs, attention)[:, offset:])
        else:
            reach = end if cache == "dual" else 12
            window = (offset + start, offset + reach)
            logits = logits.clone()
            logits[:, start:reach] = policy.logits(inputs, attention, cache=kept, window=window)
        logp = logits.clone()
        logp[..., policy.mask_token_id] = -torch.inf
        guess = logp.argmax(-1)
        acting = (logp / 0.9).log_softmax(-1).gather(-1, trajectory.final[..., None])[..., 0]
        now = trajectory.revealed[:, t]
        torch.testing.assert_close(trajectory.token_logp[now], acting[now], rtol=0, atol=1e-12)
        open_ = trajectory.states[:, t] == policy.mask_token_id
        filled = torch.where(open_, guess, trajectory.states[:, t])
        assert torch.equal(trajectory.one_step[:, t, start:], filled[:, start:])


@pytest.mark.parametrize(("cache", "share"), [("prefix", 0.85), ("dual", 0.6)])
def test_a_cache_saves_work(tiny_policy, cache, share):
    policy = tiny_policy()
    passes = counted(policy)
    sample(policy, make_sampler(early_stop=False))
    cost = sum(passes)
    passes.clear()
    sample(policy, make_sampler(early_stop=False, cache=cache))
    assert sum(passes) < share * cost


def chosen_steps(num, *steps):
    index = torch.tensor(steps).expand(num, -1)
    return Steps(index, torch.ones_like(index, dtype=torch.bool))


@pytest.mark.parametrize("remasking", ["low_confidence", "plackett_luce"])
def test_corrected_steps_are_scored_by_the_policy(tiny_policy, remasking):
    policy = tiny_policy(dtype=torch.float64)
    sampler = make_sampler(cache="dual", early_stop=False, remasking=remasking)
    trajectory = sample(policy, sampler)
    # Blocks begin at steps 0, 3, 6; step 4 is not masked in for the last sample.
    steps = chosen_steps(4, 4, 0, 5)
    steps.mask[3, 0] = False
    correction = correct(policy, trajectory, steps, sampler, 1.05, 64)
    exact = correction.trajectory
    views = step_views(exact, chosen_steps(4, *range(9)), torch.zeros(4, 9))
    truth = score_in_microbatches(policy, replace(views, weight=torch.ones(4, 9)), sampler, 64).view_logp
    corrected = torch.zeros(4, 9, dtype=torch.bool)
    corrected[:, [0, 4, 5]] = True
    corrected[3, 4] = False
    torch.testing.assert_close(exact.step_logp[corrected], truth[corrected], rtol=0, atol=1e-10)
    # The rest is as it was sampled: exact where the pass was whole, off where it was cached.
    assert torch.equal(exact.step_logp[~corrected], trajectory.step_logp[~corrected])
    assert bool(((trajectory.step_logp - truth)[:, [1, 2, 4, 5, 7, 8]].abs() > 1e-6).any(1).all())
    torch.testing.assert_close(trajectory.step_logp[:, [0, 3, 6]], truth[:, [0, 3, 6]], rtol=0, atol=1e-10)
    ratio = (truth - trajectory.step_logp).exp()
    wanted = torch.where(corrected, ratio.clamp(max=1.05), torch.ones_like(ratio))
    torch.testing.assert_close(exact.importance, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(correction.log_weight[:3], (truth - trajectory.step_logp)[:3, [4, 0, 5]])
    assert float(correction.log_weight[3, 0]) == 0


def test_weights_reach_the_views(tiny_policy):
    trajectory = sample(tiny_policy(), make_sampler())
    importance = torch.arange(36.0).view(4, 9)
    views = step_views(replace(trajectory, importance=importance), chosen_steps(4, 2, 7), torch.ones(4, 9))
    assert views.weight.tolist() == [[2, 7], [11, 16], [20, 25], [29, 34]]


def test_training_on_cached_rollouts_starts_at_ratio_one(tmp_path):
    base = ["model.init=null", "model.model_name_or_path=tiny:sudoku-sft", "optim.learning_rate=1e-5"]
    task = ["task={name: sudoku, prompt: compact}", "train.max_steps=2", "objective.num_selected_steps=4"]
    canvas = {"max_completion_length": 16, "block_length": 8, "diffusion_steps": 8, "cache": "dual"}
    trainer = runs.trainer(tmp_path, *base, *task, f"sampler={canvas}")
    trainer.train()
    first, second = runs.rows(tmp_path)
    assert first["loss/ratio"] == pytest.approx(1, abs=1e-4)
    for row in (first, second):
        assert 0.5 < row["rollout/importance_mean"] < 2 and row["rollout/importance_max"] > 1
        assert 0 < row["rollout/effective_sample_size"] < 1


def test_a_sampler_far_from_the_policy_is_told():
    rows = [{"step": 7, "rollout/effective_sample_size": share} for share in (0.42, 0.95, None)]
    line = "step 7: cached rollouts are worth 42% of their samples; lower sampler.cache_refresh_steps"
    assert [list(warnings(row)) for row in rows] == [[line], [], []]


# ---- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cache": "dual", "cfg_scale": 1.0}, "sampler.cache: 'dual' with cfg_scale 1.0"),
        ({"cache_refresh_steps": 2}, "sampler.cache_refresh_steps: 2 without a cache"),
        ({"confidence_threshold": 0.9, "remasking": "random"}, "with remasking 'random'"),
        ({"confidence_threshold": 1.5}, "sampler.confidence_threshold"),
    ],
)
def test_impossible_shortcuts(settings, words):
    with pytest.raises(ConfigError, match=words):
        parse_section(RLRun, "sampler", settings)


def test_a_canvas_too_long_for_the_model():
    policy = load_policy("tiny:sudoku-sft")
    with pytest.raises(ValueError, match="1024 after a prompt of 4 tokens exceeds"):
        generate(policy, ["12"], max_completion_length=1024, block_length=1024, diffusion_steps=64)

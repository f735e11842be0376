"""What the sampler promises whatever the model; tests/test_literal.py compares it with a plain one."""

import gc

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from egspo.config import SamplerConfig
from egspo.ops.reveal import REMASKING, reveal_schedule
from egspo.rollout import generate, pad_prompts, rollout
from egspo.types import Proxy

DISCRETE = ("final", "reveal_step", "reveal_order", "one_step", "completion_mask", "last_step")
REAL = ("token_logp", "position_logp", "entropy")
PROMPTS = [[40, 41, 42], [50, 51, 52, 53, 54], [60], [70, 71]]


def make_sampler(**settings):
    plain = {"max_completion_length": 8, "diffusion_steps": 6, "block_length": 4, "temperature": 0.9}
    plain |= {"early_stop": False}
    return SamplerConfig(**(plain | settings))


def padded(prompts, sides, extra=0):
    """Prompts padded to one length, each on its side."""
    longest = max(map(len, prompts)) + extra
    rows = [(p, longest - len(p)) for p in prompts]
    ids = [[0] * n + p if side == "left" else p + [0] * n for (p, n), side in zip(rows, sides, strict=True)]
    mask = [
        [False] * n + [True] * len(p) if side == "left" else [True] * len(p) + [False] * n
        for (p, n), side in zip(rows, sides, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def assert_same(first, second, atol):
    for name in DISCRETE:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for name in REAL:
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=atol)


@pytest.mark.parametrize("rule", REMASKING)
def test_every_position_is_revealed_once_by_its_block(tiny_policy, rule):
    policy, sampler = tiny_policy(), make_sampler(remasking=rule, diffusion_steps=6)
    trajectory = rollout(policy, *pad_prompts(policy, PROMPTS), torch.arange(4), sampler)
    assert bool((trajectory.revealed.sum(1) == 1).all())
    # Blocks of 4 in 3 steps each: 2, 1 and 1 tokens.
    for t, (start, end, count) in enumerate(reveal_schedule(8, 4, 6)):
        assert count == (2, 1, 1)[t % 3]
        assert bool((trajectory.revealed[:, t, start:end].sum(1) == count).all())
    hidden = trajectory.states == policy.mask_token_id
    assert hidden.sum(2).tolist() == [[8, 6, 5, 4, 2, 1]] * 4


@pytest.mark.parametrize(
    "settings", [{}, {"cfg_scale": 1.0}, {"remasking": "plackett_luce"}, {"score_positions": True}]
)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_padding_on_either_side_changes_nothing(tiny_policy, dtype, atol, settings):
    policy, sampler, seeds = tiny_policy(dtype=dtype), make_sampler(**settings), torch.arange(4)
    left = rollout(policy, *padded(PROMPTS, ["left"] * 4), seeds, sampler, proxy=Proxy())
    right = rollout(policy, *padded(PROMPTS, ["right"] * 4, extra=2), seeds, sampler, proxy=Proxy())
    mixed = rollout(policy, *padded(PROMPTS, ["right", "left"] * 2, extra=1), seeds, sampler, proxy=Proxy())
    assert_same(left, right, atol)
    assert_same(left, mixed, atol)
    for n, prompt in enumerate(PROMPTS):
        alone = rollout(policy, *padded([prompt], ["left"]), seeds[n : n + 1], sampler, proxy=Proxy())
        assert_same(alone, left[n : n + 1], atol)


@pytest.mark.parametrize("rule", REMASKING)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_same_seed_same_trajectory_whatever_the_batch(tiny_policy, rule, dtype, atol):
    policy, sampler = tiny_policy(dtype=dtype), make_sampler(remasking=rule)
    prompts = pad_prompts(policy, PROMPTS * 3)
    whole = rollout(policy, *prompts, torch.arange(12), sampler, proxy=Proxy())
    for batch_size in (1, 5):
        parts = rollout(policy, *prompts, torch.arange(12), sampler, proxy=Proxy(), batch_size=batch_size)
        assert_same(parts, whole, atol)
    # Nor do the neighbours matter.
    order = torch.arange(12).flip(0)
    shuffled = rollout(policy, prompts[0][order], prompts[1][order], order, sampler, proxy=Proxy())
    assert_same(shuffled[order], whole, atol)


def test_other_seeds_other_completions(tiny_policy):
    policy = tiny_policy()
    prompts = pad_prompts(policy, PROMPTS[:1] * 20)
    finals = rollout(policy, *prompts, torch.arange(20), make_sampler(temperature=1.0)).final
    assert len({tuple(row) for row in finals.tolist()}) > 15


@pytest.mark.parametrize("rule", [rule for rule in REMASKING if rule not in ("random", "plackett_luce")])
def test_greedy_needs_no_seed(tiny_policy, rule):
    policy, sampler = tiny_policy(), make_sampler(temperature=0.0, remasking=rule)
    prompts = pad_prompts(policy, PROMPTS)
    first = rollout(policy, *prompts, torch.arange(4), sampler, proxy=Proxy())
    assert_same(first, rollout(policy, *prompts, torch.arange(4) + 100, sampler, proxy=Proxy()), 0.0)


def test_asking_for_one_step_completions_changes_nothing_else(tiny_policy):
    policy, prompts = tiny_policy(), pad_prompts(tiny_policy(), PROMPTS)
    asked = rollout(policy, *prompts, torch.arange(4), make_sampler(), proxy=Proxy())
    plain = rollout(policy, *prompts, torch.arange(4), make_sampler())
    assert plain.one_step is None and torch.equal(asked.final, plain.final)
    # A one-step completion keeps what is revealed and masks nothing.
    known = asked.states != policy.mask_token_id
    assert torch.equal(asked.one_step[known], asked.states[known])
    # The last step of a greedy rollout and of its one-step completion are the same action.
    greedy = rollout(policy, *prompts, torch.arange(4), make_sampler(temperature=0.0), proxy=Proxy())
    assert torch.equal(greedy.one_step[:, -1], greedy.final)


@pytest.mark.parametrize("rule", REMASKING)
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_mask_is_never_sampled(tiny_policy, rule, temperature):
    policy = tiny_policy()

    def prefer_the_mask(module, args, output):
        output.logits[..., policy.mask_token_id] = 1e3

    policy.model.register_forward_hook(prefer_the_mask)
    sampler = make_sampler(remasking=rule, temperature=temperature, cfg_scale=0.5)
    trajectory = rollout(policy, *pad_prompts(policy, PROMPTS), torch.arange(4), sampler, proxy=Proxy())
    assert not (trajectory.final == policy.mask_token_id).any()
    assert not (trajectory.one_step == policy.mask_token_id).any()
    assert bool(trajectory.token_logp.isfinite().all()) and bool(trajectory.entropy.isfinite().all())


class VocabularyLog(TorchDispatchMode):
    """Counts the tensors over the vocabulary that are alive at once, without keeping them alive."""

    def __init__(self, model, vocab):
        super().__init__()
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.vocab, self.alive, self.most_alive = vocab, [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocab,):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.weights:
                    self.alive.append(StorageWeakRef(storage))
        self.alive = [ref for ref in self.alive if not ref.expired()]
        self.most_alive = max(self.most_alive, len({ref.cdata for ref in self.alive}))
        return result


@pytest.mark.parametrize("proxy", [None, Proxy()])
def test_nothing_of_size_steps_times_vocabulary_is_kept(tiny_policy, proxy):
    # Logits kept for all 16 steps would be 16 or more storages; the work of one step needs a handful.
    policy = tiny_policy()
    sampler = make_sampler(max_completion_length=32, diffusion_steps=16, block_length=2, temperature=0.9)
    prompts, log = pad_prompts(policy, PROMPTS[:1]), VocabularyLog(policy.model, vocab=103)
    with log:
        trajectory = rollout(policy, *prompts, torch.arange(1), sampler, proxy)
    gc.collect()
    assert 0 < log.most_alive < 16
    assert [ref for ref in log.alive if not ref.expired()] == []
    # The record has room for one canvas a step, not for one vocabulary a step.
    assert (
        max(value.shape[-1] for value in vars(trajectory).values() if isinstance(value, torch.Tensor)) == 32
    )


def test_no_gradient_is_recorded(tiny_policy):
    policy = tiny_policy()
    assert not policy.model.training
    trajectory = rollout(policy, *pad_prompts(policy, PROMPTS), torch.arange(4), make_sampler())
    assert not trajectory.token_logp.requires_grad


def test_generate(tiny_policy):
    policy = tiny_policy()
    settings = {"max_completion_length": 8, "diffusion_steps": 4, "block_length": 4, "temperature": 1.0}
    prompts = ["ab", [{"role": "system", "content": "c"}, {"role": "user", "content": "de"}]]
    out = generate(policy, prompts, seed=3, **settings)
    assert out.texts == policy.decode(out.trajectory.final) and len(out.texts) == 2
    real = [
        row[mask].tolist()
        for row, mask in zip(out.trajectory.prompt_ids, out.trajectory.prompt_mask, strict=True)
    ]
    expected = ["<|user|>ab<|assistant|>", "<|system|>c<|user|>de<|assistant|>"]
    assert [policy.tokenizer.decode(row) for row in real] == expected
    assert generate(policy, prompts, seed=3, batch_size=1, **settings).texts == out.texts
    assert generate(policy, prompts, seed=4, **settings).texts != out.texts


def test_generate_refuses_impossible_settings(tiny_policy):
    with pytest.raises(ValueError, match=r"diffusion_steps:? 16 exceeds max_completion_length 8"):
        generate(tiny_policy(), ["a"], max_completion_length=8, diffusion_steps=16, block_length=8)

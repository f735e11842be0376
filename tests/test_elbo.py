"""The likelihood bound against a plain loop over all masked sets, and greedy texts against the sampler."""

import itertools
import math

import pytest
import torch

from egspo import elbo
from egspo.elbo import greedy_matches, log_likelihoods, masked_sets
from egspo.likelihood import guided_logits
from egspo.ops.logprobs import acting_logp
from egspo.rollout import generate


def pair(policy, context: str, text: str) -> tuple[list[int], list[int]]:
    encode = policy.tokenizer
    return encode(context)["input_ids"], encode(text)["input_ids"]


@torch.no_grad()
def bound_by_hand(policy, context: list[int], text: list[int], cfg_scale: float = 0.0) -> float:
    """``mean_l mean_S (L / l) sum_{i in S} log p(x_i | x without S)``, S of size l, set by set."""
    length = len(text)
    total = 0.0
    for size in range(1, length + 1):
        sums = []
        for hidden in itertools.combinations(range(length), size):
            canvas = [policy.mask_token_id if i in hidden else token for i, token in enumerate(text)]
            inputs = torch.tensor([[*context, *canvas]])
            where = torch.tensor([[len(context) + i for i in hidden]])
            logits = guided_logits(policy, inputs, torch.ones_like(inputs).bool(), where, length, cfg_scale)[
                0
            ]
            logp = acting_logp(logits, 1.0, policy.suppressed)
            sums.append(sum(float(logp[j, text[i]]) for j, i in enumerate(hidden)))
        total += length / size * sum(sums) / len(sums) / length
    return total


@pytest.mark.parametrize("cfg_scale", [0.0, 0.7])
def test_short_texts_are_enumerated(tiny_policy, cfg_scale: float):
    policy = tiny_policy()
    pairs = [
        pair(policy, *words) for words in (("12", "3"), ("7", "abc"), ("a longer one", "xy"), ("1", "345"))
    ]
    expected = [bound_by_hand(policy, *p, cfg_scale) for p in pairs]
    assert log_likelihoods(policy, pairs, 7, cfg_scale=cfg_scale) == pytest.approx(expected, abs=1e-4)
    # 2^3 - 1 = 7 sets are no more than 7 samples; with 6 the texts of three tokens are estimated.
    fewer = log_likelihoods(policy, pairs, 6, cfg_scale=cfg_scale)
    same = [left == pytest.approx(right, abs=1e-4) for left, right in zip(fewer, expected, strict=True)]
    assert same == [True, False, True, False]


def test_the_estimate_tends_to_the_enumeration(tiny_policy, monkeypatch):
    """Its error over many samples is within five standard errors, which are known from the parts."""
    policy = tiny_policy()
    context, text = pair(policy, "12+", "34=46")
    exact = bound_by_hand(policy, context, text)
    runs = torch.tensor([log_likelihoods(policy, [(context, text)], 30, seed)[0] for seed in range(60)])
    error = runs.std() / math.sqrt(len(runs))
    assert abs(runs.mean() - exact) < 5 * error
    assert error < 0.1 * abs(exact)
    # Enough samples for all 31 sets: no noise is left, whatever the seed.
    assert log_likelihoods(policy, [(context, text)], 31, seed=5) == pytest.approx([exact], abs=1e-4)


def test_the_bound_is_exact_where_the_order_does_not_matter(tiny_policy):
    """A text of one token has one canvas, whose log-probability is the token's own."""
    policy = tiny_policy()
    context, (token,) = pair(policy, "12", "3")
    inputs = torch.tensor([[*context, policy.mask_token_id]])
    logp = acting_logp(policy.logits(inputs)[0, -1].detach(), 1.0, policy.suppressed)
    assert log_likelihoods(policy, [(context, [token])]) == pytest.approx([float(logp[token])], abs=1e-5)
    # So the probabilities of all one-token texts add up to one; the mask token is none.
    tokens = [i for i in range(len(policy.tokenizer)) if i != policy.mask_token_id]
    total = sum(math.exp(v) for v in log_likelihoods(policy, [(context, [i]) for i in tokens]))
    assert total == pytest.approx(1.0, abs=1e-5)
    assert log_likelihoods(policy, [(context, [policy.mask_token_id])]) == [-math.inf]


@pytest.mark.parametrize(("length", "num"), [(4, 15), (4, 14), (9, 64), (200, 32)])
def test_masked_sets_are_weighted_to_a_mean(length: int, num: int):
    """Sums over sets, so weighted, are means: a text of log-probability -1 a token gets -L."""
    sets, weight = masked_sets(length, num, seed=3)
    assert sets.shape == (num, length)
    assert sets.any(1).all()
    assert float((weight * sets.sum(1)).sum()) == pytest.approx(length)
    assert torch.equal(masked_sets(length, num, seed=3)[0], sets)


def test_masked_sets_cover_sizes_and_positions_evenly():
    sets, _ = masked_sets(10, 1_000, seed=0)
    # A stratum of 100 samples for each size, and each position in a set of size l with probability l / 10.
    assert sets.sum(1).bincount(minlength=11).tolist() == [0] + [100] * 10
    # 550 expected; the number of 1000 is within four standard deviations of sqrt(1000 / 4) = 16.
    assert ((sets.sum(0) - 550).abs() < 64).all()
    assert not torch.equal(masked_sets(10, 1_000, seed=1)[0], sets)


def test_neighbours_and_batches_change_nothing(tiny_policy, monkeypatch):
    policy = tiny_policy()
    words = [
        ("1", "2345"),
        ("a much longer context", "6789"),
        ("12", ""),
        ("3", "what comes here"),
        ("3", "4"),
    ]
    pairs = [pair(policy, *w) for w in words]
    whole = log_likelihoods(policy, pairs, 10, seed=1)
    assert whole[2] == 0.0
    for size in (1, 3, 7):
        assert log_likelihoods(policy, pairs, 10, seed=1, batch_size=size) == pytest.approx(whole, abs=1e-4)
    alone = [log_likelihoods(policy, [p], 10, seed=1)[0] for p in pairs]
    assert alone == pytest.approx(whole, abs=1e-4)
    # A pass holds no more scores than the bound allows: here those of two canvases of 15 places.
    seen = []
    real = policy.logits
    monkeypatch.setattr(elbo, "MOST_SCORES", 2 * 15 * len(policy.tokenizer))
    monkeypatch.setattr(policy, "logits", lambda *a: seen.append(a[2].numel()) or real(*a))
    assert log_likelihoods(policy, pairs, 10, seed=1) == pytest.approx(whole, abs=1e-4)
    assert max(seen) <= 30


@pytest.mark.parametrize("batch_size", [1, 64])
def test_greedy_texts_are_those_of_the_sampler(tiny_policy, batch_size: int):
    policy = tiny_policy()
    contexts = [f"problem {i}" for i in range(8)]
    settings = dict(max_completion_length=6, diffusion_steps=6, block_length=6, temperature=0.0)
    out = generate(policy, contexts, early_stop=False, **settings)
    ids = policy.encode_prompts(contexts)
    right = [(context, final.tolist()) for context, final in zip(ids, out.trajectory.final, strict=True)]
    assert greedy_matches(policy, right, batch_size) == [True] * 8
    # Any one token changed, and it is not what would have been written.
    for i in range(6):
        wrong = [(c, [*t[:i], 7 if t[i] != 7 else 8, *t[i + 1 :]]) for c, t in right]
        mixed = [p for both in zip(right, wrong, strict=True) for p in both]
        assert greedy_matches(policy, mixed, batch_size) == [True, False] * 8
    assert greedy_matches(policy, [(ids[0], [])]) == [True]


def test_a_text_beyond_the_model_is_refused(tiny_policy):
    policy = tiny_policy(max_sequence_length=8)
    assert policy.max_length == 8
    with pytest.raises(ValueError, match=r"^max_length: a text of 9 tokens, context included, exceeds the"):
        log_likelihoods(policy, [([7] * 5, [8] * 4)])

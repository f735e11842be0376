"""The forward process."""

import itertools

import pytest
import torch

from egspo.ops.masking import diffusion_loss, noise, stratified_levels, van_der_corput

DOUBLE = torch.float64


@pytest.mark.parametrize("offset", [1e-6, 0.3, 0.999])
def test_one_level_in_every_stratum(offset):
    uniform = torch.full((8,), offset, dtype=DOUBLE)
    levels = stratified_levels(uniform, eps=0.01)
    assert float(levels.min()) >= 0.01 and float(levels.max()) <= 1
    # Undo t = eps + (1 - eps) u: one u in each eighth.
    assert sorted(((levels - 0.01) / 0.99 * 8).floor().long().tolist()) == list(range(8))


def test_noise_masks_what_lies_below_the_level():
    tokens = torch.tensor([[5, 6, 7], [8, 9, 5]])
    uniform = torch.tensor([[0.1, 0.5, 0.9], [0.1, 0.5, 0.9]], dtype=DOUBLE)
    noised, masked = noise(tokens, torch.tensor([0.6, 0.2], dtype=DOUBLE), uniform, 0)
    assert noised.tolist() == [[0, 0, 7], [0, 9, 5]]
    assert torch.equal(masked, noised == 0)


def test_diffusion_loss():
    # Masked log-probabilities -1 and -3 at level 0.5 of four tokens: 4 / (0.5 * 4) = 2.
    logp = torch.tensor([[-1.0, -2.0, -3.0, -4.0]])
    masked = torch.tensor([[True, False, True, False]])
    assert float(diffusion_loss(logp, masked, torch.tensor([0.5], dtype=DOUBLE))) == pytest.approx(2)


def test_diffusion_loss_is_the_likelihood_of_a_model_that_sees_nothing():
    # Each position is masked with probability t and weighs 1 / (t L) then, so that the mean over masks and
    # levels is sum -log p / L: here (1 + 2.5) / 2.
    logp = torch.tensor([[-1.0, -2.5]], dtype=DOUBLE).expand(1_000, 2)
    levels, total = (torch.arange(1_000, dtype=DOUBLE) + 0.5) / 1_000, 0.0
    for mask in itertools.product([True, False], repeat=2):
        chance = torch.stack([levels if m else 1 - levels for m in mask]).prod(0)
        loss = diffusion_loss(logp, torch.tensor([mask]).expand(1_000, 2), levels)
        total += float((chance * loss).mean())
    assert total == pytest.approx(3.5 / 2)


def test_van_der_corput():
    # 0, 1, 10, 11, 100, 101 in binary, mirrored at the point.
    assert [van_der_corput(n) for n in range(6)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625]
    assert sorted(van_der_corput(n) for n in range(16)) == [n / 16 for n in range(16)]

"""Counter-based noise."""

import itertools

import torch

from egspo.ops import noise


def test_is_splitmix64():
    # The first three outputs of SplitMix64 seeded with 0 (Vigna's reference implementation): its k-th output
    # is the finaliser of k times the golden gamma, which is fold(0, k - 1).
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    outputs = noise.fold(torch.zeros(3, dtype=torch.long), torch.arange(3))
    assert [value % 2**64 for value in outputs.tolist()] == expected


def test_uniform_numbers():
    numbers = noise.uniform(torch.arange(200), noise.TOKENS, 3, 100).flatten()
    assert 0 < float(numbers.min()) < 1e-3 and 1 - 1e-3 < float(numbers.max()) < 1
    # Mean 1/2 and variance 1/12 of 20,000 numbers, within four standard errors.
    assert abs(float(numbers.mean()) - 1 / 2) < 4 * (1 / 12 / 20_000) ** 0.5
    assert abs(float(numbers.var()) - 1 / 12) < 4 * (1 / 180 / 20_000) ** 0.5


def test_never_reaches_0_or_1(monkeypatch):
    for bits in (0, -1):
        monkeypatch.setattr(noise, "fold", lambda state, key, bits=bits: torch.full_like(state + key, bits))
        number = float(noise.uniform(torch.zeros(1, dtype=torch.long), 0, 0, 1))
        assert 0 < number < 1 and number in (0.5 / 2**52, 1 - 0.5 / 2**52)


def test_depends_on_its_own_seed_and_place_only():
    seeds = torch.tensor([5, -3, 2**62])
    whole = noise.uniform(seeds, noise.POSITIONS, 7, 10)
    for n in range(3):
        alone = noise.uniform(seeds[n : n + 1], noise.POSITIONS, 7, 4)
        assert torch.equal(alone[0], whole[n, :4])


def test_seeds_streams_steps_and_places_are_unrelated():
    columns = [
        noise.uniform(torch.arange(start, start + 5_000), stream, step, 2)[:, place]
        for start, stream, step, place in itertools.product((0, 5_000), (0, 1), (0, 1), (0, 1))
    ]
    correlation = torch.corrcoef(torch.stack(columns)) - torch.eye(len(columns), dtype=torch.float64)
    # 120 correlations of 5,000 pairs, standard error 1/sqrt(5000).
    assert float(correlation.abs().max()) < 4.5 / 5_000**0.5


def test_sample_seeds_differ():
    seeds = [
        noise.sample_seeds(seed, step, torch.arange(50))
        for seed, step in itertools.product(range(5), range(5))
    ]
    assert torch.cat(seeds).unique().numel() == 5 * 5 * 50
    # A sample's seed depends on its index, not on who its neighbours are.
    assert torch.equal(noise.sample_seeds(2, 3, torch.tensor([7, 4])), seeds[2 * 5 + 3][[7, 4]])

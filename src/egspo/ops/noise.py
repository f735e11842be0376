"""Counter-based noise: a number depends on its sample's seed and its place, never on the batch around it.

A generator's stream depends on how many numbers were drawn before, hence on the batch size and on the number
of ranks. Here each number is a hash of (seed, stream, step, position): the SplitMix64 finaliser of Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

import torch
from jaxtyping import Float64, Int
from torch import Tensor

# Streams keep uses of one seed apart.
TOKENS, POSITIONS, SELECTION, VIEWS, FILLINGS = range(5)

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def uniform(
    seeds: Int[Tensor, "batch"], stream: int, step: int | Int[Tensor, "batch"], num: int
) -> Float64[Tensor, "batch num"]:
    """Numbers in (0, 1), one for each of ``num`` places of each sample at its step."""
    state = fold(fold(seeds, stream), step)
    places = torch.arange(num, device=seeds.device)
    # 52 bits, so that the half is exact: with 53 the greatest number would round to 1.
    bits = _shift(fold(state[:, None], places[None, :]), 1) & ((1 << 52) - 1)
    return (bits.double() + 0.5) / (1 << 52)


def sample_seeds(seed: int, step: int, index: Int[Tensor, "batch"]) -> Int[Tensor, "batch"]:
    """Seeds of the samples of one training step, from the run's seed and each sample's global index."""
    return fold(fold(torch.full_like(index, seed), step), index)


def fold(state: Tensor, key: Tensor | int) -> Tensor:
    """Mix a key into 64-bit states; overflow wraps."""
    return _mix(state + _GAMMA * (torch.as_tensor(key, device=state.device) + 1))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

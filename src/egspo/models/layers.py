"""Parts of a bidirectional pre-norm transformer, whatever names a family publishes its tensors under."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``, the statistics in float32 at least."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        return F.rms_norm(at_least_float32(x), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


class Angles(NamedTuple):
    """Cosines and sines of the rotary embedding."""

    cos: Float[Tensor, "batch 1 sequence head"]
    sin: Float[Tensor, "batch 1 sequence head"]


def rotary_angles(position_ids: Int[Tensor, "batch sequence"], head_size: int, theta: float) -> Angles:
    """In float32; the two halves of a head share their frequencies."""
    frequencies = theta ** (
        -torch.arange(0, head_size, 2, device=position_ids.device, dtype=torch.float32) / head_size
    )
    angles = position_ids[:, None, :, None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return Angles(angles.cos(), angles.sin())


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """Rotary position embedding in float32 at least (RoFormer, arXiv 2104.09864), half-split layout."""
    wide = at_least_float32(x)
    left, right = wide.chunk(2, dim=-1)
    return (wide * angles.cos + torch.cat([-right, left], dim=-1) * angles.sin).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened; float64, in which exactness is tested, left alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def at(x: Tensor, positions: Int[Tensor, "batch places"]) -> Tensor:
    """Rows of the sequence axis, which is the last but one."""
    index = positions.view(len(positions), *[1] * (x.ndim - 3), -1, 1)
    return x.expand(len(positions), *x.shape[1:]).gather(
        -2, index.expand(-1, *x.shape[1:-2], -1, x.shape[-1])
    )


def positions_and_mask(
    attention_mask: Bool[Tensor, "batch sequence"] | None, input_ids: Int[Tensor, "batch sequence"]
) -> tuple[Int[Tensor, "batch sequence"], Bool[Tensor, "batch 1 1 sequence"] | None]:
    """Positions counted over attended tokens only, and the mask for attention (None: all attend to all)."""
    if attention_mask is None or bool(attention_mask.all()):
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids), None
    attended = attention_mask.bool()
    return (attended.long().cumsum(1) - 1).clamp(min=0), attended[:, None, None, :]


class KVCache:
    """Keys and values of every layer over a whole sequence.

    A pass over the whole sequence fills it; a pass over a window of it computes that window alone, against
    what is stored for the rest, and puts the window's own keys and values in their place. What lies outside
    the window is then as old as the last whole pass (Fast-dLLM, arXiv 2505.22618).
    """

    def __init__(self):
        self._layers: list[tuple[Tensor, Tensor]] = []

    @property
    def filled(self) -> bool:
        return bool(self._layers)

    def select(self, rows: Tensor) -> None:
        """Keep some rows of the batch."""
        self._layers = [(k[rows], v[rows]) for k, v in self._layers]

    def start_over(self) -> None:
        self._layers = []

    def put(self, layer: int, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Store a layer's keys and values from ``start`` on; returns those of the whole sequence."""
        if layer == len(self._layers):
            self._layers.append((k, v))
        else:
            end = start + k.shape[2]
            for kept, new in zip(self._layers[layer], (k, v), strict=True):
                kept[:, :, start:end] = new
        return self._layers[layer]


class Parts(NamedTuple):
    """The modules of a block by what they do."""

    norm: nn.Module
    q: nn.Module
    k: nn.Module
    v: nn.Module
    out: nn.Module
    ff_norm: nn.Module
    gate: nn.Module
    up: nn.Module
    down: nn.Module


class Block(nn.Module, ABC):
    """Attention and SwiGLU, each on a normed copy of the residual stream."""

    head_size: int

    @abstractmethod
    def parts(self) -> Parts: ...

    def forward(
        self,
        x: Float[Tensor, "batch window size"],
        angles: Angles,
        mask: Bool[Tensor, "batch 1 1 sequence"] | None,
        positions: Int[Tensor, "batch places"] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        start: int = 0,
    ) -> Float[Tensor, "batch places size"]:
        """Residual stream after the block; only at ``positions`` if given (they still attend to all)."""
        parts = self.parts()
        h = parts.norm(x)
        k, v = rotate(self._heads(parts.k(h)), angles), self._heads(parts.v(h))
        if cache is not None:
            k, v = cache.put(layer, k, v, start)
        if positions is not None:
            x, h = at(x, positions), at(h, positions)
            angles = Angles(at(angles.cos, positions), at(angles.sin, positions))
        q = rotate(self._heads(parts.q(h)), angles)
        x = x + parts.out(_attend(q, k, v, mask))
        h = parts.ff_norm(x)
        return x + parts.down(F.silu(parts.gate(h)) * parts.up(h))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

"""LLaDA's masked diffusion transformer (arXiv 2502.09992) under its published configuration and tensor names.

A bidirectional pre-norm transformer: RMSNorm, rotary positions, SwiGLU, no biases. Written from the published
configuration (``GSAI-ML/LLaDA-8B-Instruct``) so that its checkpoints load as they are.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

# What the published configuration can ask for and this class computes; anything else is refused.
_FIXED = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "scale_logits": False,
    "weight_tying": False,
}


class LLaDAConfig(PretrainedConfig):
    """LLaDA's published keys. ``embedding_size`` rows are allocated, of which ``vocab_size`` are tokens."""

    model_type = "llada"

    def __init__(
        self,
        d_model: int = 4096,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        n_layers: int = 32,
        mlp_hidden_size: int = 12288,
        rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5,
        vocab_size: int = 126464,
        embedding_size: int | None = None,
        max_sequence_length: int = 4096,
        mask_token_id: int = 126336,
        eos_token_id: int = 126081,
        pad_token_id: int = 126081,
        init_std: float = 0.02,
        **kwargs,
    ):
        for key, value in _FIXED.items():
            if kwargs.pop(key, value) != value:
                raise ValueError(f"config.json: {key} must be {value!r} for model type llada")
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads or n_heads
        self.n_layers = n_layers
        self.mlp_hidden_size = mlp_hidden_size
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size or vocab_size
        self.max_sequence_length = max_sequence_length
        self.mask_token_id = mask_token_id
        self.init_std = init_std
        # transformers' own code asks for these names.
        self.hidden_size = d_model
        self.num_attention_heads = n_heads
        self.num_hidden_layers = n_layers
        kwargs.pop("tie_word_embeddings", None)
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
            kwargs.pop(key, None)
        super().__init__(
            eos_token_id=eos_token_id, pad_token_id=pad_token_id, tie_word_embeddings=False, **kwargs
        )


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``, the statistics in float32 at least."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
        return F.rms_norm(at_least_float32(x), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


def rotary_angles(
    position_ids: Int[Tensor, "batch sequence"], head_size: int, theta: float
) -> tuple[Float[Tensor, "batch 1 sequence head"], Float[Tensor, "batch 1 sequence head"]]:
    """Cosines and sines in float32; the two halves of a head share their frequencies."""
    frequencies = theta ** (
        -torch.arange(0, head_size, 2, device=position_ids.device, dtype=torch.float32) / head_size
    )
    angles = position_ids[:, None, :, None].float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in float32 at least (RoFormer, arXiv 2104.09864), half-split layout."""
    wide = at_least_float32(x)
    left, right = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened; float64, in which exactness is tested, left alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def at(x: Tensor, positions: Int[Tensor, "batch places"]) -> Tensor:
    """Rows of the sequence axis, which is the last but one."""
    index = positions.view(len(positions), *[1] * (x.ndim - 3), -1, 1)
    return x.expand(len(positions), *x.shape[1:]).gather(
        -2, index.expand(-1, *x.shape[1:-2], -1, x.shape[-1])
    )


class LLaDABlock(nn.Module):
    """Attention and SwiGLU, each on a normed copy of the residual stream."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.head_size = d // config.n_heads
        kv_size = config.n_kv_heads * self.head_size
        self.attn_norm = RMSNorm(d, config.rms_norm_eps)
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, kv_size, bias=False)
        self.v_proj = nn.Linear(d, kv_size, bias=False)
        self.attn_out = nn.Linear(d, d, bias=False)
        self.ff_norm = RMSNorm(d, config.rms_norm_eps)
        self.ff_proj = nn.Linear(d, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(d, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, d, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, positions: Tensor | None = None
    ) -> Tensor:
        """Residual stream after the block; only at ``positions`` if given (they still attend to all)."""
        h = self.attn_norm(x)
        k = rotate(self._heads(self.k_proj(h)), cos, sin)
        v = self._heads(self.v_proj(h))
        if positions is not None:
            x, h, cos, sin = at(x, positions), at(h, positions), at(cos, positions), at(sin, positions)
        q = rotate(self._heads(self.q_proj(h)), cos, sin)
        x = x + self._attend(q, k, v, mask)
        h = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if k.shape[1] != q.shape[1]:
            repeats = self.n_heads // k.shape[1]
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.attn_out(out.transpose(1, 2).flatten(2))


class LLaDAModel(nn.Module):
    """Container that gives the tensors their published names."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.embedding_size, config.d_model),
                "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
                "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
                "ff_out": nn.Linear(config.d_model, config.embedding_size, bias=False),
            }
        )


class LLaDAModelLM(PreTrainedModel):
    """Bidirectional language model whose logits are computed only at the positions asked for."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ("LLaDABlock",)

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.transformer.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.model.transformer.ff_out

    def _set_gradient_checkpointing(self, enable: bool = True, **_) -> None:
        """Works in eval mode too, where RL trains so that dropout cannot part the update from the rollout."""
        self.gradient_checkpointing = enable

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        self._set_gradient_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        self._set_gradient_checkpointing(False)

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Bool[Tensor, "batch sequence"] | None = None,
        positions: Int[Tensor, "batch places"] | None = None,
        **_,
    ) -> MaskedLMOutput:
        """Logits at ``positions`` (default: all), ``[batch, places, vocab_size]``.

        Positions are counted over attended tokens only, so padding on either side changes nothing.
        """
        position_ids, bias = _positions_and_mask(input_ids, attention_mask)
        parts = self.model.transformer
        x = parts["wte"](input_ids)
        cos, sin = rotary_angles(
            position_ids, self.config.d_model // self.config.n_heads, self.config.rope_theta
        )
        *body, last = parts["blocks"]
        for block in body:
            x = self._run(block, x, cos, sin, bias)
        x = self._run(last, x, cos, sin, bias, positions)
        return MaskedLMOutput(logits=parts["ff_out"](parts["ln_f"](x))[..., : self.config.vocab_size])

    def _run(self, block: LLaDABlock, *inputs: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


def _positions_and_mask(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if attention_mask is None or bool(attention_mask.all()):
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids), None
    attended = attention_mask.bool()
    position_ids = (attended.long().cumsum(1) - 1).clamp(min=0)
    return position_ids, attended[:, None, None, :]

"""The masked diffusion transformer that the native families share; they differ in names and a few biases."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from egspo.models.layers import Block, KVCache, RMSNorm, positions_and_mask, rotary_angles

Window = tuple[int, int]
"""Start and end of the part of the sequence that a pass with a filled cache computes."""


def keep_to(fixed: Mapping[str, Any], asked: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The keys of ``config.json`` that are computed in one way only, to be saved with the others.

    Raises:
        ValueError: if another way is asked for.
    """
    for key, value in fixed.items():
        if asked.get(key, value) != value:
            raise ValueError(
                f"config.json: {key} is {asked[key]!r}; only {value!r} is computed for {model_type}"
            )
    # A null stands for what the published class does without the key.
    return {key: value for key, value in fixed.items() if value is not None}


def check_shape(counts: Mapping[str, Any], width: str, heads: str, kv_heads: str) -> None:
    """See that the sizes of ``config.json`` are numbers that fit together; the last three are keys of them.

    Raises:
        ValueError: for the first that does not.
    """
    for key, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"config.json: {key} is {value!r}; a whole number above 0 is needed")
    for key, unit, share in ((width, 2, heads), (heads, 1, kv_heads)):
        if counts[key] % (unit * counts[share]):
            parts = "even parts" if unit == 2 else "parts"
            raise ValueError(
                f"config.json: {key} {counts[key]} does not divide into {parts} for {share} {counts[share]}"
            )


class BidirectionalLM(PreTrainedModel):
    """Bidirectional language model whose logits are computed only at the positions asked for.

    A family's subclass builds its modules under their published names and says below which is which.
    """

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # A table of constants that older checkpoints hold; it is computed here.
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"rotary_emb\.inv_freq$"]

    def __init__(self, config):
        super().__init__(config)
        self.gradient_checkpointing = False

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Transformer blocks (`egspo.models.layers.Block`) in order."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module: ...

    @property
    @abstractmethod
    def rope_theta(self) -> float: ...

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """PEFT asks by this name, of which transformers 5 warns."""
        return self.gradient_checkpointing

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None, **_) -> None:
        """Works in eval mode too, where RL trains so that dropout cannot part the update from the rollout."""
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.gradient_checkpointing = False

    def forward(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Bool[Tensor, "batch sequence"] | None = None,
        positions: Int[Tensor, "batch places"] | None = None,
        cache: KVCache | None = None,
        window: Window | None = None,
        **_,
    ) -> MaskedLMOutput:
        """Logits at ``positions`` (default: all of the window), ``[batch, places, vocab_size]``.

        Padding on either side changes nothing. With ``cache``, a pass without ``window`` fills it, and one
        with ``window = (start, end)`` computes that part of the sequence alone, against the cached rest.
        """
        start, end = window or (0, input_ids.shape[1])
        position_ids, mask = positions_and_mask(attention_mask, input_ids)
        x = self.get_input_embeddings()(input_ids[:, start:end])
        angles = rotary_angles(position_ids[:, start:end], self.blocks[0].head_size, self.rope_theta)
        if cache is not None and window is None:
            cache.start_over()
        last = len(self.blocks) - 1
        asked = None if positions is None else positions - start
        for layer, block in enumerate(self.blocks):
            wanted = asked if layer == last else None
            x = self._run(block, x, angles, mask, wanted, cache, layer, start)
        logits = self.get_output_embeddings()(self.final_norm(x))
        return MaskedLMOutput(logits=logits[..., : self.config.vocab_size])

    def _run(self, block: Block, *inputs) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

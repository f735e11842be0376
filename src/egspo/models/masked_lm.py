"""Any masked language model of transformers (BERT, RoBERTa, ModernBERT, …) as a small diffusion LM.

Its own head is used as it is, but only at the positions asked for. Padding goes to the right before the call,
since such models count positions from the first token.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from egspo.models.family import Family
from egspo.models.layers import at

CHAT_TEMPLATE = (
    "{{ cls_token or bos_token or '' }}"
    "{% for message in messages %}{{ message['content'] }}{{ sep_token or eos_token }}{% endfor %}"
)

# Their layers mix neighbours, or all tokens, in ways that no attention mask reaches.
_HEEDLESS = ("convbert", "fnet", "funnel", "nystromformer", "perceiver", "reformer")


def forward(
    model: nn.Module,
    input_ids: Int[Tensor, "batch sequence"],
    attention_mask: Bool[Tensor, "batch sequence"] | None,
    positions: Int[Tensor, "batch places"] | None,
    cache: None = None,
    window: None = None,
) -> Float[Tensor, "batch places vocab"]:
    """Logits at positions (default: all), whichever side is padded."""
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
    if positions is None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    # Stable, so that attended tokens keep their order; ``place`` is where each token went.
    order = attention_mask.long().argsort(dim=1, descending=True, stable=True)
    place = order.argsort(dim=1)
    wanted = place.gather(1, positions)
    handle = _body(model).register_forward_hook(lambda module, inputs, output: _narrow(output, wanted))
    mask = attention_mask.gather(1, order).long()
    try:
        with _recomputing(model):
            return model(input_ids=input_ids.gather(1, order), attention_mask=mask).logits
    finally:
        handle.remove()


def _narrow(output, positions: Tensor):
    """Keep the last hidden states of some positions, so that the head computes no other logits."""
    output.last_hidden_state = at(output.last_hidden_state, positions)
    return output


@contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Gradient checkpointing, where it is on, also in eval mode, in which RL trains.

    transformers' layers ask themselves whether they train; dropout is in their parts, which still do not.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = layer.training or layer.gradient_checkpointing
    try:
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer.training = mode


def _body(model: nn.Module) -> nn.Module:
    """The encoder under the head, whatever wraps the model (PEFT, data-parallel)."""
    inner = next(m for m in model.modules() if isinstance(m, PreTrainedModel))
    return inner.base_model


class _Config:
    """``from_pretrained`` that refuses what cannot be a diffusion LM."""

    @staticmethod
    def from_pretrained(folder) -> PretrainedConfig:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise ValueError(f"{config.model_type} is an encoder-decoder; only encoders can be diffusion LMs")
        if config.model_type in _HEEDLESS:
            raise ValueError(f"{config.model_type} lets padding change what it says of the tokens beside it")
        return config


class _Model:
    """A class of model with an attention that honours the mask and needs no further package."""

    def __new__(cls, config: PretrainedConfig) -> PreTrainedModel:
        return AutoModelForMaskedLM.from_config(
            config, attn_implementation=_attention(config), trust_remote_code=False
        )

    @staticmethod
    def from_pretrained(
        folder, config: PretrainedConfig, **options
    ) -> PreTrainedModel | tuple[PreTrainedModel, dict]:
        options["attn_implementation"] = _attention(config)
        return AutoModelForMaskedLM.from_pretrained(folder, config=config, trust_remote_code=False, **options)


def _attention(config: PretrainedConfig) -> str:
    return "sdpa" if MODEL_FOR_MASKED_LM_MAPPING[type(config)]._supports_sdpa else "eager"


FAMILY = Family(
    name="masked_lm",
    description="any masked language model of transformers (BERT, RoBERTa, ModernBERT, …)",
    source="arXiv 1810.04805, transformers' AutoModelForMaskedLM",
    model_types=frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    config_class=_Config,
    model_class=_Model,
    lora_targets=("all-linear",),
    head=None,
    max_length="max_position_embeddings",
    cacheable=False,
    strict=False,
    chat_template=CHAT_TEMPLATE,
    forward=forward,
)

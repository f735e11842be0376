"""What the rest must know of a model family and cannot see from a model. Adding a family is adding a file.

A family is a module of this folder with a record named ``FAMILY``; the record is found by the ``model_type``
of ``config.json``.
"""

import importlib
import pkgutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

import egspo.models
from egspo.models.layers import KVCache


def call_with_positions(
    model: nn.Module,
    input_ids: Int[Tensor, "batch sequence"],
    attention_mask: Bool[Tensor, "batch sequence"] | None,
    positions: Int[Tensor, "batch places"] | None,
    cache: KVCache | None = None,
    window: tuple[int, int] | None = None,
) -> Float[Tensor, "batch places vocab"]:
    """Logits of a model that takes ``positions``, ``cache`` and ``window`` itself."""
    cached = {} if cache is None else {"cache": cache, "window": window}
    return model(input_ids=input_ids, attention_mask=attention_mask, positions=positions, **cached).logits


@dataclass(frozen=True)
class Family:
    """Record of a model family.

    ``shift`` is 1 where the logits of a position predict the token after it (Dream), else 0. ``mask_token``
    and ``chat_template`` stand in where the checkpoint names none. ``end_tokens`` are ends of a text besides
    the tokenizer's own. ``lora_targets`` are the linear layers of a block; ``head``, the output layer, gets
    no adapter even if a target has its name. ``max_length`` is the key in ``config.json`` of the longest
    sequence. ``pretokenizer`` splits text for a tokenizer that comes as ``vocab.json`` and ``merges.txt``.
    ``cacheable`` says whether ``forward`` takes a cache, ``strict`` whether a tensor that the model has no
    place for is an error; checkpoints of a family where it is not hold heads for other tasks.
    """

    name: str
    description: str
    source: str
    model_types: Collection[str]
    config_class: Any
    model_class: Any
    lora_targets: tuple[str, ...]
    head: str | None
    max_length: str
    shift: int = 0
    cacheable: bool = True
    strict: bool = True
    mask_token: str | None = None
    end_tokens: tuple[str, ...] = ()
    chat_template: str | None = None
    pretokenizer: str | None = None
    forward: Callable[..., Tensor] = call_with_positions

    def load_config(self, folder: Path) -> Any:
        """The configuration of a checkpoint; raises ValueError if it asks for what is not computed."""
        return self.config_class.from_pretrained(folder)

    def build(self, config: Any) -> PreTrainedModel:
        """A model of a configuration's shape, with fresh weights."""
        return self.model_class(config)

    def load(self, folder: Path, dtype: torch.dtype | str, **options) -> PreTrainedModel:
        """The model of a checkpoint, every weight of it read from safetensors.

        Raises:
            ValueError: if its tensors are not those of the model; transformers would draw what is missing at
                random and drop what it has no place for.
        """
        model, found = self.model_class.from_pretrained(
            folder,
            config=self.load_config(folder),
            dtype=dtype,
            use_safetensors=True,
            # Told below, by name; packed weights are of another shape than their file's anyway.
            ignore_mismatched_sizes="quantization_config" not in options,
            output_loading_info=True,
            **options,
        )
        kinds = {"are missing": "missing_keys", "have another shape": "mismatched_keys"}
        kinds |= {"have no place in it": "unexpected_keys"} if self.strict else {}
        for words, kind in kinds.items():
            if keys := sorted(key if isinstance(key, str) else key[0] for key in found[kind]):
                raise ValueError(f"tensors of a {self.name} model {words}: {len(keys)}, {keys[0]} the first")
        return model

    def longest(self, model: nn.Module) -> int | None:
        """Longest sequence, prompt and canvas together, if the model says."""
        tables = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
        # RoBERTa and its kin count from after the padding token's id, and keep the rows up to there.
        unused = [
            table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None
        ]
        return (int(getattr(model.config, self.max_length, None) or 0) - max(unused, default=0)) or None


def families() -> dict[str, Family]:
    """All families by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(egspo.models.__path__))
    modules = [importlib.import_module(f"egspo.models.{name}") for name in names]
    return {module.FAMILY.name: module.FAMILY for module in modules if hasattr(module, "FAMILY")}


def family_of(model_type: str) -> Family:
    """The family of a ``model_type``; one that names it goes before one that takes many.

    Raises:
        ValueError: for an unknown one, with those that are known.
    """
    takers = [family for family in families().values() if model_type in family.model_types]
    if not takers:
        named = [kind for family in families().values() if family.cacheable for kind in family.model_types]
        raise ValueError(
            f"model type {model_type!r} is unknown; known: {', '.join(named)}, and any masked language model "
            "of transformers"
        )
    return takers[0]

"""The policy: the one file that knows how a model is loaded, adapted, masked and put beside its reference."""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from egspo import models, registry
from egspo.config import ModelConfig
from egspo.models import tiny

# Ends of a text in the vocabularies of this field; a policy uses those that its tokenizer has.
END_TOKENS = (tiny.END, "<|eot_id|>", "<|im_end|>")


class Policy:
    """A masked diffusion language model with its tokenizer.

    ``model`` may be wrapped (PEFT, DDP). The reference policy is the model with its adapter switched off, or
    a frozen copy of the weights taken by ``freeze_reference``.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, source: str, folder: Path | None = None
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.source = source
        """Where the weights came from, for model cards and summaries."""
        self.folder = folder
        """Folder of the weights on this machine, if that is where they came from."""
        self.mask_token_id = int(unwrap(model).config.mask_token_id)
        self.end_token_ids = _end_token_ids(tokenizer)
        self.suppressed = (self.mask_token_id,)
        """Tokens that are never sampled."""
        self._reference: nn.Module | None = None
        self.model.eval()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def logits(
        self,
        input_ids: Int[Tensor, "batch sequence"],
        attention_mask: Bool[Tensor, "batch sequence"] | None = None,
        positions: Int[Tensor, "batch places"] | None = None,
    ) -> Float[Tensor, "batch places vocab"]:
        """Scores of the token at each of ``positions`` (default: all), in float32, or the model's float64."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, positions=positions).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    @contextmanager
    def reference(self) -> Iterator["Policy"]:
        """The reference policy, without gradients."""
        with torch.no_grad():
            if self._reference is not None:
                frozen = copy.copy(self)
                frozen.model = self._reference
                yield frozen
                return
            adapted = _find_peft(self.model)
            if adapted is None:
                raise RuntimeError("no reference policy: call freeze_reference before training")
            with adapted.disable_adapter():
                yield self

    def freeze_reference(self) -> None:
        """Keep today's weights as the reference; nothing to do where an adapter can be switched off."""
        if _find_peft(self.model) is None:
            self._reference = copy.deepcopy(unwrap(self.model)).requires_grad_(False).eval()

    def encode_prompts(self, prompts: Sequence[str | Sequence[dict[str, str]]]) -> list[list[int]]:
        """Token ids of prompts; chat messages (and bare text, as a user's message) get the chat template."""
        chats = [[{"role": "user", "content": p}] if isinstance(p, str) else list(p) for p in prompts]
        texts = [
            self.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats
        ]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def encode_completion(self, text: str, length: int) -> list[int]:
        """Canvas of a gold completion, filled up with end tokens.

        Raises:
            ValueError: if the text does not fit.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > length:
            raise ValueError(
                f"sampler.max_completion_length: a solution has {len(ids)} tokens, the canvas {length}; "
                f"use at least {len(ids)}"
            )
        return ids + [self.end_token_ids[0]] * (length - len(ids))

    def decode(self, tokens: Int[Tensor, "batch length"]) -> list[str]:
        """Texts up to the first end token; a mask that was never revealed shows as such."""
        texts = []
        for row in tokens.tolist():
            end = next((i for i, token in enumerate(row) if token in self.end_token_ids), len(row))
            texts.append(self.tokenizer.decode(row[:end], skip_special_tokens=False))
        return texts

    def save(self, folder: Path) -> None:
        """Weights or adapter in the Hugging Face layout, with the tokenizer."""
        unwrap(self.model).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_policy(
    name: str | Path,
    adapter: str | None = None,
    dtype: str = "float32",
    device: str | torch.device | None = None,
) -> Policy:
    """Load a policy from a folder, a hub name or a model shipped with the package (``tiny:NAME``).

    A run folder stands for the model that it holds, an adapter's folder for the adapter on its base. Never
    runs remote code.

    Raises:
        ValueError: if the model's type is unknown or its files are missing.
    """
    found = Path(_resolve(str(name)))
    if adapter is None and (found / "adapter_config.json").is_file():
        base = json.loads((found / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
        name, adapter = base, str(found)
    return build_policy(
        ModelConfig(model_name_or_path=str(name), adapter=adapter, dtype=dtype), device=device
    )


def build_policy(
    config: ModelConfig,
    seed: int = 0,
    max_number_token: int | None = None,
    device: str | torch.device | None = None,
) -> Policy:
    """The policy of a configuration; ``seed`` draws fresh weights and adapters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if config.init is not None:
            tokenizer = tiny.build_tokenizer(max_number_token)
            model: nn.Module = tiny.build_model(config.init, tokenizer)
        else:
            model, tokenizer = _load(config.model_name_or_path, config.dtype)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model = _adapt(model, config)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.init is not None:
        return Policy(model.to(device), tokenizer, f"fresh {config.init}")
    folder = Path(config.adapter or _resolve(config.model_name_or_path))
    return Policy(model.to(device), tokenizer, config.model_name_or_path, folder if folder.is_dir() else None)


def shipped_models() -> list[str]:
    """Names of the models in the package, to be used as ``tiny:NAME``."""
    folder = shipped_folder(".")
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def shipped_folder(name: str) -> Path:
    return Path(str(resources.files("egspo") / "models" / "shipped" / name))


def unwrap(model: nn.Module) -> nn.Module:
    """The model under a data-parallel wrapper."""
    return model.module if hasattr(model, "module") and not isinstance(model, PreTrainedModel) else model


def _load(name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    path = str(_resolve(name))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        shipped = ", ".join(f"tiny:{name}" for name in shipped_models())
        raise ValueError(
            f"model.model_name_or_path: cannot read a model configuration at {name!r} "
            f"({_first_line(error)}); give a folder with config.json, a hub name, or one of: {shipped}"
        ) from None
    if config.model_type not in models.MODEL_TYPES:
        raise ValueError(
            f"model.model_name_or_path: {name!r} has model type {config.model_type!r}"
            f"{registry.suggest(config.model_type, models.MODEL_TYPES)}"
        )
    model = AutoModel.from_pretrained(path, config=config, dtype=dtype, trust_remote_code=False)
    return model, AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _resolve(name: str) -> str | Path:
    """The folder behind a shipped model or a run folder; any other name as it is."""
    if name.startswith("tiny:"):
        shipped = name.removeprefix("tiny:")
        if shipped not in shipped_models():
            raise ValueError(
                f"model.model_name_or_path: no shipped model {name!r}"
                f"{registry.suggest(shipped, shipped_models())}"
            )
        return shipped_folder(shipped)
    inside = Path(name) / "model"
    return inside if inside.is_dir() else name


def _adapt(model: nn.Module, config: ModelConfig) -> nn.Module:
    if config.adapter is not None:
        return PeftModel.from_pretrained(model, config.adapter, is_trainable=True)
    if not config.use_peft:
        return model
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    for target in config.lora_target_modules:
        if target not in names:
            known = ", ".join(sorted(names))
            raise ValueError(f"model.lora_target_modules: {target!r} matches nothing; the model has {known}")
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_target_modules,
        bias="none",
    )
    return get_peft_model(model, lora)


def _find_peft(model: nn.Module) -> PeftModel | None:
    inner = unwrap(model)
    return inner if isinstance(inner, PeftModel) else None


def _end_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    named = [tokenizer.eos_token_id, *(vocabulary[token] for token in END_TOKENS if token in vocabulary)]
    return tuple(dict.fromkeys(int(token) for token in named if token is not None))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__

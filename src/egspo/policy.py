"""The policy: the one file that knows how a model is loaded, masked and put beside its reference."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from egspo import launch
from egspo.config import ModelConfig, RLRun, parse_section
from egspo.hub import first_line
from egspo.models import source, tiny
from egspo.models.adapters import CONFIG as ADAPTER_CONFIG
from egspo.models.adapters import adapt, adapter_folder, has_adapter
from egspo.models.family import Family, family_of
from egspo.models.layers import KVCache
from egspo.models.tokenizers import load_tokenizer, save_tokenizer

FIELD = "model.model_name_or_path"


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
        """Where the weights came from, ``base + adapter`` if there is one, for model cards and summaries."""
        self.folder = folder
        """Folder of the weights on this machine, if that is where they came from."""
        config = unwrap(model).config
        self.family = family_of(config.model_type)
        self.mask_token_id = _mask_token_id(config, tokenizer, self.family)
        _check_vocabulary(config, tokenizer, self.mask_token_id)
        self.end_token_ids = _end_token_ids(tokenizer, self.family)
        self.suppressed = (self.mask_token_id,)
        """Tokens that are never sampled."""
        self.max_length = self.family.longest(unwrap(model))
        """Longest sequence, prompt and canvas together, if the model says."""
        self.autocast: torch.dtype | None = None
        """What the model computes in, where that is not the dtype of its weights."""
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
        cache: KVCache | None = None,
        window: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch places vocab"]:
        """Scores of the token at each of ``positions`` (default: all), in float32, or the model's float64.

        With ``cache``, a pass without ``window`` fills it, and one with ``window = (start, end)`` computes
        only that part of the sequence, where all positions must then lie; the rest is as it was cached.
        """
        shift = self.family.shift
        if shift:
            if positions is None:
                start, end = window or (0, input_ids.shape[1])
                positions = torch.arange(start, end, device=input_ids.device).expand(len(input_ids), -1)
            positions = self._predecessors(positions, attention_mask)
            window = None if window is None else (max(0, window[0] - shift), window[1])
        with torch.autocast(self.device.type, self.autocast or torch.bfloat16, self.autocast is not None):
            logits = self.family.forward(self.model, input_ids, attention_mask, positions, cache, window)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _predecessors(self, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Where a shifted family scores a position: the one before; the first token scores itself."""
        if attention_mask is None:
            return (positions - self.family.shift).clamp(min=0)
        first = attention_mask.long().argmax(dim=1, keepdim=True)
        return torch.where(positions > first, positions - self.family.shift, positions)

    @contextmanager
    def reference(self) -> Iterator["Policy"]:
        """The reference policy, without gradients."""
        with torch.no_grad():
            if self._reference is not None:
                frozen = copy.copy(self)
                frozen.model = self._reference
                yield frozen
                return
            model = unwrap(self.model)
            if not has_adapter(model):
                raise RuntimeError("no reference policy: call freeze_reference before training")
            with model.disable_adapter():
                yield self

    def freeze_reference(self) -> None:
        """Keep today's weights as the reference; nothing to do where an adapter can be switched off."""
        if not has_adapter(unwrap(self.model)):
            self._reference = copy.deepcopy(unwrap(self.model)).requires_grad_(False).eval()

    def encode_prompts(self, prompts: Sequence[str | Sequence[dict[str, str]]]) -> list[list[int]]:
        """Token ids of prompts; chat messages (and bare text, as a user's message) get the chat template.

        Raises:
            ValueError: if there is no chat template.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                f"{FIELD}: the tokenizer of {self.source!r} has no chat template; put that of its family, or "
                "one that only joins contents, into chat_template.jinja of the model's folder"
            )
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
        # PEFT would compare vocabularies with the base's, on the hub if need be; no token is ever added here.
        model = unwrap(self.model)
        only = {"save_embedding_layers": False} if has_adapter(model) else {}
        model.save_pretrained(folder, **only)
        save_tokenizer(self.tokenizer, folder)


def load_policy(
    name: str | Path,
    adapter: str | None = None,
    dtype: str = "float32",
    device: str | torch.device | None = None,
    load_in_4bit: bool = False,
    bf16: bool = False,
) -> Policy:
    """Load a policy from a folder, a hub name or a model shipped with the package (``tiny:NAME``).

    A run folder stands for the model that it holds, an adapter's folder for the adapter on its base.
    ``dtype, load_in_4bit, bf16`` are those of the ``model`` section. Never runs remote code.

    Raises:
        ValueError: if the model's type is unknown or its files are missing.
    """
    folder = source.locate(str(name), FIELD)
    if adapter is None and (folder / ADAPTER_CONFIG).is_file():
        name, adapter = _base_of(folder), str(name)
    values = {"model_name_or_path": str(name), "adapter": adapter, "dtype": dtype}
    values |= {"load_in_4bit": load_in_4bit, "bf16": bf16}
    return build_policy(parse_section(RLRun, "model", values), device=device)


def build_policy(
    config: ModelConfig,
    seed: int = 0,
    max_number_token: int | None = None,
    device: str | torch.device | None = None,
) -> Policy:
    """The policy of a configuration; ``seed`` draws fresh weights and adapters.

    Without ``device`` it is that of this process: on a GPU the one of its rank (`egspo.launch.device`).
    """
    device = launch.device() if device is None else torch.device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.init is not None:
            tokenizer = tokenizer_of(config, max_number_token)
            model: nn.Module = tiny.build_model(config.init, tokenizer)
        else:
            model, tokenizer = _load(config, device)
        if config.gradient_checkpointing:
            recompute_activations(model)
        model = adapt(model, config, family_of(model.config.model_type))
    launch.set_up(device, any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()))
    if not config.load_in_4bit:  # quantised weights are where they belong already
        model = model.to(device)
    name = f"fresh {config.init}" if config.init else config.model_name_or_path
    if config.adapter is not None:
        name = f"{name} + {config.adapter}"
    policy = Policy(model, tokenizer, name, _folder(config))
    policy.autocast = torch.bfloat16 if config.bf16 else None
    return policy


def unwrap(model: nn.Module) -> nn.Module:
    """The model under a data-parallel wrapper."""
    return model.module if hasattr(model, "module") and not isinstance(model, PreTrainedModel) else model


def read_config(name: str) -> tuple[Path, Family]:
    """A checkpoint's folder, so far without its weights, and its family.

    Raises:
        ValueError: if there is no such checkpoint, or its type is unknown.
    """
    folder = source.locate(name, FIELD)
    kind = source.read_json(folder / "config.json", FIELD).get("model_type")
    try:
        return folder, family_of(str(kind))
    except ValueError as error:
        raise ValueError(f"{FIELD}: {name!r}: {error}") from None


def tokenizer_of(config: ModelConfig, max_number_token: int | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a configuration.

    Raises:
        ValueError: if the checkpoint has none.
    """
    if config.init is not None:
        return tiny.build_tokenizer(max_number_token)
    folder, family = read_config(config.model_name_or_path)
    return load_tokenizer(folder, family.pretokenizer, family.chat_template)


def _load(config: ModelConfig, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    name = config.model_name_or_path
    folder, family = read_config(name)
    tokenizer = tokenizer_of(config)
    folder = source.locate(name, FIELD, (*source.SMALL, *source.WEIGHTS))
    options = {"quantization_config": _four_bit(), "device_map": {"": device}} if config.load_in_4bit else {}
    try:
        model = family.load(folder, config.dtype, **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise ValueError(f"{FIELD}: cannot load {name!r} ({first_line(error)})") from None
    # What an adapter's file will name as its base: not where the hub's cache is, but a folder from the root,
    # for from elsewhere a relative path may read as a name on the hub.
    model.name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    return model, tokenizer


def recompute_activations(model: PreTrainedModel) -> None:
    """Gradient checkpointing under the name that this version of transformers has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _four_bit():
    """NF4 with double quantisation, computing in bfloat16 (QLoRA, arXiv 2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _folder(config: ModelConfig) -> Path | None:
    """Where the trained settings beside the weights are to be looked for."""
    if config.adapter is not None:
        return adapter_folder(config.adapter)
    return None if config.init else source.locate(config.model_name_or_path, FIELD)


def _base_of(folder: Path) -> str:
    """The base model that an adapter's file names.

    Raises:
        ValueError: if that is not to be found here.
    """
    base = source.read_json(folder / ADAPTER_CONFIG, "model.adapter").get("base_model_name_or_path")
    try:
        source.locate(str(base), FIELD)
    except ValueError as error:
        raise ValueError(
            f"{folder} holds an adapter of {base!r}, which cannot be found; give the base as the model and "
            f"this folder by --adapter ({first_line(error)})"
        ) from None
    return str(base)


def _mask_token_id(config, tokenizer: PreTrainedTokenizerBase, family: Family) -> int:
    vocabulary = tokenizer.get_vocab()
    candidates = (
        getattr(config, "mask_token_id", None),
        tokenizer.mask_token_id,
        vocabulary.get(family.mask_token),
    )
    found = next((number for number in candidates if number is not None), None)
    if found is None:
        raise ValueError(f"{FIELD}: no mask token in config.json or the tokenizer; add mask_token_id there")
    return int(found)


def _check_vocabulary(config, tokenizer: PreTrainedTokenizerBase, mask_token_id: int) -> None:
    """Raises ValueError if there is a token that the model has no row for."""
    largest = max(tokenizer.get_vocab().values())
    for what, number in (("mask_token_id is", mask_token_id), ("the tokenizer goes up to", largest)):
        if not 0 <= number < config.vocab_size:
            raise ValueError(
                f"{FIELD}: {what} {number}, but config.json has vocab_size {config.vocab_size}; take the "
                "tokenizer and the configuration of one checkpoint"
            )


def _end_token_ids(tokenizer: PreTrainedTokenizerBase, family: Family) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    named = [vocabulary[token] for token in family.end_tokens if token in vocabulary]
    ends = [tokenizer.eos_token_id, *named]
    if not any(token is not None for token in ends):
        ends = [tokenizer.sep_token_id]
    found = tuple(dict.fromkeys(int(token) for token in ends if token is not None))
    if not found:
        raise ValueError(
            f"{FIELD}: the tokenizer names no end of text; add eos_token to tokenizer_config.json"
        )
    return found

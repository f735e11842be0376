"""Tokenizers from their data files alone: whatever class a checkpoint names, none of its code is run."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "sep_token", "cls_token")
_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_CONFIG = "tokenizer_config.json"
FIELD = "model.model_name_or_path"


def load_tokenizer(
    folder: Path, pretokenizer: str | None = None, chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint: ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``.

    ``pretokenizer`` is the regular expression that splits text before the merges of the latter kind apply;
    ``chat_template`` stands in where the checkpoint has none.

    Raises:
        ValueError: if the files are missing or broken.
    """
    settings = _read(folder / "special_tokens_map.json") | _read(folder / _CONFIG)
    if (folder / "tokenizer.json").is_file():
        backend = _parse(folder / "tokenizer.json")
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        backend = _byte_level_bpe(folder, settings, pretokenizer)
    else:
        raise ValueError(
            f"{FIELD}: {folder} has no tokenizer; it needs tokenizer.json, or vocab.json and merges.txt"
        )
    special: dict[str, Any] = {key: _text(settings[key]) for key in _TOKENS if settings.get(key) is not None}
    extra = [_text(token) for token in _extra_tokens(settings)]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **special,
        additional_special_tokens=extra,
        chat_template=_chat_template(folder, settings) or chat_template,
        padding_side="left",
        clean_up_tokenization_spaces=bool(settings.get("clean_up_tokenization_spaces", False)),
        model_max_length=int(settings.get("model_max_length") or 1e30),
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """In the Hugging Face layout, under names that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    settings = _read(folder / _CONFIG)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["additional_special_tokens"] = [_text(token) for token in _extra_tokens(settings)]
    settings.pop("extra_special_tokens", None)
    settings.pop("backend", None)
    (folder / _CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _byte_level_bpe(folder: Path, settings: dict[str, Any], pretokenizer: str | None) -> Tokenizer:
    """GPT-2's byte-level merges, as Qwen2 and Dream ship them."""
    if pretokenizer is None:
        raise ValueError(
            f"{FIELD}: {folder} has a tokenizer as vocab.json and merges.txt, which does not say how text is "
            "split first; convert it to tokenizer.json"
        )
    try:
        model = BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{FIELD}: {folder}: broken vocab.json or merges.txt ({error})") from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pretokenizer), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for number, token in _added_tokens(folder, settings):
        tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        found = tokenizer.token_to_id(token.content)
        if found != number:
            raise ValueError(
                f"{FIELD}: {folder}: added token {token.content!r} should have id {number}, "
                f"but vocab.json leaves it {found}"
            )
    return tokenizer


def _added_tokens(folder: Path, settings: dict[str, Any]) -> list[tuple[int, AddedToken]]:
    """Tokens beyond the merges with their ids, in the order of these."""
    decoder = settings.get("added_tokens_decoder") or {}
    if decoder:
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        found = {
            int(number): AddedToken(entry["content"], **{f: entry[f] for f in flags if f in entry})
            for number, entry in decoder.items()
        }
    else:
        plain = _read(folder / "added_tokens.json")
        found = {
            int(number): AddedToken(text, special=True, normalized=False) for text, number in plain.items()
        }
    return sorted(found.items())


def _extra_tokens(settings: dict[str, Any]) -> list[Any]:
    values = [settings.get(key) or [] for key in _EXTRA]
    return [t for value in values for t in (value.values() if isinstance(value, dict) else value)]


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _parse(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{FIELD}: {file} is broken ({error})") from None


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{FIELD}: {file} is no JSON ({error})") from None
    return values if isinstance(values, dict) else {}


def _text(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)

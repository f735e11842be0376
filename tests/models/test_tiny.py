"""The tokenizer and presets of the small models."""

import string

import pytest
import torch
from transformers import AutoTokenizer

from egspo.models.tiny import (
    ASSISTANT,
    END,
    MASK,
    PRESETS,
    SPECIAL,
    UNKNOWN,
    USER,
    build_model,
    build_tokenizer,
)

PRINTABLE = "".join(c for c in string.printable if c.isprintable()) + "\n"


@pytest.mark.parametrize("largest", [None, 20, 120])
@pytest.mark.parametrize("text", [PRINTABLE, "12 + 345 = 357", "<answer>\n  007 99100 </answer>", "", "  "])
def test_round_trip(text, largest):
    tokenizer = build_tokenizer(largest)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize(
    ("largest", "text", "tokens"),
    [
        (None, "120", ["1", "2", "0"]),
        (99, "12+7=19", ["12", "+", "7", "=", "19"]),
        # The longest number first; a longer one falls into pieces; leading zeros are digits.
        (99, "123", ["12", "3"]),
        (120, "120121", ["120", "12", "1"]),
        (99, "007", ["0", "0", "7"]),
    ],
)
def test_numbers_are_tokens(largest, text, tokens):
    assert build_tokenizer(largest).tokenize(text) == tokens


def test_every_number_is_one_token():
    tokenizer = build_tokenizer(150)
    ids = [tokenizer(str(n), add_special_tokens=False)["input_ids"] for n in range(151)]
    assert all(len(one) == 1 for one in ids) and len({one[0] for one in ids}) == 151


def test_other_characters_are_unknown():
    tokenizer = build_tokenizer()
    assert tokenizer.tokenize("aé\tb") == ["a", UNKNOWN, UNKNOWN, "b"]


def test_special_tokens():
    tokenizer = build_tokenizer()
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == list(range(len(SPECIAL)))
    assert (tokenizer.mask_token, tokenizer.eos_token, tokenizer.padding_side) == (MASK, END, "left")


def test_chat_template():
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1"}]
    tokenizer = build_tokenizer()
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == f"<|system|>s{USER}1+1{ASSISTANT}"
    assert tokenizer.tokenize(text) == ["<|system|>", "s", USER, "1", "+", "1", ASSISTANT]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == f"<|system|>s{USER}1+1"


def test_saved_and_loaded(tmp_path):
    tokenizer = build_tokenizer(99)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "45 + é\n"}]
    for one in (tokenizer, loaded):
        ids = one(one.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.convert_tokens_to_ids([USER, "45", " ", "+", " ", UNKNOWN, "\n"])
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.mask_token_id == tokenizer.mask_token_id


@pytest.mark.parametrize(("preset", "millions"), [("tiny", 0.16), ("tiny-1m", 0.8), ("tiny-5m", 4.8)])
def test_presets_have_the_size_that_they_say(preset, millions):
    model = build_model(preset, build_tokenizer())
    assert set(PRESETS) == {"tiny", "tiny-1m", "tiny-5m"}
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.06)
    assert model.config.mask_token_id == build_tokenizer().mask_token_id
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, len(build_tokenizer()))

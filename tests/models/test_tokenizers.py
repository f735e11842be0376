"""Tokenizers from data files, beside transformers' own class for the same files."""

import json

import pytest
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer, Qwen2TokenizerFast

from egspo.models.dream import FAMILY
from egspo.models.tokenizers import load_tokenizer, save_tokenizer

ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<|beginoftext|>", "<|mask|>"]
PLAIN = {"<tool_call>"}  # an added token that is not special
NAMES = {"eos_token": ADDED[0], "pad_token": ADDED[0], "unk_token": ADDED[0], "mask_token": ADDED[5]}
CORPUS = ["the thing is, I'm sure it's 1234 or 12.5!\n\n  they're naïve", "Größe 你好 你好 the the thing"]
TEXTS = [
    "",
    " ",
    "the thing",
    "I'm sure THEY'RE here, it's 2024 or 12.5!?\n\n   done  \n",
    "e\u0301 and é, A\u030a and Å",  # composed or not: the same text
    "你好 Größe 🙂\tx\r\n\r\ny",
    "<|im_start|>user\nthe 12<|im_end|>\n<|mask|><|mask|> <|endoftext|>",
    "<tool_call>{}</tool_call> <|im_start",
]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
CHAT = [{"role": "user", "content": "the 12"}]
RENDERED = "<|im_start|>the 12<|im_end|>"


def entry(token):
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {"content": token, "special": token not in PLAIN} | flags


def write(folder, file, values):
    (folder / file).write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module")
def size(tmp_path_factory):
    return len(json.loads((byte_level_bpe(tmp_path_factory.mktemp("bpe")) / "vocab.json").read_text()))


def byte_level_bpe(folder):
    """``vocab.json`` and ``merges.txt`` of all bytes and a few merges."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))
    return folder


def settings(size, **changes):
    decoder = {str(size + n): entry(token) for n, token in enumerate(ADDED)}
    code = {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}
    extra = {"additional_special_tokens": ADDED[1:3], "clean_up_tokenization_spaces": False}
    named = {"tokenizer_class": "DreamTokenizer", "auto_map": code, "model_max_length": 131072}
    return {"added_tokens_decoder": decoder} | NAMES | extra | named | changes


@pytest.fixture
def published(tmp_path, size):
    """A folder as Dream's is: a tokenizer class of its own, in code that must not run."""
    write(byte_level_bpe(tmp_path), "tokenizer_config.json", settings(size))
    (tmp_path / "tokenization_dream.py").write_text("raise SystemExit('the code of a checkpoint ran')")
    return tmp_path


def load(folder):
    return load_tokenizer(folder, FAMILY.pretokenizer)


@pytest.fixture
def reference(tmp_path_factory, size):
    """transformers' own tokenizer for files of this kind."""
    folder = byte_level_bpe(tmp_path_factory.mktemp("reference"))
    values = settings(size, tokenizer_class="Qwen2Tokenizer")
    del values["auto_map"]
    write(folder, "tokenizer_config.json", values)
    return Qwen2TokenizerFast.from_pretrained(folder)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def assert_same(tokenizer, reference):
    for text in TEXTS:
        ids = ids_of(reference, text)
        assert ids_of(tokenizer, text) == ids, text
        for skip in (False, True):
            one, other = (t.decode(ids, skip_special_tokens=skip) for t in (tokenizer, reference))
            assert one == other, text
    for number in range(len(reference)):
        assert tokenizer.decode([number]) == reference.decode([number])


def test_merges_are_those_of_transformers(published, reference):
    tokenizer = load(published)
    assert tokenizer.get_vocab() == reference.get_vocab()
    assert_same(tokenizer, reference)
    # The comparison is one: texts fall into several tokens, some of them merges.
    assert len(ids_of(tokenizer, "the thing")) < len("the thing")


def test_tokenizer_json_is_that_of_transformers(published, reference):
    reference.backend_tokenizer.save(str(published / "tokenizer.json"))
    (published / "vocab.json").unlink()
    (published / "merges.txt").unlink()
    # It says itself how text is split.
    assert_same(load_tokenizer(published), reference)


def test_special_tokens(published, size):
    tokenizer = load(published)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (size, size, size + 5)
    assert tokenizer.convert_tokens_to_ids(ADDED) == [size + n for n in range(6)]
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 131072)
    special = {ADDED[0], ADDED[1], ADDED[2], ADDED[5]}
    assert special <= set(tokenizer.all_special_tokens) and "<tool_call>" not in tokenizer.all_special_tokens


def test_text_is_composed_first(published):
    tokenizer = load(published)
    assert ids_of(tokenizer, "e\u0301") == ids_of(tokenizer, "\u00e9")
    assert tokenizer.decode(ids_of(tokenizer, "e\u0301")) == "\u00e9"


def test_older_layout_of_added_tokens(published, reference, size):
    """Without ``added_tokens_decoder``: ids in one file, names in another."""
    values = settings(size)
    for key in ("added_tokens_decoder", "additional_special_tokens", *NAMES):
        del values[key]
    write(published, "tokenizer_config.json", values)
    write(published, "added_tokens.json", {token: size + n for n, token in enumerate(ADDED)})
    names = {key: entry(token) for key, token in NAMES.items()} | {"additional_special_tokens": ADDED[1:3]}
    write(published, "special_tokens_map.json", names)
    tokenizer = load(published)
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id) == (size, size + 5)
    for text in TEXTS:
        assert ids_of(tokenizer, text) == ids_of(reference, text)


LIST = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]


@pytest.mark.parametrize("value", [TEMPLATE, LIST])
def test_chat_template_in_the_configuration(published, size, value):
    write(published, "tokenizer_config.json", settings(size, chat_template=value))
    tokenizer = load_tokenizer(published, FAMILY.pretokenizer, "the family's")
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == RENDERED


def test_chat_template_in_a_file_goes_first(published, size):
    write(published, "tokenizer_config.json", settings(size, chat_template="the configuration's"))
    (published / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = load_tokenizer(published, FAMILY.pretokenizer, "the family's")
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == RENDERED


@pytest.mark.parametrize("value", [None, [{"name": "tool_use", "template": "no"}]])
def test_chat_template_of_the_family_where_there_is_none(published, size, value):
    write(published, "tokenizer_config.json", settings(size, chat_template=value))
    tokenizer = load_tokenizer(published, FAMILY.pretokenizer, TEMPLATE)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == RENDERED


def test_saved_tokenizers_load_again(published, size, tmp_path_factory):
    write(published, "tokenizer_config.json", settings(size, chat_template=TEMPLATE))
    tokenizer, saved = load(published), tmp_path_factory.mktemp("saved")
    save_tokenizer(tokenizer, saved)
    values = json.loads((saved / "tokenizer_config.json").read_text())
    # A class that every version of transformers has, and no code of a checkpoint.
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in values
    for again in (AutoTokenizer.from_pretrained(saved), load_tokenizer(saved)):
        assert_same(again, tokenizer)
        assert again.get_vocab() == tokenizer.get_vocab()
        assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens)
        for name in (*NAMES, "padding_side", "model_max_length"):
            assert getattr(again, name) == getattr(tokenizer, name), name
        assert again.apply_chat_template(CHAT, tokenize=False) == RENDERED


def break_vocabulary(folder, size):
    (folder / "vocab.json").write_text("{")


def break_merges(folder, size):
    (folder / "merges.txt").write_text("#version: 0.2\nthere isnone\n")


def break_tokenizer(folder, size):
    (folder / "tokenizer.json").write_text('{"model": 1}')


def break_settings(folder, size):
    (folder / "tokenizer_config.json").write_text("{")


def remove_merges(folder, size):
    (folder / "merges.txt").unlink()


def leave_a_gap(folder, size):
    write(folder, "tokenizer_config.json", settings(size, added_tokens_decoder={size + 1: entry("<|mask|>")}))


def take_a_place(folder, size):
    """An added token that the vocabulary has under another number."""
    write(folder, "tokenizer_config.json", settings(size, added_tokens_decoder={size: entry("a")}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_vocabulary, r": broken vocab.json or merges.txt \("),
        (break_merges, r": broken vocab.json or merges.txt \("),
        (break_tokenizer, r"/tokenizer.json is broken \("),
        (break_settings, r"/tokenizer_config.json is no JSON \("),
        (remove_merges, " has no tokenizer; it needs tokenizer.json, or vocab.json and merges.txt$"),
        (leave_a_gap, r": added token '<\|mask\|>' should have id \d+, but vocab.json leaves it \d+$"),
        (take_a_place, r": added token 'a' should have id \d+, but vocab.json leaves it \d+$"),
    ],
)
def test_errors(published, size, spoil, message):
    spoil(published, size)
    with pytest.raises(ValueError, match=f"^model.model_name_or_path: {published}{message}"):
        load(published)


def test_merges_alone_do_not_say_how_text_is_split(published):
    with pytest.raises(ValueError, match=r"^model.model_name_or_path: .* convert it to tokenizer.json$"):
        load_tokenizer(published)

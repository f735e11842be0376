"""Small models that are trained from scratch, and the tokenizer that goes with them."""

import string

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from egspo.models.llada import LLaDAConfig, LLaDAModelLM

PRESETS = {
    # name: (width, layers, heads, SwiGLU width); about 0.16M, 0.8M and 4.8M parameters
    "tiny": dict(d_model=64, n_layers=3, n_heads=4, mlp_hidden_size=160),
    "tiny-1m": dict(d_model=128, n_layers=4, n_heads=4, mlp_hidden_size=320),
    "tiny-5m": dict(d_model=256, n_layers=6, n_heads=8, mlp_hidden_size=704),
}

PAD, END, MASK, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|mdm_mask|>", "<|unk|>"
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL = (PAD, END, MASK, UNKNOWN, USER, ASSISTANT, SYSTEM)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer(max_number_token: int | None = None) -> PreTrainedTokenizerFast:
    """A character tokenizer over printable ASCII; whole numbers up to ``max_number_token`` are single tokens.

    Every other character becomes the unknown token. Decoding joins tokens without blanks.
    """
    characters = [c for c in string.printable if c.isprintable() or c == "\n"]
    numbers = [str(n) for n in range(10, (max_number_token or 0) + 1)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters, *numbers])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    # Longer numbers first: the alternation takes the first that matches.
    pieces = "|".join([*sorted(numbers, key=len, reverse=True), r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        mask_token=MASK,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_model(
    preset: str, tokenizer: PreTrainedTokenizerFast, max_sequence_length: int = 1024
) -> LLaDAModelLM:
    """A model of a preset's shape with random weights (drawn from torch's generator)."""
    config = LLaDAConfig(
        **PRESETS[preset],
        vocab_size=len(tokenizer),
        rope_theta=100.0,
        max_sequence_length=max_sequence_length,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        init_std=0.06,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LLaDAModelLM(config)

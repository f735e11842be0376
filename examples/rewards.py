"""Reward functions for `task.name: custom` and for `egspo.Trainer(reward_funcs=[…])`; TRL's signature.

    egspo sft examples/custom.yaml examples/custom_sft.yaml
    egspo train examples/custom.yaml examples/custom_rl.yaml

A function gets the prompts (chat messages), the completions (texts) and, as lists of the same length, every
other column of the file. It returns one number for each completion, or None where it does not apply.
"""


def capitals(
    prompts: list[list[dict[str, str]]], completions: list[str], answer: list[str], **columns
) -> list[float]:
    """The share of letters that are right: 1 for exactly the answer."""
    return [_share(text.strip(), wanted) for text, wanted in zip(completions, answer, strict=True)]


def _share(text: str, wanted: str) -> float:
    right = sum(a == b for a, b in zip(text, wanted, strict=False))
    return right / max(len(text), len(wanted))

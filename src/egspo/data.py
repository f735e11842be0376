"""Problems encoded for a policy, and the order in which a run sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from egspo.hub import DatasetSplit, read_split
from egspo.ops import noise
from egspo.policy import Policy
from egspo.records import read_rows
from egspo.types import Prompt


@dataclass(frozen=True)
class Problems:
    """Prompts with their token ids; ``skipped`` were longer than allowed."""

    prompts: list[Prompt]
    encoded: list[list[int]]
    skipped: int

    def __len__(self) -> int:
        return len(self.prompts)

    def order(self, seed: int, start: int, num: int) -> list[int]:
        """Indices of ``num`` problems from place ``start`` of an endless sequence of shuffled passes."""
        size, picked = len(self), []
        for epoch in range(start // size, (start + num - 1) // size + 1):
            shuffled = _permutation(seed, epoch, size)
            first = epoch * size
            picked += shuffled[max(0, start - first) : start + num - first]
        return picked


def encode_problems(policy: Policy, prompts: Sequence[Prompt], longest: int, field: str) -> Problems:
    """Tokenise prompts; those of more than ``longest`` tokens are left out and counted, never cut.

    Raises:
        ValueError: if none is left; ``field`` is the setting that ``longest`` came from.
    """
    encoded = policy.encode_prompts([prompt.messages for prompt in prompts])
    kept = [i for i, ids in enumerate(encoded) if len(ids) <= longest]
    if not kept:
        shortest = min((len(ids) for ids in encoded), default=0)
        raise ValueError(
            f"{field}: {longest} leaves none of {len(encoded)} prompts; the shortest needs {shortest}"
        )
    return Problems([prompts[i] for i in kept], [encoded[i] for i in kept], len(encoded) - len(kept))


def read_pairs(path: Path) -> list[Prompt]:
    """Prompt-completion pairs of a JSON lines file (or CSV, also gzipped).

    Raises:
        ValueError: for a broken line, with file and number.
    """
    return [as_pair(row, f"{path}:{line}") for line, row in read_rows(path, "sft.data")]


def load_hub_pairs(name: str, split: str) -> list[Prompt]:
    """Prompt-completion pairs of a hub data set (needs ``egspo[data]``)."""
    return [as_pair(row, place) for place, row in read_split(DatasetSplit(name, split), "sft.data")]


def as_pair(row: dict[str, Any], place: str) -> Prompt:
    """``prompt`` and ``completion`` (texts or messages), or ``messages`` that end with the assistant's."""
    if "messages" in row:
        messages = _messages(row["messages"])
        prompt, completion = messages[:-1], messages[-1:]
    else:
        prompt, completion = row.get("prompt"), row.get("completion")
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt)
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
    completion = _messages(completion)
    if not prompt or len(completion) != 1 or completion[0]["role"] != "assistant":
        raise ValueError(
            f"sft.data: {place} has neither prompt and completion nor messages; add them (the last of the "
            "messages is the assistant's)"
        )
    return Prompt(tuple(prompt), {}, completion[0]["content"], place)


def _messages(value: Any) -> list[dict[str, str]]:
    """Chat messages; none of what is no list of them."""
    whole = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    )
    return value if whole else []


def _permutation(seed: int, epoch: int, size: int) -> list[int]:
    key = noise.sample_seeds(seed, epoch, torch.zeros(1, dtype=torch.long))
    return noise.uniform(key, noise.SELECTION, 0, size)[0].argsort().tolist()

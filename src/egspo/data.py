"""Problems encoded for a policy, and the order in which a run sees them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from egspo.hub import DatasetSplit, read_split
from egspo.ops import noise
from egspo.policy import Policy
from egspo.records import chat_messages, read_rows
from egspo.tasks.base import Task
from egspo.types import Prompt


@dataclass(frozen=True)
class Problems:
    """Prompts with their token ids; ``skipped`` were longer than allowed.

    ``weights`` are those of a mix of tasks, by the field ``task`` of its problems; empty otherwise.
    """

    prompts: list[Prompt]
    encoded: list[list[int]]
    skipped: int
    weights: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    def order(self, seed: int, start: int, num: int) -> list[int]:
        """Indices of ``num`` problems from place ``start`` of an endless sequence of shuffled passes.

        A pass has as many places as there are problems. Without weights each problem has one. With weights
        the tasks share them out: each gets its share, rounded, and at least one. Where in the pass they lie
        is shuffled, and a task fills its places from shuffled passes over its own problems that go on from
        one pass to the next, so that none of them comes again before all others of the task have come.
        """
        size, picked = len(self), []
        for epoch in range(start // size, (start + num - 1) // size + 1):
            first = epoch * size
            picked += self._pass(seed, epoch)[max(0, start - first) : start + num - first]
        return picked

    def _pass(self, seed: int, epoch: int) -> list[int]:
        places = _permutation(seed, epoch, len(self))
        if not self.weights:
            return places
        dealt, owner = [], []
        for stream, (own, share) in enumerate(self._shares):
            dealt.append(iter([own[i] for i in _dealt(seed, stream + 1, epoch * share, share, len(own))]))
            owner += [stream] * share
        return [next(dealt[owner[place]]) for place in places]

    @cached_property
    def _shares(self) -> list[tuple[list[int], int]]:
        """The problems of each task, and its places in a pass."""
        tasks = [prompt.fields["task"] for prompt in self.prompts]
        own = [[i for i, task in enumerate(tasks) if task == name] for name in self.weights]
        return list(zip(own, _share_out(list(self.weights.values()), len(self)), strict=True))


def encode_problems(
    policy: Policy,
    prompts: Sequence[Prompt],
    longest: int,
    field: str,
    weights: Mapping[str, float] | None = None,
) -> Problems:
    """Tokenise prompts; those of more than ``longest`` tokens are left out and counted, never cut.

    Raises:
        ValueError: if none is left, or none of a task that has a weight; ``field`` is the setting that
            ``longest`` came from.
    """
    encoded = policy.encode_prompts([prompt.messages for prompt in prompts])
    kept = [i for i, ids in enumerate(encoded) if len(ids) <= longest]
    if not kept:
        shortest = min((len(ids) for ids in encoded), default=0)
        raise ValueError(
            f"{field}: {longest} leaves none of {len(encoded)} prompts; the shortest needs {shortest}"
        )
    weights = dict(weights or {})
    for task in weights:
        own = [i for i, prompt in enumerate(prompts) if prompt.fields["task"] == task]
        if not own:
            raise ValueError(f"task.tasks: no problem of {task!r} has a solution to learn from; leave it out")
        if not {*own} & {*kept}:
            raise ValueError(
                f"{field}: {longest} leaves none of {len(own)} prompts of {task!r}; the shortest needs "
                f"{min(len(encoded[i]) for i in own)}"
            )
    skipped = len(encoded) - len(kept)
    return Problems([prompts[i] for i in kept], [encoded[i] for i in kept], skipped, weights)


def solved(task: Task) -> list[Prompt]:
    """Training problems with a solution, for SFT.

    Raises:
        ValueError: if there are none.
    """
    prompts = [prompt for prompt in task.load("train") if prompt.solution is not None]
    if not prompts:
        raise ValueError(f"sft.data: task {task.name!r} has no solutions to learn from; give a file of pairs")
    return prompts


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
        messages = chat_messages(row["messages"])
        prompt, completion = messages[:-1], messages[-1:]
    else:
        prompt, completion = row.get("prompt"), row.get("completion")
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else chat_messages(prompt)
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
    completion = chat_messages(completion)
    if not prompt or len(completion) != 1 or completion[0]["role"] != "assistant":
        raise ValueError(
            f"sft.data: {place} has neither prompt and completion nor messages; add them (the last of the "
            "messages is the assistant's)"
        )
    return Prompt(tuple(prompt), {}, completion[0]["content"], place)


def _share_out(weights: Sequence[float], size: int) -> list[int]:
    """``size`` places by weight: as near to the shares as whole numbers are, at least one each."""
    exact = [size * weight / math.fsum(weights) for weight in weights]
    places = [max(1, math.floor(share)) for share in exact]
    owed = [share - place for share, place in zip(exact, places, strict=True)]
    while sum(places) != size:
        more = sum(places) < size
        able = [i for i, place in enumerate(places) if more or place > 1]
        chosen = max(able, key=lambda i: owed[i]) if more else min(able, key=lambda i: owed[i])
        places[chosen] += 1 if more else -1
        owed[chosen] -= 1 if more else -1
    return places


def _dealt(seed: int, stream: int, start: int, num: int, size: int) -> list[int]:
    """``num`` numbers from place ``start`` of endless shuffled passes over ``size``."""
    passes = range(start // size, (start + num - 1) // size + 1)
    whole = [i for number in passes for i in _permutation(seed, number, size, stream)]
    return whole[start - passes[0] * size :][:num]


def _permutation(seed: int, epoch: int, size: int, stream: int = 0) -> list[int]:
    key = noise.sample_seeds(seed, epoch, torch.full((1,), stream))
    return noise.uniform(key, noise.SELECTION, 0, size)[0].argsort().tolist()

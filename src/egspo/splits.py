"""Problems put into splits that share nothing."""

import random
from collections.abc import Hashable, Mapping, Sequence


def take_apart(
    marks: Sequence[set[Hashable]], sizes: Mapping[str, int], rest: str, rng: random.Random
) -> dict[str, list[int]]:
    """Indices of each split: those of ``sizes`` are filled one after the other, ``rest`` has what is left.

    Problems that share a mark, of their own or by way of others, go together, so that a split may have a
    few more than its size.
    """
    groups = sharing(marks)
    splits: dict[str, list[int]] = {name: [] for name in (*sizes, rest)}
    for group in rng.sample(groups, len(groups)):
        open_ = (name for name, size in sizes.items() if len(splits[name]) < size)
        splits[next(open_, rest)] += group
    return {name: sorted(indices) for name, indices in splits.items()}


def sharing(marks: Sequence[set[Hashable]]) -> list[list[int]]:
    """Indices in groups: those that share a mark, of their own or by way of others, are in one."""
    groups: dict[int, list[int]] = {}
    group_of: dict[Hashable, int] = {}
    for i, own in enumerate(marks):
        groups[i] = [i]
        for other in sorted({group_of[mark] for mark in own if mark in group_of}):
            groups[i] = groups.pop(other) + groups[i]
        group_of.update((mark, i) for j in groups[i] for mark in marks[j])
    return [sorted(group) for group in groups.values()]

"""Who does what of a rollout batch: groups over ranks, and groups or steps over the updates of a pass."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from egspo.config import TrainConfig
from egspo.ops import noise
from egspo.types import Rewards, Steps, Trajectory, map_tensors

Share = tuple[Trajectory, Steps, Float[Tensor, "batch steps"]]


@dataclass(frozen=True)
class Sharing:
    """How the groups of a batch share out over ``world`` ranks; whole groups stay on a rank.

    Raises:
        ValueError: if they do not come out even.
    """

    train: TrainConfig
    world: int

    def __post_init__(self):
        num, unit = self.train.prompts_per_step, self.world * self._splits
        if num % unit:
            raise ValueError(
                f"train.prompts_per_step: {num} groups do not share out over {self.world} ranks and "
                f"{self._splits} updates; use a multiple of {unit}"
            )

    @property
    def _splits(self) -> int:
        """Updates that groups are shared out over."""
        return self.train.updates_per_rollout if self.train.update_split == "samples" else 1

    def prompts(self, rank: int) -> list[int]:
        """Places in the global batch of a rank's prompts: each update's groups are spread over the ranks."""
        num = self.train.prompts_per_step
        share = num // (self._splits * self.world)
        starts = range(rank * share, num, share * self.world)
        return [place for start in starts for place in range(start, start + share)]

    def samples(self, rank: int) -> Int[Tensor, "batch"]:
        """Numbers in the global batch of a rank's completions."""
        generations = self.train.num_generations
        return (torch.tensor(self.prompts(rank))[:, None] * generations + torch.arange(generations)).flatten()

    def own(self, values: Float[Tensor, "everyone steps"], rank: int) -> Float[Tensor, "batch steps"]:
        """A rank's rows of what was gathered in the order of the ranks."""
        rows = len(values) // self.world
        return values[rank * rows :][:rows]

    def permuted(self, everyone: Rewards, seed: int, step: int) -> Rewards:
        """Rewards shuffled over the batch: what a sample earns says nothing of what it did."""
        samples = torch.cat([self.samples(rank) for rank in range(self.world)])
        key = noise.sample_seeds(seed, step, torch.zeros(1, dtype=torch.long))
        shuffled = noise.uniform(key, noise.SELECTION, 1, len(samples))[0].argsort()
        source = samples.argsort()[shuffled[samples]].to(everyone.final.device)
        values = None if everyone.step_values is None else everyone.step_values[source]
        return replace(everyone, final=everyone.final[source], step_values=values)

    def updates(self, trajectory: Trajectory, steps: Steps, advantages: Tensor) -> Iterator[Share]:
        """What each update of a pass trains on: some of the groups, or some of the selected steps of all."""
        updates = self.train.updates_per_rollout
        if self.train.update_split == "samples":
            rows = len(advantages) // updates
            for start in range(0, len(advantages), rows):
                part = slice(start, start + rows)
                chosen = map_tensors(steps, lambda t, part=part: t[part])
                yield trajectory[part], chosen, advantages[part]
        else:
            indices, masks = steps.index.chunk(updates, 1), steps.mask.chunk(updates, 1)
            for index, mask in zip(indices, masks, strict=True):
                yield trajectory, Steps(index, mask), advantages

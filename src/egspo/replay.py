"""Completions that an objective keeps from its rollouts, to train on again.

Every rank holds all that is kept, so that neither what is drawn nor a gradient depends on their number.
"""

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float, Int
from torch import Tensor

from egspo.config import RLRun
from egspo.data import Problems
from egspo.metrics import Meter
from egspo.objectives.base import Objective
from egspo.ops import noise
from egspo.ops.reveal import completion_mask
from egspo.policy import Policy
from egspo.rollout import pad_prompts
from egspo.sharing import Sharing
from egspo.types import Completions, Steps, Trajectory

Kept = tuple[int, tuple[int, ...]]
"""The number of a problem and the tokens of a finished canvas."""
Share = tuple[Completions, Steps, Float[Tensor, "batch steps"]]
"""What an objective makes views of: `egspo.sharing.Share` of completions that are finished for long."""


class Shelf:
    """Finished canvases by problem, each once; at most ``capacity``, of which the oldest leave first.

    Four bytes a token: as Python's numbers, 50,000 texts of 256 tokens would take half a gigabyte a rank.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._by_problem: dict[int, list[bytes]] = {}
        self._in_order: deque[tuple[int, bytes]] = deque()

    def __len__(self) -> int:
        return len(self._in_order)

    @property
    def num_problems(self) -> int:
        return len(self._by_problem)

    def add(self, kept: Iterable[Kept]) -> None:
        for problem, tokens in kept:
            known, packed = self._by_problem.setdefault(problem, []), array("i", tokens).tobytes()
            if packed in known:
                continue
            known.append(packed)
            self._in_order.append((problem, packed))
            if len(self) > self._capacity:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        problem, packed = self._in_order.popleft()
        self._by_problem[problem].remove(packed)
        if not self._by_problem[problem]:
            del self._by_problem[problem]

    def draw(self, seeds: Int[Tensor, "draws"]) -> list[Kept]:
        """One for each seed: a problem, all equally likely, and one of its canvases.

        Problems are drawn by stratified sampling, so that none comes much more often than another.
        """
        if not len(self):
            return []
        problems, num = list(self._by_problem), len(seeds)
        points = noise.uniform(seeds, noise.SELECTION, 0, 2)
        place = ((torch.arange(num) + points[:, 0]) / num * len(problems)).long().clamp(max=len(problems) - 1)
        drawn = []
        for k, which in zip(place.tolist(), points[:, 1].tolist(), strict=True):
            canvases = self._by_problem[problems[k]]
            drawn.append((problems[k], _unpacked(canvases[int(which * len(canvases))])))
        return drawn

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        problems, canvases = zip(*self._in_order, strict=True) if len(self) else ((), ())
        return {
            "order": torch.tensor(list(self._by_problem)),
            "problems": torch.tensor(problems),
            "canvases": torch.tensor(list(map(_unpacked, canvases)), dtype=torch.int32),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        # A problem keeps its place when its oldest canvas leaves, and draws go by that place.
        self._by_problem = {problem: [] for problem in state["order"].tolist()}
        canvases: Sequence[Sequence[int]] = state["canvases"].tolist()
        self.add(zip(state["problems"].tolist(), map(tuple, canvases), strict=True))


def _unpacked(packed: bytes) -> tuple[int, ...]:
    return tuple(memoryview(packed).cast("i"))


class Replay:
    """Keeps completions of positive advantage and draws what an update trains on.

    Raises:
        ValueError: if an update replays fewer completions than there are ranks.
    """

    def __init__(
        self,
        objective: Objective,
        policy: Policy,
        problems: Problems,
        sharing: Sharing,
        accelerator: Accelerator,
        config: RLRun,
    ):
        if 0 < objective.num_replayed < sharing.world:
            raise ValueError(
                f"objective.num_replayed: {objective.num_replayed} does not go round {sharing.world} ranks; "
                f"use at least {sharing.world}"
            )
        self._num, self._shelf = objective.num_replayed, Shelf(objective.max_kept)
        self._policy, self._encoded, self._sharing = policy, problems.encoded, sharing
        self._accelerator, self._seed = accelerator, config.seed

    def keep(self, problems: Sequence[int], trajectory: Trajectory, advantages: Tensor, meter: Meter) -> None:
        """Add the completions of positive advantage, of all ranks in one order."""
        numbers = self._sharing.samples(self._accelerator.process_index).tolist()
        # What stands behind a text's end is never looked at, and makes no other text of it.
        texts = torch.where(trajectory.completion_mask, trajectory.final, self._policy.end_token_ids[0])
        rows = zip(numbers, problems, texts.tolist(), advantages[:, 0].tolist(), strict=True)
        kept = [(number, problem, tuple(tokens)) for number, problem, tokens, gain in rows if gain > 0]
        if self._sharing.world > 1:
            kept = gather_object(kept)
        self._shelf.add((problem, tokens) for _, problem, tokens in sorted(kept))
        meter.add("replay/completions", float(len(self._shelf)), 1)
        meter.add("replay/problems", float(self._shelf.num_problems), 1)

    def updates(self, first: int, count: int) -> Iterator[Share]:
        """This rank's part of what updates train on, by number; none while nothing is kept."""
        rank, world = self._accelerator.process_index, self._sharing.world
        for update in range(first, first + count):
            # Rollouts have the seeds of steps from 1 on.
            seeds = noise.sample_seeds(self._seed, -1 - update, torch.arange(self._num))
            drawn, seeds = self._shelf.draw(seeds)[rank::world], seeds[rank::world]
            if drawn:
                none = torch.zeros(len(drawn), 1, dtype=torch.long, device=self._policy.device)
                yield self._completions(drawn, seeds), Steps(none, none > 0), (none + 1).double()

    def _completions(self, drawn: Sequence[Kept], seeds: Int[Tensor, "drawn"]) -> Completions:
        policy = self._policy
        prompt_ids, prompt_mask = pad_prompts(policy, [self._encoded[problem] for problem, _ in drawn])
        final = torch.tensor([tokens for _, tokens in drawn], device=policy.device)
        return Completions(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            final=final,
            completion_mask=completion_mask(final, policy.end_token_ids),
            seeds=seeds.to(policy.device),
            mask_token_id=policy.mask_token_id,
        )

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return self._shelf.state()

    def restore(self, state: Mapping[str, Tensor] | None) -> None:
        """None: a checkpoint of a version that kept nothing."""
        if state is not None:
            self._shelf.restore(state)

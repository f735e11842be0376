"""The gradient of one rollout batch, by the trainer's own path up to where the optimizer would step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from egspo import registry
from egspo.metrics import Meter
from egspo.policy import Policy
from egspo.rollout import pad_prompts, rollout
from egspo.tasks.base import Task
from egspo.trainer import Trainer
from egspo.types import Proxy, Trajectory
from gradient.arms import Arm


@dataclass(frozen=True)
class Estimate:
    """Direction of ascent that an arm makes of a batch (minus the gradient of its loss), and its cost."""

    vector: Tensor
    rollout: int
    """Canvases of the rollout, one forward pass each."""
    update: int
    """Canvases of the update, one forward and one backward pass each."""


class _NoStep(torch.optim.Optimizer):
    """Leaves weights and gradients as they are."""

    def __init__(self, parameters: list[torch.nn.Parameter]):
        super().__init__(parameters, {"lr": 0.0})

    def step(self, closure=None) -> None:
        """Nothing."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the gradient is what is asked for."""


class Probe(Trainer):
    """A trainer that never steps. All arms of a batch are given the same completions.

    An arm with another sampler has completions of its own, of the same prompts and seeds; one that judges
    states in another way has the same ones made once more, for what that costs.
    """

    def __init__(self, policy: Policy, task: Task, arm: Arm):
        super().__init__(policy, task, arm.config)
        self.parameters = [p for p in self.policy.model.parameters() if p.requires_grad]
        self.optimizer = _NoStep(self.parameters)
        self._rolled_out: dict[tuple[int, str, Proxy], tuple[Trajectory, int]] = {}
        self._step = 0

    def estimate(self, arm: Arm, step: int) -> Estimate:
        """What ``arm`` makes of batch ``step``, a function of the run's seed and that number alone."""
        if step != self._step:
            self._rolled_out.clear()
            self._step = step
        self.config = arm.config
        self.objective = registry.load("objectives", arm.config.objective.name)(arm.config.objective)
        for parameter in self.parameters:
            parameter.grad = None
        meter = Meter()
        batch = self.collect(step, meter)
        with self._counted() as counted:
            self.update(batch, meter)
        _, cost = self._rolled_out[self._key()]
        return Estimate(self.ascent(), cost, sum(counted))

    def ascent(self) -> Tensor:
        """Minus the gradient that the parameters hold, as one vector."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return -torch.cat([part.flatten() for part in parts])

    def _rollout(self, encoded, seeds, scoring) -> Trajectory:
        key = self._key()
        if key not in self._rolled_out:
            inputs = (*pad_prompts(self.policy, encoded), seeds, self.config.sampler)
            with self._counted() as counted:
                made = rollout(self.policy, *inputs, self._proxy, self.config.train.rollout_batch_size)
            self._rolled_out[key] = made, sum(counted)
        trajectory, _ = self._rolled_out[key]
        scoring.add(0, trajectory)
        return trajectory

    @property
    def _proxy(self) -> Proxy:
        """How states are completed: as the objective asks, greedily if it does not, to be shared by most."""
        return self.objective.proxy or Proxy()

    def _key(self) -> tuple[int, str, Proxy]:
        return self._step, self.config.sampler.model_dump_json(), self._proxy

    @contextmanager
    def _counted(self) -> Iterator[list[int]]:
        """The number of canvases of each forward pass of the model."""
        counted: list[int] = []

        def count(module, args, kwargs) -> None:
            counted.append(len(kwargs["input_ids"] if "input_ids" in kwargs else args[0]))

        hook = self.policy.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield counted
        finally:
            hook.remove()

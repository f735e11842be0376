"""What an iteration of every objective costs: the canvases that models are given, by what they are for.

A run of 4 groups of 4 completions of 4 tokens, none of which ends early, in 4 denoising steps; the rewards of
two groups differ. A hook on the models counts rows; the numbers are those of each objective's page.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import runs
from egspo import registry
from egspo.metrics import Meter
from egspo.trainer import Batch, Trainer
from egspo.types import Views

DOCS = Path(__file__).parents[2] / "docs" / "objectives"
COMPLETIONS, TOKENS, STEPS = 16, 4, 4
RUN = (
    f"sampler.max_completion_length={TOKENS}",
    f"sampler.diffusion_steps={STEPS}",
    "sampler.block_length=2",
    "train.max_steps=1",
)


@dataclass(frozen=True)
class Numbers:
    """Of one pass over the batch."""

    learning: int
    """Completions with an advantage."""
    useful: int
    """Those, or all where a KL term has a use for them."""
    empty: int
    """Masks of useful completions that hide nothing."""


@dataclass(frozen=True)
class Cost:
    """What a page says, and what that is in numbers."""

    says: str
    update: Callable[[Numbers], int]
    """Canvases of one pass over the batch with gradients."""
    settings: tuple[str, ...] = ()
    old: bool = False
    """Whether as many are evaluated for the old policy once there are several updates."""
    reference: bool = True
    """Whether as many are for the reference, with ``beta``; False: it is refused."""


COSTS = {
    # K = 1 draw is one step; several may be the same one.
    "agrpo": Cost(
        "at most K forward and backward passes a sample and update (as many as there are different steps "
        "among the draws), with `beta` as many of the reference. The old log-probabilities are the "
        "rollout's.",
        lambda n: 1 * n.useful,
        ("objective.num_sampled_steps=1",),
    ),
    # P = 2: 1 + 2P.
    "coupled_grpo": Cost(
        "1 + 2P = 3 forward and backward passes a sample and pass over the batch; with several updates a "
        "batch as many without gradients for the old policy, with `beta` as many for the reference.",
        lambda n: (1 + 2 * 2) * n.useful - n.empty,
        ("objective.num_pairs=2",),
        old=True,
    ),
    # N = 2 segments of two steps.
    "d2_stepmerge": Cost(
        "N forward and backward passes a sample and update; with several updates a rollout as many forward "
        "passes of the old policy once for each pass over the batch; with `beta` as many of the reference.",
        lambda n: 2 * n.useful,
        ("objective.num_segments=2",),
        old=True,
    ),
    "diffu_grpo": Cost(
        "1 forward and backward pass a sample and pass over the batch; with several updates a batch 1 more "
        "without gradients for the old policy, with `beta` 1 more for the reference.",
        lambda n: n.useful,
        old=True,
    ),
    # K = 3.
    "egspo": Cost(
        "K forward and backward passes a sample and update, with `beta` as many of the reference; T forward "
        "passes a rollout. The old log-probabilities are the rollout's.",
        lambda n: 3 * n.useful,
        ("objective.num_selected_steps=3",),
    ),
    # Two draws, each with its complement.
    "espo": Cost(
        "at most 4 forward and backward passes a sample and update (an empty mask costs none), as many "
        "forward passes of the old policy once a pass if a rollout is used for more than one update, and as "
        "many of the reference if `beta` > 0.",
        lambda n: 4 * n.useful - n.empty,
        old=True,
    ),
    # Q = 3.
    "gdpo": Cost(
        "Q = 3 forward and backward passes a sample and update (at most: an empty mask costs none), as many "
        "forward passes of the old policy if a rollout is used for more than one update, and as many of the "
        "reference if `beta` > 0.",
        lambda n: 3 * n.useful - n.empty,
        old=True,
    ),
    # A completion without an advantage is held in place, and evaluated.
    "gdsd": Cost(
        "at most 2 forward and backward passes a sample and update, whatever its advantage (an empty mask "
        "costs none), as many forward passes of the old policy if a rollout is used for more than one "
        "update, and as many of the reference if `beta` > 0.",
        lambda n: 2 * COMPLETIONS - n.empty,
        old=True,
    ),
    "just_grpo": Cost(
        "one forward and backward pass for every token of a completion up to its end, at most L a sample and "
        "update; with `beta` as many of the reference. The old log-probabilities are the rollout's, which "
        "takes L passes.",
        lambda n: TOKENS * n.useful,
        ("sampler.remasking=left_to_right",),
    ),
    # K = 3; a step without an advantage is not trained on, whatever beta.
    "mdpo": Cost(
        "at most K forward and backward passes a sample and update; with several updates a rollout as many "
        "forward passes of the old policy once for each pass over the batch (`revealed`: none); with `beta` "
        "as many of the reference. Predictions come from the rollout's passes, their rewards cost no pass",
        lambda n: 3 * n.learning,
        ("objective.num_selected_steps=3",),
        old=True,
    ),
    # m = 3.
    "spg": Cost(
        "m = 2 forward and backward passes a sample and update; none of an old policy or a reference.",
        lambda n: 3 * n.useful,
        ("objective.num_draws=3",),
        reference=False,
    ),
    # m = 2, N = 5: what is replayed, whatever the rollout.
    "sure": Cost(
        "`m N` forward and backward passes an update; none of an old policy or a reference.",
        lambda n: 2 * 5,
        ("objective.num_draws=2", "objective.num_replayed=5"),
        reference=False,
    ),
    # Four steps in slices of s = 3 are two. No KL term for what has no advantage.
    "tracerl": Cost(
        "T / s forward and backward passes, rounded up, a sample with an advantage and update; with several "
        "updates a rollout as many forward passes of the old policy once for each pass over the batch; with "
        "`beta` as many of the reference.",
        lambda n: 2 * n.learning,
        ("objective.steps_per_slice=3",),
        old=True,
    ),
    "unigrpo": Cost(
        "1 forward and backward pass a sample and pass over the batch; with several updates a batch 1 more "
        "without gradients for the old policy, with `beta` 1 more for the reference. A completion of which "
        "nothing was masked costs none.",
        lambda n: n.useful - n.empty,
        old=True,
    ),
    # K = 2. One group shares out the whole budget, so that nothing is rounded.
    "vospo": Cost(
        "K N forward and backward passes a batch and pass over it, rounded up or down in each group, with "
        "`beta` as many of the reference. The old log-probabilities and the one-step completions are the "
        "rollout's.",
        lambda n: 2 * COMPLETIONS,
        (
            "objective.num_selected_steps=2",
            "sampler.remasking=top_prob",
            "train.prompts_per_step=1",
            "train.num_generations=16",
        ),
    ),
    "wd1": Cost(
        "1 forward and backward pass a sample and pass over the batch, and nothing else.",
        lambda n: n.useful,
        reference=False,
    ),
}


def by_turns_in_the_first_half(prompts, completions, **columns) -> list[float]:
    """1 and 0 by turns for the first half of the completions, 1 for all others."""
    return [float(i % 2 == 0 or i >= len(prompts) // 2) for i in range(len(prompts))]


class Counting(Trainer):
    """A trainer that counts the canvases of its models' passes by what they are for."""

    def count(self) -> None:
        self.seen, self.phase, self.drawn = Counter(), "", []
        self.policy.model.register_forward_hook(self._own, with_kwargs=True)
        if self.config.objective.beta:
            with self.policy.reference() as frozen:
                frozen.model.register_forward_hook(self._frozen, with_kwargs=True)
        draw = self.objective.views

        def views(*arguments) -> Views:
            self.drawn.append(draw(*arguments))
            return self.drawn[-1]

        self.objective.views = views

    def _own(self, module, positional, named, output) -> None:
        kind = "trained" if torch.is_grad_enabled() else "evaluated"
        self.seen[f"{self.phase}, {kind}"] += len(named["input_ids"])

    def _frozen(self, module, positional, named, output) -> None:
        self.seen[f"{self.phase}, reference"] += len(named["input_ids"])

    def collect(self, step: int, meter: Meter) -> Batch:
        self.phase = "rollout"
        return super().collect(step, meter)

    def _with_old_scores(self, views: Views) -> Views:
        self.phase = "old"
        return super()._with_old_scores(views)

    def _optimizer_step(self, views: Views, meter: Meter) -> None:
        self.phase = "update"
        super()._optimizer_step(views, meter)


def empty_masks(views: Views, useful: int) -> int:
    return int((~views.scored[:useful].any(-1)).sum())


def test_every_objective_has_its_cost():
    assert list(COSTS) == registry.names("objectives")


@pytest.mark.parametrize("name", COSTS)
def test_a_page_states_its_cost(name):
    page = " ".join((DOCS / f"{name}.md").read_text(encoding="utf-8").split())
    assert f"Cost: {COSTS[name].says}" in page


@pytest.mark.parametrize(("passes", "beta"), [(1, 0.0), (2, 0.0), (3, 0.1)])
@pytest.mark.parametrize("name", COSTS)
def test_canvases_of_an_iteration(tmp_path, name, passes, beta):
    cost, beta = COSTS[name], beta if COSTS[name].reference else 0.0
    settings = f"objective.name={name}", f"objective.beta={beta}", f"train.num_iterations={passes}"
    rewards = [by_turns_in_the_first_half]
    trainer = runs.trainer(tmp_path, *RUN, *settings, *cost.settings, kind=Counting, reward_funcs=rewards)
    # No text ends early.
    trainer.policy.suppressed += trainer.policy.end_token_ids
    trainer.count()
    trainer.train()
    learning = COMPLETIONS // 2
    useful = COMPLETIONS if beta or name == "gdsd" else learning
    numbers = [Numbers(learning, useful, empty_masks(views, useful)) for views in trainer.drawn]
    canvases = sum(cost.update(each) for each in numbers)
    assert len(numbers) == passes
    wanted = {"rollout, evaluated": STEPS * COMPLETIONS, "update, trained": canvases}
    if cost.old and passes > 1:
        wanted["old, evaluated"] = canvases
    if beta:
        wanted["update, reference"] = canvases
    assert dict(trainer.seen) == wanted
    (row,) = runs.rows(tmp_path)
    assert row["update/canvases"] == canvases > 0

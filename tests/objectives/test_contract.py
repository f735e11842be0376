"""What every file in the objectives folder has to keep, on rollouts of a small model with random rewards."""

import copy
import re
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from egspo import registry
from egspo.config import SamplerConfig, TrainConfig
from egspo.likelihood import microbatches, score, separate
from egspo.objectives.base import Objective
from egspo.rollout import pad_prompts, rollout
from egspo.types import Proxy, Rewards, Scores, Steps, Trajectory, Views, map_tensors

NAMES = registry.names("objectives")
DOCS = Path(__file__).parents[2] / "docs"
GROUP = 3
PROMPTS = [[40, 41, 42]] * GROUP + [[50, 51, 52, 53, 54]] * GROUP + [[60]] * GROUP
BETAS = (0.0, 0.1)

every_objective = pytest.mark.parametrize("name", NAMES)


def kind(name: str) -> type[Objective]:
    return registry.load("objectives", name)


def sampler_of(name: str) -> SamplerConfig:
    """Enough steps for every default, and what the objective is defined with."""
    plain = {"max_completion_length": 32, "diffusion_steps": 32, "block_length": 8, "temperature": 0.9}
    exact = {"remasking": "top_prob"} if name == "vospo" else {}  # its baseline needs exact scores
    return SamplerConfig(**(plain | exact | dict(kind(name).requires)))


def make(name: str, **settings: Any) -> Objective:
    # Random rewards lie between 0 and 1.
    low = {"min_reward": 0.5} if name == "sure" else {}
    return kind(name)(kind(name).Config(name=name, **low, **settings))


def allowed(objective: Objective, sampler: SamplerConfig) -> bool:
    return not objective.problems(sampler, TrainConfig())


@dataclass(frozen=True)
class Case:
    """A rollout, what it earned, and what an objective makes of it."""

    objective: Objective
    policy: Any
    sampler: SamplerConfig
    trajectory: Trajectory
    rewards: Rewards
    advantages: Tensor
    steps: Steps
    views: Views

    def scores(self, views: Views | None = None) -> Scores:
        """As the trainer asks for them, as leaves of their own."""
        tempered = self.objective.tempered
        sampler = self.sampler if tempered else self.sampler.model_copy(update={"temperature": 1.0})
        exact = self.objective.wants_exact_kl
        with torch.no_grad():
            found = score(self.policy, views or self.views, sampler, with_exact_kl=exact)
        return found


@pytest.fixture(scope="module")
def policies(tiny_policy):
    """The policy that acted, and another to stand for the reference and for earlier updates."""
    return tiny_policy(0, torch.float64), tiny_policy(1, torch.float64)


@pytest.fixture(scope="module")
def case(policies):
    """``case(name, beta=0.0, equal=False)``; equal: every completion of a group earns the same."""

    @cache
    def roll(name: str, proxy: Proxy | None) -> Trajectory:
        sampler = sampler_of(name)
        ids, mask = pad_prompts(policies[0], PROMPTS)
        # Seeds under which some completions end early and some never do.
        return rollout(policies[0], ids, mask, torch.arange(len(PROMPTS)), sampler, proxy)

    @cache
    def build(name: str, beta: float = 0.0, equal: bool = False) -> Case:
        objective = make(name, beta=beta)
        trajectory = roll(name, objective.proxy)
        if equal:
            # At a step that only one of a group still has, there is nobody to be equal to.
            last = torch.full_like(trajectory.last_step, trajectory.num_steps - 1)
            trajectory = replace(trajectory, last_step=last)
        rewards = earn(objective, trajectory, equal)
        advantages = objective.advantages(rewards)
        steps = objective.select(trajectory, advantages)
        views = objective.views(trajectory, steps, advantages, 0)
        return Case(objective, policies[0], sampler_of(name), trajectory, rewards, advantages, steps, views)

    return build


def earn(objective: Objective, trajectory: Trajectory, equal: bool) -> Rewards:
    generator = torch.Generator().manual_seed(3)
    num = len(trajectory.final)
    candidates = objective.candidates(trajectory)
    final = torch.rand(num, generator=generator, dtype=torch.float64)
    values = None
    if candidates is not None:
        values = torch.rand(candidates.mask.shape, generator=generator, dtype=torch.float64)
    if equal:
        final = torch.full_like(final, 0.1)
        values = None if values is None else torch.full_like(values, 0.1)
    norm = trajectory.score_norm * trajectory.informative
    return Rewards(final, {}, GROUP, trajectory.num_steps, candidates, values, norm, trajectory.seeds)


def betas(name: str) -> list[float]:
    """Those of ``BETAS`` that the objective has a use for."""
    return [beta for beta in BETAS if allowed(make(name, beta=beta), sampler_of(name))]


def same(left: Any, right: Any) -> bool:
    """Whether two records hold the same numbers."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, Steps | Trajectory | Rewards | Views | Scores):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in fields(left))
    return left == right


def evaluate(case: Case, views: Views, scores: Scores, reference: Scores | None) -> tuple[float, Tensor]:
    """A loss and its gradient by the log-probabilities of the tokens."""
    leaf = scores.token_logp.clone().requires_grad_()
    # No gradient flows through what is not scored.
    output = case.objective.loss(replace(scores, token_logp=leaf * views.scored), reference, views)
    if not output.loss.requires_grad:
        return float(output.loss), torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(output.loss, leaf)
    return float(output.loss.detach()), gradient


def reference_of(case: Case, policies, views: Views) -> Scores | None:
    other = replace(case, policy=policies[1])
    return other.scores(views) if case.objective.config.beta else None


def off_policy(case: Case, policies) -> Views:
    """Its views as after some updates: the log-probabilities of another policy are the old ones."""
    old = replace(case, policy=policies[1]).scores()
    near = {
        "old_token_logp": case.scores().token_logp + 0.1 * old.token_logp.sin(),
        "old_position_logp": case.scores().position_logp,
    }
    return replace(case.views, **near) if case.objective.wants_old_scores else case.views


# ---- what it says of itself ----------------------------------------------------------------------------


@every_objective
def test_describes_itself(name):
    objective = kind(name)
    assert objective.name == name and objective.description and "\n" not in objective.description
    assert re.fullmatch(r"arXiv \d{4}\.\d{5}|docs/objectives/\w+\.md", objective.paper)
    module = __import__(objective.__module__, fromlist=["_"])
    assert objective.paper in module.__doc__
    assert objective.Config is module.Config and objective.Config.__doc__


@every_objective
def test_has_a_page_that_names_every_setting_and_metric(name):
    page = (DOCS / "objectives" / f"{name}.md").read_text(encoding="utf-8")
    assert kind(name).paper in page
    settings = set(kind(name).Config.model_fields) - {"name"}
    assert not {key for key in settings if f"`{key}`" not in page}
    everything = page + (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert not {key for key in kind(name).metric_keys if f"`{key}`" not in everything}


@every_objective
def test_defaults_are_possible_and_unknown_settings_are_refused(name):
    assert make(name).problems(sampler_of(name), TrainConfig()) == []
    with pytest.raises(ValueError, match="nonsense"):
        make(name, nonsense=1)
    with pytest.raises(ValueError, match="beta"):
        make(name, beta=-0.1)


@every_objective
def test_a_sampler_that_it_is_not_defined_with_is_refused(name):
    sampler = sampler_of(name)
    for key in kind(name).requires:
        other = SimpleNamespace(**(sampler.model_dump() | {key: "something else"}))
        (line,) = make(name).problems(other, TrainConfig())
        assert line.startswith(f"sampler.{key}: 'something else'")


# ---- what its hooks keep -------------------------------------------------------------------------------


@every_objective
def test_hooks_leave_their_records_as_they_are(name, case, policies):
    made = case(name, betas(name)[-1])
    before = copy.deepcopy((made.trajectory, made.rewards, made.advantages, made.steps))
    objective = made.objective
    objective.candidates(made.trajectory)
    objective.advantages(made.rewards)
    objective.select(made.trajectory, made.advantages)
    objective.views(made.trajectory, made.steps, made.advantages, 1)
    after = (made.trajectory, made.rewards, made.advantages, made.steps)
    assert all(same(left, right) for left, right in zip(before, after, strict=True))
    views, scores = off_policy(made, policies), made.scores()
    reference = reference_of(made, policies, views)
    kept = copy.deepcopy((views, scores, reference))
    objective.denominator(views)
    objective.active(views)
    objective.loss(scores, reference, views)
    assert all(same(left, right) for left, right in zip(kept, (views, scores, reference), strict=True))


HOLDING = ("gdsd",)
"""Objectives that hold a completion of advantage 0 in place, and so evaluate it."""


@every_objective
def test_equal_rewards_teach_nothing_and_cost_nothing(name, case):
    made = case(name, equal=True)
    assert made.advantages.shape == (len(PROMPTS), made.trajectory.num_steps)
    assert torch.count_nonzero(made.advantages) == 0
    assert name in HOLDING or not made.objective.active(made.views).any()
    unequal = case(name)
    assert torch.count_nonzero(unequal.advantages) and unequal.objective.active(unequal.views).any()


BATCH_WIDE = ("vospo",)
"""Objectives that fit their baseline to the whole batch, and share out its budget."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BATCH_WIDE])
def test_advantages_of_a_group_depend_on_no_other(name, case):
    made = case(name)
    half = slice(GROUP, 2 * GROUP)
    alone = map_tensors(made.rewards, lambda tensor: tensor[half])
    torch.testing.assert_close(made.objective.advantages(alone), made.advantages[half])


@every_objective
@pytest.mark.parametrize("iteration", [0, 3])
def test_views_are_drawn_from_the_samples_own_seeds(name, iteration, case):
    """The same again; the same for some of the samples, and for prompts that are padded further."""
    made = case(name)

    def views(trajectory: Trajectory, rows: Any = slice(None)) -> Views:
        advantages = made.advantages[rows]
        steps = made.objective.select(trajectory, advantages)
        return made.objective.views(trajectory, steps, advantages, iteration)

    whole = views(made.trajectory)
    assert same(whole, views(made.trajectory))
    rows = torch.tensor([7, 2])
    assert same(whole[rows], views(made.trajectory[rows], rows))
    ids, mask = made.trajectory.prompt_ids, made.trajectory.prompt_mask
    wider = replace(
        made.trajectory,
        prompt_ids=torch.cat([torch.zeros_like(ids), ids], 1),
        prompt_mask=torch.cat([torch.zeros_like(mask), mask], 1),
    )
    padded, pad = views(wider), ids.shape[1]
    assert not padded.attention_mask[:, :pad].any()
    trimmed = {"inputs": padded.inputs[:, :, pad:], "attention_mask": padded.attention_mask[:, pad:]}
    assert same(whole, replace(padded, **trimmed))


@every_objective
def test_views_ask_for_tokens_that_are_hidden_and_belong_to_the_completion(name, case):
    """A token that the canvas shows has no likelihood to speak of; what is behind the end says nothing."""
    made, views = case(name), case(name).views
    canvas = views.inputs[:, :, -views.scored.shape[2] :]
    assert (canvas[views.scored] == made.trajectory.mask_token_id).all()
    if name != "mdpo":  # whose predictions need not have come true
        assert same(views.targets, made.trajectory.final[:, None].expand_as(views.targets))
    if not made.objective.tempered:
        assert not (views.scored & ~made.trajectory.completion_mask[:, None]).any()
    assert torch.isfinite(views.weight).all() and (views.weight >= 0).all()
    # A view that asks for nothing is not evaluated.
    asked = views.scored.any(-1) if views.order is None else (views.order > -2).any(-1)
    assert not (made.objective.active(views) & ~asked).any()


@every_objective
def test_the_number_of_views_is_as_told(name, case):
    made = case(name)
    told = made.objective.num_views(made.sampler)
    assert made.views.weight.shape[1] == told
    used = (made.views.weight != 0).sum(1)
    assert int(used.max()) <= told
    if name in BATCH_WIDE:  # a sample may get none of its steps, or all
        assert int(used.sum()) == pytest.approx(made.objective.config.num_selected_steps * len(used), abs=3)
    else:  # a step that is drawn twice is one view
        assert int(used.max()) >= 0.9 * told


# ---- its loss ------------------------------------------------------------------------------------------


@every_objective
def test_loss_returns_the_metrics_that_are_declared(name, case, policies):
    for beta in betas(name):
        made = case(name, beta)
        output = made.objective.loss(made.scores(), reference_of(made, policies, made.views), made.views)
        assert set(output.metrics) == set(made.objective.metric_keys)
        assert "loss/policy" in output.metrics
        for total, count in output.metrics.values():
            assert isinstance(total, float) and isinstance(count, float) and count >= 0


@every_objective
def test_views_that_are_not_active_have_no_gradient(name, case, policies):
    for beta in betas(name):
        made = case(name, beta)
        # Samples with nothing to learn from, and views that only fill up.
        views = off_policy(made, policies)
        gone = torch.zeros_like(views.weight)
        gone[1] = gone[5] = 1
        views = replace(views, advantages=views.advantages.masked_fill(gone > 0, 0.0))
        active = made.objective.active(views)
        holds = beta > 0 or name in HOLDING
        assert active.any() and (holds or not active[gone > 0].any())
        _, gradient = evaluate(made, views, made.scores(), reference_of(made, policies, views))
        assert torch.count_nonzero(gradient[~active]) == 0
        # GDSD's clip, 4e-4 of a whole completion, lets go of all that these policies moved.
        assert torch.count_nonzero(gradient) > 0 or (name, beta) == ("gdsd", 0)


@every_objective
def test_neither_microbatches_nor_idle_views_change_the_loss(name, case, policies):
    """Whole, against the active views in portions, each sample's (or each view's) on its own."""
    for beta in betas(name):
        made = case(name, beta)
        views = off_policy(made, policies)
        active = made.objective.active(views)
        whole, gradient = evaluate(made, views, made.scores(), reference_of(made, policies, views))
        kept = views
        if made.objective.coupled:
            kept = replace(views, weight=views.weight * active)[active.any(1)]
        else:
            kept = separate(views, active)
        losses, gradients = [], []
        for chunk in microbatches(kept, 1):
            loss, part = evaluate(made, chunk, made.scores(chunk), reference_of(made, policies, chunk))
            losses.append(loss)
            gradients.append(part)
        assert sum(losses) == pytest.approx(whole, abs=1e-10)
        wanted = gradient[active.any(1)] if made.objective.coupled else gradient[active]
        torch.testing.assert_close(torch.cat(gradients).reshape(wanted.shape), wanted, rtol=0, atol=1e-10)


@every_objective
def test_the_loss_is_proportional_to_its_weights(name, case, policies):
    """The trainer divides them by a denominator that is known only over all ranks."""
    made = case(name, betas(name)[-1])
    views = off_policy(made, policies)
    arguments = made.scores(), reference_of(made, policies, views)
    assert made.objective.denominator(views) > 0
    whole, gradient = evaluate(made, views, *arguments)
    part, smaller = evaluate(made, replace(views, weight=views.weight / 8), *arguments)
    assert part == pytest.approx(whole / 8, rel=1e-10)
    torch.testing.assert_close(smaller, gradient / 8)


@every_objective
def test_the_first_ratio_is_one(name, case):
    if "loss/ratio" not in kind(name).metric_keys:
        pytest.skip(f"{name} has no ratio")
    made = case(name)
    scores, policy = made.scores(), []
    own = {"old_token_logp": scores.token_logp, "old_position_logp": scores.position_logp}
    # With one update a batch, and before the first of several.
    for views in (made.views, replace(made.views, **own)):
        output = made.objective.loss(scores, None, views)
        total, count = output.metrics["loss/ratio"]
        assert count > 0 and total / count == pytest.approx(1.0, abs=1e-9)
        policy.append(float(output.loss))
    assert policy[0] == pytest.approx(policy[1], abs=1e-9)

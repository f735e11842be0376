"""The reinforcement learning loop, readable as the algorithm box of a paper.

One iteration: roll out groups of completions; reward them and the one-step completions an objective asks
for; turn rewards into advantages; select denoising steps; evaluate them in few large forward passes; step.
The loop knows nothing of any objective. Whole groups stay on a rank; denominators are global, so neither the
microbatch size nor the number of ranks changes a gradient.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from egspo import registry
from egspo.checkpoint import Checkpoints
from egspo.config import RLRun, SamplerConfig
from egspo.data import encode_problems
from egspo.evaluation import check_validation, validate
from egspo.external import RewardFunc
from egspo.likelihood import correct, microbatches, one_view, score, score_in_microbatches, separate
from egspo.metrics import Meter, batch_metrics, importance_metrics, transcripts, warnings
from egspo.ops import noise
from egspo.optim import apply_gradients, build_optimizer, exchanged_if, learning_rate, set_learning_rate
from egspo.policy import Policy
from egspo.publish import publish_finished
from egspo.replay import Replay
from egspo.rewards import FunctionScorer, Scored, Scoring, TaskScorer
from egspo.rollout import check_sampler, pad_prompts, rollout
from egspo.settings import save_settings
from egspo.sharing import Sharing
from egspo.tasks.base import Task
from egspo.tracking import Mirror, RunFolder, Screen, peak_memory_gb, start_accelerator
from egspo.types import Prompt, Rewards, Steps, Trajectory, Views, map_tensors

Callback = Callable[["Trainer", dict[str, Any]], None]
"""Called after each iteration with the trainer and the iteration's metrics."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a rollout batch."""

    prompts: list[Prompt]
    trajectory: Trajectory
    scored: Scored
    advantages: torch.Tensor
    steps: Steps


class Trainer:
    """Improves a policy on a task by reinforcement learning.

    Args:
        policy: what to train; its model is prepared for the launch's devices in place.
        task: problems and grader.
        config: checked settings (``egspo.config.load_config`` or ``parse_config``).
        reward_funcs: rewards instead of the task's grader: ``f(prompts, completions, **columns)``.
        reward_weights: weights of ``reward_funcs``, 1 each by default.
        callbacks: called after each iteration; one that sets ``trainer.should_stop`` ends the run there.

    Raises:
        ValueError: if no prompt is short enough, or the prompts do not share out evenly over the ranks.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        config: RLRun,
        reward_funcs: Sequence[RewardFunc] | None = None,
        reward_weights: Sequence[float] | None = None,
        callbacks: Sequence[Callback] = (),
        accelerator: Accelerator | None = None,
    ):
        self.policy, self.task, self.config = policy, task, config
        self.accelerator = accelerator or start_accelerator(config)
        self.objective = registry.load("objectives", config.objective.name)(config.objective)
        if reward_weights and not reward_funcs:
            raise ValueError(
                "reward_weights: given without reward_funcs; weigh a task's parts by task.reward_weights"
            )
        self.scorer = FunctionScorer(reward_funcs, reward_weights) if reward_funcs else TaskScorer(task)
        self.callbacks = list(callbacks)
        self.folder = RunFolder(config.output_dir, self.accelerator)
        self.mirror = Mirror(self.accelerator, config.tracking)
        self.checkpoints = Checkpoints(config.output_dir / "checkpoints", config.train.save_total_limit)
        self.sharing = Sharing(config.train, self.accelerator.num_processes)
        longest, weights = config.train.max_prompt_length, task.train_weights
        self.problems = encode_problems(
            policy, task.load("train"), longest, "train.max_prompt_length", weights
        )
        check_sampler(policy, config.sampler, max(map(len, self.problems.encoded)))
        if config.train.eval_steps:
            check_validation(policy, task, config)
        policy.model.to(self.accelerator.device)
        if config.objective.beta:
            policy.freeze_reference()
        optimizer = build_optimizer(policy.model, config.optim)
        policy.model, self.optimizer = self.accelerator.prepare(policy.model, optimizer)
        self.best: dict[str, Any] = {"accuracy": -1.0, "step": 0}
        self.num_updates = self.num_tokens = 0
        self.replay = Replay(self.objective, policy, self.problems, self.sharing, self.accelerator, config)
        self.should_stop = False

    # ---- the algorithm -------------------------------------------------------------------------------

    def train(self) -> Path:
        """Run to the end; returns the folder of the trained model or adapter.

        Raises:
            ValueError: if the run folder belongs to another configuration, or a reward function misbehaves.
        """
        self.folder.open(self.config)
        self.mirror.start(self.config)
        first, before = self._resume()
        clock = time.monotonic() - before
        with Screen("RL", self.config.train.max_steps, self.accelerator.is_main_process) as screen:
            if skipped := self.problems.skipped:
                screen.say(f"{skipped} prompts longer than train.max_prompt_length were left out")
            for step in range(first + 1, self.config.train.max_steps + 1):
                meter = Meter()
                batch = self.collect(step, meter)
                self.update(batch, meter)
                self._log(step, batch, meter, time.monotonic() - clock, screen)
                self._keep(step, screen)
                if self.should_stop:
                    break
        return self._finish()

    def collect(self, step: int, meter: Meter) -> Batch:
        """Rollout, rewards and advantages of one iteration."""
        index, seeds = self._draw(step)
        prompts, encoded = ([of[i] for i in index] for of in (self.problems.prompts, self.problems.encoded))
        candidates_of, generations = self.objective.candidates, self.config.train.num_generations
        with Scoring(self.scorer, self.policy, prompts, candidates_of, generations) as scoring:
            with meter.timed("time/rollout"):
                trajectory = self._rollout(encoded, seeds, scoring)
            with meter.timed("time/reward"):
                scored = scoring.result(trajectory)
        with meter.timed("time/reward"):
            everyone = self._gather(scored.rewards)
            if self.config.train.permute_rewards:
                everyone = self.sharing.permuted(everyone, self.config.seed, step)
            advantages = self.objective.advantages(everyone)
            advantages = self.sharing.own(advantages, self.accelerator.process_index)
        if self.objective.num_replayed:
            self.replay.keep(index, trajectory, advantages, meter)
        steps = self.objective.select(trajectory, advantages)
        if trajectory.cache != "none":
            with meter.timed("time/rollout"):
                trajectory = self._corrected(trajectory, steps, advantages, meter)
        return Batch(prompts, trajectory, scored, advantages, steps)

    def update(self, batch: Batch, meter: Meter) -> None:
        """All optimizer steps on one rollout batch."""
        with meter.timed("time/update"):
            plan = list(self._plan(batch))
            if self.objective.wants_old_scores and len(plan) > 1:
                plan = [self._with_old_scores(views) for views in plan]
            for views in plan:
                self._optimizer_step(views, meter)
            if not plan:  # nothing to replay: these updates are left out, not put off
                self.num_updates += self.config.train.num_iterations * self.config.train.updates_per_rollout

    def _plan(self, batch: Batch) -> Iterator[Views]:
        """What each update trains on: of this rollout, or of what is replayed."""
        updates = self.config.train.updates_per_rollout
        for iteration in range(self.config.train.num_iterations):
            shares = self.sharing.updates(batch.trajectory, batch.steps, batch.advantages)
            if self.objective.num_replayed:
                shares = self.replay.updates(self.num_updates + iteration * updates, updates)
            for share in shares:
                yield self.objective.views(*share, iteration)

    def _optimizer_step(self, views: Views, meter: Meter) -> None:
        train = self.config.train
        total = train.max_steps * train.num_iterations * train.updates_per_rollout
        rate = learning_rate(self.config.optim, self.num_updates, total)
        set_learning_rate(self.optimizer, rate)
        meter.add("optim/learning_rate", rate, 1)
        self.num_updates += 1
        views, active = self._normalise(views)
        meter.add("steps/skipped_samples_fraction", float((~active.any(1)).sum()), len(views))
        meter.add("update/canvases", float(active.sum()), 0)
        meter.add("loss/policy", 0.0, float(self.accelerator.is_main_process))
        chunks = list(microbatches(self._active(views, active), train.microbatch_size))
        rounds = int(self._across_ranks(len(chunks), max))
        if rounds == 0:
            return
        for k in range(rounds):
            with exchanged_if(k == rounds - 1, self.accelerator, self.policy.model):
                loss = self._loss(chunks[k], meter) if k < len(chunks) else self._idle_loss(views)
                self.accelerator.backward(loss * self.accelerator.num_processes)
        norm = apply_gradients(self.accelerator, self.policy.model, self.optimizer, self.config.optim)
        meter.add("optim/grad_norm", norm, 1)

    def _with_old_scores(self, views: Views) -> Views:
        """Views with the log-probabilities of the policy as it is now, before any of the batch's updates."""
        rows = self.objective.active(views).any(1)
        zeros = torch.zeros_like(views.scored, dtype=views.weight.dtype)
        if rows.any():
            size = self.config.train.microbatch_size
            zeros[rows] = score_in_microbatches(self.policy, views[rows], self._scoring, size).token_logp
        return replace(views, old_token_logp=zeros, old_position_logp=torch.zeros_like(views.weight))

    @property
    def _scoring(self) -> SamplerConfig:
        """The distribution whose log-probabilities the objective asks for."""
        sampler = self.config.sampler
        return sampler if self.objective.tempered else sampler.model_copy(update={"temperature": 1.0})

    def _idle_loss(self, views: Views) -> torch.Tensor:
        """Zero, by way of the model: a rank that has run out still takes part in the collectives."""
        return score(self.policy, one_view(views), self._scoring).token_logp.sum() * 0

    def _loss(self, chunk: Views, meter: Meter) -> torch.Tensor:
        sampler, reference = self._scoring, None
        exact = self.objective.wants_exact_kl
        scores = score(self.policy, chunk, sampler, with_exact_kl=exact)
        if self.config.objective.beta and not exact:
            with self.policy.reference() as frozen:
                reference = score(frozen, chunk, sampler)
        output = self.objective.loss(scores, reference, chunk)
        meter.merge(output.metrics)
        return output.loss

    # ---- rollouts and shares -------------------------------------------------------------------------

    def _draw(self, step: int) -> tuple[list[int], torch.Tensor]:
        """This rank's problems of an iteration, one for each completion, and the seeds of these."""
        train, rank = self.config.train, self.accelerator.process_index
        num = train.prompts_per_step
        order = self.problems.order(self.config.seed, (step - 1) * num, num)
        index = [order[place] for place in self.sharing.prompts(rank) for _ in range(train.num_generations)]
        seeds = noise.sample_seeds(self.config.seed, step, self.sharing.samples(rank)).to(self.policy.device)
        return index, seeds

    def _rollout(self, encoded: list[list[int]], seeds: torch.Tensor, scoring: Scoring) -> Trajectory:
        prompt_ids, prompt_mask = pad_prompts(self.policy, encoded)
        proxy, size = self.objective.proxy, self.config.train.rollout_batch_size
        sampler, add = self.config.sampler, scoring.add
        return rollout(self.policy, prompt_ids, prompt_mask, seeds, sampler, proxy, size, finished=add)

    def _corrected(
        self, trajectory: Trajectory, steps: Steps, advantages: torch.Tensor, meter: Meter
    ) -> Trajectory:
        """What a cached rollout did, weighed as the policy would have done it, at the steps that count."""
        train = self.config.train
        useful = self.objective.useful(advantages.gather(1, steps.index))
        steps = Steps(steps.index, steps.mask & useful)
        sampler, size = self.config.sampler, train.microbatch_size
        correction = correct(self.policy, trajectory, steps, sampler, train.importance_cap, size)
        importance_metrics(meter, correction.log_weight[steps.mask])
        return correction.trajectory

    def _normalise(self, views: Views) -> tuple[Views, torch.Tensor]:
        """Weights over the global denominator, and which views can contribute."""
        total = self._across_ranks(self.objective.denominator(views), sum)
        return replace(views, weight=views.weight / total), self.objective.active(views)

    def _active(self, views: Views, active: torch.Tensor) -> Views:
        if not self.objective.coupled:
            return separate(views, active)
        rows = active.any(1)
        return replace(views[rows], weight=(views.weight * active)[rows])

    # ---- ranks ---------------------------------------------------------------------------------------

    def _across_ranks(self, value: int | float, combine: Callable[[Sequence[float]], float]) -> int | float:
        return combine(gather_object([value]))

    def _gather(self, rewards: Rewards) -> Rewards:
        if self.accelerator.num_processes == 1:
            return rewards
        return map_tensors(rewards, self.accelerator.gather)

    # ---- records -------------------------------------------------------------------------------------

    def _log(self, step: int, batch: Batch, meter: Meter, elapsed: float, screen: Screen) -> None:
        batch_metrics(meter, batch.trajectory, batch.scored.rewards, batch.steps, batch.advantages)
        parts = [f"reward/{name}" for name in self.scorer.part_names]
        values = meter.over_ranks(self.accelerator).result([*self.objective.metric_keys, *parts])
        self.num_tokens += int(values.pop("rollout/tokens"))
        train = self.config.train
        samples = step * train.prompts_per_step * train.num_generations
        row = {"step": step, "time": elapsed, "samples": samples, "tokens": self.num_tokens, **values}
        row["memory/peak_gb"] = peak_memory_gb()
        self.folder.append("metrics.jsonl", [row])
        samples = (batch.prompts, batch.scored, batch.trajectory, batch.steps, batch.advantages)
        self.folder.append("transcripts.jsonl", transcripts(step, *samples, train.num_transcripts))
        self.mirror.log(row)
        screen.advance(step, f"reward {row['reward/mean']:.3f}")
        for warning in warnings(row):
            screen.say(warning)
        for callback in self.callbacks:
            callback(self, row)
        # What one rank sees, its clock or its memory, another may not.
        self.should_stop = bool(self._across_ranks(self.should_stop, any))

    def _keep(self, step: int, screen: Screen) -> None:
        train = self.config.train
        if train.eval_steps and step % train.eval_steps == 0:
            self._validate(step, screen)
        last = step == train.max_steps or self.should_stop
        saved = last or (train.save_steps and step % train.save_steps == 0)
        if saved and self.accelerator.is_main_process:
            state = {"best": self.best, "num_updates": self.num_updates, "num_tokens": self.num_tokens}
            state["replay"] = self.replay.state()
            self.checkpoints.save(step, self.policy.model, self.optimizer, state)

    def _validate(self, step: int, screen: Screen) -> None:
        accuracy = validate(self.policy, self.task, self.config, step, self.folder, self.accelerator, screen)
        if accuracy > self.best["accuracy"]:
            self.best = {"accuracy": accuracy, "step": step}
            if self.accelerator.is_main_process:
                self.checkpoints.save_best(self.policy.model)

    def _resume(self) -> tuple[int, float]:
        """The iteration to go on from, and the seconds taken up to there."""
        first = self.checkpoints.last()
        if first:
            state = self.checkpoints.load(first, self.policy.model, self.optimizer)
            self.best, self.num_updates = state["best"], state["num_updates"]
            self.num_tokens = state["num_tokens"]
            self.replay.restore(state.get("replay"))
            if self.accelerator.is_main_process:
                self.checkpoints.restore_best(first)
        return first, self.folder.rewind(first)

    def _finish(self) -> Path:
        """Write the final (or best validated) model; idempotent, so a finished run may be called again."""
        target = self.folder.path / "model"
        if self.config.train.load_best_model_at_end and self.best["step"]:
            self.accelerator.wait_for_everyone()
            self.checkpoints.load_best(self.policy.model)
        if self.accelerator.is_main_process:
            self.policy.save(target)
            about = {"summary": f"{self.objective.name} on {self.task.name}, from {self.policy.source}"}
            save_settings(target, self.task, self.config, about)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            publish_finished(self.folder.path, self.config.tracking)
        self.mirror.end()
        return target

"""Masked-diffusion supervised fine-tuning (LLaDA, arXiv 2502.09992): clean prompt, noised completion, 1/t."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from egspo.checkpoint import Checkpoints
from egspo.config import SFTRun
from egspo.data import Problems, encode_problems, load_hub_pairs, read_pairs, solved
from egspo.evaluation import check_validation, validate
from egspo.likelihood import microbatches, score
from egspo.ops import masking, noise
from egspo.optim import apply_gradients, build_optimizer, exchanged_if, learning_rate, set_learning_rate
from egspo.policy import Policy
from egspo.publish import publish_finished
from egspo.rollout import check_sampler, pad_prompts
from egspo.settings import save_settings
from egspo.tasks.base import Task
from egspo.tracking import Mirror, RunFolder, Screen, peak_memory_gb, start_accelerator
from egspo.types import Prompt, Views

_PLAIN = {"temperature": 1.0, "cfg_scale": 0.0}


class SFTTrainer:
    """Fine-tune a policy on gold completions; stops early at a target of the validation accuracy."""

    def __init__(
        self, policy: Policy, task: Task | None, config: SFTRun, accelerator: Accelerator | None = None
    ):
        self.policy, self.task, self.config = policy, task, config
        self.accelerator = accelerator or start_accelerator(config)
        if config.sft.batch_size < self.accelerator.num_processes:
            world = self.accelerator.num_processes
            raise ValueError(
                f"sft.batch_size: {config.sft.batch_size} leaves ranks idle; use at least {world}"
            )
        self.folder = RunFolder(config.output_dir, self.accelerator)
        self.mirror = Mirror(self.accelerator, config.tracking)
        self.checkpoints = Checkpoints(config.output_dir / "checkpoints", keep=1)
        examples, weights = self._examples()
        longest = config.sft.max_prompt_length
        self.problems = encode_problems(policy, examples, longest, "sft.max_prompt_length", weights)
        check_sampler(policy, config.sampler, max(map(len, self.problems.encoded)))
        if task is not None and config.sft.eval_steps:
            check_validation(policy, task, config)
        length = config.sampler.max_completion_length
        self.canvases = torch.tensor(
            [policy.encode_completion(p.solution, length) for p in self.problems.prompts]
        )
        policy.model.to(self.accelerator.device)
        optimizer = build_optimizer(policy.model, config.optim)
        policy.model, self.optimizer = self.accelerator.prepare(policy.model, optimizer)
        self._scoring = config.sampler.model_copy(update=_PLAIN)

    def train(self) -> Path:
        """Run to the end or to the target; returns the folder of the model.

        Raises:
            ValueError: if the run folder belongs to another configuration.
        """
        config, sft = self.config, self.config.sft
        self.folder.open(config)
        self.mirror.start(config)
        step, reached, before = self._resume()
        began = time.monotonic() - before
        with Screen("SFT", sft.max_steps, self.accelerator.is_main_process) as screen:
            if skipped := self.problems.skipped:
                screen.say(f"{skipped} prompts longer than sft.max_prompt_length were left out")
            while step < sft.max_steps and not reached:
                row = self._step(step)
                step += 1
                row = {"step": step, "time": time.monotonic() - began, "samples": step * sft.batch_size} | row
                self.folder.append("metrics.jsonl", [row])
                self.mirror.log(row)
                screen.advance(step, f"loss {row['loss/sft']:.3f}")
                if sft.eval_steps and step % sft.eval_steps == 0:
                    reached = self._validate(step, screen)
                if reached or step == sft.max_steps or (sft.save_steps and step % sft.save_steps == 0):
                    self._save(step, reached)
            if reached:
                screen.say(f"validation reached {sft.target_score:.0%}: stopped at step {step}")
        return self._finish()

    def _examples(self) -> tuple[list[Prompt], Mapping[str, float]]:
        """What to learn from, and the weights of its tasks if they are a mix."""
        sft = self.config.sft
        if sft.data is not None:
            return read_pairs(sft.data), {}
        if sft.dataset is not None:
            return load_hub_pairs(sft.dataset, sft.dataset_split), {}
        return solved(self.task), self.task.train_weights

    def _step(self, step: int) -> dict[str, float]:
        started = time.monotonic()
        rate = learning_rate(self.config.optim, step, self.config.sft.max_steps)
        set_learning_rate(self.optimizer, rate)
        self.policy.model.train()
        with self._dropout_noise(step):
            loss = self._backward(*self._batch(step))
        norm = apply_gradients(self.accelerator, self.policy.model, self.optimizer, self.config.optim)
        self.policy.model.eval()
        return {
            "loss/sft": float(self.accelerator.reduce(loss, "sum")),
            "optim/grad_norm": norm,
            "optim/learning_rate": rate,
            "time/update": time.monotonic() - started,
            "memory/peak_gb": peak_memory_gb(),
        }

    def _backward(self, views: Views, level: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
        """Adds up gradients over microbatches; returns this rank's part of the loss."""
        size, total = self.config.sft.microbatch_size, torch.zeros((), device=level.device)
        chunks = list(zip(microbatches(views, size), level.split(size), strict=True))
        for k, (chunk, levels) in enumerate(chunks):
            with exchanged_if(k == len(chunks) - 1, self.accelerator, self.policy.model):
                scores = score(self.policy, chunk, self._scoring)
                losses = masking.diffusion_loss(scores.token_logp[:, 0], chunk.scored[:, 0], levels)
                loss = losses.sum() / self.config.sft.batch_size
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        return total

    @contextmanager
    def _dropout_noise(self, step: int) -> Iterator[None]:
        """An adapter's dropout draws from torch's own generator: make it a function of seed, step, rank."""
        rank = torch.tensor([self.accelerator.process_index])
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(noise.sample_seeds(self.config.seed, step, rank)))
            yield

    def _batch(self, step: int) -> tuple[Views, Float[Tensor, "batch"]]:
        """This rank's share of the step's examples, noised."""
        size, device = self.config.sft.batch_size, self.accelerator.device
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        index = torch.tensor(self.problems.order(self.config.seed, step * size, size))
        seeds = noise.sample_seeds(self.config.seed, step, torch.arange(size))
        level = masking.stratified_levels(noise.uniform(seeds[:1], noise.VIEWS, 0, size)[0])
        index, seeds, level = index[rank::world], seeds[rank::world].to(device), level[rank::world].to(device)
        tokens = self.canvases[index].to(device)
        uniform = noise.uniform(seeds, noise.TOKENS, 0, tokens.shape[1])
        canvas, masked = masking.noise(tokens, level, uniform, self.policy.mask_token_id)
        return _views(self.policy, self.problems, index.tolist(), canvas, tokens, masked), level

    def _validate(self, step: int, screen: Screen) -> bool:
        accuracy = validate(self.policy, self.task, self.config, step, self.folder, self.accelerator, screen)
        return self.config.sft.target_score is not None and accuracy >= self.config.sft.target_score

    def _save(self, step: int, reached: bool) -> None:
        if self.accelerator.is_main_process:
            self.checkpoints.save(step, self.policy.model, self.optimizer, {"reached": reached})

    def _resume(self) -> tuple[int, bool, float]:
        """The step to go on from, whether the target had been reached, and the seconds taken up to there."""
        step, reached = self.checkpoints.last(), False
        if step:
            reached = self.checkpoints.load(step, self.policy.model, self.optimizer)["reached"]
        return step, reached, self.folder.rewind(step)

    def _finish(self) -> Path:
        target = self.folder.path / "model"
        if self.accelerator.is_main_process:
            self.policy.save(target)
            own = self.config.sft.data or self.config.sft.dataset
            about = {"summary": f"sft on {own or self.task.name}, from {self.policy.source}"}
            about |= {"own_pairs": True} if own else {}
            save_settings(target, self.task, self.config, about)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            publish_finished(self.folder.path, self.config.tracking)
        self.mirror.end()
        return target


def _views(policy: Policy, problems: Problems, index: list[int], canvas, tokens, masked) -> Views:
    """Noised canvases after their clean prompts, as one view a sample."""
    prompt_ids, prompt_mask = pad_prompts(policy, [problems.encoded[i] for i in index])
    ones = torch.ones(len(canvas), 1, device=canvas.device)
    return Views(
        inputs=torch.cat([prompt_ids, canvas], dim=1)[:, None],
        attention_mask=torch.cat([prompt_mask, torch.ones_like(masked)], dim=1),
        targets=tokens[:, None],
        scored=masked[:, None],
        weight=ones,
        advantages=ones,
        step=torch.zeros_like(ones, dtype=torch.long),
    )

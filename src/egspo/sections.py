"""The sections of a configuration: what can be set, in which range, and what does not fit together."""

import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from egspo import hub
from egspo.ops.reveal import Remasking


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def problems(self) -> list[str]:
        """Impossible combinations of the section's own settings, each as field, value and remedy."""
        return []

    @model_validator(mode="after")
    def _possible(self, info):
        if not (info.context or {}).get("collecting") and (problems := self.problems()):
            raise ValueError("; ".join(problems))
        return self


class ModelConfig(Section):
    """Where the policy comes from. Exactly one of ``init`` and ``model_name_or_path`` is set."""

    init: Literal["tiny", "tiny-1m", "tiny-5m"] | None = Field(
        None, description="preset of a fresh small model"
    )
    model_name_or_path: str | None = Field(None, description="folder, hub name, or shipped model (tiny:NAME)")
    adapter: str | None = Field(None, description="folder of a PEFT adapter to put on the model")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32", description="of the weights; auto: as they are stored"
    )
    bf16: bool = Field(False, description="compute in bfloat16 whatever the weights are (autocast)")
    load_in_4bit: bool = Field(False, description="NF4 weights by bitsandbytes; needs CUDA")
    gradient_checkpointing: bool = False
    use_peft: bool = Field(False, description="train a LoRA adapter instead of the weights")
    lora_r: int = Field(16, ge=1, description="rank of a fresh adapter; a saved one keeps its own")
    lora_alpha: float = Field(32, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: list[str] | None = Field(
        None, description="default: all linear layers of a block (egspo list models)"
    )

    def problems(self) -> list[str]:
        if (self.init is None) == (self.model_name_or_path is None):
            other = f"model_name_or_path {self.model_name_or_path!r}"
            return [f"init: {self.init!r} and {other}; set exactly one of the two"]
        if self.init and (self.use_peft or self.adapter):
            return [
                f"init: {self.init!r} with an adapter trains nothing but noise; drop use_peft and adapter"
            ]
        return self._without_adapter() + self._quantisation()

    def _without_adapter(self) -> list[str]:
        """Settings of an adapter where none was asked for, nor refused: a finished run tells them all."""
        given = sorted(name for name in self.model_fields_set if name.startswith("lora_"))
        if not given or self.adapter or "use_peft" in self.model_fields_set:
            return []
        return [f"{given[0]}: {getattr(self, given[0])!r} without an adapter to train; add use_peft=true"]

    def _quantisation(self) -> list[str]:
        if not self.load_in_4bit:
            return []
        if self.init:
            return [f"load_in_4bit: True with init {self.init!r}; only a saved model can be quantised"]
        if importlib.util.find_spec("bitsandbytes") is None:
            return ["load_in_4bit: True needs bitsandbytes; pip install 'egspo[quantization]'"]
        if not torch.cuda.is_available():
            return ["load_in_4bit: True needs a CUDA device, and there is none; use dtype bfloat16 instead"]
        return []


class SamplerConfig(Section):
    """How completions are denoised, in training and evaluation alike."""

    max_completion_length: int = Field(256, ge=1, description="tokens of the canvas")
    diffusion_steps: int = Field(128, ge=1, description="denoising steps over the whole canvas")
    block_length: int = Field(32, ge=1, description="blocks are finished from left to right")
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    remasking: Remasking = "low_confidence"
    score_positions: bool = Field(
        False,
        description="low_confidence: the likelihood of a step includes that of its positions, and is exact",
    )
    position_temperature: float = Field(0.1, gt=0, description="of plackett_luce position choices")
    cfg_scale: float = Field(0.0, ge=0, description="classifier-free guidance; doubles every forward pass")
    cache: Literal["none", "prefix", "dual"] = Field(
        "none",
        description="keep keys and values within a block: of what is before it; dual: also of what follows",
    )
    cache_refresh_steps: int | None = Field(
        None, ge=1, description="steps between whole passes within a block; default: at its start only"
    )
    confidence_threshold: float | None = Field(
        None, gt=0, lt=1, description="also reveal, in the same step, whatever is more probable than this"
    )
    early_stop: bool = Field(
        True, description="stop a completion once all before its first end token is revealed"
    )

    @property
    def draws_positions(self) -> bool:
        """Whether a step's choice of positions is a draw that the policy shapes and that is scored."""
        exactly = self.remasking == "low_confidence" and self.score_positions
        return self.remasking == "plackett_luce" or exactly

    def problems(self) -> list[str]:
        return self._lengths() + self._positions() + self._shortcuts()

    def _positions(self) -> list[str]:
        found = []
        if self.score_positions and self.remasking != "low_confidence":
            found.append(
                f"score_positions: True with remasking {self.remasking!r}, which needs nothing more to be "
                "scored exactly; use false"
            )
        if self.score_positions and self.confidence_threshold is not None:
            found.append(
                f"score_positions: True with confidence_threshold {self.confidence_threshold}, under which a "
                "step reveals a number of positions that is drawn too; use one of the two"
            )
        return found

    def _shortcuts(self) -> list[str]:
        found = []
        if self.cache != "none" and self.cfg_scale:
            found.append(
                f"cache: {self.cache!r} with cfg_scale {self.cfg_scale}; guided passes are not cached, "
                "use none"
            )
        if self.cache == "none" and self.cache_refresh_steps is not None:
            found.append(
                f"cache_refresh_steps: {self.cache_refresh_steps} without a cache; set cache=prefix or dual"
            )
        if self.confidence_threshold is not None and self.remasking not in ("low_confidence", "top_prob"):
            found.append(
                f"confidence_threshold: {self.confidence_threshold} with remasking {self.remasking!r}, which "
                "does not go by confidence; use low_confidence or top_prob"
            )
        return found

    def _lengths(self) -> list[str]:
        length, block, steps = self.max_completion_length, self.block_length, self.diffusion_steps
        found, blocks = [], max(1, length // block)
        if length % block:
            lower = f"{length // block * block} or " if length > block else ""
            found.append(
                f"max_completion_length: {length} is not a multiple of block_length {block}; "
                f"use {lower}{(length // block + 1) * block}"
            )
        elif steps % blocks:
            lower = f"{steps // blocks * blocks} or " if steps > blocks else ""
            found.append(
                f"diffusion_steps: {steps} is not a multiple of the number of blocks, max_completion_length "
                f"{length} / block_length {block} = {blocks}; use {lower}{(steps // blocks + 1) * blocks}"
            )
        if steps > length:
            found.append(
                f"diffusion_steps: {steps} exceeds max_completion_length {length}; use at most {length}"
            )
        return found


class OptimConfig(Section):
    """AdamW and its schedule."""

    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(0, ge=0, description="optimizer steps of linear warm-up")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0)


class TrainConfig(Section):
    """The reinforcement learning loop."""

    max_steps: int = Field(100, ge=1, description="training iterations, each one rollout batch")
    prompts_per_step: int = Field(16, ge=1, description="prompts of a rollout batch, over all ranks")
    num_generations: int = Field(8, ge=2, description="completions per prompt (the group)")
    num_iterations: int = Field(1, ge=1, description="passes over a rollout batch")
    updates_per_rollout: int = Field(1, ge=1, description="optimizer steps a pass")
    update_split: Literal["samples", "steps"] = Field(
        "samples", description="what the updates of a pass share out: groups, or selected steps by rank"
    )
    microbatch_size: int = Field(
        256, ge=1, description="canvases per forward pass of an update; changes no gradient"
    )
    rollout_batch_size: int = Field(256, ge=1, description="completions per forward pass of a rollout")
    importance_cap: float = Field(
        2.0, ge=1, description="truncation of the ratio of policy to cached sampler, by which a step weighs"
    )
    max_prompt_length: int = Field(1024, ge=1, description="tokens; a longer prompt is skipped and counted")
    save_steps: int = Field(100, ge=0, description="iterations between checkpoints; 0: none but the last")
    save_total_limit: int = Field(2, ge=1)
    eval_steps: int = Field(0, ge=0, description="iterations between validations; 0: none")
    load_best_model_at_end: bool = Field(False, description="keep the model of the best validation")
    num_transcripts: int = Field(2, ge=0, description="samples written to transcripts.jsonl each iteration")
    check_memory: bool = Field(True, description="refuse a run that is predicted not to fit")
    permute_rewards: bool = Field(
        False, description="control run: rewards shuffled over the batch; must not improve anything"
    )

    def problems(self) -> list[str]:
        found = []
        if self.update_split == "samples" and self.prompts_per_step % self.updates_per_rollout:
            found.append(
                f"updates_per_rollout: {self.updates_per_rollout} does not divide prompts_per_step "
                f"{self.prompts_per_step}; whole groups go to one update"
            )
        if self.load_best_model_at_end and not 0 < self.eval_steps <= self.max_steps:
            found.append(
                f"load_best_model_at_end: True needs validations; set eval_steps "
                f"(now {self.eval_steps}) between 1 and max_steps {self.max_steps}"
            )
        return found


class SFTConfig(Section):
    """Masked-diffusion supervised fine-tuning."""

    max_steps: int = Field(1000, ge=1)
    batch_size: int = Field(64, ge=1, description="examples an optimizer step, over all ranks")
    microbatch_size: int = Field(
        256, ge=1, description="examples a forward pass of a rank; changes no gradient but by dropout's draws"
    )
    data: Path | None = Field(
        None,
        description="JSON lines with prompt and completion, or messages; default: the task's own solutions",
    )
    dataset: str | None = Field(None, description="hub data set with the same columns (needs egspo[data])")
    dataset_split: str = "train"
    max_prompt_length: int = Field(1024, ge=1, description="tokens; a longer prompt is skipped and counted")
    save_steps: int = Field(
        200, ge=0, description="optimizer steps between checkpoints; 0: none but the last"
    )
    eval_steps: int = Field(0, ge=0, description="optimizer steps between validations; 0: none")
    check_memory: bool = Field(True, description="refuse a run that is predicted not to fit")
    target_score: float | None = Field(
        None, gt=0, le=1, description="stop once the validation accuracy reaches it: RL needs a mediocre base"
    )

    def problems(self) -> list[str]:
        found = []
        if self.target_score is not None and not 0 < self.eval_steps <= self.max_steps:
            found.append(
                f"target_score: {self.target_score} needs validations; set eval_steps "
                f"(now {self.eval_steps}) between 1 and max_steps {self.max_steps}"
            )
        if self.data is not None and self.dataset is not None:
            found.append(f"data: {self.data} and dataset {self.dataset!r} are both set; keep one")
        if self.data is not None and not self.data.is_file():
            found.append(f"data: no such file: {self.data}; give the path of a JSON lines file")
        return found


class EvalConfig(Section):
    """Validation during training and evaluation after it."""

    limit: int | None = Field(None, ge=1, description="problems at most; default: all of the split")
    batch_size: int = Field(256, ge=1, description="completions a forward pass, on each rank")
    temperature: float = Field(0.0, ge=0)
    remasking: Remasking | None = Field(None, description="default: the sampler's")

    def decoding(self) -> dict[str, Any]:
        """What it changes of the sampler."""
        return {"temperature": self.temperature} | ({"remasking": self.remasking} if self.remasking else {})

    def sampler(self, sampler: SamplerConfig) -> SamplerConfig:
        """How evaluation decodes: as training does, greedily unless set otherwise."""
        # Nothing reads a likelihood there.
        return sampler.model_copy(update=self.decoding() | {"score_positions": False})


class TrackingConfig(Section):
    """Mirrors of metrics.jsonl, and the hub; nothing is sent anywhere unless asked for."""

    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    project: str = "egspo"
    run_name: str | None = Field(None, description="name of the run in the trackers")
    push_to_hub: bool = Field(False, description="publish the finished model to hub_model_id (egspo publish)")
    hub_model_id: str | None = Field(None, description="OWNER/NAME of the hub repository")
    hub_private_repo: bool = Field(False, description="make the repository private if it is new")

    def problems(self) -> list[str]:
        missing = [name for name in self.report_to if importlib.util.find_spec(name) is None]
        return [
            *(
                f"report_to: {name!r} is not installed; pip install {name}, or leave it out"
                for name in missing
            ),
            *self._hub(),
        ]

    def _hub(self) -> list[str]:
        if not self.push_to_hub:
            named = {"hub_model_id": self.hub_model_id, "hub_private_repo": self.hub_private_repo}
            idle = [(key, value) for key, value in named.items() if value]
            return [f"{key}: {value!r} does nothing without push_to_hub; set it too" for key, value in idle]
        if self.hub_model_id is None:
            return ["push_to_hub: True needs a repository; set hub_model_id=OWNER/NAME"]
        name, access = hub.name_problem(self.hub_model_id), hub.access_problem()
        return [
            *([f"hub_model_id: {name}"] if name else []),
            *([f"push_to_hub: True, but {access}"] if access else []),
        ]

"""Configuration: what can be set, and a check of the whole before any work begins."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, ValidationInfo, model_validator

from egspo import registry
from egspo.compose import ConfigError, compose
from egspo.objectives.base import ObjectiveConfig
from egspo.ops.reveal import Remasking
from egspo.tasks.base import TaskConfig


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def problems(self) -> list[str]:
        """Impossible combinations of the section's own settings, each as field, value and remedy."""
        return []

    @model_validator(mode="after")
    def _possible(self, info: ValidationInfo):
        if not (info.context or {}).get("collecting") and (problems := self.problems()):
            raise ValueError("; ".join(problems))
        return self


class ModelConfig(Section):
    """Where the policy comes from. Exactly one of ``init`` and ``model_name_or_path`` is set."""

    init: Literal["tiny", "tiny-1m", "tiny-5m"] | None = Field(None, description="preset of a fresh small model")
    model_name_or_path: str | None = Field(None, description="folder, hub name, or shipped model (tiny:NAME)")
    adapter: str | None = Field(None, description="folder of a PEFT adapter to put on the model")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    gradient_checkpointing: bool = False
    use_peft: bool = Field(False, description="train a LoRA adapter instead of the weights")
    lora_r: int = Field(16, ge=1)
    lora_alpha: float = Field(32, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: list[str] = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]

    def problems(self) -> list[str]:
        if (self.init is None) == (self.model_name_or_path is None):
            return [
                f"init: {self.init!r} and model_name_or_path {self.model_name_or_path!r}; set exactly one of the two"
            ]
        if self.init and (self.use_peft or self.adapter):
            return [f"init: {self.init!r} with an adapter trains nothing but noise; drop use_peft and adapter"]
        return []


class SamplerConfig(Section):
    """How completions are denoised, in training and evaluation alike."""

    max_completion_length: int = Field(256, ge=1, description="tokens of the canvas")
    diffusion_steps: int = Field(128, ge=1, description="denoising steps over the whole canvas")
    block_length: int = Field(32, ge=1, description="blocks are finished from left to right")
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    remasking: Remasking = "low_confidence"
    position_temperature: float = Field(0.1, gt=0, description="of plackett_luce position choices")
    cfg_scale: float = Field(0.0, ge=0, description="classifier-free guidance; doubles every forward pass")

    def problems(self) -> list[str]:
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
            found.append(f"diffusion_steps: {steps} exceeds max_completion_length {length}; use at most {length}")
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
    microbatch_size: int = Field(256, ge=1, description="canvases per forward pass of an update; changes no gradient")
    rollout_batch_size: int = Field(256, ge=1, description="completions per forward pass of a rollout")
    max_prompt_length: int = Field(1024, ge=1, description="tokens; a longer prompt is skipped and counted")
    save_steps: int = Field(100, ge=0, description="iterations between checkpoints; 0: none but the last")
    save_total_limit: int = Field(2, ge=1)
    eval_steps: int = Field(0, ge=0, description="iterations between validations; 0: none")
    load_best_model_at_end: bool = Field(False, description="keep the model of the best validation")
    num_transcripts: int = Field(2, ge=0, description="samples written to transcripts.jsonl each iteration")
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
                f"load_best_model_at_end: True needs validations; set eval_steps (now {self.eval_steps}) "
                f"between 1 and max_steps {self.max_steps}"
            )
        return found


class SFTConfig(Section):
    """Masked-diffusion supervised fine-tuning."""

    max_steps: int = Field(1000, ge=1)
    batch_size: int = Field(64, ge=1, description="examples an optimizer step, over all ranks")
    data: Path | None = Field(
        None, description="JSON lines with prompt and completion, or messages; default: the task's own solutions"
    )
    dataset: str | None = Field(None, description="hub data set with the same columns (needs egspo[data])")
    dataset_split: str = "train"
    max_prompt_length: int = Field(1024, ge=1, description="tokens; a longer prompt is skipped and counted")
    save_steps: int = Field(200, ge=0, description="optimizer steps between checkpoints; 0: none but the last")
    eval_steps: int = Field(0, ge=0, description="optimizer steps between validations; 0: none")
    target_score: float | None = Field(
        None, gt=0, le=1, description="stop once the validation accuracy reaches it: RL needs a mediocre base"
    )

    def problems(self) -> list[str]:
        found = []
        if self.target_score is not None and not 0 < self.eval_steps <= self.max_steps:
            found.append(
                f"target_score: {self.target_score} needs validations; set eval_steps (now {self.eval_steps}) "
                f"between 1 and max_steps {self.max_steps}"
            )
        if self.data is not None and self.dataset is not None:
            found.append(f"data: {self.data} and dataset {self.dataset!r} are both set; keep one")
        if self.data is not None and not self.data.is_file():
            found.append(f"data: no such file: {self.data}; give the path of a JSON lines file")
        return found


class EvalConfig(Section):
    """Validation during training and evaluation after it."""

    limit: int | None = Field(None, ge=1, description="problems at most; default: all of the split")
    batch_size: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)
    remasking: Remasking | None = Field(None, description="default: the sampler's")


class TrackingConfig(Section):
    """Mirrors of metrics.jsonl; nothing is sent anywhere unless asked for."""

    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    project: str = "egspo"
    run_name: str | None = Field(None, description="name of the run in the trackers")

    def problems(self) -> list[str]:
        missing = [name for name in self.report_to if importlib.util.find_spec(name) is None]
        return [f"report_to: {name!r} is not installed; pip install {name}, or leave it out" for name in missing]


class BaseRun(Section):
    output_dir: Path
    seed: int = 0
    resume: bool = Field(True, description="go on from the run folder's checkpoint; False: refuse a used folder")
    model: ModelConfig
    task: SerializeAsAny[TaskConfig]
    sampler: SamplerConfig = SamplerConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()

    def problems(self) -> list[str]:
        if not hasattr(self.task, "name"):  # none, or the stand-in for one that could not be read
            return []
        try:
            registry.load("tasks", self.task.name)(self.task)
        except ValueError as error:
            return [str(error)]
        return []


class SFTRun(BaseRun):
    """Configuration of ``egspo sft``; ``task`` may be left out where ``sft.data`` or ``sft.dataset`` is given."""

    task: SerializeAsAny[TaskConfig] | None = None
    sft: SFTConfig = SFTConfig()

    def problems(self) -> list[str]:
        if self.task is not None:
            return super().problems()
        if self.sft.eval_steps:
            return [f"sft.eval_steps: {self.sft.eval_steps} validates on a task; set task.name, or eval_steps=0"]
        if self.sft.data is None and self.sft.dataset is None:
            return ["task: missing; set task.name, sft.data or sft.dataset to have something to learn from"]
        return []


class RLRun(BaseRun):
    """Configuration of ``egspo train``."""

    objective: SerializeAsAny[ObjectiveConfig]
    train: TrainConfig = TrainConfig()

    def problems(self) -> list[str]:
        found = super().problems()
        if self.sampler.temperature == 0:
            found.append("sampler.temperature: 0 explores nothing; training needs a temperature above 0")
        if self.model.lora_dropout:
            found.append(
                f"model.lora_dropout: {self.model.lora_dropout} would make the first ratio differ from 1; "
                "use 0 in RL (it acts in SFT)"
            )
        if not hasattr(self.objective, "name"):
            return found
        objective = registry.load("objectives", self.objective.name)(self.objective)
        return found + objective.problems(self.sampler, self.train)


Run = TypeVar("Run", bound=BaseRun)


def load_config(kind: type[Run], paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Run:
    """Compose files and overrides into a checked configuration.

    Raises:
        ConfigError: with all problems found, each naming the field, the value and what would be right.
    """
    return parse_config(kind, compose(paths, overrides))


def parse_config(kind: type[Run], values: dict[str, Any]) -> Run:
    """Check a nested dictionary: every field first, then what fits together, and tell it all at once.

    Raises:
        ConfigError: with all problems found.
    """
    problems: list[str] = []
    parsed, wrong = {}, set()
    for key, value in values.items():
        section = _section_kind(kind, key)
        if section is None or (value is None and kind.model_fields[key].default is None):
            parsed[str(key)] = value
            continue
        parsed[key], complaints, fields = _parse(section, value, key)
        problems += complaints
        wrong |= fields
    run, complaints, fields = _parse(kind, parsed, "")
    problems += complaints + _sound(run.problems(), wrong | fields)
    if problems:
        raise ConfigError(problems)
    return run


def parse_section(kind: type[BaseRun], key: str, values: dict[str, Any]) -> Any:
    """Check one section of a configuration on its own.

    Raises:
        ConfigError: with all problems found.
    """
    section, problems, _ = _parse(_section_kind(kind, key), values, key)
    if problems:
        raise ConfigError(problems)
    return section


def _section_kind(kind: type[BaseRun], key: str) -> type[BaseModel] | None:
    """The model of a section; None for a plain setting or an unknown key."""
    if key in _NAMED:
        return _NAMED[key] if key in kind.model_fields else None
    annotation = kind.model_fields[key].annotation if key in kind.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


# Sections whose further keys depend on their name.
_NAMED: dict[str, type[BaseModel]] = {"task": TaskConfig, "objective": ObjectiveConfig}


def _parse(model: type[BaseModel], value: Any, key: str) -> tuple[Any, list[str], set[str]]:
    """A section, what is wrong with it, and the wrong fields, for which defaults stand in."""
    if not isinstance(value, dict):
        line = f"{key}: {value!r} is not a section; write {key}.NAME=value or a mapping"
        return model.model_construct(), [line], {key}
    if key in _NAMED:
        try:
            if "name" not in value:
                raise ValueError(f"{key}.name: missing; known: {', '.join(registry.names(key + 's'))}")
            model = registry.load(f"{key}s", value["name"]).Config
        except ValueError as error:
            return model.model_construct(), [str(error)], {key}
    section, lines, wrong = _validate(model, value, key)
    if wrong:
        kept = {name: setting for name, setting in value.items() if name not in wrong}
        section, _, missing = _validate(model, kept, key)
        if missing:
            section = model.model_construct(**kept, **{name: _stand_in(model, name) for name in missing})
    if key and isinstance(section, Section):
        lines += [f"{key}.{line}" for line in _sound(section.problems(), wrong)]
    return section, lines, wrong


def _validate(model: type[BaseModel], value: dict[str, Any], key: str) -> tuple[Any, list[str], set[str]]:
    """A section (None if a field is wrong), what is wrong with its fields, and which those are."""
    try:
        return model.model_validate(value, context={"collecting": True}), [], set()
    except ValidationError as error:
        return None, _explain(error, model, key), {str(item["loc"][0]) for item in error.errors()}


def _stand_in(model: type[BaseModel], name: str) -> Any:
    section = _section_kind(model, name)
    return None if section is None else section.model_construct()


def _sound(problems: Sequence[str], wrong: set[str]) -> list[str]:
    """Problems that do not come from a default standing in for a field that is wrong itself."""
    return [line for line in problems if not any(re.search(rf"\b{re.escape(field)}\b", line) for field in wrong)]


def _explain(error: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    for item in error.errors():
        field = ".".join(map(str, [prefix, *item["loc"]] if prefix else item["loc"])) or "configuration"
        if item["type"] == "extra_forbidden":
            lines.append(f"{field}: unknown key{registry.suggest(str(item['loc'][-1]), model.model_fields)}")
        elif item["type"] == "missing":
            lines.append(f"{field}: missing; set it in a file or as {field}=VALUE")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(item["input"], dict) else f" {item['input']!r}:"
            lines.append(f"{field}:{shown} {message}")
    return lines

"""Configuration: YAML files composed from left to right, then ``key.sub=value``, checked whole before any work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, model_validator

from egspo import registry
from egspo.objectives.base import ObjectiveConfig
from egspo.ops.reveal import Remasking
from egspo.tasks.base import TaskConfig


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


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

    @model_validator(mode="after")
    def _one_source(self):
        if (self.init is None) == (self.model_name_or_path is None):
            raise ValueError(
                f"set exactly one of init (got {self.init!r}) and model_name_or_path "
                f"(got {self.model_name_or_path!r})"
            )
        if self.init and (self.use_peft or self.adapter):
            raise ValueError("an adapter on fresh random weights is of no use; drop use_peft and adapter")
        return self


class SamplerConfig(Section):
    """How completions are denoised, in training and evaluation alike."""

    max_completion_length: int = Field(256, ge=1, description="tokens of the canvas")
    diffusion_steps: int = Field(128, ge=1, description="denoising steps over the whole canvas")
    block_length: int = Field(32, ge=1, description="blocks are finished from left to right")
    temperature: float = Field(1.0, ge=0, description="0 is greedy")
    remasking: Remasking = "low_confidence"
    position_temperature: float = Field(0.1, gt=0, description="of plackett_luce position choices")
    cfg_scale: float = Field(0.0, ge=0, description="classifier-free guidance; doubles every forward pass")

    @model_validator(mode="after")
    def _divides(self):
        length, block, steps = self.max_completion_length, self.block_length, self.diffusion_steps
        if length % block:
            raise ValueError(
                f"max_completion_length {length} is not a multiple of block_length {block}; "
                f"use {length // block * block or block} or {(length // block + 1) * block}"
            )
        blocks = length // block
        if steps % blocks or steps < blocks:
            raise ValueError(
                f"diffusion_steps {steps} is not a multiple of the number of blocks {blocks}; "
                f"use {max(1, steps // blocks) * blocks}"
            )
        if steps > length:
            raise ValueError(f"diffusion_steps {steps} exceeds max_completion_length {length}; use at most {length}")
        return self


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

    @model_validator(mode="after")
    def _stoppable(self):
        if self.target_score is not None and not self.eval_steps:
            raise ValueError(f"target_score {self.target_score} needs validations: set eval_steps")
        if self.data is not None and self.dataset is not None:
            raise ValueError("data and dataset are both set; keep one")
        if self.data is not None and not self.data.is_file():
            raise ValueError(f"data: no such file: {self.data}")
        return self


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
    run_name: str | None = None


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
        """Impossible combinations, each as field, value and remedy."""
        return []


class SFTRun(BaseRun):
    """Configuration of ``egspo sft``; ``task`` may be left out where ``sft.data`` or ``sft.dataset`` is given."""

    task: SerializeAsAny[TaskConfig] | None = None
    sft: SFTConfig = SFTConfig()

    def problems(self) -> list[str]:
        if self.task is not None:
            return []
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
        found = []
        if self.sampler.temperature == 0:
            found.append("sampler.temperature: 0 explores nothing; training needs a temperature above 0")
        if self.model.lora_dropout:
            found.append(
                f"model.lora_dropout: {self.model.lora_dropout} would make the first ratio differ from 1; "
                "use 0 in RL (it acts in SFT)"
            )
        train = self.train
        if train.update_split == "samples" and train.prompts_per_step % train.updates_per_rollout:
            found.append(
                f"train.updates_per_rollout: {train.updates_per_rollout} does not divide prompts_per_step "
                f"{train.prompts_per_step}; whole groups go to one update"
            )
        if train.load_best_model_at_end and not train.eval_steps:
            found.append("train.load_best_model_at_end: needs validations; set train.eval_steps")
        if train.eval_steps and train.load_best_model_at_end and getattr(self.task, "num_validation", 1) == 0:
            found.append("task.num_validation: 0 leaves no validation split to choose a checkpoint by")
        objective = registry.load("objectives", self.objective.name)(self.objective)
        return found + objective.problems(self.sampler, self.train)


Run = TypeVar("Run", bound=BaseRun)


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def load_config(kind: type[Run], paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Run:
    """Compose files and overrides into a checked configuration.

    Raises:
        ConfigError: with all problems found, each naming the field, the value and what would be right.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        merged = merge(merged, read_yaml(find_recipe(path)))
    for override in overrides:
        merged = merge(merged, parse_override(override))
    return parse_config(kind, merged)


def parse_config(kind: type[Run], values: dict[str, Any]) -> Run:
    """Check a nested dictionary; all sections are checked before anything is reported."""
    problems, sections = [], {}
    for key, value in values.items():
        if key not in kind.model_fields:
            problems.append(f"{key}: unknown key{registry.suggest(key, kind.model_fields)}")
            continue
        section, wrong = _parse_section(kind, key, value)
        sections[key] = section
        problems += wrong
    if problems:
        raise ConfigError(problems)
    try:
        run = kind(**sections)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind, "")) from None
    if problems := run.problems():
        raise ConfigError(problems)
    return run


def _parse_section(kind: type[BaseRun], key: str, value: Any) -> tuple[Any, list[str]]:
    annotation = {"task": TaskConfig, "objective": ObjectiveConfig}.get(key, kind.model_fields[key].annotation)
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return value, []
    if not isinstance(value, dict):
        return None, [f"{key}: {value!r} is not a section; write {key}.NAME=value or a mapping"]
    try:
        if key in ("task", "objective"):
            if "name" not in value:
                return None, [f"{key}.name: missing; known: {', '.join(registry.names(key + 's'))}"]
            annotation = registry.load(f"{key}s", value["name"]).Config
        return annotation.model_validate(value), []
    except ValidationError as error:
        return None, _explain(error, annotation, f"{key}.")
    except ValueError as error:
        return None, [str(error)]


def _explain(error: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    for item in error.errors():
        place = ".".join(map(str, item["loc"]))
        field = (prefix + place).rstrip(".") or "configuration"
        if item["type"] == "extra_forbidden":
            lines.append(f"{field}: unknown key{registry.suggest(str(item['loc'][-1]), model.model_fields)}")
        elif item["type"] == "missing":
            lines.append(f"{field}: missing; set it in a file or as {field}=VALUE")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(item["input"], dict) else f" {item['input']!r}:"
            lines.append(f"{field}:{shown} {message}")
    return lines


def merge(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """``right`` over ``left``, mappings merged key by key."""
    merged = dict(left)
    for key, value in right.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not valid YAML: {str(error).splitlines()[0]}"]) from None
    if not isinstance(values, dict):
        raise ConfigError([f"{path}: holds no mapping of sections"])
    return values


def parse_override(text: str) -> dict[str, Any]:
    """``a.b=value`` as a nested dictionary; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError([f"{text!r}: neither a configuration file nor KEY=VALUE"])
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError([f"{key}: value {value!r} is not valid YAML; quote it"]) from None
    if isinstance(nested, str):
        nested = _number(nested)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return nested


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 as text; a user means the number."""
    try:
        return float(text) if any(c.isdigit() for c in text) else text
    except ValueError:
        return text


def recipe_folder() -> Path:
    """The recipes of an installed package, else those of the checkout it runs from."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "recipes"


def find_recipe(path: str | Path) -> Path:
    """A file, or a shipped recipe by its name (``sudoku/rl``)."""
    path = Path(path)
    if path.is_file():
        return path
    for shipped in (recipe_folder() / path, recipe_folder() / f"{path}.yaml"):
        if shipped.is_file():
            return shipped
    known = sorted(str(p.relative_to(recipe_folder()).with_suffix("")) for p in recipe_folder().rglob("*.yaml"))
    raise ConfigError([f"{path}: no such file or recipe{registry.suggest(str(path), known)}"])

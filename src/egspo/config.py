"""Configurations of runs, and a check of the whole before any work begins."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError

from egspo import hub, registry
from egspo.compose import ConfigError, compose
from egspo.objectives.base import ObjectiveConfig
from egspo.sandbox import SandboxConfig
from egspo.sections import (
    EvalConfig,
    ModelConfig,
    OptimConfig,
    SamplerConfig,
    Section,
    SFTConfig,
    TrackingConfig,
    TrainConfig,
)
from egspo.tasks.base import TaskConfig

IN_32_BITS = "model.use_peft=true, or model.dtype=float32 with model.bf16=true"
"""How weights are trained that 16 bits would round."""


class BaseRun(Section):
    output_dir: Path
    seed: int = 0
    resume: bool = Field(
        True, description="go on from the run folder's checkpoint; False: refuse a used folder"
    )
    model: ModelConfig
    task: SerializeAsAny[TaskConfig]
    sampler: SamplerConfig = SamplerConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    sandbox: SandboxConfig = SandboxConfig()
    tracking: TrackingConfig = TrackingConfig()

    def problems(self) -> list[str]:
        found = self._unpublishable() + self._rounded_away() + self._undecodable()
        if not hasattr(self.task, "name"):  # none, or the stand-in for one that could not be read
            return found
        try:
            registry.make_task(self.task)
        except ValueError as error:
            found.append(str(error))
        return found

    def _undecodable(self) -> list[str]:
        """What validation would make of the sampler, and the sampler cannot be."""
        found = self.eval.sampler(self.sampler).problems()
        return [
            f"eval.remasking: {self.eval.remasking!r} for the sampler of validation, whose {problem}"
            for problem in found
            if problem not in self.sampler.problems()
        ]

    def _rounded_away(self) -> list[str]:
        """What would train, and learn little or nothing."""
        model = self.model
        if model.use_peft or model.adapter:
            return []
        if model.load_in_4bit:
            return [
                "model.load_in_4bit: True without an adapter trains none of the weights in 4 bits; set "
                "model.use_peft=true"
            ]
        if model.dtype in ("bfloat16", "float16"):
            return [
                f"model.dtype: {model.dtype!r} without an adapter rounds most updates of the weights away; "
                f"set {IN_32_BITS}"
            ]
        return []

    def _unpublishable(self) -> list[str]:
        """An adapter is of use only with its base."""
        base = self.model.model_name_or_path
        adapts = self.model.use_peft or self.model.adapter
        if not (self.tracking.push_to_hub and adapts) or (base or "").startswith("tiny:"):
            return []
        if hub.hub_repository(base):
            return []
        return [
            f"tracking.push_to_hub: True, but the adapter's base {base!r} is not on the hub; publish "
            "that first and train from its hub name"
        ]


class SFTRun(BaseRun):
    """Configuration of ``egspo sft``; needs no ``task`` where ``sft.data`` or ``sft.dataset`` is given."""

    task: SerializeAsAny[TaskConfig] | None = None
    sft: SFTConfig = SFTConfig()

    def problems(self) -> list[str]:
        found = super().problems()
        if self.task is not None:
            return found
        if self.sft.eval_steps:
            found.append(f"sft.eval_steps: {self.sft.eval_steps} validates on a task; set task.name, or 0")
        elif self.sft.data is None and self.sft.dataset is None:
            found.append(
                "task: missing; set task.name, sft.data or sft.dataset to have something to learn from"
            )
        return found


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
        if self.sampler.score_positions and (self.model.bf16 or self.model.dtype != "float32"):
            found.append(
                "sampler.score_positions: True compares confidences, which in 16 bits are not those of the "
                "rollout in the update; use false, or model.dtype=float32 with model.bf16=false"
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


def brought_up(kind: type[Run], values: dict[str, Any]) -> dict[str, Any]:
    """A configuration as an earlier version wrote it; a setting that it did not know had today's default.

    What is no configuration today comes back as it is.
    """
    try:
        return json.loads(parse_config(kind, values).model_dump_json())
    except ConfigError:
        return values


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


def parse_section(kind: type[BaseRun], key: str, values: Any) -> Any:
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
            kind = _named(key, value)
            model, value = kind.Config, {**value, "name": kind.name}
        except ValueError as error:
            return model.model_construct(), [str(error)], {key}
    section, lines, wrong = _validate(model, value, key)
    if wrong:
        kept = {name: setting for name, setting in value.items() if name not in wrong}
        section, _, missing = _validate(model, kept, key)
        if missing and key in _NAMED:
            section = model.model_construct()  # without a name: nothing that fits together can be checked
        elif missing:
            section = model.model_construct(**kept, **{name: _stand_in(model, name) for name in missing})
    if section is None:  # its fields do not go together
        section = model.model_construct()
    if key and isinstance(section, Section):
        lines += [f"{key}.{line}" for line in _sound(section.problems(), wrong)]
    return section, lines, wrong


def _named(key: str, value: dict[str, Any]) -> type:
    """The objective or task that a section is of."""
    if key == "task":
        return registry.task_class(value.get("name"), value.get("path"))
    if "name" not in value:
        raise ValueError(f"{key}.name: missing; known: {', '.join(registry.names(key + 's'))}")
    return registry.load(f"{key}s", value["name"])


def _validate(model: type[BaseModel], value: dict[str, Any], key: str) -> tuple[Any, list[str], set[str]]:
    """A section (None if something is wrong), what is wrong with it, and which of its fields are."""
    try:
        return model.model_validate(value, context={"collecting": True}), [], set()
    except ValidationError as error:
        fields = {str(item["loc"][0]) for item in error.errors() if item["loc"]}
        return None, _explain(error, model, key), fields


def _stand_in(model: type[BaseModel], name: str) -> Any:
    section = _section_kind(model, name)
    return None if section is None else section.model_construct()


def _sound(problems: Sequence[str], wrong: set[str]) -> list[str]:
    """Problems that do not come from a default standing in for a field that is wrong itself."""
    return [
        line for line in problems if not any(re.search(rf"\b{re.escape(field)}\b", line) for field in wrong)
    ]


def _explain(error: ValidationError, model: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    for item in error.errors():
        field = ".".join(map(str, [prefix, *item["loc"]] if prefix else item["loc"])) or "configuration"
        if item["type"] == "extra_forbidden":
            known = item.get("ctx", {}).get("known", model.model_fields)
            lines.append(f"{field}: unknown key{registry.suggest(str(item['loc'][-1]), known)}")
        elif item["type"] == "missing":
            lines.append(f"{field}: missing; set it in a file or as {field}=VALUE")
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(item["input"], dict) else f" {item['input']!r}:"
            lines.append(f"{field}:{shown} {message}")
    return lines

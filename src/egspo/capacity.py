"""Whether a run fits into the memory that is there, and what to change if it does not."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from egspo import registry
from egspo.compose import ConfigError
from egspo.config import BaseRun, SFTRun
from egspo.data import read_pairs
from egspo.memory import Memory, predict
from egspo.models import tiny
from egspo.models.tokenizers import load_tokenizer
from egspo.policy import read_config

GIB = 2**30
CUDA_RESERVE = 1.5 * GIB
"""Of a device: its context, the libraries' workspaces, and what fragmentation takes."""
NUM_SAMPLED = 256
"""Prompts that are tokenised to know their length."""
_CGROUPS = Path("/sys/fs/cgroup")


# ---- what there is -------------------------------------------------------------------------------------


def available_bytes() -> int | None:
    """What one process of this launch can have; None where the system does not say.

    On CUDA the memory of its device that is free, less a reserve. Else the machine's, or what a control
    group leaves of it, shared among the processes of this machine.
    """
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))
        return int(min(free, total) - CUDA_RESERVE)
    known = [n for n in (_machine_bytes(), _group_bytes()) if n is not None]
    return min(known) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if known else None


def _machine_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that can be had without swapping (Linux), else all of the machine's."""
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    if not all(name in getattr(os, "sysconf_names", {}) for name in names):
        return None
    return os.sysconf(names[0]) * os.sysconf(names[1])


def _group_bytes(root: Path = _CGROUPS) -> int | None:
    """What the control groups around this process (version 2, else 1) leave; None where nothing is set."""
    left = [n for folder in _groups(root) if (n := _left_in(folder)) is not None]
    return min(left) if left else None


def _groups(root: Path) -> Iterator[Path]:
    own = Path("/proc/self/cgroup")
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    inside = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), "/")
    folder = root / inside.strip("/")
    yield from (path for path in (folder, *folder.parents) if path.is_relative_to(root))
    yield root / "memory"


def _left_in(folder: Path) -> int | None:
    """Limit less use; file caches do not count, for they are given back."""
    for limit, use, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        if (folder / limit).is_file() and (folder / use).is_file():
            most = (folder / limit).read_text(encoding="utf-8").strip()
            if not most.isdigit() or int(most) >= 2**60:
                return None
            used = int((folder / use).read_text(encoding="utf-8"))
            stat = folder / "memory.stat"
            rows = stat.read_text(encoding="utf-8").splitlines() if stat.is_file() else []
            idle = next((int(row.split()[1]) for row in rows if row.startswith(f"{cache} ")), 0)
            return int(most) - used + idle
    return None


# ---- what is needed ------------------------------------------------------------------------------------


def prompt_tokens(config: BaseRun) -> int:
    """Tokens of a padded prompt: the longest of 256 of the training problems, else the most allowed.

    The latter where there is no tokenizer yet, or the problems are on the hub.
    """
    section = config.sft if isinstance(config, SFTRun) else config.train
    messages = _messages(config)
    try:
        tokenizer = _tokenizer(config)
    except ValueError:  # only a shape so far: `egspo doctor` needs no more than config.json
        tokenizer = None
    if not messages or tokenizer is None or tokenizer.chat_template is None:
        return section.max_prompt_length
    texts = [
        tokenizer.apply_chat_template(list(m), tokenize=False, add_generation_prompt=True) for m in messages
    ]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return max((n for n in lengths if n <= section.max_prompt_length), default=section.max_prompt_length)


def _messages(config: BaseRun) -> list:
    """Chat messages of some problems, spread over all of them."""
    if isinstance(config, SFTRun) and config.sft.dataset is not None:
        return []
    if isinstance(config, SFTRun) and config.sft.data is not None:
        problems = read_pairs(config.sft.data)
    else:
        problems = registry.load("tasks", config.task.name)(config.task).load("train")
    return [problem.messages for problem in problems[:: max(1, len(problems) // NUM_SAMPLED)]]


def _tokenizer(config: BaseRun):
    if config.model.init is not None:
        task = registry.load("tasks", config.task.name)(config.task) if config.task else None
        return tiny.build_tokenizer(task.max_number_token if task else None)
    folder, family = read_config(config.model.model_name_or_path)
    return load_tokenizer(folder, family.pretokenizer, family.chat_template)


def check_memory(config: BaseRun, available: int | None = None) -> str:
    """One line on what a run needs and what there is, before its model is loaded.

    Raises:
        ConfigError: if it cannot fit, unless ``check_memory`` is off, with what to change.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    available = available_bytes() if available is None else available
    memory = predict(config, prompt_tokens(config), ranks)
    section = config.sft if isinstance(config, SFTRun) else config.train
    if available is not None and section.check_memory:
        refuse_too_large(config, memory, available, ranks)
    return summary(memory, available)


def summary(memory: Memory, available: int | None) -> str:
    parts = {
        "weights": memory.weights + memory.reference,
        "adapter": memory.adapter,
        "optimizer": memory.optimizer,
        "activations": memory.update,
        "rollout": max(memory.rollout, memory.validation),
    }
    shown = ", ".join(f"{name} {gib(size)}" for name, size in parts.items())
    of = "" if available is None else f" of {gib(available)}"
    return f"memory: about {gib(memory.peak)}{of} GiB ({shown})"


def gib(size: int) -> str:
    """Bytes as GiB, with three digits that count for what is small."""
    value = size / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 or not size else f"{value:.2g}"


# ---- what to change ------------------------------------------------------------------------------------


def refuse_too_large(config: BaseRun, memory: Memory, available: int, ranks: int = 1) -> None:
    """Raise a ConfigError with a line for each phase that does not fit, and what would."""
    if memory.resident > available:
        raise ConfigError([_too_much_stays(config, memory, available)])
    problems = []
    sft = isinstance(config, SFTRun)
    update = "sft.batch_size" if sft else "train.microbatch_size"
    phases = [
        (update, "an update", "update"),
        ("train.rollout_batch_size", "a rollout", "rollout"),
        ("eval.batch_size", "a validation", "validation"),
    ]
    for field, words, phase in phases:
        needed = memory.resident + getattr(memory, phase)
        if needed > available:
            remedy = _remedy(config, memory, available, ranks, field, phase)
            problems.append(
                f"{field}: {_get(config, field)} needs {gib(getattr(memory, phase))} GiB for {words}, "
                f"{gib(needed)} in all, of {gib(available)} available; {remedy}"
            )
    if problems:
        raise ConfigError(problems)


def _remedy(
    config: BaseRun, memory: Memory, available: int, ranks: int, field: str, phase: str
) -> str:
    """The largest half, quarter, … of the setting with which the phase fits, or what else would help."""

    def fits(other: BaseRun) -> bool:
        found = predict(other, memory.load.prompt, ranks)
        return found.resident + getattr(found, phase) <= available

    remedies = []
    now = min(_get(config, field), getattr(memory.load, f"{phase}_rows") * (ranks if "sft" in field else 1))
    for value in _halves(now, ranks if field == "sft.batch_size" else 1):
        if fits(_set(config, field, value)):
            remedies.append(f"use at most {value}")
            break
    if phase == "update" and not config.model.gradient_checkpointing:
        lighter = _set(config, "model.gradient_checkpointing", True)
        if fits(lighter):
            remedies.append("set model.gradient_checkpointing=true")
        elif not remedies and fits(_set(lighter, field, ranks if field == "sft.batch_size" else 1)):
            remedies.append("set model.gradient_checkpointing=true and use 1")
    return ", or ".join(remedies) or f"not even 1 fits: {_smaller_model(config)}"


def _halves(value: int, least: int) -> Iterator[int]:
    while value > least:
        value = max(least, value // 2)
        yield value


def _too_much_stays(config: BaseRun, memory: Memory, available: int) -> str:
    training = memory.optimizer + memory.gradients + memory.reference
    adapted = config.model.use_peft or config.model.adapter is not None
    total = f"{gib(memory.resident)} in all before the first pass, of {gib(available)} available"
    if not adapted and config.model.init is None and training >= memory.weights:
        return (
            f"model.use_peft: False needs {gib(training)} GiB for optimizer, gradients and reference, "
            f"{total}; set model.use_peft=true"
        )
    field = "model.load_in_4bit" if config.model.load_in_4bit else "model.dtype"
    value = _get(config, field)
    return f"{field}: {value} needs {gib(memory.weights)} GiB for weights, {total}; {_smaller_model(config)}"


def _smaller_model(config: BaseRun) -> str:
    model = config.model
    if model.load_in_4bit or model.init is not None:
        return "use a smaller model or a larger device"
    if model.dtype == "float32" and not model.load_in_4bit:
        return "set model.dtype=bfloat16, or model.load_in_4bit=true with model.use_peft=true"
    return "set model.load_in_4bit=true with model.use_peft=true, or use a smaller model"


def _get(config: BaseRun, field: str):
    section, key = field.split(".")
    return getattr(getattr(config, section), key)


def _set(config: BaseRun, field: str, value) -> BaseRun:
    section, key = field.split(".")
    changed = getattr(config, section).model_copy(update={key: value})
    return config.model_copy(update={section: changed})

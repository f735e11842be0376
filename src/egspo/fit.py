"""Whether a run fits into the memory that is there, and what to change if it does not."""

from collections.abc import Callable

from egspo import launch, registry
from egspo.capacity import available_bytes
from egspo.compose import ConfigError
from egspo.config import BaseRun, SFTRun
from egspo.data import read_pairs
from egspo.memory import Memory, is_adapted, max_number_token, predict
from egspo.policy import read_config, tokenizer_of
from egspo.tasks.base import Task

GIB = 2**30
NUM_SAMPLED = 256
"""Prompts that are tokenised to know their length."""
UPDATE = "train.microbatch_size"
SFT_UPDATE = "sft.microbatch_size"
ROWS = {
    "update": (UPDATE, "an update"),
    "rollout": ("train.rollout_batch_size", "a rollout"),
    "validation": ("eval.batch_size", "a validation"),
}
"""The setting that each phase's memory grows with, and the phase in words."""


def check_memory(
    config: BaseRun, prompt: int | None = None, available: int | None = None, task: Task | None = None
) -> str:
    """One line on what a run needs and what there is, before its model is loaded.

    ``prompt`` (tokens) and ``available`` (bytes) are found out unless given; ``task`` is the run's, if it is
    there already and need not draw its problems twice.

    Raises:
        ConfigError: if it cannot fit, unless ``check_memory`` is off, with what to change.
    """
    ranks = launch.world_size()
    available = available_bytes() if available is None else available
    memory = predict(config, prompt_tokens(config, task) if prompt is None else prompt, ranks)
    section = config.sft if isinstance(config, SFTRun) else config.train
    if available is not None and section.check_memory:
        refuse(config, memory, available, ranks)
    return summary(memory, available)


def prompt_tokens(config: BaseRun, task: Task | None = None) -> int:
    """Tokens of a padded prompt: the longest of 256 of the training problems, else the most allowed.

    The latter where there is no tokenizer yet, or the pairs are on the hub.
    """
    most = (config.sft if isinstance(config, SFTRun) else config.train).max_prompt_length
    tokenizer = _tokenizer(config)
    if tokenizer is None or tokenizer.chat_template is None:
        return most
    messages = _messages(config, task)
    if not messages:
        return most
    texts = [
        tokenizer.apply_chat_template(list(m), tokenize=False, add_generation_prompt=True) for m in messages
    ]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return max((n for n in lengths if n <= most), default=most)


def _messages(config: BaseRun, task: Task | None) -> list:
    """Chat messages of some problems, spread over all of them."""
    if isinstance(config, SFTRun) and config.sft.dataset is not None:
        return []
    if isinstance(config, SFTRun) and config.sft.data is not None:
        problems = read_pairs(config.sft.data)
    else:
        task = task or registry.make_task(config.task)
        problems = task.load("train")
    return [problem.messages for problem in problems[:: max(1, len(problems) // NUM_SAMPLED)]]


def _tokenizer(config: BaseRun):
    """That of the run; None of a folder that holds none, of which a doctor may still be asked."""
    if config.model.init is None:
        folder, _ = read_config(config.model.model_name_or_path)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return None
    return tokenizer_of(config.model, max_number_token(config))


# ---- in words ------------------------------------------------------------------------------------------


def gib(size: int) -> str:
    """Bytes as GiB; two digits that count of what is small."""
    value = size / GIB
    return f"{value:.1f}" if value >= 10 or not size else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def summary(memory: Memory, available: int | None) -> str:
    parts = {
        "weights": memory.weights + memory.reference,
        "adapter": memory.adapter,
        "optimizer": memory.optimizer + memory.gradients,
        "activations": memory.activations,
        "rollout": max(memory.rollout, memory.validation),
    }
    shown = ", ".join(f"{name} {gib(size)}" for name, size in parts.items())
    of = "" if available is None else f" of {gib(available)}"
    return f"memory: about {gib(memory.peak)}{of} GiB ({shown})"


def table(config: BaseRun, memory: Memory) -> list[tuple[str, str, str]]:
    """Part, GiB and what it stands for, a line each."""
    load, length = memory.load, config.sampler.max_completion_length
    tokens = f"x ({load.prompt} + {length}) tokens"
    canvases = f"{load.update_rows} canvases {tokens}, {load.places} of them scored"
    rows = [
        ("weights", memory.weights, "in 4 bits" if config.model.load_in_4bit else config.model.dtype),
        ("reference", memory.reference, "frozen copy of the weights" if memory.reference else "none needed"),
        ("adapter", memory.adapter, f"LoRA, r = {config.model.lora_r}" if config.model.use_peft else ""),
        ("optimizer", memory.optimizer, "AdamW, two moments"),
        ("gradients", memory.gradients, "while updating"),
        ("activations", memory.activations, f"while updating: {canvases}"),
        ("rollout", memory.rollout, f"{load.rollout_rows} completions {tokens}"),
        ("validation", memory.validation, f"{load.validation_rows} completions {tokens}"),
        ("peak", memory.peak, f"while {_worst(memory)}"),
    ]
    return [(part, gib(size), words) for part, size, words in rows]


def _worst(memory: Memory) -> str:
    sizes = {"updating": memory.update, "generating": memory.rollout, "validating": memory.validation}
    return max(sizes, key=sizes.get)


# ---- what to change ------------------------------------------------------------------------------------


def refuse(config: BaseRun, memory: Memory, available: int, ranks: int = 1) -> None:
    """Find fault with what does not fit.

    Raises:
        ConfigError: with a line for each phase that does not fit, and what would.
    """
    if memory.resident > available:
        raise ConfigError([_too_much_stays(config, memory, available, ranks)])
    problems = []
    for phase, (field, words) in ROWS.items():
        needed = memory.resident + getattr(memory, phase)
        if needed > available:
            field = SFT_UPDATE if isinstance(config, SFTRun) and field == UPDATE else field
            remedies = _remedies(config, memory, available, ranks, field, phase)
            problems.append(
                f"{field}: {_get(config, field)} needs {gib(getattr(memory, phase))} GiB for {words}, "
                f"{gib(needed)} in all, of {gib(available)} available; {' or '.join(remedies)}"
            )
    if problems:
        raise ConfigError(problems)


def _remedies(
    config: BaseRun, memory: Memory, available: int, ranks: int, field: str, phase: str
) -> list[str]:
    """The largest half, quarter, … of the setting with which the phase fits, and what else would do."""

    def fits(other: BaseRun) -> bool:
        found = predict(other, memory.load.prompt, ranks, [phase])
        return found.resident + getattr(found, phase) <= available

    start = min(_get(config, field), getattr(memory.load, f"{phase}_rows"))
    found = []
    most = _largest(lambda n: fits(_set(config, field, n)), start)
    if most is not None:
        found.append(f"use at most {most}")
    if phase == "update" and not config.model.gradient_checkpointing:
        lighter = _set(config, "model.gradient_checkpointing", True)
        if fits(lighter):
            found.append("set model.gradient_checkpointing=true")
        elif most is None and fits(_set(lighter, field, 1)):
            found.append("use 1 and set model.gradient_checkpointing=true")
    return found or [f"not even 1 fits: {_smaller(config)}"]


def _smaller(config: BaseRun) -> str:
    """Weights in fewer bits are for adapters only: they are not trained themselves."""
    if config.model.init is not None:
        return "take a smaller model"
    first = "" if is_adapted(config) else "model.use_peft=true with "
    return f"set {first}model.dtype=bfloat16 or model.load_in_4bit=true, or take a smaller model"


def _largest(fits: Callable[[int], bool], start: int) -> int | None:
    """The first half of a half of … that fits; dry runs cost seconds, so 1 is tried first."""
    if start <= 1 or not fits(1):
        return None
    value = start // 2
    while value > 1 and not fits(value):
        value //= 2
    return value


def _too_much_stays(config: BaseRun, memory: Memory, available: int, ranks: int) -> str:
    """What is there before the first pass is too large: change one setting after the other until it fits."""
    training = memory.optimizer + memory.reference
    light = is_adapted(config) or memory.weights > training
    field, size, what = (
        ("model.dtype", memory.weights, "weights")
        if light
        else ("model.use_peft", training, "the optimizer" + (" and a reference" if memory.reference else ""))
    )
    steps, other = [], config
    for key, value in (("use_peft", True), ("dtype", "bfloat16"), ("load_in_4bit", True)):
        if config.model.init is None and _helps(other, key):
            other = _set(other, f"model.{key}", value)
            steps.append(f"model.{key}={str(value).lower()}")
            if predict(other, memory.load.prompt, ranks, []).resident <= available:
                break
    else:
        steps = []
    remedy = f"set {' and '.join(steps)}" if steps else "take a smaller model or a larger device"
    return (
        f"{field}: {_get(config, field)} needs {gib(size)} GiB for {what}, {gib(memory.resident)} in all "
        f"before the first pass, of {gib(available)} available; {remedy}"
    )


def _helps(config: BaseRun, key: str) -> bool:
    model = config.model
    return {
        "use_peft": not is_adapted(config),
        "dtype": model.dtype == "float32" and not model.load_in_4bit,
        "load_in_4bit": not model.load_in_4bit,
    }[key]


def _get(config: BaseRun, field: str):
    section, key = field.split(".")
    return getattr(getattr(config, section), key)


def _set(config: BaseRun, field: str, value) -> BaseRun:
    section, key = field.split(".")
    changed = getattr(config, section).model_copy(update={key: value})
    return config.model_copy(update={section: changed})

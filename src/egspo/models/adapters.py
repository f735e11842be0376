"""LoRA adapters in PEFT's layout: put a fresh one on a model, or a saved one.

PEFT takes a second or two to import, and most runs of small models need none of it.
"""

import sys
from pathlib import Path

from torch import nn

from egspo.models.family import Family
from egspo.models.source import locate
from egspo.sections import ModelConfig

CONFIG = "adapter_config.json"
FILES = ("adapter_*", "egspo.json", "README.md")
ALL_LINEAR = "all-linear"


def adapt(model: nn.Module, config: ModelConfig, family: Family) -> nn.Module:
    """The model with the adapter that a configuration asks for, if any.

    Raises:
        ValueError: if a target matches nothing, or the saved adapter does not fit.
    """
    if config.adapter is not None:
        return _saved(model, config.adapter)
    return _fresh(model, config, family) if config.use_peft else model


def adapter_folder(name: str) -> Path:
    """Where an adapter is: a folder, a run folder, or (a folder of) a hub repository.

    Raises:
        ValueError: if there is none.
    """
    folder = locate(name, "model.adapter", FILES)
    if not (folder / CONFIG).is_file():
        raise ValueError(f"model.adapter: {folder} has no {CONFIG}; give the folder of a PEFT adapter")
    return folder


def has_adapter(model: nn.Module) -> bool:
    """Whether PEFT wraps the model; whoever wraps one has imported it."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def adapt_shape(model: nn.Module, name: str) -> nn.Module:
    """The model with a fresh adapter of a saved one's shape: only the settings are read.

    Raises:
        ValueError: if there is no such adapter.
    """
    from peft import get_peft_model

    return get_peft_model(model, _settings(adapter_folder(name)))


def _settings(folder: Path):
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(folder))
    # A task type would only add a generation interface that a diffusion model has no use for.
    config.task_type, config.inference_mode = None, False
    return config


def _saved(model: nn.Module, name: str) -> nn.Module:
    from peft import PeftModel

    folder = adapter_folder(name)
    settings = _settings(folder)
    # What is trained on now, which need not be what the adapter was made for.
    settings.base_model_name_or_path = getattr(model, "name_or_path", settings.base_model_name_or_path)
    try:
        adapted = PeftModel(model, settings)
        found = adapted.load_adapter(str(folder), "default", is_trainable=True, torch_device="cpu")
    except (ValueError, RuntimeError, TypeError, KeyError, OSError) as error:
        raise _misfit(name, " ".join(str(error).split())) from None
    # PEFT would train what the file lacks from noise, and drop what the model lacks.
    for what, keys in (("lacks", found.missing_keys), ("holds in vain", found.unexpected_keys)):
        if keys:
            raise _misfit(name, f"it {what} {len(keys)} tensors, {keys[0]} the first")
    return adapted


def _misfit(name: str, reason: str) -> ValueError:
    return ValueError(f"model.adapter: {name!r} does not fit the model ({reason[:200]})")


def _fresh(model: nn.Module, config: ModelConfig, family: Family) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets = list(config.lora_target_modules or family.lora_targets)
    names = {
        name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    for target in targets:
        if target not in names and targets != [ALL_LINEAR]:
            known = ", ".join(sorted(names))
            raise ValueError(f"model.lora_target_modules: {target!r} matches nothing; the model has {known}")
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
        exclude_modules=[family.head] if family.head else None,
        bias="none",
    )
    return get_peft_model(model, lora)

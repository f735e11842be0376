"""Reinforcement learning for diffusion language models."""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "Policy": "policy",
    "load_policy": "policy",
    "generate": "rollout",
    "Trainer": "trainer",
    "SFTTrainer": "sft",
    "evaluate": "evaluation",
    "RLRun": "config",
    "SFTRun": "config",
    "load_config": "config",
    "parse_config": "config",
    "load_task": "registry",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    """Load torch and transformers only when something of the package is used."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'egspo' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"egspo.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value

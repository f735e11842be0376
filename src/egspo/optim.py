"""AdamW and its learning-rate schedule."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import nn

from egspo.config import IN_32_BITS, OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay acts on matrices only.

    Raises:
        ValueError: if some are in 16 bits, in which most steps of a usual learning rate round to nothing.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if coarse := {str(p.dtype) for p in trainable} & {"torch.bfloat16", "torch.float16"}:
        raise ValueError(
            f"model.dtype: weights to be trained are in {coarse.pop()}, which rounds most updates away; set "
            f"{IN_32_BITS}"
        )
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )


def learning_rate(config: OptimConfig, update: int, total: int) -> float:
    """Learning rate of optimizer step ``update`` (from 0) out of ``total``: warm-up, then the schedule."""
    if update < config.warmup_steps:
        return config.learning_rate * (update + 1) / config.warmup_steps
    done = (update - config.warmup_steps) / max(1, total - config.warmup_steps)
    factor = {
        "constant": 1.0,
        "linear": 1.0 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * min(1.0, done))),
    }[config.lr_scheduler_type]
    return config.learning_rate * max(0.0, factor)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def exchanged_if(last: bool, accelerator: Accelerator, model: nn.Module) -> AbstractContextManager:
    """Ranks add up their gradients in the backward pass of a step's last microbatch only."""
    return nullcontext() if last else accelerator.no_sync(model)


def apply_gradients(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, config: OptimConfig
) -> float:
    """Clip, step and forget the gradients; returns their norm before clipping.

    Raises:
        FloatingPointError: if the norm is not finite; the weights are then left as they were.
    """
    norm = float(accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"diverged: the gradient's norm is {norm}; start again in another output_dir with a lower "
            f"optim.learning_rate (now {config.learning_rate})"
        )
    optimizer.step()
    optimizer.zero_grad()
    return norm

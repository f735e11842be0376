"""The learning-rate schedule by hand, and what weight decay acts on."""

import math

import pytest
import torch
from torch import nn

from egspo.config import OptimConfig
from egspo.optim import build_optimizer, learning_rate, set_learning_rate


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        # Four steps in all, at a rate of 8.
        ("constant", 0, [8, 8, 8, 8]),
        ("linear", 0, [8, 6, 4, 2]),
        ("cosine", 0, [8, 4 * (1 + math.sqrt(0.5)), 4, 4 * (1 - math.sqrt(0.5))]),
        # Two of them warm-up, 1/2 and 2/2, and the schedule over the two that are left.
        ("constant", 2, [4, 8, 8, 8]),
        ("linear", 2, [4, 8, 8, 4]),
        ("cosine", 2, [4, 8, 8, 4]),
        # A warm-up longer than the run never ends.
        ("linear", 8, [1, 2, 3, 4]),
    ],
)
def test_schedule(kind: str, warmup: int, expected: list[float]):
    config = OptimConfig(learning_rate=8.0, lr_scheduler_type=kind, warmup_steps=warmup)
    assert [learning_rate(config, k, 4) for k in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_beyond_its_end_the_schedule_stays_at_nothing(kind: str):
    config = OptimConfig(learning_rate=8.0, lr_scheduler_type=kind)
    assert learning_rate(config, 4, 4) == pytest.approx(0)
    assert learning_rate(config, 9, 4) == pytest.approx(0)


def test_weight_decay_shrinks_matrices_alone():
    """With gradients of zero, a step multiplies a matrix by 1 - rate * decay = 1 - 0.5 * 0.1 = 0.95."""
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    model[0].weight.data.fill_(1.0)
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    model.register_parameter("frozen", frozen)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(learning_rate=0.5, weight_decay=0.1))
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), torch.full((3, 2), 0.95))
    for name in ("0.bias", "1.weight", "1.bias", "frozen"):
        assert torch.equal(dict(model.named_parameters())[name], before[name])
    assert all(p is not frozen for group in optimizer.param_groups for p in group["params"])


def test_settings_reach_the_optimizer():
    config = OptimConfig(learning_rate=0.25, adam_beta1=0.8, adam_beta2=0.7, adam_epsilon=1e-3)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.25, (0.8, 0.7), 1e-3)
    set_learning_rate(optimizer, 0.125)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}


def test_a_model_of_vectors_alone_has_one_group():
    assert len(build_optimizer(nn.LayerNorm(3), OptimConfig()).param_groups) == 1


def test_weights_as_they_are_stored_may_be_too_coarse_to_train():
    """``model.dtype=auto``: only the loaded weights tell."""
    model = nn.Linear(2, 2).to(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"^model\.dtype: .* torch\.bfloat16, which rounds most updates away; set"
    ):
        build_optimizer(model, OptimConfig())
    model.requires_grad_(False)
    model.adapter = nn.Linear(2, 2)
    assert len(build_optimizer(model, OptimConfig()).param_groups) == 2

"""Importance weights against numbers worked out by hand."""

import math

import pytest
import torch

from egspo.ops.importance import effective_sample_size, truncated_weights


def test_weights_are_ratios_up_to_the_cap():
    log_weight = torch.tensor([0.0, math.log(1.5), math.log(3.0), -math.inf])
    assert truncated_weights(log_weight, 2.0).tolist() == pytest.approx([1.0, 1.5, 2.0, 0.0])
    assert truncated_weights(log_weight, math.inf).tolist() == pytest.approx([1.0, 1.5, 3.0, 0.0])


def test_effective_sample_size():
    # Weights 3, 1: mean 2, mean square 5; 4 / 5. Equal weights are all of use, one of two is a half.
    assert effective_sample_size(2.0, 5.0) == pytest.approx(0.8)
    assert effective_sample_size(1.0, 1.0) == 1.0
    assert effective_sample_size(0.5, 0.5) == 0.5

"""A few views small enough to compute with by hand."""

import torch

from egspo.types import Views

DOUBLE = torch.float64


def make_views(**changes):
    """One sample, two views of three positions: two tokens, then one; a third view is padding."""
    fields = {
        "inputs": torch.zeros(1, 3, 4, dtype=torch.long),
        "attention_mask": torch.ones(1, 4, dtype=torch.bool),
        "targets": torch.zeros(1, 3, 3, dtype=torch.long),
        "scored": torch.tensor([[[True, True, False], [False, False, True], [False] * 3]]),
        "weight": torch.tensor([[0.5, 0.25, 0.0]], dtype=DOUBLE),
        "advantages": torch.tensor([[2.0, -4.0, 5.0]], dtype=DOUBLE),
        "step": torch.tensor([[0, 1, 0]]),
        "old_token_logp": torch.tensor([[[-1.0, -2.0, 0.0], [0.0, 0.0, -3.0], [0.0] * 3]], dtype=DOUBLE),
        "old_position_logp": torch.zeros(1, 3, dtype=DOUBLE),
    }
    return Views(**(fields | changes))

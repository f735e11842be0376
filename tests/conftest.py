"""Shapes and types of every call into the package are checked; a fixture builds fresh tiny policies."""

from typing import runtime_checkable

from jaxtyping import install_import_hook
from pydantic import ValidationInfo

# Before anything imports the package. Pydantic's protocol cannot be checked as it is.
runtime_checkable(ValidationInfo)
install_import_hook("egspo", "beartype.beartype")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
# A slow machine is no failure; pytest-timeout catches what hangs.
hypothesis.settings.register_profile("egspo", deadline=None)
hypothesis.settings.load_profile("egspo")


def _tiny_policy(seed: int = 0, dtype: torch.dtype = torch.float32, **shape):
    from egspo.models.llada import LLaDAConfig, LLaDAModelLM
    from egspo.models.tiny import build_tokenizer
    from egspo.policy import Policy

    tokenizer = build_tokenizer()
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 24} | shape
    # A wide initialisation, so that distributions are far from uniform and differ from state to state.
    config = LLaDAConfig(
        **sizes,
        vocab_size=len(tokenizer),
        rope_theta=100.0,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        init_std=0.5,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LLaDAModelLM(config)
    return Policy(model.to(dtype), tokenizer, "test")


@pytest.fixture(scope="session")
def tiny_policy():
    """``tiny_policy(seed=0, dtype=torch.float32, **shape)``: a fresh LLaDA of width 16 with its tokenizer."""
    return _tiny_policy

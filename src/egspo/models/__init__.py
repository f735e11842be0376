"""Masked diffusion transformers under the published names; importing registers them with transformers."""

from transformers import AutoConfig, AutoModel

from egspo.models.llada import LLaDAConfig, LLaDAModelLM

AutoConfig.register(LLaDAConfig.model_type, LLaDAConfig, exist_ok=True)
AutoModel.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)

MODEL_TYPES = (LLaDAConfig.model_type,)
"""Model types that can be loaded."""

__all__ = ["MODEL_TYPES", "LLaDAConfig", "LLaDAModelLM"]

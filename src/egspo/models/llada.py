"""LLaDA's masked diffusion transformer (arXiv 2502.09992) under its published configuration and tensor names.

A bidirectional pre-norm transformer: RMSNorm, rotary positions, SwiGLU, no biases. Written from the published
configuration (``GSAI-ML/LLaDA-8B-Instruct``) so that its checkpoints load as they are.
"""

from typing import ClassVar

from torch import nn
from transformers import PretrainedConfig

from egspo.models.bidirectional import BidirectionalLM, check_shape, keep_to
from egspo.models.family import Family
from egspo.models.layers import Block, Parts, RMSNorm

# What the published configuration can ask for and this class computes; anything else is refused. All of it is
# saved, since the published class takes other defaults where a key is absent.
_FIXED = {
    "block_type": "llama",
    "block_group_size": 1,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "bias_for_layer_norm": False,
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "input_emb_norm": False,
    "clip_qkv": None,
    "scale_logits": False,
    "weight_tying": False,
}
_DROPOUTS = ("attention_dropout", "embedding_dropout", "residual_dropout")


class LLaDAConfig(PretrainedConfig):
    """LLaDA's published keys. ``embedding_size`` rows are allocated, of which ``vocab_size`` are tokens."""

    model_type = "llada"
    # transformers' own code asks for its own names.
    attribute_map: ClassVar = {
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }

    def __init__(
        self,
        d_model: int = 4096,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        n_layers: int = 32,
        mlp_hidden_size: int = 12288,
        rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5,
        vocab_size: int = 126464,
        embedding_size: int | None = None,
        max_sequence_length: int = 4096,
        mask_token_id: int = 126336,
        eos_token_id: int = 126081,
        pad_token_id: int = 126081,
        init_std: float = 0.02,
        **kwargs,
    ):
        fixed = keep_to(_FIXED, kwargs, self.model_type)
        for name in (*_FIXED, *self.attribute_map):
            kwargs.pop(name, None)
        # The published class reads weight_tying alone; what transformers wrote beside it is its own default.
        kwargs["tie_word_embeddings"] = False
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads or (1 if kwargs.get("multi_query_attention") else n_heads)
        self.n_layers = n_layers
        self.mlp_hidden_size = mlp_hidden_size
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size or vocab_size
        self.max_sequence_length = max_sequence_length
        self.mask_token_id = mask_token_id
        self.init_std = init_std
        sizes = ("d_model", "n_heads", "n_kv_heads", "n_layers", "mlp_hidden_size", "vocab_size")
        check_shape({key: getattr(self, key) for key in sizes}, "d_model", "n_heads", "n_kv_heads")
        if self.embedding_size < vocab_size:
            raise ValueError(f"config.json: embedding_size {embedding_size} is below vocab_size {vocab_size}")
        kwargs = dict.fromkeys(_DROPOUTS, 0.0) | kwargs | fixed
        super().__init__(eos_token_id=eos_token_id, pad_token_id=pad_token_id, **kwargs)


class LLaDABlock(Block):
    """A block under LLaDA's names."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        d = config.d_model
        self.head_size = d // config.n_heads
        kv_size = config.n_kv_heads * self.head_size
        self.attn_norm = RMSNorm(d, config.rms_norm_eps)
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, kv_size, bias=False)
        self.v_proj = nn.Linear(d, kv_size, bias=False)
        self.attn_out = nn.Linear(d, d, bias=False)
        self.ff_norm = RMSNorm(d, config.rms_norm_eps)
        self.ff_proj = nn.Linear(d, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(d, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, d, bias=False)

    def parts(self) -> Parts:
        attention = (self.attn_norm, self.q_proj, self.k_proj, self.v_proj, self.attn_out)
        return Parts(*attention, self.ff_norm, self.ff_proj, self.up_proj, self.ff_out)


class LLaDAModel(nn.Module):
    """Container that gives the tensors their published names."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.embedding_size, config.d_model),
                "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
                "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
                "ff_out": nn.Linear(config.d_model, config.embedding_size, bias=False),
            }
        )


class LLaDAModelLM(BidirectionalLM):
    """LLaDA with its output layer."""

    config_class = LLaDAConfig
    _no_split_modules = ("LLaDABlock",)

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.transformer.blocks

    @property
    def final_norm(self) -> nn.Module:
        return self.model.transformer.ln_f

    @property
    def rope_theta(self) -> float:
        return self.config.rope_theta

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.transformer.wte = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer.ff_out


FAMILY = Family(
    name="llada",
    description="LLaDA-8B Base, Instruct and 1.5, and the tiny presets",
    source="arXiv 2502.09992",
    model_types=(LLaDAConfig.model_type,),
    config_class=LLaDAConfig,
    model_class=LLaDAModelLM,
    lora_targets=("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"),
    head="transformer.ff_out",
    max_length="max_sequence_length",
    mask_token="<|mdm_mask|>",
    end_tokens=("<|endoftext|>", "<|eot_id|>"),
)

"""Dream's masked diffusion transformer (arXiv 2508.15487) under its published names.

Qwen2.5's shape and names, with biases on queries, keys and values, made bidirectional; the logits of a
position predict the token *after* it, since Dream was initialised from an autoregressive model. DiffuCoder
(arXiv 2506.20639) has the same architecture. The published class rotates queries and keys in the dtype of the
hidden states; here it is done in float32 at least, as in LLaDA.
"""

from torch import nn
from transformers import PretrainedConfig

from egspo.models.bidirectional import BidirectionalLM, check_shape, keep_to
from egspo.models.family import Family
from egspo.models.layers import Block, Parts, RMSNorm

# What the published configuration can ask for and this class computes; anything else is refused.
_FIXED = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_sliding_window": False,
    "use_mrope": False,
    "tie_word_embeddings": False,
}


class DreamConfig(PretrainedConfig):
    """Dream's published keys, which are Qwen2's and ``mask_token_id``."""

    model_type = "Dream"

    def __init__(
        self,
        hidden_size: int = 3584,
        num_attention_heads: int = 28,
        num_key_value_heads: int = 4,
        num_hidden_layers: int = 28,
        intermediate_size: int = 18944,
        rope_theta: float = 1000000.0,
        rms_norm_eps: float = 1e-6,
        vocab_size: int = 152064,
        max_position_embeddings: int = 131072,
        mask_token_id: int = 151666,
        eos_token_id: int = 151643,
        pad_token_id: int = 151643,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        fixed = keep_to(_FIXED, kwargs, self.model_type)
        kwargs = {key: value for key, value in kwargs.items() if key not in _FIXED} | fixed
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.mask_token_id = mask_token_id
        self.initializer_range = initializer_range
        heads = ("num_attention_heads", "num_key_value_heads")
        sizes = ("hidden_size", *heads, "num_hidden_layers", "intermediate_size", "vocab_size")
        check_shape({key: getattr(self, key) for key in sizes}, "hidden_size", *heads)
        super().__init__(eos_token_id=eos_token_id, pad_token_id=pad_token_id, **kwargs)

    @property
    def init_std(self) -> float:
        return self.initializer_range


class DreamBlock(Block):
    """A block under Qwen2's names."""

    def __init__(self, config: DreamConfig):
        super().__init__()
        d, wide = config.hidden_size, config.intermediate_size
        self.head_size = d // config.num_attention_heads
        kv_size = config.num_key_value_heads * self.head_size
        self.input_layernorm = RMSNorm(d, config.rms_norm_eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(d, d),
                "k_proj": nn.Linear(d, kv_size),
                "v_proj": nn.Linear(d, kv_size),
                "o_proj": nn.Linear(d, d, bias=False),
            }
        )
        self.post_attention_layernorm = RMSNorm(d, config.rms_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(d, wide, bias=False),
                "up_proj": nn.Linear(d, wide, bias=False),
                "down_proj": nn.Linear(wide, d, bias=False),
            }
        )

    def parts(self) -> Parts:
        attention = (self.self_attn[f"{name}_proj"] for name in "qkvo")
        mlp = (self.mlp[f"{name}_proj"] for name in ("gate", "up", "down"))
        return Parts(self.input_layernorm, *attention, self.post_attention_layernorm, *mlp)


class DreamBaseModel(nn.Module):
    """Container that gives the tensors their published names."""

    def __init__(self, config: DreamConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DreamBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DreamModel(BidirectionalLM):
    """Dream with its output layer. Its logits are those of the token after each position."""

    config_class = DreamConfig
    _no_split_modules = ("DreamBlock",)

    def __init__(self, config: DreamConfig):
        super().__init__(config)
        self.model = DreamBaseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.model.norm

    @property
    def rope_theta(self) -> float:
        return self.config.rope_theta

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


FAMILY = Family(
    name="dream",
    description="Dream-7B, DiffuCoder: Qwen2.5 made bidirectional, logits shifted by one",
    source="arXiv 2508.15487",
    model_types=("Dream",),
    config_class=DreamConfig,
    model_class=DreamModel,
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    head="lm_head",
    max_length="max_position_embeddings",
    shift=1,
    mask_token="<|mask|>",
    end_tokens=("<|im_end|>", "<|endoftext|>"),
    pretokenizer=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)

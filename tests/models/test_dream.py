"""Dream's transformer against its description, written out position by position and head by head."""

import json
import math

import pytest
import torch

from egspo.models.dream import DreamConfig, DreamModel
from egspo.models.tiny import build_tokenizer
from egspo.policy import Policy
from silence import silence

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 10,
    "vocab_size": 11,
}
# Every key of the file published with Dream-v0 and DiffuCoder.
PUBLISHED = {
    "architectures": ["DreamModel"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_dream.DreamConfig",
        "AutoModel": "modeling_dream.DreamModel",
    },
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "Dream",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pad_token_id": 151643,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.3",
    "use_cache": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def make_model(seed=0, dtype=torch.float32, **changes):
    tokens = {"mask_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = DreamConfig(**(SHAPE | tokens | {"rope_theta": 50.0, "initializer_range": 0.4} | changes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DreamModel(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
    return model.to(dtype).eval()


def literal_logits(weights, tokens, config):
    """Logits of one unpadded sequence, from the tensors by their published names."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads

    def normed(row, name):
        mean = sum(value * value for value in row.tolist()) / len(row)
        return row / math.sqrt(mean + config.rms_norm_eps) * weights[f"{name}.weight"]

    def projected(row, name):
        return weights[f"{name}.weight"] @ row + weights[f"{name}.bias"]

    def rotated(head, position):
        # Entry k is paired with entry k + size / 2; the pair turns by position * theta^(-2 k / size).
        turned = []
        for k in range(size):
            angle = position * config.rope_theta ** (-2 * (k % (size // 2)) / size)
            partner = -head[k + size // 2] if k < size // 2 else head[k - size // 2]
            turned.append(head[k] * math.cos(angle) + partner * math.sin(angle))
        return torch.stack(turned)

    def attended(layer, stream):
        normal = [normed(row, f"{layer}.input_layernorm") for row in stream]
        q, k, v = (
            [projected(row, f"{layer}.self_attn.{x}_proj").split(size) for row in normal] for x in "qkv"
        )
        for i in range(len(stream)):
            mixed = []
            for h in range(heads):
                shared = h // (heads // kv_heads)  # neighbouring heads share keys and values
                scores = [
                    float(rotated(q[i][h], i) @ rotated(k[j][shared], j)) / math.sqrt(size)
                    for j in range(len(stream))
                ]
                total = sum(math.exp(s) for s in scores)
                mixed.append(sum(math.exp(s) / total * v[j][shared] for j, s in enumerate(scores)))
            yield stream[i] + weights[f"{layer}.self_attn.o_proj.weight"] @ torch.cat(mixed)

    def fed_forward(layer, row):
        normal = normed(row, f"{layer}.post_attention_layernorm")
        gate = weights[f"{layer}.mlp.gate_proj.weight"] @ normal
        up = weights[f"{layer}.mlp.up_proj.weight"] @ normal
        inner = torch.stack([g / (1 + math.exp(-float(g))) * u for g, u in zip(gate, up, strict=True)])
        return row + weights[f"{layer}.mlp.down_proj.weight"] @ inner

    stream = [weights["model.embed_tokens.weight"][token] for token in tokens]
    for n in range(config.num_hidden_layers):
        layer = f"model.layers.{n}"
        stream = [fed_forward(layer, row) for row in list(attended(layer, stream))]
    return torch.stack([weights["lm_head.weight"] @ normed(row, "model.norm") for row in stream])


TOKENS = [[3, 4, 5, 2, 2], [6, 2, 7]]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_forward_is_the_description(kv_heads):
    model = make_model(num_key_value_heads=kv_heads)
    for tokens in TOKENS:
        expected = literal_logits(model.state_dict(), tokens, model.config)
        logits = model(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def padded(sides):
    """The rows of TOKENS with so much padding on the left and on the right of each, and the mask."""
    ids, mask = [], []
    for row, (left, right) in zip(TOKENS, sides, strict=True):
        ids.append([0] * left + row + [0] * right)
        mask.append([False] * left + [True] * len(row) + [False] * right)
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("sides", [[(0, 2), (2, 2)], [(2, 0), (4, 0)], [(1, 1), (0, 4)]])
def test_padding_on_either_side_changes_nothing(sides):
    model = make_model()
    ids, mask = padded(sides)
    logits = model(ids, mask).logits
    for n, row in enumerate(TOKENS):
        expected = literal_logits(model.state_dict(), row, model.config)
        torch.testing.assert_close(logits[n, mask[n]], expected, rtol=1e-5, atol=1e-5)


def test_published_tensor_names_and_where_biases_are():
    names = {name.replace(".0.", ".N.") for name in make_model(num_hidden_layers=1).state_dict()}
    attention = {f"self_attn.{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")}
    mlp = {f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
    norms = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    layer = {f"model.layers.N.{name}" for name in attention | mlp | norms | {"self_attn.o_proj.weight"}}
    assert names == layer | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_published_shape_has_the_published_number_of_weights():
    with torch.device("meta"):
        model = DreamModel(DreamConfig())
    assert len(model.state_dict()) == 339
    assert sum(p.numel() for p in model.parameters()) == 7_615_616_512


def test_saved_and_loaded(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = DreamModel.from_pretrained(tmp_path)
    assert {key: getattr(loaded.config, key) for key in SHAPE} == SHAPE
    assert (loaded.config.rope_theta, loaded.config.mask_token_id) == (50.0, 2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_sharded_weights_load_without_a_word(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    with silence():
        loaded = DreamModel.from_pretrained(tmp_path)
    ids = torch.tensor(TOKENS[:1])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_published_configuration_loads_without_a_word(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    with silence():
        config = DreamConfig.from_pretrained(tmp_path)
    # Written by the library for itself, renamed, or of no meaning to a model without a causal cache.
    other = {"torch_dtype", "transformers_version", "use_cache", "rope_scaling", "architectures"}
    for key in PUBLISHED.keys() - other:
        assert config.to_dict()[key] == PUBLISHED[key], key
    assert str(config.dtype).removeprefix("torch.") == "bfloat16"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("use_sliding_window", True),
        ("use_mrope", True),
        ("tie_word_embeddings", True),
    ],
)
def test_what_is_not_computed_is_refused(key, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED | {key: value}))
    with pytest.raises(ValueError, match=f"config.json: {key} is .*; only .* is computed for Dream"):
        DreamConfig.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def policy():
    tokenizer = build_tokenizer()
    return Policy(make_model(vocab_size=len(tokenizer), dtype=torch.float64), tokenizer, "test")


def literal_scores(policy, row):
    """Scores of the token AT each position of an unpadded row, as Dream generates: those from one before."""
    raw = policy.model(torch.tensor([row])).logits[0]
    return torch.stack([raw[max(i - 1, 0)] for i in range(len(row))])


@pytest.mark.parametrize("sides", [[(0, 0), (0, 2)], [(0, 2), (2, 2)], [(2, 0), (4, 0)], [(1, 1), (0, 4)]])
def test_policy_hides_the_shift(policy, sides):
    ids, mask = padded(sides)
    logits = policy.logits(ids, mask)
    for n, row in enumerate(TOKENS):
        expected = literal_scores(policy, row)
        torch.testing.assert_close(logits[n, mask[n]], expected, rtol=0, atol=1e-12)


def test_policy_hides_the_shift_without_a_mask(policy):
    logits = policy.logits(torch.tensor(TOKENS[:1]))
    torch.testing.assert_close(logits[0], literal_scores(policy, TOKENS[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("left", [0, 2])
def test_policy_hides_the_shift_at_positions(policy, left):
    ids, mask = padded([(left, 2 - left), (2 + left, 2 - left)])
    # The first token of each row, its last, and one twice.
    places = [[0, 4, 2, 2], [0, 2, 1, 1]]
    starts = [left, 2 + left]
    positions = torch.tensor([[start + p for p in row] for start, row in zip(starts, places, strict=True)])
    logits = policy.logits(ids, mask, positions)
    for n, row in enumerate(TOKENS):
        expected = literal_scores(policy, row)[places[n]]
        torch.testing.assert_close(logits[n], expected, rtol=0, atol=1e-12)


def test_a_token_does_not_score_itself(policy):
    """The shift is real: logits of the same position, unshifted, are others."""
    ids = torch.tensor(TOKENS[:1])
    assert bool(((policy.logits(ids) - policy.model(ids).logits).abs().amax(-1)[0, 1:] > 1e-3).all())

"""LLaDA's transformer against its description, written out position by position and head by head."""

import json
import math

import pytest
import torch

from egspo.models.llada import LLaDAConfig, LLaDAModelLM
from egspo.policy import build_policy
from egspo.sections import ModelConfig
from silence import silence

# Every key of the file published with LLaDA-8B-Base, LLaDA-8B-Instruct and LLaDA-1.5.
PUBLISHED = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        "AutoModel": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
SHAPE = {"d_model": 12, "n_layers": 2, "n_heads": 3, "mlp_hidden_size": 10, "vocab_size": 11}


def make_model(seed=0, dtype=torch.float32, **changes):
    config = LLaDAConfig(
        **(SHAPE | {"rope_theta": 50.0, "mask_token_id": 2, "eos_token_id": 1, "pad_token_id": 0} | changes),
        init_std=0.6,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LLaDAModelLM(config)
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_f" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.to(dtype).eval()


def literal_logits(weights, tokens, config):
    """Logits of one unpadded sequence, from the tensors by their published names."""
    size = config.d_model // config.n_heads
    share = config.n_heads // config.n_kv_heads

    def tensor(name):
        return weights[f"model.transformer.{name}.weight"]

    def normed(row, name):
        return (
            row / math.sqrt(sum(v * v for v in row.tolist()) / len(row) + config.rms_norm_eps) * tensor(name)
        )

    def rotated(head, position):
        # The k-th pair (k, k + size / 2) turns by position * theta^(-2 k / size).
        turned = head.clone()
        for k in range(size // 2):
            angle = position * config.rope_theta ** (-2 * k / size)
            a, b = float(head[k]), float(head[k + size // 2])
            turned[k] = a * math.cos(angle) - b * math.sin(angle)
            turned[k + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    stream = [tensor("wte")[token] for token in tokens]
    for n in range(config.n_layers):
        block = f"blocks.{n}."
        normal = [normed(row, block + "attn_norm") for row in stream]
        q, k, v = ([tensor(block + f"{x}_proj") @ row for row in normal] for x in "qkv")
        for i in range(len(tokens)):
            heads = []
            for h in range(config.n_heads):
                own, kv = slice(h * size, (h + 1) * size), slice(h // share * size, (h // share + 1) * size)
                query = rotated(q[i][own], i)
                keys = [rotated(k[j][kv], j) for j in range(len(tokens))]
                strength = [math.exp(float(query @ key) / math.sqrt(size)) for key in keys]
                heads.append(sum(s * v[j][kv] for j, s in enumerate(strength)) / sum(strength))
            stream[i] = stream[i] + tensor(block + "attn_out") @ torch.cat(heads)
        for i, row in enumerate(stream):
            normal_row = normed(row, block + "ff_norm")
            gate = tensor(block + "ff_proj") @ normal_row
            gate = torch.stack([g / (1 + math.exp(-float(g))) for g in gate])
            stream[i] = row + tensor(block + "ff_out") @ (gate * (tensor(block + "up_proj") @ normal_row))
    return torch.stack([tensor("ff_out") @ normed(row, "ln_f") for row in stream])


TOKENS = [[3, 4, 5, 2, 2], [6, 2, 7]]


@pytest.mark.parametrize("kv_heads", [3, 1])
def test_forward_is_the_description(kv_heads):
    model = make_model(n_kv_heads=kv_heads)
    for tokens in TOKENS:
        expected = literal_logits(model.state_dict(), tokens, model.config)
        logits = model(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_grouped_heads(kv_heads):
    model = make_model(n_heads=4, d_model=16, n_kv_heads=kv_heads)
    expected = literal_logits(model.state_dict(), TOKENS[0], model.config)
    torch.testing.assert_close(model(torch.tensor(TOKENS[:1])).logits[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padded", [[(0, 2), (2, 2)], [(2, 0), (4, 0)], [(1, 1), (0, 4)]])
def test_padding_on_either_side_changes_nothing(padded, dtype):
    model, atol = make_model(dtype=dtype), 1e-5 if dtype == torch.float32 else 1e-12
    ids = torch.tensor(
        [[0] * left + row + [0] * right for row, (left, right) in zip(TOKENS, padded, strict=True)]
    )
    mask = torch.tensor(
        [
            [False] * left + [True] * len(r) + [False] * right
            for r, (left, right) in zip(TOKENS, padded, strict=True)
        ]
    )
    logits = model(ids, mask).logits
    for n, row in enumerate(TOKENS):
        alone = model(torch.tensor([row])).logits[0]
        torch.testing.assert_close(logits[n, mask[n]], alone, rtol=0, atol=atol)
    # Whatever the padding says.
    other = model(torch.where(mask, ids, 9), mask).logits
    torch.testing.assert_close(other[mask], logits[mask], rtol=0, atol=atol)


def test_attention_goes_both_ways():
    model, tokens = make_model(), torch.tensor([[3, 4, 5, 6]])
    for changed in range(4):
        other = tokens.clone()
        other[0, changed] = 9
        assert bool(((model(other).logits - model(tokens).logits).abs().amax(-1) > 1e-3).all())


@pytest.mark.parametrize("attention", [None, torch.tensor([[False, True, True, True, True]]).expand(2, 5)])
def test_logits_at_positions(attention):
    model, ids = make_model(), torch.tensor([[3, 4, 5, 2, 2], [0, 6, 2, 7, 2]])
    positions = torch.tensor([[4, 1, 1], [2, 3, 4]])
    whole = model(ids, attention).logits
    some = model(ids, attention, positions).logits
    assert some.shape == (2, 3, 11)
    for n in range(2):
        torch.testing.assert_close(some[n], whole[n, positions[n]], rtol=0, atol=1e-5)


def test_the_output_layer_runs_at_the_positions_asked_for_only():
    model, rows = make_model(), []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: rows.append(args[0].shape[:2])
    )
    model(torch.tensor([[3, 4, 5, 2, 2]]), positions=torch.tensor([[3]]))
    assert rows == [(1, 1)]


def test_rows_beyond_the_vocabulary_are_no_tokens():
    model = make_model(embedding_size=16)
    assert model.get_output_embeddings().weight.shape[0] == 16
    assert model(torch.tensor(TOKENS[:1])).logits.shape == (1, 5, 11)


def gradients(model, positions):
    model.zero_grad()
    logits = model(torch.tensor(TOKENS[:1]), positions=positions).logits
    (logits.log_softmax(-1)[..., 3].sum()).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("positions", [None, torch.tensor([[3, 4]])])
def test_gradient_checkpointing_changes_nothing_but_memory(positions):
    model = make_model()
    plain, calls = gradients(model, positions), []
    model.gradient_checkpointing_enable()
    model.model.transformer["blocks"][0].register_forward_pre_hook(lambda *_: calls.append(1))
    again = gradients(model, positions)
    # The first block ran twice: forward, and once more in backward.
    assert len(calls) == 2
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    model.gradient_checkpointing_disable()
    gradients(model, positions)
    assert len(calls) == 3


def test_gradient_checkpointing_by_configuration():
    """Under whichever name the version of transformers calls it."""
    for asked in (False, True):
        policy = build_policy(ModelConfig(init="tiny", gradient_checkpointing=asked))
        assert policy.model.gradient_checkpointing == asked


def test_saved_and_loaded(tmp_path):
    model = make_model(n_kv_heads=1, embedding_size=16)
    model.save_pretrained(tmp_path)
    loaded = LLaDAModelLM.from_pretrained(tmp_path)
    assert isinstance(loaded, LLaDAModelLM)
    assert {k: v for k, v in loaded.config.to_dict().items() if k in SHAPE} == SHAPE
    assert (
        loaded.config.n_kv_heads == 1
        and loaded.config.rope_theta == 50.0
        and loaded.config.mask_token_id == 2
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = torch.tensor(TOKENS[:1])
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_published_tensor_names():
    names = {name.replace(".0.", ".N.") for name in make_model(n_layers=1).state_dict()}
    block = ["attn_norm", "q_proj", "k_proj", "v_proj", "attn_out", "ff_norm", "ff_proj", "up_proj", "ff_out"]
    expected = [*(f"blocks.N.{name}" for name in block), "wte", "ln_f", "ff_out"]
    assert names == {f"model.transformer.{name}.weight" for name in expected}


def test_published_shape_has_the_published_number_of_weights():
    with torch.device("meta"):
        model = LLaDAModelLM(LLaDAConfig())
    assert len(model.state_dict()) == 291
    assert sum(p.numel() for p in model.parameters()) == 8_015_581_184


def test_published_configuration_is_the_default():
    config = LLaDAConfig()
    assert (config.d_model, config.n_heads, config.n_kv_heads, config.n_layers) == (4096, 32, 32, 32)
    assert (config.mlp_hidden_size, config.rope_theta, config.rms_norm_eps) == (12288, 500000.0, 1e-5)
    assert (config.vocab_size, config.embedding_size, config.mask_token_id) == (126464, 126464, 126336)


def test_published_configuration_loads_without_a_word_and_is_kept(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    with silence():
        config = LLaDAConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    # Written by the library for itself, or of no meaning to a model without a causal cache.
    for key in PUBLISHED.keys() - {"transformers_version", "use_cache", "architectures"}:
        assert getattr(config, key) == PUBLISHED[key], key
        assert saved.get(key) == PUBLISHED[key], key


def test_a_saved_configuration_says_what_the_published_class_would_take_otherwise(tmp_path):
    LLaDAConfig(**SHAPE).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    # That class has these defaults, and no setter for the names that transformers uses.
    other = {"block_type": "sequential", "rope": False, "weight_tying": True, "residual_dropout": 0.1}
    other |= {"attention_dropout": 0.1, "embedding_dropout": 0.1, "activation_type": "swiglu"}
    assert {key: saved[key] for key in other} == {key: PUBLISHED[key] for key in other}
    assert saved.keys().isdisjoint({"hidden_size", "num_attention_heads", "num_hidden_layers"})


def test_transformers_names_of_the_shape():
    config = LLaDAConfig(**SHAPE, hidden_size=12, num_attention_heads=3, num_hidden_layers=2)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (12, 3, 2)


@pytest.mark.parametrize(
    ("n_kv_heads", "multi_query", "expected"), [(None, None, 4), (2, None, 2), (None, True, 1), (4, False, 4)]
)
def test_number_of_key_heads(n_kv_heads, multi_query, expected):
    shape = SHAPE | {
        "d_model": 16,
        "n_heads": 4,
        "n_kv_heads": n_kv_heads,
        "multi_query_attention": multi_query,
    }
    assert LLaDAConfig(**shape).n_kv_heads == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight_tying", True),
        ("alibi", True),
        ("include_bias", True),
        ("scale_logits", True),
        ("rope", False),
        ("block_type", "sequential"),
        ("block_group_size", 2),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("activation_type", "gelu"),
        ("clip_qkv", 6.0),
    ],
)
def test_what_is_not_computed_is_refused(key, value, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED | {key: value}))
    with pytest.raises(ValueError, match=f"config.json: {key} is .*; only .* is computed for llada"):
        LLaDAConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 5}, "d_model 12 does not divide into even parts for n_heads 5"),
        ({"n_heads": 4}, "d_model 12 does not divide into even parts for n_heads 4"),  # of 3
        ({"n_kv_heads": 2}, "n_heads 3 does not divide into parts for n_kv_heads 2"),
        ({"d_model": 0}, "d_model is 0; a whole number above 0 is needed"),
        ({"n_layers": 0}, "n_layers is 0; a whole number above 0 is needed"),
        ({"embedding_size": 10}, "embedding_size 10 is below vocab_size 11"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"^config.json: {message}$"):
        LLaDAConfig(**SHAPE | changes)


@pytest.mark.parametrize("shard_size", ["4KB", "1GB"])
@pytest.mark.parametrize("embedding_size", [11, 16])
def test_weights_load_without_a_word(tmp_path, shard_size, embedding_size):
    model = make_model(embedding_size=embedding_size)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").is_file() == (shard_size == "4KB")
    with silence():
        loaded = LLaDAModelLM.from_pretrained(tmp_path)
    ids = torch.tensor(TOKENS[:1])
    assert loaded(ids).logits.shape == (1, 5, 11)
    assert torch.equal(loaded(ids).logits, model(ids).logits)

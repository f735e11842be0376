"""LoRA adapters: where they go, how they are stored, and those that others wrote."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

from egspo.models.adapters import adapt
from egspo.models.dream import DreamConfig, DreamModel
from egspo.models.family import family_of
from egspo.models.tiny import build_tokenizer
from egspo.policy import Policy, build_policy, load_policy
from egspo.sections import ModelConfig
from silence import silence

IDS = torch.tensor([[20, 21, 22, 2, 2]])
LAYERS, WIDTH, RANK = 3, 64, 4  # of the preset "tiny"
SEVEN = ["k_proj", "gate_proj", "o_proj", "q_proj", "up_proj", "v_proj", "down_proj"]
HERE = ["q_proj", "k_proj", "v_proj", "up_proj"]  # those of the seven that LLaDA has


def dream():
    tokens = {"vocab_size": len(build_tokenizer()), "mask_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return DreamModel(DreamConfig(hidden_size=16, intermediate_size=24, **shape, **tokens))


def llada():
    return build_policy(ModelConfig(init="tiny")).model


def bert():
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}
    return BertForMaskedLM(BertConfig(hidden_size=16, **shape))


def settings(**changes):
    return ModelConfig(model_name_or_path="a/b", use_peft=True, lora_r=RANK, **changes)


def adapted_modules(model):
    return {
        n.removesuffix(".lora_A.default") for n, _ in model.named_modules() if n.endswith("lora_A.default")
    }


def block_names(layers, blocks, names):
    return {f"base_model.model.{blocks}.{n}.{name}" for n in range(layers) for name in names}


BERT = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
BERT += ["intermediate.dense", "output.dense"]
DREAM = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
LLADA = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (llada, block_names(LAYERS, "model.transformer.blocks", LLADA)),
        (dream, block_names(2, "model.layers", DREAM)),
        # BERT's head is a linear layer and the output layer; the latter gets none.
        (
            bert,
            block_names(2, "bert.encoder.layer", BERT) | {"base_model.model.cls.predictions.transform.dense"},
        ),
    ],
)
def test_all_linear_layers_of_a_block_by_default_and_no_head(make, expected):
    model = make()
    adapted = adapt(model, settings(), family_of(model.config.model_type))
    assert adapted_modules(adapted) == expected
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {f"{name}.lora_{x}.default.weight" for name in expected for x in "AB"}


def test_targets_by_name():
    adapted = adapt(llada(), settings(lora_target_modules=["q_proj", "ff_out"]), family_of("llada"))
    assert adapted_modules(adapted) == block_names(LAYERS, "model.transformer.blocks", ["q_proj", "ff_out"])


def test_unknown_targets_are_refused_with_those_that_there_are():
    names = "attn_out, ff_out, ff_proj, k_proj, q_proj, up_proj, v_proj"
    message = rf"^model.lora_target_modules: 'o_proj' matches nothing; the model has {names}$"
    with pytest.raises(ValueError, match=message):
        adapt(llada(), settings(lora_target_modules=["q_proj", "o_proj"]), family_of("llada"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_policy(ModelConfig(init="tiny")).save(folder)
    return folder


@pytest.fixture(scope="module")
def fresh(base):
    """A policy whose adapter says something: B, which starts at 0, is drawn."""
    policy = build_policy(settings().model_copy(update={"model_name_or_path": str(base)}))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return policy


@pytest.fixture
def saved(fresh, tmp_path):
    with silence():
        fresh.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_saved_layout(saved, base):
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 4, 32, "none")
    assert config["base_model_name_or_path"] == str(base)
    assert set(config["target_modules"]) == set(LLADA)
    blocks = block_names(LAYERS, "model.transformer.blocks", LLADA)
    with safe_open(saved / "adapter_model.safetensors", "pt") as file:
        assert set(file.keys()) == {f"{name}.lora_{x}.weight" for name in blocks for x in "AB"}
        name = "base_model.model.model.transformer.blocks.0.up_proj"
        assert file.get_slice(f"{name}.lora_A.weight").get_shape() == [RANK, WIDTH]
        assert file.get_slice(f"{name}.lora_B.weight").get_shape() == [160, RANK]
    assert not (saved / "model.safetensors").exists()


def test_an_adapters_folder_is_the_adapter_on_its_base(saved, fresh):
    policy = load_policy(saved)
    assert torch.equal(policy.logits(IDS), fresh.logits(IDS))
    # It can be trained on.
    assert {n for n, p in policy.model.named_parameters() if p.requires_grad} == {
        n for n, p in fresh.model.named_parameters() if p.requires_grad
    }


def test_an_adapter_that_is_trained_on_upon_another_base_names_that_one(saved, tmp_path):
    other = tmp_path / "other"
    build_policy(ModelConfig(init="tiny"), seed=1).save(other)
    on = settings().model_copy(update={"model_name_or_path": str(other), "adapter": str(saved)})
    policy = build_policy(on)
    with silence():
        policy.save(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(other)
    assert torch.equal(load_policy(tmp_path / "again").logits(IDS), policy.logits(IDS))


def test_a_base_given_from_here_is_found_from_elsewhere(base, tmp_path, monkeypatch):
    """``owner/name`` of a folder that is not there would be looked for on the hub."""
    monkeypatch.chdir(base.parent.parent)
    relative = f"{base.parent.name}/{base.name}"
    build_policy(settings().model_copy(update={"model_name_or_path": relative})).save(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert load_policy("adapter").source == f"{base.resolve()} + adapter"


def test_a_run_folder_holds_its_adapter(fresh, tmp_path):
    fresh.save(tmp_path / "model")
    assert torch.equal(load_policy(tmp_path).logits(IDS), fresh.logits(IDS))


def test_merged_is_unmerged(saved, fresh):
    merged = load_policy(saved)
    merged.model = merged.model.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    torch.testing.assert_close(merged.logits(IDS), fresh.logits(IDS), rtol=0, atol=1e-5)


def test_reference_is_the_base(saved, base):
    policy, plain = load_policy(saved), load_policy(base)
    with policy.reference() as reference:
        assert torch.equal(reference.logits(IDS), plain.logits(IDS))
    assert not torch.allclose(policy.logits(IDS), plain.logits(IDS), rtol=0, atol=1e-3)


def test_reference_of_a_shifted_family():
    tokenizer = build_tokenizer()
    model = dream().eval()
    plain = Policy(model, tokenizer, "test").logits(IDS)
    policy = Policy(adapt(model, settings(), family_of("Dream")), tokenizer, "test")
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    assert not torch.allclose(policy.logits(IDS), plain, rtol=0, atol=1e-3)
    with policy.reference() as reference:
        assert torch.equal(reference.logits(IDS), plain)


def published_adapter(folder, layers=LAYERS, rank=8, names=HERE, width=WIDTH):
    """An adapter as those beside the papers are: seven names, of which LLaDA has four, for a causal LM."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "GSAI-ML/LLaDA-8B-Instruct",
        "target_modules": SEVEN,
        "r": rank,
        "lora_alpha": 4,
        "lora_dropout": 0.05,
        "bias": "none",
        "inference_mode": True,
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    wide = {"q_proj": WIDTH, "k_proj": WIDTH, "v_proj": WIDTH, "up_proj": 160}
    generator, tensors = torch.Generator().manual_seed(0), {}
    for n in range(layers):
        for name in names:
            key = f"base_model.model.model.transformer.blocks.{n}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, width, generator=generator) * 0.3
            tensors[f"{key}.lora_B.weight"] = torch.randn(wide[name], rank, generator=generator) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_published_adapters_load_without_a_word(base, tmp_path):
    adapter = published_adapter(tmp_path / "adapter")
    with silence():
        policy = load_policy(base, adapter=str(adapter))
    tensors = load_file(adapter / "adapter_model.safetensors")
    # W + alpha / r * B A, by hand in the base's weights. Dropout is off.
    plain = load_policy(base)
    weights = plain.model.state_dict()
    for n in range(LAYERS):
        for name in HERE:
            key = f"model.transformer.blocks.{n}.{name}"
            a, b = (tensors[f"base_model.model.{key}.lora_{x}.weight"] for x in "AB")
            weights[f"{key}.weight"] += 4 / 8 * b @ a
    torch.testing.assert_close(policy.logits(IDS), plain.logits(IDS), rtol=0, atol=1e-4)
    assert not torch.allclose(policy.logits(IDS), load_policy(base).logits(IDS), rtol=0, atol=1e-2)
    assert len([n for n, p in policy.model.named_parameters() if p.requires_grad]) == len(tensors) == 24


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"width": 32}, "size mismatch"),
        ({"layers": LAYERS + 1}, r"it holds in vain 8 tensors, .*blocks\.3\.k_proj"),
        ({"layers": LAYERS - 1}, r"it lacks 8 tensors, .*blocks\.2\."),
        ({"names": ["q_proj"]}, r"it lacks 18 tensors, .*blocks\.0\.k_proj"),
    ],
)
def test_adapters_that_do_not_fit(base, tmp_path, changes, reason):
    adapter = published_adapter(tmp_path / "adapter", **changes)
    with pytest.raises(ValueError, match=rf"^model.adapter: '{adapter}' does not fit the model \(.*{reason}"):
        load_policy(base, adapter=str(adapter))


def test_an_adapter_of_another_architecture(base, tmp_path):
    adapter = published_adapter(tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"target_modules": ["query"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"^model.adapter: .* does not fit the model \(.*query"):
        load_policy(base, adapter=str(adapter))


def test_no_adapter_in_a_folder(base):
    with pytest.raises(ValueError, match=rf"^model.adapter: {base} has no adapter_config.json; give"):
        load_policy(base, adapter=str(base))


def test_a_base_that_has_moved(saved, base, fresh):
    config = json.loads((saved / "adapter_config.json").read_text()) | {"base_model_name_or_path": "/gone"}
    (saved / "adapter_config.json").write_text(json.dumps(config))
    message = f"^{saved} holds an adapter of '/gone', which cannot be found; give the base as the model and "
    with pytest.raises(ValueError, match=f"{message}this folder by --adapter"):
        load_policy(saved)
    assert torch.equal(load_policy(base, adapter=str(saved)).logits(IDS), fresh.logits(IDS))

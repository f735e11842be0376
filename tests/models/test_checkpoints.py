"""Whole folders as published: configuration, sharded weights, tokenizer files, code that must not run."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM

import runs
from egspo.models.dream import FAMILY, DreamConfig, DreamModel
from egspo.models.llada import LLaDAConfig, LLaDAModelLM
from egspo.models.tokenizers import load_tokenizer
from egspo.policy import load_policy
from egspo.rollout import generate
from models.test_tokenizers import TEMPLATE, byte_level_bpe, settings, write

CANVAS = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 8}


def dream(tokens):
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    ids = {"mask_token_id": tokens - 1, "eos_token_id": tokens - 6, "pad_token_id": tokens - 6}
    config = DreamConfig(**sizes, intermediate_size=24, vocab_size=tokens + 3, initializer_range=0.3, **ids)
    return DreamModel(config)


def llada(tokens):
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "mlp_hidden_size": 24, "init_std": 0.3}
    ids = {"mask_token_id": tokens - 1, "eos_token_id": tokens - 6, "pad_token_id": tokens - 6}
    return LLaDAModelLM(LLaDAConfig(**sizes, vocab_size=tokens, **ids))


@pytest.fixture(params=[dream, llada], ids=["dream", "llada"])
def published(request, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    tokens = len(json.loads((byte_level_bpe(folder) / "vocab.json").read_text())) + 6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        request.param(tokens).save_pretrained(folder, max_shard_size="6KB")
    write(folder, "tokenizer_config.json", settings(tokens - 6, chat_template=TEMPLATE))
    if request.param is llada:  # which comes with tokenizer.json
        load_tokenizer(folder, FAMILY.pretokenizer).save_pretrained(folder)
        for file in ("vocab.json", "merges.txt"):
            (folder / file).unlink()
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Model"}
    write(folder, "config.json", config | {"auto_map": code})
    for file in ("configuration.py", "modeling.py", "tokenization_dream.py"):
        (folder / file).write_text("raise SystemExit('the code of a checkpoint ran')")
    return folder


def test_a_published_folder_generates_and_trains(published, tmp_path):
    assert len(list(published.glob("model-*.safetensors"))) > 1
    policy = load_policy(published)
    first = generate(policy, ["the 12", "Größe"], temperature=1.0, **CANVAS)
    assert policy.mask_token_id not in first.trajectory.final
    task = "task={name: toy, prompt: compact}"
    lora = ["model.use_peft=true", "model.lora_r=2", "optim.learning_rate=1e-2", "objective.beta=0.1"]
    # Rewards that differ between completions, so that there is something to learn.
    trainer = runs.trainer(
        tmp_path / "run",
        *runs.from_base(published),
        *lora,
        task,
        f"sampler={CANVAS}",
        reward_funcs=[lambda prompts, completions, **_: [float(len(c)) for c in completions]],
    )
    trainer.train()
    assert all(row["optim/grad_norm"] > 0 for row in runs.rows(tmp_path / "run"))
    trained = load_policy(tmp_path / "run")
    ids = torch.tensor([[5, 6, 7, policy.mask_token_id]])
    torch.testing.assert_close(trained.logits(ids), trainer.policy.logits(ids))
    assert float((trained.logits(ids) - policy.logits(ids)).abs().max()) > 1e-3
    again = generate(trained, ["the 12", "Größe"], temperature=1.0, **CANVAS)
    assert again.trajectory.prompt_ids.tolist() == first.trajectory.prompt_ids.tolist()


def rewrite(folder, change):
    """Change the tensors of a checkpoint, now in one file."""
    tensors = {}
    for file in folder.glob("model-*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop(tensors):
    del tensors[min(key for key in tensors if "k_proj.weight" in key)]


def add(tensors):
    tensors["model.gate.weight"] = torch.ones(3)


def cut(tensors):
    key = min(key for key in tensors if "up_proj.weight" in key)
    tensors[key] = tensors[key][:-1].clone()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop, r"are missing: 1, \S*\.0\.\S*k_proj.weight the first"),
        (add, "have no place in it: 1, model.gate.weight the first"),
        (cut, r"have another shape: 1, \S*\.0\.\S*up_proj.weight the first"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_refused(published, change, reason):
    """They would be drawn at random, or left out, with a warning at most."""
    rewrite(published, change)
    with pytest.raises(ValueError, match=rf"cannot load .*tensors of a \w+ model {reason}"):
        load_policy(published)


def test_constants_of_older_checkpoints_have_no_say(published):
    before = load_policy(published).logits(torch.tensor([[5, 6]]))
    rewrite(published, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}))
    assert torch.equal(load_policy(published).logits(torch.tensor([[5, 6]])), before)


def test_heads_for_other_tasks_are_left_out(tmp_path, published):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    file = tmp_path / "bert" / "model.safetensors"
    tensors = load_file(file) | {"cls.seq_relationship.weight": torch.ones(2, 16)}
    save_file(tensors, file, metadata={"format": "pt"})
    load_tokenizer(published, FAMILY.pretokenizer).save_pretrained(tmp_path / "bert")
    load_policy(tmp_path / "bert")
    del tensors["cls.predictions.transform.dense.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"tensors of a masked_lm model are missing: 1, cls\.predict"):
        load_policy(tmp_path / "bert")


def truncate(folder):
    file = min(folder.glob("model-*.safetensors"))
    file.write_bytes(file.read_bytes()[:20])


def misplace(folder):
    min(folder.glob("model-*.safetensors")).unlink()


def pickle(folder):
    for file in folder.glob("model*"):
        file.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def forget(folder):
    (folder / "model.safetensors.index.json").write_text("{}")


@pytest.mark.parametrize("spoil", [truncate, misplace, pickle, forget])
def test_broken_weights_are_a_line(published, spoil):
    spoil(published)
    with pytest.raises(ValueError, match=f"^model.model_name_or_path: cannot load '{published}' "):
        load_policy(published)


def test_a_mask_without_a_row_is_refused(published):
    config = json.loads((published / "config.json").read_text())
    write(published, "config.json", config | {"mask_token_id": 5000})
    size = config["vocab_size"]
    message = f"^model.model_name_or_path: mask_token_id is 5000, but config.json has vocab_size {size}; take"
    with pytest.raises(ValueError, match=message):
        load_policy(published)


def test_a_tokenizer_of_a_larger_model_is_refused(published, tmp_path):
    with torch.random.fork_rng():
        llada(40).save_pretrained(tmp_path / "small")
    for file in published.glob("*tok*"):
        (tmp_path / "small" / file.name).write_bytes(file.read_bytes())
    load_tokenizer(published, FAMILY.pretokenizer).save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match=r"the tokenizer goes up to \d+, but config.json has vocab_size 40"):
        load_policy(tmp_path / "small")


def test_a_chat_template_is_asked_for_by_name(published):
    settings_ = json.loads((published / "tokenizer_config.json").read_text())
    settings_.pop("chat_template", None)
    write(published, "tokenizer_config.json", settings_)
    (published / "chat_template.jinja").unlink(missing_ok=True)
    policy = load_policy(published)
    message = f"^model.model_name_or_path: the tokenizer of '{published}' has no chat template; put "
    with pytest.raises(ValueError, match=message):
        policy.encode_prompts(["the 12"])

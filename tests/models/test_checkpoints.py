"""Whole folders as published: configuration, sharded weights, tokenizer files, code that must not run."""

import json

import pytest
import torch

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

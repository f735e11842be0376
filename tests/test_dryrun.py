"""Dry runs: what they tell is what the run has, what they cannot see they say, and they write nothing."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import BertConfig

import runs
from egspo.config import RLRun, load_config
from egspo.models.tiny import build_tokenizer
from egspo.models.tokenizers import save_tokenizer
from egspo.policy import build_policy
from egspo.sandbox import isolation

CANVAS = "sampler={max_completion_length: 2, block_length: 2, diffusion_steps: 2}"
SFT = ("model.init=tiny", CANVAS)
# Published shapes (config.json on the hub); what is left out is the default.
LLADA = {"model_type": "llada", "d_model": 4096, "n_layers": 32, "n_heads": 32, "mlp_hidden_size": 12288}
DREAM = {"model_type": "Dream", "hidden_size": 3584, "num_hidden_layers": 28, "num_key_value_heads": 4}
SEVEN = "[q_proj, k_proj, v_proj, o_proj, up_proj, down_proj, gate_proj]"


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def told(*arguments: str) -> dict[str, str]:
    """Findings by subject; those that could not be checked joined."""
    ended = runs.egspo(*arguments, "--dry-run")
    assert ended.code == 0, ended
    found: dict[str, str] = {}
    for line in ended.out.splitlines():
        subject, finding = re.split(r" {2,}| (?=hub |model|lengths|weights|problems)", line, maxsplit=1)
        found[subject] = f"{found[subject]}; {finding}" if subject in found else finding
    return found


def refused(*arguments: str) -> str:
    ended = runs.egspo(*arguments, "--dry-run")
    assert (ended.code, ended.out) == (2, ""), ended
    return ended.err.removeprefix("egspo: ").rstrip("\n")


def checkpoint(folder: Path, config: dict) -> str:
    """A checkpoint's folder as far as a dry run opens it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(build_tokenizer(), folder)
    return f"model.model_name_or_path={folder}"


def test_a_dry_run_tells_what_the_run_has_and_writes_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = told("train", "debug/sudoku")
    assert list(tmp_path.iterdir()) == []
    policy = build_policy(load_config(RLRun, ["debug/sudoku"]).model)
    number = f"{sum(p.numel() for p in policy.model.parameters()):,}"
    assert found["model"] == f"tiny:sudoku-sft: llada, {number} parameters, {number} trained"
    assert found["task"] == "sudoku: 200 train, 20 validation"
    assert found["reward"] == "1 cells"
    # A marker before and after the 16 cells.
    assert found["prompts"].startswith("200 of 18 to 18 tokens, 0 skipped")
    assert found["iterations"] == "4 of 4 prompts x 4"
    # 16 completions, 8 steps of one pass each, all in one batch; at most 2 chosen steps of each are trained.
    assert found["rollout"] == "16 completions x 8 passes = 128 an iteration, in 8 calls"
    assert found["updates"] == "1 an iteration, 4 in all"
    assert found["training"] == "at most 32 passes forward and back an iteration"
    assert found["run folder"] == "runs/debug-sudoku, not written to"
    assert "NOT CHECKED" not in found


def test_guidance_batches_and_passes_are_counted():
    more = (
        "sampler.cfg_scale=1",
        "train.rollout_batch_size=5",
        "train.num_iterations=3",
        "objective.beta=0.1",
    )
    found = told("train", "debug/sudoku", *more)
    # 16 completions in batches of 5 are 4; 8 steps of 2 passes each.
    assert found["rollout"] == "16 completions x 16 passes = 256 an iteration, in 64 calls"
    assert found["training"].startswith(
        "at most 96 passes forward and back an iteration, as many for the ref"
    )


def test_further_passes_over_the_states_to_judge_are_counted():
    found = told("train", "debug/sudoku", "objective.step_value_passes=3")
    assert found["rollout"] == "16 completions x 24 passes = 384 an iteration, in 24 calls"


def test_what_is_replayed_is_counted_and_not_what_was_rolled_out():
    replays = ("objective.name=sure", "objective.num_replayed=6", "objective.num_draws=2")
    found = told("train", "debug/sudoku", *replays, "train.num_iterations=3", "train.updates_per_rollout=2")
    # 3 passes of 2 updates, each of 6 completions on 2 canvases.
    assert found["updates"].startswith("6 an iteration")
    assert found["training"] == "at most 72 passes forward and back an iteration"


def test_problems_that_the_model_has_seen_are_told():
    """`tiny:sudoku-sft` was trained on problems of task seed 0."""
    settings = ["train", "sudoku/task", "sudoku/rl", "model.model_name_or_path=tiny:sudoku-sft"]
    assert "note" not in told(*settings)
    assert "test problems before (task.seed: 0 then, 5 now)" in told(*settings, "task.seed=5")["note"]


def test_sft_too(tmp_path: Path):
    found = told("sft", "sudoku/task", "sudoku/sft", f"output_dir={tmp_path / 'run'}", "task.num_train=30")
    assert found["task"] == "sudoku: 30 train, 500 validation"
    assert found["steps"].startswith("1000 of 64 examples")
    assert list(tmp_path.iterdir()) == []
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "1", "completion": "11"}\n{"prompt": "1234567", "completion": "11"}\n')
    common = ("sft", *SFT, f"output_dir={tmp_path / 'run'}", f"sft.data={data}")
    found = told(*common, "sft.max_prompt_length=5")
    assert found["data"] == f"2 pairs in {data}"
    assert found["prompts"] == "1 of 3 to 3 tokens, 1 skipped as longer than sft.max_prompt_length 5"
    assert refused(*common, "sft.max_prompt_length=1").startswith("sft.max_prompt_length: 1 leaves none of 2")
    data.write_text('{"prompt": "1", "completion": "111"}\n')
    assert refused(*common).startswith("sampler.max_completion_length: a solution has 3 tokens, the canvas 2")


@pytest.mark.parametrize(
    ("config", "targets", "whole", "trained"),
    [
        # 32 layers of rank 128: q, k, v (4096 + 4096) and up (4096 + 12288): 32 * 128 * 40960.
        (LLADA, "[q_proj, k_proj, v_proj, up_proj]", "8,015.6M", 167_772_160),
        (DREAM, SEVEN, "7,615.6M", 322_961_408),
    ],
)
def test_published_shapes_have_their_published_sizes(
    tmp_path: Path, config, targets, whole: str, trained: int
):
    """Without their weights, and so in seconds."""
    model = checkpoint(tmp_path / "model", config)
    lora = ("model.use_peft=true", "model.lora_r=128", f"model.lora_target_modules={targets}")
    found = told("train", "debug/toy", "model.init=null", model, *lora)
    assert found["model"].endswith(f"{whole} parameters, {trained / 1e6:,.1f}M trained")


def test_targets_that_match_nothing_are_refused(tmp_path: Path):
    model = (
        "model.init=null",
        checkpoint(tmp_path / "model", LLADA | {"n_layers": 1}),
        "model.use_peft=true",
    )
    line = refused("train", "debug/toy", *model, f"model.lora_target_modules={SEVEN}")
    assert line.startswith("model.lora_target_modules: 'o_proj' matches nothing; the model has attn_out, ")


def test_a_saved_adapter_is_counted_as_it_will_be(tmp_path: Path):
    base = ("model.init=null", "model.model_name_or_path=tiny:sudoku-sft")
    runs.train(tmp_path / "lora", *base, "model.use_peft=true", "model.lora_r=2")
    arguments = (*base, f"model.adapter={tmp_path / 'lora'}")
    found = told("train", "debug/toy", *arguments)
    policy = build_policy(runs.rl_config(tmp_path, *arguments).model)
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert found["model"].endswith(f", {trained:,} trained")
    assert found["NOT CHECKED"] == "weights of the adapter"


def test_a_masked_language_model_of_transformers_too(tmp_path: Path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    settings = ["debug/toy", "model.init=null", "model.use_peft=true", "model.lora_r=1"]
    # Four tokens of prompt and two of canvas.
    for longest in (6, 5):
        config = BertConfig(vocab_size=103, max_position_embeddings=longest, **sizes).to_dict()
        model = checkpoint(tmp_path / f"bert-{longest}", config)
        if longest == 6:
            assert ": masked_lm, " in told("train", *settings, model)["model"]
        else:
            ended = runs.egspo("train", *settings, model, "--dry-run")
            assert ended.code == 2
            words = "sampler.max_completion_length: 2 after a prompt of 4 tokens exceeds the model's 5"
            assert words in ended.err


def test_what_cannot_be_reached_is_said_and_the_rest_goes_on():
    model = ("model.init=null", "model.model_name_or_path=GSAI-ML/LLaDA-8B-Instruct", "model.use_peft=true")
    found = told("train", "debug/toy", *model)
    assert (
        "'GSAI-ML/LLaDA-8B-Instruct' is no folder here and not to be had from the hub" in found["NOT CHECKED"]
    )
    assert "lengths of the prompts" in found["NOT CHECKED"]
    assert found["task"].startswith("toy: ")
    found = told("sft", *SFT, "output_dir=x", "sft.dataset=somebody/pairs")
    assert found["NOT CHECKED"] == "hub data set 'somebody/pairs', which is not fetched for this"


def test_a_published_recipe_goes_through_where_neither_model_nor_data_can_be_reached():
    found = told("train", "paper/llada-8b-gsm8k")
    assert "problems of gsm8k: task." in found["NOT CHECKED"]
    assert "could not be had from the hub" in found["NOT CHECKED"]
    assert "'GSAI-ML/LLaDA-8B-Instruct' is no folder here" in found["NOT CHECKED"]
    assert found["iterations"] == "2000 of 6 prompts x 8"


LONG_VALIDATION = """
from dataclasses import replace
from egspo.tasks import toy

class Task(toy.Task):
    name = "long-validation"

    def _load(self, split):
        prompts = super()._load(split)
        message = {"role": "user", "content": "7" * 2000}
        return [replace(p, messages=(message,)) for p in prompts] if split == "validation" else prompts
"""


def test_what_only_validation_would_find_ends_the_dry_run(tmp_path: Path):
    (tmp_path / "task.py").write_text(LONG_VALIDATION)
    settings = ["debug/toy", f"task={{name: null, path: {tmp_path / 'task.py'}}}"]
    assert "prompts" in told("train", *settings, "train.eval_steps=0")
    line = refused("train", *settings, "train.eval_steps=1")
    assert line.startswith("sampler.max_completion_length: ") and line.endswith("is one of validation")


def test_programs_that_cannot_be_locked_up_end_the_dry_run(tmp_path: Path, monkeypatch):
    data = tmp_path / "programs.jsonl"
    data.write_text(json.dumps({"question": "Add.", "test": "assert add(1, 2) == 3"}) + "\n")
    settings = ["debug/toy", f"task={{name: code, train_data: {data}, num_validation: 1}}"]

    def denied(config, variant):
        raise isolation.ContainmentError("denied here")

    for name in ("bubblewrap", "kernel"):
        monkeypatch.setattr(isolation.TIERS[name], "starter", denied)
    monkeypatch.setattr(isolation, "_found", {})
    assert "allow_unsafe" in refused("train", *settings)


def test_what_would_end_the_run_ends_the_dry_run(tmp_path: Path):
    line = refused("train", "debug/toy", "model.init=null", f"model.model_name_or_path={tmp_path / 'no'}")
    assert line.startswith(f"model.model_name_or_path: no folder '{tmp_path / 'no'}'")
    data = tmp_path / "puzzles.csv"
    data.write_text("Puzzle,Solution\n1234,nonsense\n")
    assert refused("train", "debug/sudoku", f"task.train_data={data}").startswith(
        f"task.train_data: {data}:2"
    )
    assert refused("train", "debug/toy", "sed=1").startswith("sed: unknown key")

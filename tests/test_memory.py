"""Predicted memory against what torch's allocator handed out in real runs, and what is said of it."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

import runs
from allocations import peak_allocated
from egspo import registry
from egspo.config import RLRun
from egspo.fit import prompt_tokens
from egspo.memory import NF4_BYTES, Memory, load_of, predict
from egspo.models.dream import DreamConfig, DreamModel
from egspo.models.llada import LLaDAConfig, LLaDAModelLM
from egspo.models.tiny import build_tokenizer
from egspo.passes import Load
from egspo.policy import build_policy
from egspo.sft import SFTTrainer

TOLERANCE = 0.15
MANY = ["train.prompts_per_step=8", "train.num_generations=8"]
FEW = ["train.prompts_per_step=2", "train.num_generations=4"]
LONG = ["sampler={max_completion_length: 32, block_length: 32, diffusion_steps: 4}"]
# Any token passes the threshold, so that each step reveals a block: 16 tokens instead of 4.
BOLD = [
    "sampler={max_completion_length: 32, block_length: 16, diffusion_steps: 8, confidence_threshold: 0.00001}"
]
ONE = ["train.microbatch_size=1", "train.rollout_batch_size=1"]
LORA = ["model.use_peft=true", "model.lora_r=32"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A LLaDA of 21M parameters, half of them in a vocabulary of 20,000."""
    shape = {"d_model": 256, "n_layers": 12, "n_heads": 8, "mlp_hidden_size": 704, "vocab_size": 20_000}
    return save(LLaDAModelLM(LLaDAConfig(**shape, **_ids())), tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def dream(tmp_path_factory) -> Path:
    """A Dream with two heads of keys and values to eight of queries."""
    shape = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 4}
    config = DreamConfig(**shape, intermediate_size=320, vocab_size=2_000, **_ids())
    return save(DreamModel(config), tmp_path_factory.mktemp("dream"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    shape = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 512}
    config = BertConfig(**shape, vocab_size=2_000, pad_token_id=0)
    return save(BertForMaskedLM(config), tmp_path_factory.mktemp("bert"))


def _ids() -> dict[str, int]:
    tokenizer = build_tokenizer()
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("mask", "eos", "pad")}


def save(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def held(policy) -> int:
    """Bytes of a policy's weights, adapter and reference, which are there before a run begins."""
    models = [policy.model, *([] if policy._reference is None else [policy._reference])]
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


def measured(folder: Path, *overrides: str) -> tuple[int, Memory]:
    """Peak bytes of two iterations in which every view has an advantage, and what was predicted."""
    numbers = itertools.count()
    # Rewards of a group are all different, so that every canvas is active.
    reward = lambda prompts, completions, **_: [float(next(numbers) * 37 % 101) for _ in prompts]  # noqa: E731
    trainer = runs.trainer(folder, *overrides, dtype=None, reward_funcs=[reward])
    before = held(trainer.policy)
    longest = max(len(ids) for ids in trainer.problems.encoded)
    return before + peak_allocated(trainer.train), predict(trainer.config, longest)


def agrees(predicted: int, real: int) -> bool:
    return abs(predicted / real - 1) <= TOLERANCE


# ---- prediction and measurement ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "worst"),
    [
        ([], "update"),
        (["model.init=tiny-5m"], "update"),
        (["model.init=tiny-1m", *MANY], "update"),
        (["model.init=tiny-1m", "model.gradient_checkpointing=true", *MANY], "update"),
        (["model.init=tiny-1m", "model.bf16=true", "objective.beta=0.1", *MANY], "update"),
        (["objective.beta=0.1", "objective.kl=exact", "train.microbatch_size=8"], "update"),
        (["objective.beta=0.1", "sampler.remasking=plackett_luce", "sampler.cfg_scale=1", *LONG], "update"),
        (["sampler.score_positions=true", "sampler.temperature=0.9", *LONG], "update"),
        (["objective.name=diffu_grpo", "train.num_iterations=2", *MANY, *LONG], "update"),
        (["objective={name: wd1, psi: 0.001}", "train.num_iterations=2", *MANY, *LONG], "update"),
        (["objective.name=unigrpo", "train.num_iterations=2", *MANY, *LONG], "update"),
        (["objective.name=coupled_grpo", "train.num_iterations=2", *MANY, *LONG], "update"),
        (["train.microbatch_size=2", *MANY, *LONG], "rollout"),
        (["train.microbatch_size=2", "sampler.cache=dual", *MANY, *LONG], "rollout"),
        (["train.microbatch_size=2", "sampler.cache=prefix", *MANY, *LONG], "rollout"),
        (["train.microbatch_size=2", "objective.step_value_samples=16", *MANY, *LONG], "rollout"),
        (["train.microbatch_size=2", "objective.step_value_passes=4", *MANY, *LONG], "rollout"),
        ([*ONE, *FEW, "train.eval_steps=2", "eval.limit=10", *LONG], "validation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_prediction_of_fresh_models(tmp_path: Path, overrides: list[str], worst: str):
    real, memory = measured(tmp_path, *overrides)
    assert agrees(memory.peak, real), (memory.peak, real, memory)
    phases = ("update", "rollout", "validation")
    assert max(phases, key=lambda phase: getattr(memory, phase)) == worst


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.beta=0.1"],
        LORA,
        [*LORA, "objective.beta=0.1", "model.gradient_checkpointing=true", *FEW, *LONG],
        [*LORA, "model.dtype=bfloat16", *FEW],
        [*LORA, "train.microbatch_size=2", *FEW, *LONG],
        [*LORA, *MANY, *BOLD],
    ],
    ids=" ".join,
)
def test_prediction_with_a_large_vocabulary(wide: Path, tmp_path: Path, overrides: list[str]):
    real, memory = measured(tmp_path, *runs.from_base(wide), *overrides)
    assert agrees(memory.peak, real), (memory.peak, real, memory)


@pytest.mark.parametrize("family", ["dream", "bert"])
@pytest.mark.parametrize("overrides", [MANY, [*LORA, *FEW, *LONG]], ids=["full", "lora"])
def test_prediction_of_other_families(request, family: str, tmp_path: Path, overrides: list[str]):
    base = request.getfixturevalue(family)
    real, memory = measured(tmp_path, *runs.from_base(base), *overrides)
    assert agrees(memory.peak, real), (memory.peak, real, memory)


def test_prediction_of_supervised_fine_tuning(tmp_path: Path):
    config = runs.sft_config(tmp_path, "model.init=tiny-1m", "sft.max_steps=2", "sft.batch_size=64")
    policy = build_policy(config.model, config.seed)
    tuner = SFTTrainer(policy, registry.make_task(config.task), config)
    before = held(policy)
    longest = max(len(ids) for ids in tuner.problems.encoded)
    memory = predict(config, longest)
    assert agrees(memory.peak, before + peak_allocated(tuner.train))
    assert memory.rollout == memory.validation == 0


# ---- what is counted -----------------------------------------------------------------------------------


def shaped(folder: Path, **model) -> RLRun:
    """A run on a folder that holds a configuration of LLaDA's and nothing else."""
    shape = {"d_model": 64, "n_layers": 2, "n_heads": 4, "mlp_hidden_size": 96, "vocab_size": 1000}
    LLaDAConfig(**shape).save_pretrained(folder / "shape")
    settings = [f"model.{key}={value}" for key, value in model.items()]
    return runs.rl_config(folder, *runs.from_base(folder / "shape"), *settings)


def test_parts_that_stay_are_counted_by_hand(tmp_path: Path):
    """Two blocks of (2 norms + 4 squares + 3 SwiGLU matrices), embedding, head and last norm."""
    block, ends = 2 * 64 + 4 * 64 * 64 + 3 * 64 * 96, 2 * 1000 * 64 + 64
    number = 2 * block + ends
    full = predict(shaped(tmp_path), 5, phases=())
    assert (full.weights, full.adapter, full.reference) == (4 * number, 0, 0)
    assert (full.optimizer, full.gradients) == (8 * number, 4 * number)
    assert predict(shaped(tmp_path), 5, ranks=2, phases=()).gradients == 8 * number
    # LoRA of rank 4 on all seven matrices: r x (in + out) each, in float32 whatever the weights are.
    lora = 2 * 4 * (4 * (64 + 64) + 3 * (64 + 96))
    adapted = predict(shaped(tmp_path, use_peft=True, lora_r=4, dtype="bfloat16"), 5, phases=())
    assert (adapted.weights, adapted.adapter, adapted.optimizer) == (2 * number, 4 * lora, 8 * lora)
    assert adapted.resident == adapted.peak - adapted.gradients


def test_weights_count_as_they_are_stored_where_no_configuration_says(tmp_path: Path):
    config = shaped(tmp_path, dtype="auto")
    folder = tmp_path / "shape"
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(settings))
    unknown = predict(config, 5, phases=()).weights
    LLaDAModelLM(LLaDAConfig.from_pretrained(folder)).to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    shutil.copy(tmp_path / "saved" / "model.safetensors", folder)
    assert predict(config, 5, phases=()).weights == unknown / 2
    # As transformers reads it when it loads.
    model = LLaDAModelLM.from_pretrained(folder, dtype="auto")
    assert next(model.parameters()).dtype == torch.bfloat16


def test_only_the_linear_layers_of_blocks_are_packed_in_4_bits(tmp_path: Path):
    config = shaped(tmp_path, use_peft=True, lora_r=4, dtype="bfloat16")
    config = config.model_copy(update={"model": config.model.model_copy(update={"load_in_4bit": True})})
    packed = 2 * (4 * 64 * 64 + 3 * 64 * 96)
    rest = 2 * (2 * 1000 * 64 + 64 + 2 * 2 * 64)
    # Scales: a byte for 64 weights and four for 256 scales, 0.516 bytes a weight in all.
    assert pytest.approx(0.51587, abs=1e-5) == NF4_BYTES
    assert predict(config, 5, phases=()).weights == pytest.approx(rest + packed * NF4_BYTES, abs=20)


def test_a_reference_is_a_copy_unless_an_adapter_can_be_switched_off(tmp_path: Path):
    full = shaped(tmp_path)
    full.objective.beta = 0.1
    memory = predict(full, 5, phases=())
    assert memory.reference == memory.weights
    adapted = shaped(tmp_path, use_peft=True)
    adapted.objective.beta = 0.1
    assert predict(adapted, 5, phases=()).reference == 0


def test_a_saved_adapter_counts_by_its_own_rank(wide: Path, tmp_path: Path):
    base = [*runs.from_base(wide), *LORA]
    policy = build_policy(runs.rl_config(tmp_path, *base).model)
    policy.save(tmp_path / "adapter")
    saved = runs.rl_config(tmp_path, *runs.from_base(wide), f"model.adapter={tmp_path / 'adapter'}")
    fresh = predict(runs.rl_config(tmp_path, *base), 5, phases=())
    assert predict(saved, 5, phases=()) == fresh
    assert fresh.adapter > 0


def test_an_update_is_no_larger_than_its_canvases(tmp_path: Path):
    """4 prompts x 4 completions x 2 steps are 32 canvases, 16 on each of two ranks."""
    config = runs.rl_config(tmp_path)
    assert load_of(config, 5) == Load(
        5, update_rows=32, places=1, several=False, rollout_rows=16, completions=16
    )
    assert load_of(config, 5, ranks=2).update_rows == 16
    several = load_of(runs.rl_config(tmp_path, "train.microbatch_size=8"), 5)
    assert (several.update_rows, several.several) == (8, True)
    halves = runs.rl_config(tmp_path, "train.updates_per_rollout=2", "train.update_split=steps")
    assert load_of(halves, 5).update_rows == 16


def test_canvases_of_objectives_that_mask_at_random(tmp_path: Path):
    """At random rates a batch may score whole canvases, which the made-up group need not show; and the three
    canvases of a sample share a microbatch."""
    load = load_of(runs.rl_config(tmp_path, "objective.name=unigrpo", *LONG), 5)
    assert (load.update_rows, load.places) == (16, 32)
    coupled = runs.rl_config(tmp_path, "objective.name=coupled_grpo", "train.microbatch_size=8", *LONG)
    assert (load_of(coupled, 5).update_rows, load_of(coupled, 5).places) == (6, 32)


def test_a_threshold_lets_a_step_score_a_block_and_a_slice_several(tmp_path: Path):
    threshold = "sampler.confidence_threshold=0.9"
    sampler = "sampler={max_completion_length: 32, block_length: 8, diffusion_steps: 16}"
    places = lambda *changes: load_of(runs.rl_config(tmp_path, sampler, *changes), 5).places  # noqa: E731
    assert (places(), places(threshold)) == (2, 8)
    # Slices of three steps of two tokens; of all 16 steps.
    for steps, planned, most in ((3, 6, 24), (16, 32, 32)):
        slices = f"objective={{name: tracerl, steps_per_slice: {steps}}}"
        assert (places(slices), places(slices, threshold)) == (planned, most)


def test_predicting_allocates_nothing_and_leaves_the_generator_alone(tmp_path: Path):
    config, state = runs.rl_config(tmp_path, "model.init=tiny-5m"), torch.get_rng_state()
    assert peak_allocated(lambda: predict(config, 5)) < 2**20  # of a run of 80 MiB
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts_are_measured_or_bounded(tmp_path: Path):
    config = runs.rl_config(tmp_path)
    policy = build_policy(config.model)
    texts = [p.messages for p in registry.make_task(config.task).load("train")]
    assert prompt_tokens(config) == max(len(ids) for ids in policy.encode_prompts(texts))
    # No tokenizer, so nothing but the longest that is allowed is known.
    assert prompt_tokens(shaped(tmp_path)) == config.train.max_prompt_length

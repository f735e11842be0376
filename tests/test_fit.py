"""Refusing what cannot fit: which setting is named, and that what is advised does fit."""

import re
from pathlib import Path

import pytest

import runs
from egspo import capacity
from egspo.compose import ConfigError
from egspo.fit import GIB, check_memory, gib, refuse
from egspo.memory import predict
from egspo.models.llada import LLaDAConfig

PROMPT = 8


def refusals(config, available: int, ranks: int = 1) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        refuse(config, predict(config, PROMPT, ranks), available, ranks)
    return caught.value.problems


def fits(config, available: int) -> bool:
    return predict(config, PROMPT).peak <= available


def shape(folder: Path, *overrides: str):
    """A run on a configuration of 1.6M parameters without weights."""
    sizes = {"d_model": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden_size": 320, "vocab_size": 3000}
    LLaDAConfig(**sizes).save_pretrained(folder / "shape")
    return runs.rl_config(folder, *runs.from_base(folder / "shape"), *overrides)


# ---- what to change ------------------------------------------------------------------------------------


def test_the_microbatch_that_is_advised_fits_and_the_next_does_not(tmp_path: Path):
    config = runs.rl_config(tmp_path, "model.init=tiny-1m", "train.prompts_per_step=16")
    memory = predict(config, PROMPT)
    available = memory.resident + memory.gradients + memory.activations // 3
    (line,) = refusals(config, available)
    assert line.startswith(f"train.microbatch_size: 256 needs {gib(memory.update)} GiB for an update, ")
    assert f"{gib(memory.peak)} in all, of {gib(available)} available; use at most 32" in line
    assert fits(runs.rl_config(tmp_path, *_tiny_1m("train.microbatch_size=32")), available)
    assert not fits(runs.rl_config(tmp_path, *_tiny_1m("train.microbatch_size=64")), available)


def _tiny_1m(*more: str) -> list[str]:
    return ["model.init=tiny-1m", "train.prompts_per_step=16", *more]


def test_checkpointing_is_advised_where_it_is_enough(tmp_path: Path):
    config = runs.rl_config(tmp_path, *_tiny_1m())
    lighter = runs.rl_config(tmp_path, *_tiny_1m("model.gradient_checkpointing=true"))
    available = predict(lighter, PROMPT).peak
    (line,) = refusals(config, available)
    assert line.endswith(" or set model.gradient_checkpointing=true")
    (line,) = refusals(lighter, available - 1)
    assert "checkpointing" not in line


def test_a_rollout_that_is_too_large_is_named_on_its_own(tmp_path: Path):
    config = runs.rl_config(tmp_path, "train.microbatch_size=1", "train.prompts_per_step=64")
    memory = predict(config, PROMPT)
    available = memory.resident + max(memory.update, memory.rollout // 3)
    (line,) = refusals(config, available)
    assert line.startswith("train.rollout_batch_size: 256 needs ")
    advised = int(re.search(r"use at most (\d+)$", line)[1])
    config.train.rollout_batch_size = advised
    assert fits(config, available)


def test_every_phase_that_does_not_fit_is_told(tmp_path: Path):
    config = runs.rl_config(tmp_path, "train.eval_steps=2", "train.prompts_per_step=16")
    memory = predict(config, PROMPT)
    lines = refusals(config, memory.resident + memory.rollout // 2)
    assert [line.split(":")[0] for line in lines] == [
        "train.microbatch_size",
        "train.rollout_batch_size",
        "eval.batch_size",
    ]


def test_where_nothing_fits_the_model_is_to_blame(tmp_path: Path):
    config = shape(tmp_path, "train.microbatch_size=1", "model.gradient_checkpointing=true")
    memory = predict(config, PROMPT)
    line = refusals(config, memory.resident + 1)[0]
    assert line.startswith("train.microbatch_size: 1 needs ")
    assert "not even 1 fits: set model.use_peft=true with model.dtype=bfloat16 or" in line


def test_what_stays_is_refused_with_the_settings_that_help(tmp_path: Path):
    """Weights w, moments 2w: 3w in all. An adapter leaves w and a little, 16 bits half of it."""
    config = shape(tmp_path)
    weights = predict(config, PROMPT, phases=()).weights
    (line,) = refusals(config, 2 * weights)
    assert line.startswith(f"model.use_peft: False needs {gib(2 * weights)} GiB for the optimizer, ")
    assert line.endswith("; set model.use_peft=true")
    (line,) = refusals(config, weights)
    assert line.endswith("; set model.use_peft=true and model.dtype=bfloat16")
    (line,) = refusals(shape(tmp_path, "model.use_peft=true", "model.lora_r=1"), weights * 3 // 4)
    assert line.startswith(f"model.dtype: float32 needs {gib(weights)} GiB for weights, ")
    (line,) = refusals(config, 1000)
    assert line.endswith("; take a smaller model or a larger device")


def test_sft_names_its_batch(tmp_path: Path):
    config = runs.sft_config(tmp_path, "model.init=tiny-1m")
    memory = predict(config, PROMPT)
    (line,) = refusals(config, memory.resident + memory.gradients + memory.activations // 2)
    assert line.startswith("sft.microbatch_size: 256 needs ")
    assert "use at most " in line


def test_the_check_can_be_switched_off(tmp_path: Path):
    with pytest.raises(ConfigError, match="available"):
        check_memory(runs.rl_config(tmp_path), available=1)
    line = check_memory(runs.rl_config(tmp_path, "train.check_memory=false"), available=GIB)
    assert re.fullmatch(
        r"memory: about \S+ of 1\.00 GiB \(weights \S+, adapter 0\.0, optimizer \S+, activations \S+, "
        r"rollout \S+\)",
        line,
    )
    assert "rollout 0.0)" in check_memory(runs.sft_config(tmp_path), available=GIB)


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0.0"), (GIB // 3000, "0.00033"), (GIB // 4, "0.25"), (80 * GIB, "80.0")]
)
def test_gibibytes_keep_two_digits(size: int, shown: str):
    assert gib(size) == shown


# ---- what there is -------------------------------------------------------------------------------------


def test_processes_share_a_machine(monkeypatch):
    monkeypatch.setattr(capacity.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(capacity, "_machine_bytes", lambda: 800)
    monkeypatch.setattr(capacity, "_group_bytes", lambda: 600)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert capacity.available_bytes() == 150
    monkeypatch.setattr(capacity, "_group_bytes", lambda: None)
    assert capacity.available_bytes() == 200
    monkeypatch.setattr(capacity, "_machine_bytes", lambda: None)
    assert capacity.available_bytes() is None


def test_a_device_keeps_a_reserve(monkeypatch):
    monkeypatch.setattr(capacity.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(capacity.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(capacity.torch.cuda, "mem_get_info", lambda device: (70 * GIB, 80 * GIB))
    assert capacity.available_bytes() == 70 * GIB - capacity.CUDA_RESERVE


def test_the_memory_of_a_machine_is_what_can_be_had_without_swapping(tmp_path: Path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 900 kB\nMemFree: 100 kB\nMemAvailable: 500 kB\n")
    assert capacity._machine_bytes(file) == 500 * 1024
    assert capacity._machine_bytes(tmp_path / "none") > GIB // 4  # all of this machine's


@pytest.mark.parametrize(
    ("names", "cache"),
    [
        (("memory.max", "memory.current"), "inactive_file"),
        (("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"), "total_inactive_file"),
    ],
)
def test_a_control_group_leaves_its_limit_less_what_is_in_use(tmp_path: Path, names, cache: str):
    assert capacity._group_bytes(tmp_path) is None
    limit, use = (tmp_path / name for name in names)
    limit.parent.mkdir(exist_ok=True)
    limit.write_text("1000\n")
    use.write_text("400\n")
    assert capacity._group_bytes(tmp_path) == 600
    (limit.parent / "memory.stat").write_text(f"anon 300\n{cache} 50\n")
    assert capacity._group_bytes(tmp_path) == 650
    # Files that were read often are caches too, and are given back alike.
    (limit.parent / "memory.stat").write_text(f"{cache} 50\n{cache.replace('inactive', 'active')} 25\n")
    assert capacity._group_bytes(tmp_path) == 675
    limit.write_text("max\n" if "max" in limit.name else str(2**63 - 4096))
    assert capacity._group_bytes(tmp_path) is None

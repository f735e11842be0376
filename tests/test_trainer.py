"""The training loop on the toy task: what it computes, what it costs, what it leaves behind."""

import re
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

import runs
from egspo import registry
from egspo.evaluation import evaluate
from egspo.metrics import Meter
from egspo.policy import Policy, load_policy
from egspo.trainer import Trainer
from egspo.types import Views

DOUBLE = {"dtype": torch.float64}
PRODUCT_KEYS = [
    "step",
    "time",
    "samples",
    "tokens",
    "reward/mean",
    "reward/std",
    "reward/zero_std_fraction",
    "rollout/entropy_selected",
    "rollout/entropy_all",
    "steps/selected_mean_index",
    "steps/advantage_abs",
    "loss/policy",
    "loss/clip_fraction",
    "loss/kl",
    "optim/grad_norm",
    "time/rollout",
    "time/reward",
    "time/update",
    "memory/peak_gb",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model that repeats the digit one time in three: rewards differ within every group."""
    folder = tmp_path_factory.mktemp("base")
    runs.sft(folder)
    return folder / "model"


class Forwards:
    """Counts the canvases that a model evaluates, with gradients and without."""

    def __init__(self, model: torch.nn.Module):
        self.trained = self.other = 0
        model.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module, positional, named, output) -> None:
        if torch.is_grad_enabled():
            self.trained += len(named["input_ids"])
        else:
            self.other += len(named["input_ids"])


class Recorder(Trainer):
    """A trainer that keeps what each optimizer step was given."""

    updates: ClassVar[list[Views]]

    def _optimizer_step(self, views: Views, meter: Meter) -> None:
        self.updates.append(views)
        super()._optimizer_step(views, meter)


def recorder(*arguments, **named) -> Recorder:
    made = runs.trainer(*arguments, kind=Recorder, **named)
    made.updates = []
    return made


def assert_same_curve(left: list[dict], right: list[dict], tolerance: float = 1e-9) -> None:
    left, right = runs.timeless(left), runs.timeless(right)
    assert [row.keys() for row in left] == [row.keys() for row in right]
    for one, other in zip(left, right, strict=True):
        for key, value in one.items():
            wanted = None if value is None else pytest.approx(value, rel=tolerance, abs=tolerance)
            assert other[key] == wanted, key


def assert_same_weights(left: Policy, right: Policy, tolerance: float) -> None:
    for (name, one), other in zip(runs.weights(left).items(), runs.weights(right).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, msg=name)


# ---- what must not change the result -------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["train.microbatch_size", "train.rollout_batch_size"])
def test_no_batch_size_changes_the_curve(base: Path, tmp_path: Path, setting: str):
    """In float64, over several passes, so that a wrong gradient would show in the next ratio."""
    settings = [*runs.from_base(base), "train.num_iterations=2", "objective.beta=0.1", "train.max_steps=2"]
    trainers = {}
    for size in (256, 5, 1):
        trainers[size] = runs.trainer(tmp_path / str(size), *settings, f"{setting}={size}", **DOUBLE)
        trainers[size].train()
    whole = runs.rows(tmp_path / "256")
    assert whole[-1]["loss/kl"] > 0
    for size in (5, 1):
        assert_same_curve(whole, runs.rows(tmp_path / str(size)))
        assert_same_weights(trainers[256].policy, trainers[size].policy, 1e-9)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(base: Path, tmp_path: Path):
    first, again, other = (
        runs.timeless(runs.train(tmp_path / name, *runs.from_base(base), f"seed={seed}"))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other


# ---- what it costs -------------------------------------------------------------------------------------


def half_of_the_first_group(prompts, completions, **columns) -> list[float]:
    """1 and 0 by turns for the completions of the first prompt, 1 for all others."""
    return [float(i % 2 == 0 or prompts[i] != prompts[0]) for i in range(len(prompts))]


@pytest.mark.parametrize(
    "settings",
    [["objective.step_advantage_weight=0"], ["objective.beta=0.1", "objective.drop_equal_groups=true"]],
    ids=["no-kl", "dropped"],
)
def test_samples_without_advantages_cost_no_forward_pass(base: Path, tmp_path: Path, settings: list[str]):
    """Only the first of 4 groups of 4 has differing rewards, so only its selected steps are evaluated."""
    trainer = recorder(
        tmp_path,
        *runs.from_base(base),
        "train.max_steps=1",
        *settings,
        reward_funcs=[half_of_the_first_group],
    )
    forwards = Forwards(trainer.policy.model)
    trainer.train()
    (row,), (views,) = runs.rows(tmp_path), trainer.updates
    selected = int((views.weight[:4] != 0).sum())
    assert 4 <= selected <= 8
    assert forwards.trained == row["update/canvases"] == selected
    assert row["steps/skipped_samples_fraction"] == 12 / 16
    assert row["reward/zero_std_fraction"] == 3 / 4
    # 14 of 16 rewards are 1: mean 7/8, standard deviation sqrt(7/8 - (7/8)^2) = sqrt(7)/8.
    assert row["reward/mean"] == 7 / 8
    assert row["reward/std"] == pytest.approx(7**0.5 / 8)
    # The rollout evaluates every completion once a step.
    assert forwards.other == 16 * 2


def test_equal_rewards_change_nothing_and_are_no_error(base: Path, tmp_path: Path):
    trainer = runs.trainer(
        tmp_path, *runs.from_base(base), reward_funcs=[lambda completions, **_: [0.5] * len(completions)]
    )
    before, forwards = runs.weights(trainer.policy), Forwards(trainer.policy.model)
    trainer.train()
    assert forwards.trained == 0
    for name, value in runs.weights(trainer.policy).items():
        assert torch.equal(value, before[name])
    for row in runs.rows(tmp_path):
        assert row["steps/skipped_samples_fraction"] == row["reward/zero_std_fraction"] == 1
        assert row["optim/grad_norm"] is row["loss/ratio"] is row["loss/kl"] is None
        assert row["loss/policy"] == row["update/canvases"] == 0


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_without_beta_no_reference_is_evaluated(base: Path, tmp_path: Path, adapted: bool, monkeypatch):
    asked = []
    real = Policy.reference
    monkeypatch.setattr(Policy, "reference", lambda self: asked.append(1) or real(self))
    settings = [*runs.from_base(base), f"model.use_peft={adapted}"]
    trainer = runs.trainer(tmp_path / "0", *settings)
    trainer.train()
    assert asked == []
    assert trainer.policy._reference is None
    assert {row["loss/kl"] for row in runs.rows(tmp_path / "0")} == {0.0}
    runs.train(tmp_path / "1", *settings, "objective.beta=0.1")
    assert asked


# ---- several updates -----------------------------------------------------------------------------------


def test_the_first_update_is_on_policy(base: Path, tmp_path: Path):
    for row in runs.train(tmp_path, *runs.from_base(base)):
        assert row["loss/ratio"] == pytest.approx(1, abs=1e-5)
        assert row["loss/clip_fraction"] == 0


PASSES = ["train.num_iterations=4"]
SPLIT = ["train.update_split=steps", "train.updates_per_rollout=2"]


@pytest.mark.parametrize("setting", [PASSES, SPLIT], ids=["passes", "updates"])
def test_later_updates_meet_ratios_and_the_clip(base: Path, tmp_path: Path, setting: list[str]):
    settings = [*runs.from_base(base), *setting, "optim.learning_rate=5e-3", "train.max_steps=1"]
    (row,) = runs.train(tmp_path / "a", *settings, "objective.epsilon=0.05", "objective.epsilon_high=0.05")
    assert abs(row["loss/ratio"] - 1) > 1e-3
    assert row["loss/clip_fraction"] > 0.05
    # A wide clip lets more of the gradient through.
    (wide,) = runs.train(tmp_path / "b", *settings, "objective.epsilon=0.99", "objective.epsilon_high=50")
    assert wide["loss/clip_fraction"] < row["loss/clip_fraction"]


def test_a_pass_by_samples_gives_every_group_to_one_update(base: Path, tmp_path: Path):
    trainer = recorder(
        tmp_path,
        *runs.from_base(base),
        "train.updates_per_rollout=2",
        "train.num_iterations=2",
        "train.max_steps=1",
    )
    trainer.train()
    assert [len(views) for views in trainer.updates] == [8, 8, 8, 8]
    first, second, third, fourth = trainer.updates
    # Two of the four prompts each, and the same in the second pass.
    assert torch.equal(first.inputs, third.inputs)
    assert torch.equal(second.inputs, fourth.inputs)
    assert not torch.equal(first.inputs, second.inputs)
    assert trainer.num_updates == 4


def test_a_phase_in_two_parts_is_timed_as_their_sum():
    """Rewards are waited for and then gathered; a cached rollout is corrected after steps are selected."""
    meter = Meter()
    meter.merge({"reward/mean": (1.0, 1.0), "reward/square": (1.0, 1.0)})
    for _ in range(3):
        with meter.timed("time/reward"):
            time.sleep(0.05)
    assert 0.15 <= meter.result(["time/reward"])["time/reward"] < 0.3


def test_a_pass_by_steps_trains_the_highest_entropy_first(base: Path, tmp_path: Path):
    trainer = recorder(
        tmp_path,
        *runs.from_base(base),
        "train.update_split=steps",
        "train.updates_per_rollout=2",
        "train.max_steps=1",
    )
    meter = Meter()
    batch = trainer.collect(1, meter)
    trainer.update(batch, meter)
    assert [views.inputs.shape[:2] for views in trainer.updates] == [(16, 1), (16, 1)]
    first, second = trainer.updates
    both = (first.weight[:, 0] != 0) & (second.weight[:, 0] != 0)
    assert both.any()
    entropy = batch.trajectory.entropy
    high, low = entropy.gather(1, first.step)[both], entropy.gather(1, second.step)[both]
    assert (high >= low).all()
    assert (high > low).any()


def test_the_schedule_counts_optimizer_steps(tmp_path: Path):
    """2 iterations of 2 updates: total 4. Warm-up of 2 (1/2, 2/2), then linear: 1 - 0/2, 1 - 1/2, of 1e-3.

    An iteration logs the mean of its own two: (0.5 + 1) / 2 and (1 + 0.5) / 2.
    """
    schedule = ["optim.lr_scheduler_type=linear", "optim.warmup_steps=2", "train.updates_per_rollout=2"]
    rates = [row["optim/learning_rate"] for row in runs.train(tmp_path, *schedule)]
    assert rates == pytest.approx([0.75e-3, 0.75e-3])


# ---- what is trained, and the reference ----------------------------------------------------------------


def problems(split: str = "test"):
    task = registry.load_task("toy", prompt="compact")
    return task, task.load(split)


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_the_saved_model_evaluates_as_the_trained_one(base: Path, tmp_path: Path, adapted: bool):
    trainer = runs.trainer(
        tmp_path, *runs.from_base(base), f"model.use_peft={adapted}", "optim.learning_rate=5e-3"
    )
    before = runs.weights(trainer.policy)
    folder = trainer.train()
    changed = {
        name for name, value in runs.weights(trainer.policy).items() if not torch.equal(value, before[name])
    }
    if adapted:
        assert changed
        assert all("lora_" in name for name in changed)
        assert (folder / "adapter_model.safetensors").is_file()
        assert not (folder / "model.safetensors").exists()
    else:
        assert changed == set(before)
    task, prompts = problems()
    # Sampled, not greedy, so that a small difference in the weights would show in the texts.
    sampler = trainer.config.sampler
    _, expected = evaluate(trainer.policy, task, prompts, sampler, seed=3)
    for source in (folder, tmp_path):
        _, items = evaluate(load_policy(source), task, prompts, sampler, seed=3)
        assert items == expected
    _, unadapted = evaluate(load_policy(base), task, prompts, sampler, seed=3)
    assert unadapted != expected


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_the_reference_stays_the_policy_before_training(base: Path, tmp_path: Path, adapted: bool):
    trainer = runs.trainer(
        tmp_path,
        *runs.from_base(base),
        f"model.use_peft={adapted}",
        "objective.beta=0.1",
        "optim.learning_rate=5e-3",
    )
    policy, untouched = trainer.policy, load_policy(base)
    ids = torch.randint(0, 90, (3, 6), generator=torch.Generator().manual_seed(0))
    expected = untouched.logits(ids).detach()
    torch.testing.assert_close(policy.logits(ids).detach(), expected)
    trainer.train()
    assert (policy.logits(ids) - expected).abs().max() > 1e-2
    with policy.reference() as reference:
        torch.testing.assert_close(reference.logits(ids), expected)
        assert not reference.logits(ids).requires_grad
    # With an adapter the reference is the policy's own weights; else a copy that no optimizer knows.
    assert (policy._reference is None) == adapted
    first, last = runs.rows(tmp_path)
    assert first["loss/kl"] == pytest.approx(0, abs=1e-6)
    assert last["loss/kl"] > 1e-4


# ---- rewards -------------------------------------------------------------------------------------------


def test_permuted_rewards_are_the_same_rewards_elsewhere(base: Path, tmp_path: Path):
    trainer = runs.trainer(tmp_path, *runs.from_base(base))
    rewards = trainer.collect(1, Meter()).scored.rewards
    shuffled, later = (trainer.sharing.permuted(rewards, 0, step) for step in (1, 2))
    assert torch.equal(shuffled.final.sort().values, rewards.final.sort().values)
    assert not torch.equal(shuffled.final, rewards.final)
    assert not torch.equal(shuffled.final, later.final)
    # A sample's final reward and its step values stay together.
    pairs = [
        sorted(map(tuple, torch.cat([r.final[:, None], r.step_values], 1).tolist()))
        for r in (rewards, shuffled)
    ]
    assert pairs[0] == pairs[1]
    # What is logged is what was earned.
    plain = runs.train(tmp_path / "a", *runs.from_base(base), "train.max_steps=1")[0]
    control = runs.train(
        tmp_path / "b", *runs.from_base(base), "train.max_steps=1", "train.permute_rewards=true"
    )[0]
    assert plain["reward/mean"] == control["reward/mean"]
    assert plain["steps/advantage_abs"] != control["steps/advantage_abs"]


def short(prompts, completions, answer) -> list[float]:
    """Takes TRL's arguments: chat messages, texts, and the task's fields as columns."""
    assert [messages[-1]["content"][0] * 2 for messages in prompts] == answer
    return [1.0 / (1 + len(text)) for text in completions]


def digits(completions, **columns) -> list[float | None]:
    return [None if not text else float(text.isdigit()) for text in completions]


def test_reward_functions_replace_the_grader_and_are_weighted(base: Path, tmp_path: Path):
    rows = runs.train(
        tmp_path, *runs.from_base(base), reward_funcs=[short, digits], reward_weights=[0.5, 2.0]
    )  # fmt: skip
    for row in rows:
        # The mean is linear: 0.5 mean(short) + 2 mean(digits), where None counts as nothing.
        assert row["reward/mean"] == pytest.approx(0.5 * row["reward/short"] + 2 * row["reward/digits"])
        assert "reward/match" not in row
    assert all(sample["correct"] is None for sample in runs.rows(tmp_path, "transcripts.jsonl"))


def failing(completions, **columns) -> list[float]:
    raise KeyError("oops")


def nan(completions, **columns) -> list[float]:
    return [float("nan")] * len(completions)


def too_few(completions, **columns) -> list[float]:
    return [1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (failing, "reward_funcs: failing raised KeyError: 'oops'"),
        (nan, "reward_funcs: nan returned nan for completion 0; return a number or None"),
        (too_few, "reward_funcs: too_few returned 1 rewards for 16 completions; return one each"),
        (lambda **_: None, "reward_funcs: <lambda> returned None; return a list of numbers or None"),
    ],
)
def test_a_reward_function_that_misbehaves_is_named(tmp_path: Path, function, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        runs.train(tmp_path, reward_funcs=[function])


def test_weights_need_functions(tmp_path: Path):
    with pytest.raises(ValueError, match="reward_weights: got 1 for 2 reward_funcs"):
        runs.trainer(tmp_path, reward_funcs=[short, digits], reward_weights=[1.0])
    with pytest.raises(ValueError, match="reward_weights: given without reward_funcs"):
        runs.trainer(tmp_path, reward_weights=[1.0])


# ---- what it leaves behind -----------------------------------------------------------------------------


def test_callbacks_see_every_iteration(tmp_path: Path):
    seen = []
    trainer = runs.trainer(tmp_path, callbacks=[lambda trainer, row: seen.append((trainer, row))])
    trainer.train()
    assert [who for who, _ in seen] == [trainer, trainer]
    assert [row for _, row in seen] == runs.rows(tmp_path)


def test_a_callback_may_stop_a_run_that_goes_on_later(tmp_path: Path):
    def stop(trainer, row):
        trainer.should_stop = row["step"] == 2

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = ["train.max_steps=4"]
    expected = runs.trainer(whole, *settings)
    expected.train()
    runs.trainer(parts, *settings, callbacks=[stop]).train()
    assert [row["step"] for row in runs.rows(parts)] == [1, 2]
    second = runs.trainer(parts, *settings)
    second.train()
    assert [row["step"] for row in runs.rows(parts)] == [1, 2, 3, 4]
    for name, value in runs.weights(expected.policy).items():
        assert torch.equal(value, runs.weights(second.policy)[name])


def test_a_run_that_stops_before_its_first_validation_leaves_the_model_that_it_has(tmp_path: Path):
    def stop(trainer, row):
        trainer.should_stop = True

    settings = ["train.eval_steps=2", "train.load_best_model_at_end=true"]
    trainer = runs.trainer(tmp_path, *settings, callbacks=[stop])
    loaded = load_policy(trainer.train())
    for name, value in runs.weights(trainer.policy).items():
        assert torch.equal(value, runs.weights(loaded)[name])


def wrong_answers(completions, answer, **columns) -> list[float]:
    return [float(text != right) for text, right in zip(completions, answer, strict=True)]


def test_the_best_checkpoint_is_chosen_by_validation_alone(base: Path, tmp_path: Path):
    """The reward is for wrong answers: it rises while validation falls, so the best model is an early one."""
    kept = {}
    trainer = runs.trainer(
        tmp_path,
        *runs.from_base(base),
        *(
            "train.max_steps=10",
            "train.eval_steps=1",
            "train.load_best_model_at_end=true",
            "train.num_generations=8",
        ),
        *("optim.learning_rate=3e-3", "sampler.temperature=0.7"),
        reward_funcs=[wrong_answers],
        callbacks=[lambda trainer, row: kept.setdefault(row["step"], runs.weights(trainer.policy))],
    )
    trainer.train()
    accuracy = [
        runs.json.loads((tmp_path / "eval" / f"validation-{step:06d}.json").read_text())["accuracy"]
        for step in range(1, 11)
    ]
    best = 1 + accuracy.index(max(accuracy))
    assert accuracy[-1] < max(accuracy)
    rewards = [row["reward/mean"] for row in runs.rows(tmp_path)]
    assert best != 1 + rewards.index(max(rewards))
    assert trainer.best == {"accuracy": max(accuracy), "step": best}
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == kept[best].keys()
    for name, value in saved.items():
        assert torch.equal(value, kept[best][name])
    # The last checkpoint is the last iteration's all the same.
    last = load_file(tmp_path / "checkpoints" / "step-000010" / "trainable.safetensors")
    assert any(not torch.equal(value, saved[name]) for name, value in last.items())


def test_validations_are_written_apart_with_their_interval(base: Path, tmp_path: Path):
    runs.train(tmp_path, *runs.from_base(base), "train.eval_steps=2", "eval.limit=7")
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == [
        "validation-000002.json",
        "validation-000002.jsonl",
    ]
    summary = runs.json.loads((tmp_path / "eval" / "validation-000002.json").read_text())
    assert summary["split"] == "validation"
    assert (summary["step"], summary["n"], summary["temperature"]) == (2, 7, 0.0)
    low, high = summary["ci95"]
    assert low <= summary["accuracy"] <= high
    assert len(runs.rows(tmp_path, "eval/validation-000002.jsonl")) == 7


def documented() -> set[str]:
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    return set(re.findall(r"`([a-z_]+(?:/[a-z_]+)?)`", text.replace(", ", "`, `")))


def test_metrics_have_the_same_documented_keys_in_every_line(base: Path, tmp_path: Path):
    rows = runs.train(tmp_path / "some", *runs.from_base(base), "train.max_steps=3")
    # An iteration in which nothing had an advantage logs the same keys.
    rows += runs.train(
        tmp_path / "none", *runs.from_base(base), "train.num_generations=2", "sampler.temperature=0.01"
    )
    assert rows[-1]["optim/grad_norm"] is None
    assert len({frozenset(row) for row in rows}) == 1
    keys = set(rows[0])
    assert keys >= set(PRODUCT_KEYS)
    # Reward parts are told of as reward/PART.
    parts = {f"reward/{name}" for name in registry.load("tasks", "toy").parts}
    assert keys - parts <= documented()
    tuner = runs.sft(tmp_path / "sft", "sft.max_steps=2")
    assert {key for row in runs.rows(tuner.folder.path) for key in row} <= documented()
    objectives = {
        key for name in registry.names("objectives") for key in registry.load("objectives", name).metric_keys
    }
    assert objectives <= documented()


def test_metrics_count_samples_and_tokens_from_the_start(base: Path, tmp_path: Path):
    rows = runs.train(tmp_path, *runs.from_base(base), "train.max_steps=3")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["samples"] for row in rows] == [16, 32, 48]
    before = 0
    for row in rows:
        assert row["tokens"] - before == pytest.approx(16 * row["rollout/completion_length"])
        before = row["tokens"]
    times = [row["time"] for row in rows]
    assert times == sorted(times)


def test_transcripts_show_samples_of_different_groups(base: Path, tmp_path: Path):
    runs.train(tmp_path, *runs.from_base(base), "train.num_transcripts=5")
    samples = runs.rows(tmp_path, "transcripts.jsonl")
    assert [sample["step"] for sample in samples] == [1] * 5 + [2] * 5
    # Four groups: the fifth sample is a second one of the first group.
    assert len({sample["id"] for sample in samples[:4]}) == 4
    assert samples[4]["id"] == samples[0]["id"]
    for sample in samples:
        assert set(sample) == set(
            [
                "step",
                "id",
                "prompt",
                "completion",
                "reward",
                "parts",
                "correct",
                "reason",
                "entropy",
                "last_step",
                "selected",
            ]
        )
        assert sample["id"] == f"pair-{sample['prompt']}"
        assert len(sample["entropy"]) == 2
        assert sample["reward"] == pytest.approx(sample["parts"]["match"])
        assert sample["correct"] == (sample["completion"] == sample["prompt"][0] * 2)
        assert 1 <= len(sample["selected"]) <= 2
        for chosen in sample["selected"]:
            assert set(chosen) == {"step", "entropy", "advantage", "one_step", "step_reward"}
            assert chosen["step"] <= sample["last_step"]
            assert chosen["entropy"] == sample["entropy"][chosen["step"]]
        entropies = [chosen["entropy"] for chosen in sample["selected"]]
        assert entropies == sorted(entropies, reverse=True)


def test_no_transcripts_on_request(tmp_path: Path):
    runs.train(tmp_path, "train.num_transcripts=0")
    assert not (tmp_path / "transcripts.jsonl").exists()


def test_checkpoints_are_pruned_to_the_newest(tmp_path: Path):
    runs.train(tmp_path, "train.max_steps=5", "train.save_steps=2", "train.save_total_limit=2")
    # Of 2, 4 and the last, 5.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000004",
        "step-000005",
    ]


def test_prompts_that_are_too_long_are_left_out_and_told(tmp_path: Path, capsys):
    countdown = "task={name: countdown, prompt: compact, num_train: 50, num_validation: 5, num_test: 5}"
    settings = [countdown, "train.max_steps=1", "train.prompts_per_step=2"]
    trainer = runs.trainer(tmp_path, *settings, "train.max_prompt_length=11")
    # A character is a token, and the chat template adds two.
    lengths = [len(prompt.messages[0]["content"]) + 2 for prompt in trainer.task.load("train")]
    skipped = sum(length > 11 for length in lengths)
    assert 0 < skipped < 50
    assert (len(trainer.problems), trainer.problems.skipped) == (50 - skipped, skipped)
    trainer.train()
    assert f"{skipped} prompts longer than train.max_prompt_length were left out" in capsys.readouterr().err
    message = f"^train.max_prompt_length: 5 leaves none of 50 prompts; the shortest needs {min(lengths)}$"
    with pytest.raises(ValueError, match=message):
        runs.trainer(tmp_path, *settings, "train.max_prompt_length=5")


def test_groups_share_out_over_updates_or_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="updates_per_rollout: 3 does not divide prompts_per_step 4"):
        runs.trainer(tmp_path, "train.updates_per_rollout=3")


def test_trackers_mirror_the_metrics(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs.train(tmp_path, "tracking.report_to=[tensorboard]", "tracking.run_name=mine")
    folder = tmp_path / "trackers" / "mine" / "egspo"
    events = EventAccumulator(str(folder)).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    expected = [(row["step"], row["reward/mean"]) for row in runs.rows(tmp_path)]
    assert logged == [(step, pytest.approx(value)) for step, value in expected]

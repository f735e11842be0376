"""Checkpoints: whole or not there, found by number, and not changed by what comes later."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from egspo.checkpoint import Checkpoints, load_trainable, trainable_state


def model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    made[0].requires_grad_(False)
    return made


def optimizer(made: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=0.1)


def step(made: nn.Module, stepper: torch.optim.Optimizer) -> None:
    made(torch.ones(1, 3)).square().sum().backward()
    stepper.step()
    stepper.zero_grad()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_ranks_that_see_different_checkpoints_are_told(checkpoints: Checkpoints, monkeypatch):
    assert checkpoints.last() == 0
    made = model()
    checkpoints.save(7, made, optimizer(made), {})
    assert checkpoints.last() == 7
    # As on two nodes of which one does not see the other's folder.
    monkeypatch.setattr("egspo.checkpoint.gather_object", lambda mine: [*mine, 0])
    with pytest.raises(ValueError, match=r"^output_dir: .* is at step 0 for some ranks and at 7 for others"):
        checkpoints.last()


def test_a_checkpoint_holds_weights_moments_and_counters(checkpoints: Checkpoints):
    left = model()
    stepper = optimizer(left)
    step(left, stepper)
    checkpoints.save(7, left, stepper, {"num_updates": 3, "best": {"accuracy": 0.5, "step": 2}})
    right = model(seed=1)
    load_trainable(right, {f"0.{name}": p for name, p in left[0].named_parameters()})
    other = optimizer(right)
    state = checkpoints.load(7, right, other)
    assert state == {"num_updates": 3, "best": {"accuracy": 0.5, "step": 2}, "step": 7}
    # The next step is the same only if Adam's moments came along.
    step(left, stepper)
    step(right, other)
    for one, two in zip(left.parameters(), right.parameters(), strict=True):
        assert torch.equal(one, two)


def test_only_what_is_trained_is_kept(checkpoints: Checkpoints):
    made = model()
    assert set(trainable_state(made)) == {"1.weight", "1.bias"}
    checkpoints.save(1, made, optimizer(made), {})
    file = checkpoints.folder / "step-000001" / "trainable.safetensors"
    assert set(load_file(file)) == {"1.weight", "1.bias"}


def test_steps_are_numbers_not_texts(checkpoints: Checkpoints):
    """As texts, step-1000000 would come before step-999999, and the oldest would be the newest."""
    made = model()
    stepper = optimizer(made)
    for number in (200, 1000, 999_999, 1_000_000):
        checkpoints.save(number, made, stepper, {})
    assert checkpoints.steps() == [999_999, 1_000_000]
    assert Checkpoints(checkpoints.folder, keep=1).steps() == [999_999, 1_000_000]


def test_what_is_not_a_checkpoint_is_passed_over(checkpoints: Checkpoints):
    made = model()
    checkpoints.save(3, made, optimizer(made), {})
    for name in (".draft-000009", "step-best", "step-000003 (copy)"):
        (checkpoints.folder / name).mkdir()
    (checkpoints.folder / "step-000008").write_text("a file")
    assert checkpoints.steps() == [3]
    assert Checkpoints(checkpoints.folder / "nowhere", keep=1).steps() == []


def test_a_draft_left_behind_is_written_over(checkpoints: Checkpoints):
    made = model()
    draft = checkpoints.folder / ".draft-000003"
    draft.mkdir(parents=True)
    (draft / "trainable.safetensors").write_text("half")
    checkpoints.save(3, made, optimizer(made), {})
    assert not draft.exists()
    assert set(path.name for path in (checkpoints.folder / "step-000003").iterdir()) == {
        "trainable.safetensors",
        "trainer.pt",
    }


def test_the_same_step_is_written_again(checkpoints: Checkpoints):
    left, right = model(0), model(1)
    checkpoints.save(3, left, optimizer(left), {})
    checkpoints.save(3, right, optimizer(right), {})
    loaded = model(2)
    checkpoints.load(3, loaded, optimizer(loaded))
    assert torch.equal(loaded[1].weight, right[1].weight)


def test_the_best_of_a_checkpoint_is_not_changed_by_a_better_one(checkpoints: Checkpoints):
    first, second, read = model(1), model(2), model(3)
    checkpoints.save_best(first)
    checkpoints.save(1, first, optimizer(first), {})
    checkpoints.save_best(second)
    checkpoints.load_best(read)
    assert torch.equal(read[1].weight, second[1].weight)
    checkpoints.restore_best(1)
    checkpoints.load_best(read)
    assert torch.equal(read[1].weight, first[1].weight)
    # And once more: writing the best again touches no checkpoint, though they may share a file.
    checkpoints.save_best(second)
    checkpoints.restore_best(1)
    checkpoints.load_best(read)
    assert torch.equal(read[1].weight, first[1].weight)


def test_a_checkpoint_before_any_validation_restores_nothing(checkpoints: Checkpoints):
    made = model()
    checkpoints.save(1, made, optimizer(made), {})
    checkpoints.restore_best(1)
    assert not (checkpoints.folder / "best.safetensors").exists()

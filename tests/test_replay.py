"""What is kept of rollouts and how it is drawn; that a resumed or shared run keeps the same."""

from collections import Counter

import pytest
import torch

import runs
from egspo.ops import noise
from egspo.replay import Replay, Shelf
from egspo.sharing import Sharing

SURE = ("objective.name=sure", "objective.num_replayed=6", "train.updates_per_rollout=2")


def seeds(num: int, update: int = 0) -> torch.Tensor:
    return noise.sample_seeds(0, -1 - update, torch.arange(num))


def make_shelf(capacity: int = 100) -> Shelf:
    """Problem 7 with three canvases, problem 3 with one."""
    shelf = Shelf(capacity)
    shelf.add([(7, (1, 1)), (3, (2, 2)), (7, (1, 2)), (7, (1, 1)), (7, (1, 3))])
    return shelf


def test_a_canvas_of_a_problem_is_kept_once():
    shelf = make_shelf()
    assert (len(shelf), shelf.num_problems) == (4, 2)
    shelf.add([(3, (1, 1))])
    assert (len(shelf), shelf.num_problems) == (5, 2)


def test_the_oldest_leave_first():
    shelf = Shelf(2)
    shelf.add([(3, (2, 2)), (7, (1, 2)), (7, (1, 3))])
    assert (len(shelf), shelf.num_problems) == (2, 1)
    assert set(shelf.draw(seeds(50))) == {(7, (1, 2)), (7, (1, 3))}
    # What left may come back.
    shelf.add([(3, (2, 2))])
    assert set(shelf.draw(seeds(50))) == {(3, (2, 2)), (7, (1, 3))}


def test_problems_are_equally_likely_and_so_are_the_canvases_of_one():
    drawn = Counter(kept for update in range(300) for kept in make_shelf().draw(seeds(10, update)))
    assert drawn[3, (2, 2)] == pytest.approx(1500, abs=1)
    for last in (1, 2, 3):
        # 500 of 1500 draws; standard error 18.
        assert drawn[7, (1, last)] == pytest.approx(500, abs=75)


def test_draws_differ_from_update_to_update():
    assert make_shelf().draw(seeds(20, 0)) == make_shelf().draw(seeds(20, 0))
    assert make_shelf().draw(seeds(20, 0)) != make_shelf().draw(seeds(20, 1))
    assert Shelf(5).draw(seeds(3)) == []


def crowded_shelf() -> Shelf:
    """One that had to let go of the first canvas of its first problem."""
    shelf = Shelf(3)
    shelf.add([(7, (1, 1)), (3, (2, 2)), (7, (1, 2)), (5, (3, 3))])
    return shelf


@pytest.mark.parametrize("shelf", [Shelf(4), make_shelf(), crowded_shelf()], ids=["empty", "full", "crowded"])
def test_a_state_holds_everything(shelf: Shelf, tmp_path):
    torch.save(shelf.state(), tmp_path / "state.pt")
    other = Shelf(100)
    other.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(other) == len(shelf)
    assert other.draw(seeds(20)) == shelf.draw(seeds(20))


def test_fewer_replays_than_ranks_are_refused(tmp_path):
    trainer = runs.trainer(tmp_path, "objective.name=sure", "objective.num_replayed=3")
    four = Sharing(trainer.config.train, 4)
    with pytest.raises(
        ValueError, match=r"^objective.num_replayed: 3 does not go round 4 ranks; use at least 4$"
    ):
        Replay(trainer.objective, trainer.policy, trainer.problems, four, trainer.accelerator, trainer.config)


def test_a_fixed_batch_of_successes_is_learned_by_heart(tmp_path):
    """With a learning rate of its own the replayed tokens become likely: the loss is of what was kept."""
    rows = runs.train(
        tmp_path, *SURE, "objective.min_reward=-1", "train.max_steps=12", "optim.learning_rate=1e-2"
    )
    assert rows[-1]["loss/elbo"] > rows[0]["loss/elbo"] + 0.5

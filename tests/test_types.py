"""What the records know about themselves."""

import dataclasses

import pytest
import torch

from egspo.types import Rewards, Scores, Steps, Trajectory, Views, map_tensors

MASK = 9


def make_trajectory():
    """One completion of four tokens in three steps; its text ends with the third token."""
    return Trajectory(
        prompt_ids=torch.tensor([[7]]),
        prompt_mask=torch.tensor([[True]]),
        final=torch.tensor([[1, 2, 3, 4]]),
        reveal_step=torch.tensor([[1, 0, 0, 2]]),
        reveal_order=torch.tensor([[0, 1, 0, 0]]),
        token_logp=torch.tensor([[-1.0, -2.0, -4.0, -8.0]]),
        position_logp=torch.tensor([[-0.5, -0.25, 0.0]]),
        entropy=torch.tensor([[0.1, 0.2, 0.3]]),
        score_norm=torch.ones(1, 3),
        one_step=None,
        completion_mask=torch.tensor([[True, True, True, False]]),
        last_step=torch.tensor([1]),
        steps_taken=torch.tensor([3]),
        seeds=torch.tensor([0]),
        mask_token_id=MASK,
        block_length=4,
        draws_positions=False,
    )


def test_states_are_rebuilt_from_the_end():
    trajectory = make_trajectory()
    states = [[MASK, MASK, MASK, MASK], [MASK, 2, 3, MASK], [1, 2, 3, MASK]]
    assert trajectory.states.tolist() == [states]
    assert trajectory.states_at(torch.tensor([[2, 0]])).tolist() == [[states[2], states[0]]]
    revealed = [[False, True, True, False], [True, False, False, False], [False, False, False, True]]
    assert trajectory.revealed.tolist() == [revealed]


def test_step_logp_sums_tokens_and_positions():
    # Step 0: -2 - 4 - 0.5; step 1: -1 - 0.25; step 2: -8.
    assert make_trajectory().step_logp.tolist() == [[-6.5, -1.25, -8.0]]


def test_informative_steps():
    assert make_trajectory().informative.tolist() == [[True, True, False]]


def test_rows():
    trajectory = make_trajectory()[torch.tensor([0, 0])]
    assert (
        trajectory.final.shape == (2, 4) and trajectory.one_step is None and trajectory.mask_token_id == MASK
    )


def test_map_tensors_reaches_steps_and_mappings():
    steps = Steps(torch.tensor([[0], [1]]), torch.tensor([[True], [False]]))
    rewards = Rewards(torch.tensor([1.0, 2.0]), {"part": torch.tensor([3.0, 4.0])}, 2, 1, steps, None)
    first = map_tensors(rewards, lambda tensor: tensor[:1])
    assert first.final.tolist() == [1.0] and first.parts["part"].tolist() == [3.0]
    assert first.candidates.index.tolist() == [[0]] and first.num_generations == 2


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_trajectory().final = torch.zeros(1, 4)


def test_shapes_are_checked():
    with pytest.raises(TypeError):
        dataclasses.replace(make_trajectory(), entropy=torch.zeros(2, 3))


def test_view_logp():
    scores = Scores(torch.tensor([[[-1.0, 0.0, -2.0]]]), torch.tensor([[-0.5]]))
    assert scores.view_logp.tolist() == [[-3.5]]


def test_views_are_indexed_by_sample():
    views = Views(
        inputs=torch.zeros(3, 2, 5, dtype=torch.long),
        attention_mask=torch.ones(3, 5, dtype=torch.bool),
        targets=torch.zeros(3, 2, 4, dtype=torch.long),
        scored=torch.ones(3, 2, 4, dtype=torch.bool),
        weight=torch.arange(6.0).view(3, 2),
        advantages=torch.zeros(3, 2),
        step=torch.zeros(3, 2, dtype=torch.long),
    )
    assert len(views) == 3 and len(views[1:]) == 2 and views[1:].weight.tolist() == [[2.0, 3.0], [4.0, 5.0]]

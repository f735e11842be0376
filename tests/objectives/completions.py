"""Finished completions for tests of objectives that judge them whole, and made-up scores of their views."""

from dataclasses import replace

import torch
from torch import Tensor

import runs
from egspo.types import Scores, Trajectory, Views

MASK, END = 9, 8
DOUBLE = torch.float64


def make_trajectory(lengths=(6, 3, 1), length=6, block_length=2, first_seed=0) -> Trajectory:
    """Completions that end after so many tokens, in float64; prompts of two tokens, the first's padded."""
    batch = len(lengths)
    positions = torch.arange(length).expand(batch, -1)
    tokens = positions < torch.tensor(lengths)[:, None]
    zeros = torch.zeros(batch, length, dtype=DOUBLE)
    prompt_mask = torch.ones(batch, 2, dtype=torch.bool)
    prompt_mask[0, 0] = False
    return Trajectory(
        prompt_ids=torch.tensor([[6, 7]]).expand(batch, -1),
        prompt_mask=prompt_mask,
        final=torch.where(tokens, positions % 5, END),
        reveal_step=positions,
        reveal_order=torch.zeros_like(positions),
        token_logp=zeros,
        position_logp=zeros,
        entropy=zeros,
        score_norm=zeros,
        one_step=None,
        completion_mask=tokens,
        last_step=tokens.sum(1) - 1,
        steps_taken=tokens.sum(1),
        seeds=first_seed + torch.arange(batch),
        mask_token_id=MASK,
        block_length=block_length,
        draws_positions=False,
    )


def views_of(objective, trajectory: Trajectory, advantages: list[float], iteration: int = 0) -> Views:
    """What the trainer asks for, weights over the global denominator."""
    spread = torch.tensor(advantages, dtype=DOUBLE)[:, None].expand_as(trajectory.entropy)
    views = objective.views(trajectory, objective.select(trajectory, spread), spread, iteration)
    return replace(views, weight=views.weight / objective.denominator(views))


def made_up_logp(views: Views, seed: int, scale: float = 1.0) -> Tensor:
    """Log-probabilities of the scored tokens, 0 elsewhere; a leaf that requires a gradient."""
    generator = torch.Generator().manual_seed(seed)
    logp = -scale * torch.rand(views.scored.shape, generator=generator, dtype=DOUBLE)
    return (logp * views.scored).requires_grad_()


def made_up_scores(token_logp: Tensor) -> Scores:
    return Scores(token_logp, torch.zeros(token_logp.shape[:2], dtype=DOUBLE))


def check_against(objective, views: Views, scores: Scores, reference: Scores | None, expected: Tensor):
    """The loss and its gradient are those of ``expected``, a literal loop over the same log-probabilities."""
    output = objective.loss(scores, reference, views)
    (ours,) = torch.autograd.grad(output.loss, scores.token_logp, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, scores.token_logp)
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-10)
    # Log-probabilities of what is not scored are constants.
    torch.testing.assert_close(ours * views.scored, theirs, rtol=0, atol=1e-10)
    assert set(output.metrics) == set(objective.metric_keys)
    return output


def canvases_of_a_run(folder, *overrides: str) -> tuple[float, int]:
    """``update/canvases`` of one real iteration, and how many views had something masked and an advantage."""
    trainer = runs.trainer(folder, "train.max_steps=1", *overrides)
    asked, draw = [], trainer.objective.views

    def spy(*arguments):
        asked.append(draw(*arguments))
        return asked[-1]

    trainer.objective.views = spy
    trainer.train()
    pulls = lambda v: v.scored.any(-1) & ((v.advantages != 0) | (trainer.config.objective.beta > 0))  # noqa: E731
    return runs.rows(folder)[0]["update/canvases"], sum(int(pulls(views).sum()) for views in asked)

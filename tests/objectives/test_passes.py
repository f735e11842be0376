"""What each objective costs, as its page says: canvases that models evaluate in an iteration, by a hook."""

import pytest

from egspo import registry
from sequences import Cost, cost_of_an_iteration
from test_learning import OWN

# Canvases a sample and update on two tokens in two steps: exactly, or at most where masks may be empty, draws
# alike, and texts short.
EXACTLY = {
    "diffu_grpo": 1,
    "wd1": 1,
    "spg": 2,  # m
    "egspo": 2,  # K
    "d2_stepmerge": 2,  # N
    "tracerl": 1,  # T / s
}
AT_MOST = {
    "agrpo": 2,  # K draws of two steps
    "coupled_grpo": 3,  # 1 + 2 P
    "espo": 4,
    "gdpo": 3,  # Q
    "gdsd": 2,
    "just_grpo": 2,  # L
    "mdpo": 2,  # K
    "unigrpo": 1,
    "vospo": 1,  # K
}
# Whose old log-probabilities are not the rollout's; they are asked for where there are several updates.
SCORES_ANEW = {"coupled_grpo", "d2_stepmerge", "diffu_grpo", "espo", "gdpo", "gdsd", "tracerl", "unigrpo"}
WITHOUT_REFERENCE = {"spg", "wd1"}
# In a group of equal rewards too: gdsd regresses on them, vospo's baseline is drawn towards the batch's.
TRAINS_ON_ALL = {"gdsd", "vospo"}
LEAVES_OUT_EQUAL_REWARDS = {"tracerl"}


def cost(folder, name: str, passes: int, beta: float) -> Cost:
    settings = [f"objective.beta={beta}", "optim.learning_rate=1e-9"]
    return cost_of_an_iteration(folder, name, passes, *OWN.get(name, []), *settings)


def test_no_objective_is_left_out():
    assert {*EXACTLY, *AT_MOST, "sure"} == {*registry.names("objectives")}


@pytest.mark.parametrize(("passes", "beta"), [(1, 0.0), (2, 0.0), (2, 0.1)])
@pytest.mark.parametrize("name", [*EXACTLY, *AT_MOST])
def test_passes_of_an_iteration(name: str, passes: int, beta: float, tmp_path):
    if beta and name in WITHOUT_REFERENCE:
        pytest.skip(f"{name} has no reference")
    found = cost(tmp_path, name, passes, beta)
    # In 8 of 16 samples rewards differ within the group; a KL term asks for all of them.
    samples = 16 if (beta and name not in LEAVES_OUT_EQUAL_REWARDS) or name in TRAINS_ON_ALL else 8
    most = passes * samples * (EXACTLY | AT_MOST)[name]
    assert found.trained == found.logged
    assert found.trained == most if name in EXACTLY else 0 < found.trained <= most
    assert found.reference == (found.trained if beta else 0)
    assert found.old == (found.trained if name in SCORES_ANEW and passes > 1 else 0)


@pytest.mark.parametrize(("num_replayed", "canvases"), [(0, 12), (5, 5)])
def test_replay_costs_what_is_replayed(num_replayed: int, canvases: int, tmp_path):
    """12 of 16 succeed; of an update's own rollout these are trained on, else as many as are asked for."""
    found = cost_of_an_iteration(tmp_path, "sure", 2, f"objective.num_replayed={num_replayed}")
    assert found == Cost(trained=2 * canvases, logged=2 * canvases, old=0, reference=0)

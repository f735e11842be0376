"""Rewards of finished and of one-step completions, from graders and from functions."""

import pytest
import torch

from egspo import registry
from egspo.config import SamplerConfig
from egspo.ops import noise
from egspo.rewards import FunctionScorer, Scoring, TaskScorer, score_batch
from egspo.rollout import pad_prompts, rollout
from egspo.types import Prompt, Proxy, Steps

PROMPTS = [Prompt(({"role": "user", "content": "12"},), {"answer": "11", "number": 12}, "11", "a")] * 3
TEXTS = ["11", "1x", "zz"]


def test_a_grader_weighs_final_and_step_rewards_apart():
    """Of "11", "1x" and "zz" the share of right characters is 1, 1/2 and 0, and exactly the answer the first.

    Final weights 1 and 2: 1 + 2, 1/2, 0. Step weights 0 and 4: 4, 0, 0.
    """
    task = registry.load_task("toy", reward_weights={"exact": 2.0}, step_reward_weights={"exact": 4.0})
    scorer = TaskScorer(task)
    totals, parts, grades = scorer.final(PROMPTS, TEXTS)
    assert totals == [3.0, 0.5, 0.0]
    assert parts == {"match": [1.0, 0.5, 0.0], "exact": [1.0, 0.0, 0.0]}
    assert [grade.correct for grade in grades] == [True, False, False]
    assert scorer.steps(PROMPTS, TEXTS) == [4.0, 0.0, 0.0]


def test_equal_texts_of_a_problem_are_graded_once(monkeypatch):
    task, graded = registry.load_task("toy"), []
    real = task.grade
    monkeypatch.setattr(
        task, "grade", lambda text, fields: graded.append((text, fields["answer"])) or real(text, fields)
    )
    other = Prompt(PROMPTS[0].messages, {"answer": "22"}, None, "b")
    prompts = [PROMPTS[0], PROMPTS[0], other]
    rewards, _, _ = TaskScorer(task).final(prompts, ["11", "11", "11"])
    assert rewards == [1.0, 1.0, 0.0]
    assert graded == [("11", "11"), ("11", "22")]


def lengths(prompts, completions, number, **columns) -> list[float]:
    assert all(isinstance(messages, list) and messages[0]["role"] == "user" for messages in prompts)
    assert number == [12, 12, 12]
    assert columns["answer"] == ["11", "11", "11"]
    return [len(text) for text in completions]


def ones(completions, **_) -> list[float | None]:
    return [None if "1" not in text else text.count("1") for text in completions]


def test_functions_are_weighted_and_none_does_not_apply():
    """Lengths 2, 2, 2 at 0.5 and ones 2, 1, None at 10: 21, 11 and 1."""
    totals, parts, grades = FunctionScorer([lengths, ones], [0.5, 10.0]).final(PROMPTS, TEXTS)
    assert totals == [21.0, 11.0, 1.0]
    assert parts == {"lengths": [2.0, 2.0, 2.0], "ones": [2.0, 1.0, None]}
    assert grades == [None] * 3
    assert FunctionScorer([ones]).steps(PROMPTS, TEXTS) == [2.0, 1.0, 0.0]


def test_tensors_and_arrays_count_as_lists():
    totals, _, _ = FunctionScorer([lambda **_: torch.tensor([1.0, 2.0, 3.0])]).final(PROMPTS, TEXTS)
    assert totals == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "bad returned 1 rewards for 3 completions"),
        ([1.0, float("nan"), 1.0], "bad returned nan for completion 1"),
        ([1.0, 1.0, float("-inf")], "bad returned -inf for completion 2"),
        ([1.0, "much", 1.0], r"bad returned \[1.0, 'much', 1.0\]; return a list of numbers or None"),
        (0.5, "bad returned 0.5; return a list of numbers or None"),
        (None, "bad returned None; return a list of numbers or None"),
    ],
)
def test_what_a_function_gets_wrong_names_it(values, message: str):
    def bad(**_):
        return values

    with pytest.raises(ValueError, match=f"^reward_funcs: {message}"):
        FunctionScorer([bad]).final(PROMPTS, TEXTS)


def test_what_a_function_raises_names_it_and_keeps_the_cause():
    def bad(**_):
        raise ZeroDivisionError("by zero")

    with pytest.raises(ValueError, match=r"^reward_funcs: bad raised ZeroDivisionError: by zero") as caught:
        FunctionScorer([bad]).final(PROMPTS, TEXTS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_functions_need_names_of_their_own():
    with pytest.raises(ValueError, match=r"two functions share a name \(ones, ones\)"):
        FunctionScorer([ones, ones])


def whole_batch(prompts, completions, **_) -> list[float]:
    """A reward that depends on the number of completions it is shown."""
    return [len(completions)] * len(completions)


@pytest.mark.parametrize("functions", [None, [whole_batch]], ids=["grader", "function"])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_scores_do_not_depend_on_the_parts_of_a_rollout(tiny_policy, functions, size: int):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact", num_symbols=3)
    scorer = FunctionScorer(functions) if functions else TaskScorer(task)
    prompts = [prompt for prompt in task.load("train") for _ in range(4)]
    ids, mask = pad_prompts(policy, policy.encode_prompts([prompt.messages for prompt in prompts]))
    sampler = SamplerConfig(max_completion_length=4, block_length=4, diffusion_steps=4)
    seeds = noise.sample_seeds(0, 1, torch.arange(len(prompts)))

    def late(trajectory) -> Steps:
        index = torch.tensor([[3, 1]]).repeat(len(trajectory.final), 1)
        return Steps(index, trajectory.final[:, :2] != 0)

    with Scoring(scorer, policy, prompts, late, 2) as scoring:
        whole = rollout(policy, ids, mask, seeds, sampler, Proxy(), size, finished=scoring.add)
        got = scoring.result(whole)
    wanted = score_batch(scorer, policy, whole, prompts, late(whole), 2)
    assert got.completions == wanted.completions and got.one_step_texts == wanted.one_step_texts
    assert got.grades == wanted.grades
    assert got.rewards.final.tolist() == wanted.rewards.final.tolist()
    assert got.rewards.step_values.tolist() == wanted.rewards.step_values.tolist()
    assert got.rewards.candidates.index.tolist() == wanted.rewards.candidates.index.tolist()
    assert {k: v.tolist() for k, v in got.rewards.parts.items()} == {
        k: v.tolist() for k, v in wanted.rewards.parts.items()
    }


def test_what_fails_while_scoring_is_raised_by_the_result(tiny_policy):
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact", num_symbols=3)
    prompts = [Prompt(PROMPTS[0].messages, {}, None, "no answer")] * 2
    ids, mask = pad_prompts(policy, policy.encode_prompts([prompt.messages for prompt in prompts]))
    sampler = SamplerConfig(max_completion_length=4, block_length=4, diffusion_steps=4)
    seeds = noise.sample_seeds(0, 1, torch.arange(2))
    with Scoring(TaskScorer(task), policy, prompts, lambda part: None, 2) as scoring:
        whole = rollout(policy, ids, mask, seeds, sampler, finished=scoring.add)
        with pytest.raises(ValueError, match=r"answer: None; give the expected text"):
            scoring.result(whole)


def test_one_step_completions_of_candidate_states_are_rewarded(tiny_policy):
    """Step values stand beside the candidates they belong to, 0 where there is none."""
    policy, task = tiny_policy(), registry.load_task("toy", prompt="compact", num_symbols=3)
    prompts = [prompt for prompt in task.load("train") for _ in range(2)]
    ids, mask = pad_prompts(policy, policy.encode_prompts([prompt.messages for prompt in prompts]))
    sampler = SamplerConfig(max_completion_length=4, block_length=4, diffusion_steps=4)
    seeds = noise.sample_seeds(0, 1, torch.arange(len(prompts)))
    trajectory = rollout(policy, ids, mask, seeds, sampler, proxy=Proxy())
    index = torch.tensor([[2, 0]]).repeat(len(prompts), 1)
    chosen = torch.ones_like(index, dtype=torch.bool)
    chosen[0, 1] = False
    scored = score_batch(TaskScorer(task), policy, trajectory, prompts, Steps(index, chosen), 2)
    assert scored.completions == policy.decode(trajectory.final)
    for i, prompt in enumerate(prompts):
        final = task.grade(scored.completions[i], prompt.fields).parts["match"]
        assert scored.rewards.final[i].item() == final
        for k, step in enumerate((2, 0)):
            (text,) = policy.decode(trajectory.one_step[i : i + 1, step])
            assert scored.one_step_texts[i][k] == text
            value = task.grade(text, prompt.fields).parts["match"] * chosen[i, k].item()
            assert scored.rewards.step_values[i, k].item() == value
    assert (scored.rewards.num_generations, scored.rewards.num_steps) == (2, 4)

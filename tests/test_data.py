"""The order in which a run sees its problems, and pairs read from files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egspo import registry
from egspo.data import Problems, as_pair, encode_problems, read_pairs
from egspo.types import Prompt

PROMPT = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def problems(size: int) -> Problems:
    prompts = registry.load_task("toy").load("train")[:size]
    return Problems(list(prompts), [[0]] * size, 0)


def test_each_pass_sees_each_problem_once_in_an_order_of_its_own():
    seen = problems(7).order(seed=0, start=0, num=21)
    passes = [seen[:7], seen[7:14], seen[14:]]
    assert [sorted(one) for one in passes] == [list(range(7))] * 3
    assert passes[0] != passes[1] != passes[2]
    assert passes[0] != list(range(7))


def test_the_order_is_one_sequence_however_it_is_cut():
    """So that batches that straddle the end of a pass, and resumed runs, see what an uncut run sees."""
    data = problems(7)
    whole = data.order(0, 0, 40)
    for size in (1, 3, 7, 8, 20):
        parts = [data.order(0, start, size) for start in range(0, 40, size)]
        assert [index for part in parts for index in part][:40] == whole
    assert data.order(0, 13, 9) == whole[13:22]


def test_another_seed_is_another_order():
    data = problems(50)
    assert data.order(0, 0, 50) != data.order(1, 0, 50)
    assert data.order(0, 0, 50) == data.order(0, 0, 50)


def test_a_batch_may_be_larger_than_the_data():
    assert sorted(problems(2).order(0, 0, 5)[:4]) == [0, 0, 1, 1]


def mixed(sizes: dict[str, int], weights: dict[str, float]) -> Problems:
    tasks = [name for name, size in sizes.items() for _ in range(size)]
    prompts = [Prompt((), {"task": name}) for name in tasks]
    return Problems(prompts, [[0]] * len(prompts), 0, weights)


def test_tasks_share_out_each_pass_by_their_weights():
    """A pass of 20 places, weights 3 to 1: 15 of the 4 problems of one task, 5 of the 16 of the other."""
    data = mixed({"few": 4, "many": 16}, {"few": 3.0, "many": 1.0})
    seen = data.order(seed=0, start=0, num=80)
    for start in range(0, 80, 20):
        few = [index for index in seen[start : start + 20] if index < 4]
        assert len(few) == 15
    # None of a task's problems comes again before all the others of it have come.
    few, many = [i for i in seen if i < 4], [i for i in seen if i >= 4]
    assert all(sorted(few[start : start + 4]) == [0, 1, 2, 3] for start in range(0, 60, 4))
    assert sorted(many[:16]) == list(range(4, 20)) and len(many) == 20
    # Where they lie in a pass is shuffled, and both tasks' passes have orders of their own.
    assert len({tuple(i < 4 for i in seen[start : start + 20]) for start in range(0, 80, 20)}) == 4
    assert len({tuple(few[start : start + 4]) for start in range(0, 60, 4)}) > 5
    parts = [data.order(0, start, 7) for start in range(0, 84, 7)]
    assert [index for part in parts for index in part][:80] == seen
    assert data.order(1, 0, 80) != seen


@given(
    weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 9), min_size=5, max_size=5),
)
def test_every_task_has_a_place_and_none_is_a_whole_place_off(weights: list[float], sizes: list[int]):
    named = {str(i): weight for i, weight in enumerate(weights)}
    data = mixed({name: size for name, size in zip(named, sizes, strict=False)}, named)
    tasks = [data.prompts[index].fields["task"] for index in data.order(0, 0, len(data))]
    counts = {name: tasks.count(name) for name in named}
    assert min(counts.values()) >= 1
    shares = {name: len(data) * weight / sum(weights) for name, weight in named.items()}
    if min(shares.values()) >= 1:
        assert all(abs(counts[name] - share) < 1 for name, share in shares.items())


def test_a_task_of_which_no_prompt_is_short_enough_is_told(tiny_policy):
    """The template adds two tokens to the five characters of the longer one."""
    prompts = [
        Prompt(({"role": "user", "content": text},), {"task": task})
        for text, task in (("a", "short"), ("bcdef", "long"), ("bcdefg", "long"))
    ]
    weights = {"short": 1.0, "long": 1.0}
    assert len(encode_problems(tiny_policy(), prompts, 7, "train.max_prompt_length", weights)) == 2
    with pytest.raises(
        ValueError, match=r"^train.max_prompt_length: 6 leaves none of 2 prompts of 'long'; .* needs 7$"
    ):
        encode_problems(tiny_policy(), prompts, 6, "train.max_prompt_length", weights)


def test_too_long_prompts_are_left_out_never_cut(tiny_policy):
    """Tokens are characters, and the template adds the user's and the assistant's mark."""
    policy, task = tiny_policy(), registry.load_task("countdown", prompt="compact", num_train=40)
    prompts = task.load("train")
    lengths = [len(prompt.messages[0]["content"]) + 2 for prompt in prompts]
    limit = sorted(lengths)[len(lengths) // 2] - 1
    kept = encode_problems(policy, prompts, limit, "train.max_prompt_length")
    assert [prompt.id for prompt in kept.prompts] == [
        p.id for p, n in zip(prompts, lengths, strict=True) if n <= limit
    ]
    assert [len(ids) for ids in kept.encoded] == [n for n in lengths if n <= limit]
    assert kept.skipped == 40 - len(kept)
    with pytest.raises(
        ValueError,
        match=f"^sft.max_prompt_length: 1 leaves none of 40 prompts; the shortest needs {min(lengths)}$",
    ):
        encode_problems(policy, prompts, 1, "sft.max_prompt_length")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a"},
        {"prompt": [PROMPT], "completion": [ANSWER]},
        {"prompt": "q", "completion": [ANSWER], "other": 1},
        {"messages": [PROMPT, ANSWER]},
    ],
)
def test_pairs_and_messages_mean_the_same(row: dict):
    pair = as_pair(row, "f:3")
    assert (list(pair.messages), pair.solution, pair.id) == ([PROMPT], "a", "f:3")


def test_messages_keep_all_turns_but_the_last():
    turns = [{"role": "system", "content": "s"}, PROMPT, ANSWER, PROMPT, ANSWER]
    pair = as_pair({"messages": turns}, "f:1")
    assert (list(pair.messages), pair.solution) == (turns[:-1], "a")


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": "q"},
        {"completion": "a"},
        {"prompt": "q", "completion": 3},
        {"prompt": 5, "completion": "a"},
        {"prompt": [], "completion": "a"},
        {"prompt": ["q"], "completion": "a"},
        {"prompt": "q", "completion": ["a"]},
        {"prompt": "q", "completion": [ANSWER, ANSWER]},
        {"messages": []},
        {"messages": [ANSWER]},
        {"messages": [PROMPT, {"role": "assistant"}]},
        {"messages": "q"},
        # The last turn is the user's: there is no answer to learn.
        {"messages": [PROMPT, ANSWER, PROMPT]},
    ],
    ids=str,
)
def test_what_is_no_pair_is_refused_with_its_place(row: dict):
    with pytest.raises(ValueError, match=r"^sft.data: f:3 has neither prompt and completion nor messages"):
        as_pair(row, "f:3")


def test_pairs_of_a_file_know_their_line(tmp_path: Path):
    file = tmp_path / "pairs.jsonl"
    # A line separator inside a text is no end of line; an empty line is no line.
    rows = [{"prompt": "q\u2028", "completion": "a"}, {"messages": [PROMPT, ANSWER]}]
    file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    pairs = read_pairs(file)
    assert [pair.id for pair in pairs] == [f"{file}:1", f"{file}:3"]
    assert pairs[0].messages[0]["content"] == "q\u2028"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "q", "completion": "a"}\n{"prompt"\n', ":2: not JSON"),
        ('{"prompt": "q"}\n', ":1 has neither prompt and completion nor messages"),
        ("[1]\n", ":1: not a JSON object"),
        ("\n", ": holds no rows"),
    ],
)
def test_a_broken_file_names_field_file_and_line(tmp_path: Path, text: str, message: str):
    file = tmp_path / "pairs.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^sft.data: {file}{message}"):
        read_pairs(file)

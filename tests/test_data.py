"""The order in which a run sees its problems, and pairs read from files."""

import json
from pathlib import Path

import pytest

from egspo import registry
from egspo.data import Problems, as_pair, encode_problems, read_pairs

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

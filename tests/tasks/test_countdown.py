"""Countdown: the generator, the solver, files, and a grader that computes exactly."""

import gzip
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egspo.answers import evaluate_expression
from egspo.tasks import countdown
from egspo.tasks.base import SPLITS
from egspo.tasks.countdown import Config, Task

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "countdown"
FIELDS = {"numbers": [44, 19, 35], "target": 98}


def make(**settings) -> Task:
    return Task(Config(name="countdown", **settings))


def public(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"public file {name} is not here")
    return DATA / name


def reward(task: Task, text: str, fields=FIELDS) -> float:
    grade = task.grade(text, fields)
    return sum(task.reward_weights[name] * value for name, value in grade.parts.items())


@pytest.mark.parametrize(
    "text",
    [
        "44+19+35",
        "35 + (44 + 19)",
        "44+19+35 = 98",
        "<answer>44+19+35</answer>",
        r"Trying 44*19=836. \boxed{44 + 19 + 35 = 98}<|eot_id|>1",
        r"\boxed{44 - \left(-19-35\right)}",
        "<answer>$44+19+35$</answer>",
    ],
)
def test_right_answers(text):
    grade = make().grade(text, FIELDS)
    assert grade.correct and grade.parts == {"correct": 1.0, "formed": 0.0, "closeness": 1.0}
    assert reward(make(), text) == 1.0


@pytest.mark.parametrize(
    ("text", "closeness", "reason"),
    [
        # 44 + 19 - 35 = 28, 70 away; (44 * 19) / 35 = 836/35, (3430 - 836)/35 = 2594/35 away.
        ("44+19-35", 1 / 71, "equals 28, not 98"),
        ("44*19/35", 35 / 2629, "equals 836/35, not 98"),
        ("44+19-35=28", 1 / 71, "equals 28, not 98"),
        ("44+19+35=99", 1.0, "says that it equals 99"),
        ("44+19+35=90+8", 1.0, "says that it equals 98"),
    ],
)
def test_well_formed_answers_that_miss(text, closeness, reason):
    grade = make().grade(text, FIELDS)
    assert not grade.correct and grade.reason == reason
    assert grade.parts == {"correct": 0.0, "formed": 1.0, "closeness": pytest.approx(closeness)}
    assert reward(make(), text) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "text",
    [
        "98",
        "44+44+35",
        "44+19+35+19-19",
        "44+54",
        "4419+35",
        "44+19+35.0",
        "44.0+19+35",
        "44+19+35=",
        "98=44+19+35",
        "44+19+35=98=98",
        "44+19+35 or 35+44+19",
        "44+19+35**1",
        "44+19//35",
        "(44+19+35",
        "4 4+19+35",
        "\uff14\uff14+19+35",
        "The expression is 44+19+35",
        "<answer>44+19+35",
        "44/(19-19)+35",
        "",
    ],
)
def test_near_misses_earn_nothing(text):
    grade = make().grade(text, FIELDS)
    assert not grade.correct and set(grade.parts.values()) == {0.0}


def test_arithmetic_is_exact():
    # (5 - 1/5) * 5 = 24/5 * 5 = 24.
    assert make().grade("(5-1/5)*5", {"numbers": (1, 5, 5, 5), "target": 24}).correct
    # In floating point 1/49*49 is 0.9999999999999999.
    assert make().grade("1/49*49", {"numbers": (1, 49, 49), "target": 1}).correct


def test_huge_values_have_a_closeness():
    numbers = [999_999_999] * 30
    grade = make().grade("*".join(map(str, numbers)), {"numbers": numbers, "target": 1})
    assert grade.parts["formed"] == 1.0 and 0 <= grade.parts["closeness"] < 1e-200


@pytest.mark.parametrize("style", ["instruct", "compact"])
def test_an_unmarked_answer_ends_at_the_end_token(style):
    assert make(prompt=style).grade("44+19+35<|endoftext|>9", FIELDS).correct


@pytest.mark.parametrize(
    "fields",
    [
        {"numbers": [44, 19, 35]},
        {"target": 98},
        {"numbers": [], "target": 98},
        {"numbers": [0, 1], "target": 98},
        {"numbers": [1.5, 2], "target": 98},
        {"numbers": [True, 2], "target": 98},
        {"numbers": "44;19", "target": 98},
        {"numbers": [44, 19], "target": "many"},
        {"numbers": [10**10, 19], "target": 1},
    ],
)
def test_broken_fields_are_data_errors(fields):
    with pytest.raises(ValueError, match=r"(numbers|target): .*give"):
        make().grade("1", fields)


def test_numbers_may_be_text_as_in_the_public_file():
    assert make().grade("44+19+35", {"numbers": "44,19,35", "target": "98"}).correct


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (("*", ("+", 44, 19), 35), "(44+19)*35"),
        (("*", 5, ("+", 1, 8)), "(8+1)*5"),
        (("+", 19, ("+", 35, 44)), "44+35+19"),
        (("+", 44, ("-", 19, 35)), "44+19-35"),
        (("-", 44, ("-", 19, 35)), "44+35-19"),
        (("-", ("-", 44, 19), 35), "44-35-19"),
        (("-", ("-", 7, 5), ("-", ("-", 1, 2), 9)), "9+7+2-5-1"),
        (("-", 44, ("*", 19, 35)), "44-35*19"),
        # 19 * 3 = 57 > 44, and 19 / 3 < 7: operands are ordered by value, not by length or first number.
        (("+", 44, ("*", 3, 19)), "19*3+44"),
        (("+", ("/", 19, 3), 7), "7+19/3"),
        (("*", 44, ("/", 19, 35)), "44*19/35"),
        (("/", 44, ("*", 19, 35)), "44/35/19"),
        (("/", 44, ("/", 35, 19)), "44*19/35"),
        (("/", ("-", 44, 19), ("+", 1, 35)), "(44-19)/(35+1)"),
        # Equal values: 2 + 3 before 5, whichever way they are given.
        (("*", 5, ("+", 2, 3)), "(3+2)*5"),
        (("*", ("+", 2, 3), 5), "(3+2)*5"),
        (44, "44"),
    ],
)
def test_solutions_have_one_form(tree, text):
    assert countdown.write(tree) == text


def value(tree):
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value(tree[1]), value(tree[2])
    if tree[0] == "/":
        return left / right
    return {"+": left + right, "-": left - right, "*": left * right}[tree[0]]


TREES = st.recursive(
    st.integers(1, 20), lambda trees: st.tuples(st.sampled_from("+-*/"), trees, trees), max_leaves=6
)


@settings(deadline=None)
@given(TREES)
def test_the_form_keeps_value_and_numbers(tree):
    try:
        expected = value(tree)
    except ZeroDivisionError:
        return
    written, used = evaluate_expression(countdown.write(tree))
    assert written == expected and sorted(used) == sorted(countdown._leaves(tree))


@settings(deadline=None)
@given(st.permutations([3, 5, 8, 13]), st.sampled_from("+*"))
def test_order_and_grouping_of_equal_operations_do_not_show(numbers, sign):
    a, b, c, d = numbers
    forms = {
        countdown.write((sign, (sign, (sign, a, b), c), d)),
        countdown.write((sign, (sign, a, b), (sign, c, d))),
    }
    assert forms == {sign.join(["13", "8", "5", "3"])}


def test_solver():
    assert evaluate_expression(countdown.solve((30, 100, 93), 23))[0] == 23
    # Only fractions reach 24 from these: 5 * (5 - 1/5) and 8 / (3 - 8/3).
    assert evaluate_expression(countdown.solve((1, 5, 5, 5), 24))[0] == 24
    assert evaluate_expression(countdown.solve((3, 3, 8, 8), 24))[0] == 24
    assert evaluate_expression(countdown.solve((5, 5, 3), 0))[0] == 0
    # 1 and 1 give 2, 1, 0 and nothing else.
    assert countdown.solve((1, 1), 3) is None
    assert countdown.solve((7,), 7) is None and countdown.solve((1,) * 6, 6) is None


def values(numbers: tuple) -> set:
    """All values, by replacing any two numbers by their result until one is left."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for i, a in enumerate(numbers):
        for j, b in enumerate(numbers):
            if i != j:
                rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
                for result in [a + b, a - b, a * b, *([a / b] if b else [])]:
                    found |= values((*rest, result))
    return found


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=3), st.integers(-5, 30))
def test_solver_agrees_with_plain_enumeration(numbers, target):
    solution = countdown.solve(tuple(numbers), target)
    assert (solution is not None) == (target in values(tuple(map(Fraction, numbers))))
    if solution is not None:
        value, used = evaluate_expression(solution)
        assert value == target and sorted(used) == sorted(numbers)


@pytest.mark.parametrize("num_numbers", [2, 3, 4, 6])
def test_generated_problems_keep_to_their_settings(num_numbers):
    ranges = {"max_number": 50, "min_target": 20, "max_target": 40}
    task = make(num_numbers=num_numbers, **ranges, num_test=300, operators="+-*", prompt="compact")
    for prompt in task.load("test"):
        numbers, target = prompt.fields["numbers"], prompt.fields["target"]
        assert len(numbers) == num_numbers and all(1 <= n <= 50 for n in numbers) and 20 <= target <= 40
        assert "/" not in prompt.solution
    assert task.validate("test") == []


def test_problems_differ_within_and_between_splits():
    task = make(num_train=5_000)
    keys = [
        (tuple(sorted(prompt.fields["numbers"])), prompt.fields["target"])
        for split in SPLITS
        for prompt in task.load(split)
    ]
    assert len(keys) == len(set(keys)) == 5_000 + 500 + 1_000


def test_operators_and_targets_are_balanced():
    prompts = make(prompt="compact", num_train=4_000).load("train")
    used = Counter(sign for prompt in prompts for sign in prompt.solution if sign in "+-*/")
    # Two operators a problem; none has less than 16 % or more than 34 % of them.
    assert sum(used.values()) == 8_000 and all(1_280 < count < 2_720 for count in used.values())
    # 91 targets, 44 each on average; a fifth of the range has a fifth of the problems, give or take a fifth.
    fifths = Counter((prompt.fields["target"] - 10) * 5 // 91 for prompt in prompts)
    assert len(fifths) == 5 and all(640 < count < 960 for count in fifths.values())


@pytest.mark.parametrize("operators", ["+", "-", "+-", "*-", "+/", "+-*", "+-*/"])
def test_small_ranges_for_tiny_models(operators):
    sizes = {"num_train": 60, "num_validation": 20, "num_test": 20}
    ranges = {"max_number": 20, "min_target": 5, "max_target": 45}
    task = make(operators=operators, prompt="compact", **ranges, **sizes)
    prompts = [prompt for split in SPLITS for prompt in task.load(split)]
    assert len({task._key(prompt.fields) for prompt in prompts}) == 100
    assert {sign for prompt in prompts for sign in prompt.solution if sign in "+-*/"} <= set(operators)
    assert max(number for prompt in prompts for number in prompt.fields["numbers"]) <= 20


@pytest.mark.parametrize(
    ("settings", "largest"),
    [({}, 100), ({"max_number": 20, "max_target": 60}, 60), ({"max_number": 50, "max_target": 40}, 50)],
)
def test_every_number_of_a_prompt_can_be_a_token(settings, largest):
    assert make(**settings).max_number_token == largest


def test_test_split_does_not_depend_on_the_others_and_the_seed_matters():
    test = make(num_test=50).load("test")
    assert test == make(num_test=50, num_train=7).load("test")
    assert test != make(num_test=50, seed=1).load("test")


def test_more_problems_than_exist_are_refused(monkeypatch):
    monkeypatch.setattr(countdown, "VAIN_DRAWS", 500)
    # Two numbers up to 4 with sum 5: 1+4 and 2+3.
    settings = {"num_numbers": 2, "max_number": 4, "min_target": 5, "max_target": 5, "operators": "+"}
    assert len(make(**settings, num_test=2).load("test")) == 2
    with pytest.raises(ValueError, match=r"task.num_test: 3 problems, but only 2 were found .*; lower"):
        make(**settings, num_test=3).load("test")
    # The test split has one of the two, validation the other.
    with pytest.raises(ValueError, match=r"task.num_train: 1 problems, but only 0 were found that no later"):
        make(**settings, num_test=1, num_validation=1, num_train=1).load("train")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_numbers": 1},
        {"num_numbers": 7},
        {"max_number": 1},
        {"min_target": 0},
        {"min_target": 50, "max_target": 40},
        {"operators": ""},
        {"operators": "+^"},
        {"operators": "++"},
        {"num_train": 0},
        {"train_data": "nowhere.jsonl"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make(**settings)


def test_prompts_and_solutions_of_both_styles(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text('{"input": "44,19,35", "output": "98"}\n')
    (compact,) = make(data=path, prompt="compact").load("test")
    path.write_text('{"nums": [44, 19, 35], "target": 98}\n')  # as Countdown-Tasks-3to4 has it
    assert make(data=path, prompt="compact").load("test") == [compact]
    assert compact.messages[0]["content"] == "44,19,35=98"
    assert compact.solution == "44+35+19"
    (worded,) = make(data=path).load("test")
    assert "44, 19, 35" in worded.messages[0]["content"] and "98" in worded.messages[0]["content"]
    assert worded.solution == f"<answer>\n{compact.solution}\n</answer>" and worded.id == "one.jsonl:1"
    assert worded.fields == {"numbers": (44, 19, 35), "target": 98}


def test_training_file(tmp_path):
    path = tmp_path / "train.jsonl.gz"
    rows = [([44, 19, 35], 98), ([1, 2, 3, 4], 10), ([35, 44, 19], 28)]
    lines = [json.dumps({"numbers": numbers, "target": target}) for numbers, target in rows]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    test = tmp_path / "test.jsonl"
    test.write_text('{"numbers": [19, 35, 44], "target": 28}')
    # The third row is the test problem in another order.
    prompts = make(data=test, train_data=path).load("train")
    assert [(p.fields["numbers"], p.solution) for p in prompts] == [((44, 19, 35), None)]
    prompts = make(data=test, train_data=path, any_count=True, solve_train_data=True, prompt="compact").load(
        "train"
    )
    assert [evaluate_expression(prompt.solution)[0] for prompt in prompts] == [98, 10]
    with pytest.raises(ValueError, match=r"task.train_data: .* no problem of 5 numbers; .* task.any_count"):
        make(train_data=path, num_numbers=5).load("train")
    with pytest.raises(ValueError, match=r"task.train_data: .* no problem that is not in validation or test"):
        make(data=test, train_data=test).load("train")


def test_a_table_is_read_like_json_lines(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text('Numbers,Target\n"44,19,35",98\n')
    (prompt,) = make(data=path).load("test")
    assert prompt.fields == {"numbers": (44, 19, 35), "target": 98} and prompt.id == "one.csv:2"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "p.jsonl",
            '{"numbers": [1, 2], "target": 3}\n\n{"numbers": [1',
            "p.jsonl:3: not JSON .*; write one JSON",
        ),
        ("p.jsonl", '{"numbers": [1, "x"], "target": 3}', ":1: numbers: give"),
        ("p.jsonl", '{"numbers": [1, 2]}', ":1: target: None; give"),
        ("p.jsonl", "[1]", "task.data: .*:1: not a JSON object; write"),
        ("p.jsonl", "\n", "holds no rows; give"),
        ("p.jsonl.gz", "{}", "not a readable jsonl file"),
        ("p.txt", "1", "unknown kind of file; give"),
    ],
)
def test_broken_files_are_reported_with_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        make(data=tmp_path / name).load("test")


def test_public_test_file_is_solved_and_accepted():
    task = make(data=public("countdown_cd3_test.jsonl"))
    prompts = task.load("test")
    assert len(prompts) == 256 and all(prompt.solution for prompt in prompts)
    assert task.validate("test") == []


@pytest.mark.parametrize(("any_count", "num_rows"), [(False, 9_949), (True, 19_996)])
def test_public_training_file(any_count, num_rows):
    task = make(
        data=public("countdown_cd3_test.jsonl"),
        train_data=public("train_3to4numbers.jsonl.gz"),
        any_count=any_count,
        solve_train_data=not any_count,
    )
    prompts = task.load("train")
    # A few rows may equal generated validation problems, none equals a test problem.
    assert num_rows - 100 < len(prompts) <= num_rows
    assert all((prompt.solution is None) == any_count for prompt in prompts)
    assert task.validate("train", limit=1_000) == []

"""d1's rules, fault by fault; what is expected was derived by hand from the published grader."""

import math
import operator
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egspo.paper import arithmetic, countdown, gsm8k, math500, rewards, sudoku
from egspo.paper.arithmetic import NotArithmetic

GRID = "1234341221434321"
PUZZLE = "1204341201434321"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\boxed{18}", 18.0),
        (r"\boxed{3} and then \boxed{18}", 3.0),  # the first box
        (r"\boxed{...} \boxed{18}", 18.0),  # but one of dots is none
        (r"\boxed{1,234}", 1.0),  # commas end a number
        (r"\boxed{$-18.50}", -18.5),
        (r"\boxed{\frac{1}{2}}", 1.0),  # up to the first closing brace
        ("\\boxed{1\n8} <answer>7</answer>", 7.0),  # a box on two lines is none
        ("<answer>3 of 18</answer><answer>5</answer>", 18.0),  # the last number of the first answer
        ("<answer>18", None),
        (r"\boxed{x} <answer>18</answer>", 18.0),
        ("\\boxed{\u0661\u0668}", 18.0),  # Python's float reads the digits of any script
        (r"<|eot_id|>\boxed{18}", 18.0),  # and the end of the text is not looked for
        ("18", None),
    ],
)
def test_gsm8k_reads(text, value):
    assert gsm8k.read_answer(text) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [("so\n#### 18", 18.0), ("18", 18.0), ("#### 1,234", 1234.0), ("#### $5.50", 5.5), ("#### -10", None)],
)
def test_gsm8k_reads_gold_answers(answer, value):
    assert gsm8k.read_gold(answer) == value


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        (r"\boxed{3} then \boxed{5}", "5", True),  # the last box
        (r"\boxed{5", "5", False),
        (r"\boxed{5 <answer>5</answer>", "5", True),  # an unclosed box gives way to the answer
        (r"\boxed{4}<answer>5</answer>", "5", False),
        ("5", "5", True),  # without a box the whole text is the answer
        ("the answer is 5 <answer>5</answer>", "5", False),  # even where there are tags
        (r"so \boxed 5$", "5", True),
        (r"\boxed{\dfrac12}", r"\frac{1}{2}", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{1/2}", r"\frac{1}{2}", True),
        (r"\boxed{0.25}", r"\frac{1}{4}", False),
        (r"\boxed{x=5}", "5", True),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})", True),
        (r"\boxed{2,1}", "1,2", False),
        (r"\boxed{30^\circ}", "30", True),
        (r"\boxed{12\text{ cm}}", "12", True),
        (r"\boxed{12\text{cm}}", "12", False),
        (r"\boxed{a/b}", r"\frac{a}{b}", False),
        (r"\boxed{a /b}", "a/b", False),  # where the replacements fail, the texts must be equal as they stand
        (r"\boxed{a/b}", "a/b", True),
    ],
)
def test_math500(text, gold, correct):
    answer = math500.read_answer(text)
    assert (answer is not None and math500.equal(answer, gold)) is correct


@pytest.mark.parametrize(
    ("text", "numbers", "target", "correct"),
    [
        (r"\boxed{(1+2)*3}", [1, 2, 3], 9, True),
        (r"\boxed{(1+2)\times3 = 9}", [1, 2, 3], 9, True),
        (r"\boxed{2**3+1}", [1, 2, 3], 9, True),  # powers
        (r"\boxed{7//2+1}", [1, 2, 7], 4, True),  # whole division
        (r"\boxed{1.5*2}", [1, 2, 5], 3, True),  # a decimal point between the numbers 1 and 5
        ("(1+2)*3", [1, 2, 3], 9, True),  # no tags at all
        ("first 1+2*3 = 7, so <answer>(1+2)*3</answer>", [1, 2, 3], 7, True),  # the first equation anywhere
        ("<answer>(1+2)*3</answer>", [1, 2, 3], 9, False),  # tags without a box are not looked into
        (r"\boxed{ <answer>(1+2)*3</answer>", [1, 2, 3], 9, True),  # unless a box does not close
        (r"\boxed{(1+2)*3}", [1, 2, 4], 9, False),
        (r"\boxed{1+2+3 apples}", [1, 2, 3], 6, False),
        (r"\boxed{9**9**9}", [9, 9, 9], 9, False),
    ],
)
def test_countdown(text, numbers, target, correct):
    assert countdown.verdict(countdown.read_expression(text), numbers, target)[0] is correct


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", 14),
        ("2**3**2", 512),  # powers bind to the right
        ("-2**2", -4),  # and more than a sign before them
        ("2**-1", 0.5),
        ("7//2*2", 6),
        ("-7//2", -4),
        ("--5", 5),
        ("1-+-2", 3),
        (".5+5.", 5.5),
        ("(1\n+2)", 3),
        ("00+1", 1),
        ("(-8)**(1/3)", (-8) ** (1 / 3)),
        ("1e3", None),
        ("07", None),
        ("1 2", None),
        ("2(3)", None),
        ("1\n+2", None),
        ("2* *3", None),
        ("1/0", None),
        ("()", None),
        ("(1", None),
        ("1)", None),
        ("", None),
        ("\u0661", None),
        ("10.0**400", None),  # too large for a float
        ("9**9**9", None),
        ("(" * 201 + "1" + ")" * 201, None),
        ("-" * 501 + "1", None),
    ],
)
def test_arithmetic_is_that_of_python(text, value):
    if value is None:
        with pytest.raises(NotArithmetic):
            arithmetic.evaluate(text)
    else:
        assert arithmetic.evaluate(text) == value


OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
}
TREES = st.recursive(
    st.integers(0, 12) | st.sampled_from([0.5, 2.25]),
    lambda trees: st.tuples(st.sampled_from(list(OPERATIONS)), trees, trees),
    max_leaves=5,
)


def written(tree) -> str:
    return f"({written(tree[1])}{tree[0]}{written(tree[2])})" if isinstance(tree, tuple) else str(tree)


def valued(tree):
    if not isinstance(tree, tuple):
        return tree
    left, right = valued(tree[1]), valued(tree[2])
    if tree[0] == "**" and (abs(right) > 50 or abs(left) > 10**6):
        raise OverflowError
    return OPERATIONS[tree[0]](left, right)


@given(TREES)
def test_trees_have_the_value_that_python_gives_them(tree):
    try:
        value = valued(tree)
    except (ArithmeticError, TypeError):
        return
    found = arithmetic.evaluate(written(tree))
    assert found == value or (math.isnan(value) and math.isnan(found))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (f"<answer>\n{GRID}\n</answer>", 2),
        (f"<answer>\n```\n12 34\n34 12\n21 43\n43 21\n```\n</answer> {PUZZLE}", 2),
        (f"<answer>{GRID[:4]}</answer>", 1),  # too short: filled with zeros
        (f"<answer>{GRID}99</answer>", 2),  # too long: cut
        (f"<answer>grid {GRID}</answer>", 0),  # words count as cells
        (f"<answer> </answer> {GRID}", 2),  # what follows an empty answer
        (f"{GRID} </answer> ", 2),
        (f"It is {GRID}.", 2),
        (f"<answer>{PUZZLE}</answer><answer>{GRID}</answer>", 0),  # the first answer
        ("no grid", 0),
    ],
)
def test_sudoku(text, right):
    # Blank are row 1 column 3 (a 3) and row 3 column 1 (a 2).
    assert sudoku.right_cells(sudoku.read_grid(text), PUZZLE, GRID) == (right, 2)


FORM = "<reasoning>\nr\n</reasoning>\n<answer>\n18\n</answer>\n"


@pytest.mark.parametrize(
    ("text", "tags", "soft", "strict"),
    [
        (FORM, 1.0, True, True),
        (FORM + "\n", 1.0 - 1 / 500 - 1 / 500, True, True),
        (FORM + "and more", 1.0 - 8 / 500 - 8 / 500, True, False),
        (f"So {FORM}", 1.0, False, False),
        (FORM.strip("\n"), 1.0 - len(FORM.strip("\n")) / 500 + 1 / 500, True, False),
        (FORM.replace("\n", ""), 0.0, True, False),
        ("<reasoning>r</reasoning>  <answer>18", 0.0, False, False),
        ("", 0.0, False, False),
        (FORM + "x" * 1000, 0.0, True, False),
    ],
)
def test_shapes_that_training_rewards(text, tags, soft, strict):
    assert rewards.tags(text) == pytest.approx(tags)
    assert (rewards.soft(text), rewards.strict(text)) == (soft, strict)


def test_the_answer_that_training_reads():
    assert rewards.answer_of("<answer>3</answer> <answer>\n18 </answer> x") == "18"
    assert rewards.answer_of("18 </answer> x") == "18"


SLOW = [
    "\\boxed{",
    "\\boxed{\n",
    "<answer>",
    "</answer>",
    "```",
    "1",
    "1 ",
    "1=",
    "\\frac1",
    "\\sqrt",
    "(",
    "-",
    "=",
    " ",
]


@pytest.mark.parametrize("piece", SLOW)
def test_every_rule_takes_linear_time(piece):
    text = piece * (200_000 // len(piece))
    start = time.process_time()
    gsm8k.read_answer(text)
    math500.equal(math500.read_answer(text) or "", text)
    countdown.verdict(countdown.read_expression(text), [1, 2, 3], 6)
    sudoku.read_grid(text)
    rewards.tags(text), rewards.soft(text), rewards.strict(text)
    assert time.process_time() - start < 2


def test_no_nesting_is_too_deep_for_the_stack_at_hand():
    def below(frames: int):
        return below(frames - 1) if frames else arithmetic.evaluate("(" * 198 + "1" + ")" * 198)

    with pytest.raises(NotArithmetic):
        below(sys.getrecursionlimit() - 250)

"""Extraction of answers, and exact arithmetic on texts that nobody vouches for."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egspo import answers
from egspo.answers import ExpressionError, evaluate_expression


@pytest.mark.parametrize("token", answers.END_TOKENS)
def test_nothing_counts_behind_the_first_end_token(token):
    assert answers.before_end(f"a{token}b{token}c") == "a"
    assert answers.final_answer(rf"\boxed{{1}}{token}\boxed{{2}}") == "1"
    assert answers.before_end("no end") == "no end"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{3}", "3"),
        (r"so \boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{5} and \boxed{6", "5"),
        (r"\boxed{ {6 }", None),
        (r"{ \boxed{7}", "7"),
        (r"} \boxed{7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"\boxed {4}", "4"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\}}", r"\}"),
        (r"\boxed{}", ""),
        ("boxed{3}", None),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert answers.last_boxed(text) == content


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<answer>3</answer>", "3"),
        ("<answer>\n3\n</answer>", "\n3\n"),
        ("<answer>1</answer> <answer>2</answer>", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer>1</answer> stray </answer>", "1"),
        ("</answer> <answer>1", None),
        ("<answer>1", None),
        ("1", None),
    ],
)
def test_last_answer_tag(text, content):
    assert answers.last_answer_tag(text) == content


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} <answer>2</answer>", "1"),
        (r"<answer>2</answer> \boxed{1", "2"),
        (r"<answer>\boxed{1}</answer>", "1"),
        ("2", None),
    ],
)
def test_a_box_counts_before_a_tag(text, answer):
    assert answers.final_answer(text) == answer


def test_the_bare_text_stands_in_only_where_nothing_was_marked():
    assert answers.answer_or_text("12<|eot_id|>34") == "12"
    assert answers.answer_or_text("<answer>12") is None
    assert answers.answer_or_text("<answer>12", bare=True) == "<answer>12"
    assert answers.answer_or_text("9 <answer>12</answer>", bare=True) == "12"


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("(44+19)*35", 2205, [44, 19, 35]),
        ("44 + 19 - 35", 28, [44, 19, 35]),
        ("100-30-20", 50, [100, 30, 20]),
        ("100-(30-20)", 90, [100, 30, 20]),
        ("100/5/2", 10, [100, 5, 2]),
        ("2+3*4", 14, [2, 3, 4]),
        ("1/3+1/6", Fraction(1, 2), [1, 3, 1, 6]),
        (r"\frac{1+2}{4}\times 8", 6, [1, 2, 4, 8]),
        (r"\dfrac{\frac{8}{2}}{4}", 1, [8, 2, 4]),
        (r"\left(2 + 3\right) \cdot 4 \div 5", 4, [2, 3, 4, 5]),
        ("2 × 3 · 4 ⋅ 5 ÷ 6 − 7", 13, [2, 3, 4, 5, 6, 7]),  # noqa: RUF001
        ("$2+3$", 5, [2, 3]),
        (r"\(2 \ast 3\)", 6, [2, 3]),
        (r"2\,\times\,(3\;+ 4)", 14, [2, 3, 4]),
        ("8 ∕ 4 ∗ 3", 6, [8, 4, 3]),  # noqa: RUF001
        ("-3+5", 2, [3, 5]),
        ("2*(-3+5)", 4, [2, 3, 5]),
        ("0", 0, [0]),
        (f"{'(' * answers.MAX_DEPTH}7{')' * answers.MAX_DEPTH}", 7, [7]),
    ],
)
def test_values_are_exact(text, value, numbers):
    assert evaluate_expression(text) == (value, numbers)


INCOMPLETE = "+ 1+ +1 *2 2(3) (1)(2) () (1 1) 1+-2 3*-5 --1 {1} [1] 1=1 1;2 x 1+a len('a') __import__('os')"
UNREAD = "2**3 9**9**9**9 7//2 2^3 1.5 .5 5. 1e3 1_000 1,000 0x1 \uff11+1 \u0663 \u00b2 1/0 1/(2-2)"
LATEX = r"\frac12 \frac{1} \fraction{1}{2} \frac{1}{0} \sqrt{4} \times3 \(1+2\)*3 1\!2"
TOO_LONG = [
    "9" * 13,
    "(" * 10_000,
    "(" * 41 + "1" + ")" * 41,
    "-" * 300 + "1",
    "1+" * 200 + "1",
    r"\frac{" * 60,
]


@pytest.mark.parametrize(
    "text", ["", " ", "1 2", "1\x00", *INCOMPLETE.split(), *UNREAD.split(), *LATEX.split(), *TOO_LONG]
)
def test_everything_else_is_refused(text):
    with pytest.raises(ExpressionError):
        evaluate_expression(text)


def test_the_largest_expressions_stay_small():
    # 30 numbers of 12 digits, the longest that fit in 400 characters: a value of at most 360 digits.
    text = "*".join(["9" * answers.MAX_DIGITS] * 30)
    value, numbers = evaluate_expression(text)
    assert len(str(value)) == 360 and len(numbers) == 30


def _join(children):
    """(text, value, numbers) of two parenthesised operands."""

    def apply(sign, left, right):
        value = {"+": left[1] + right[1], "-": left[1] - right[1], "*": left[1] * right[1]}.get(sign)
        if sign == "/":
            value = left[1] / right[1] if right[1] else None
        return (f"({left[0]}){sign}({right[0]})", value, left[2] + right[2])

    return st.builds(apply, st.sampled_from("+-*/"), children, children).filter(
        lambda triple: triple[1] is not None
    )


EXPRESSIONS = st.recursive(
    st.integers(0, 999).map(lambda n: (str(n), Fraction(n), [n])), _join, max_leaves=12
)


@settings(deadline=None)
@given(EXPRESSIONS)
def test_parser_agrees_with_a_tree_that_was_evaluated_while_it_was_written(expression):
    text, value, numbers = expression
    assert evaluate_expression(text) == (value, numbers)


@settings(deadline=None, max_examples=150)
@given(st.text() | st.text(alphabet="0123456789+-*/(){}\\frac ", max_size=60))
def test_any_text_is_a_value_or_an_expression_error(text):
    try:
        value, numbers = evaluate_expression(text)
    except ExpressionError:
        return
    assert isinstance(value, Fraction) and all(isinstance(n, int) for n in numbers)


MARKS = st.sampled_from([r"\boxed{", "<answer>", "</answer>", "{", "}", "\\", "1", "<|eot_id|>"])


@settings(deadline=None, max_examples=200)
@given(st.lists(MARKS, max_size=20).map("".join))
def test_extraction_takes_any_text(text):
    for extract in (answers.before_end, answers.last_boxed, answers.last_answer_tag, answers.final_answer):
        assert extract(text) is None or extract(text) in text


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 50_000,
        r"\boxed{" * 50_000 + "}" * 50_000,
        r"\boxed{1}" * 50_000,
        r"\boxed" + " " * 200_000,
        "<answer>" * 50_000,
        "</answer>" * 50_000,
        "<answer>" * 50_000 + "</answer>" * 50_000,
        "<|eot_id|" * 50_000,
        "{" * 200_000 + "}" * 200_000,
    ],
    ids=range(9),
)
def test_extraction_is_linear_in_the_text(text):
    start = time.process_time()
    answers.answer_or_text(text)
    # Linear: some 100 ms for half a megabyte. Quadratic: minutes.
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("style", "completion"),
    [
        ("compact", "1 + 1 = 2.\n<answer>2</answer>"),
        ("instruct", "1 + 1 = 2.\n<answer>\n\\boxed{2}\n</answer>"),
        ("paper", "<reasoning>\n1 + 1 = 2.\n</reasoning>\n<answer>\n\\boxed{2}\n</answer>"),
    ],
)
def test_a_worked_solution_is_written_as_its_prompt_asks(style, completion):
    assert answers.worked(style, "1 + 1 = 2.\n#### 2") == completion

"""Whether two mathematical answers are the same: by their shapes, and by math-verify in limited workers."""

import contextlib
import itertools
import re
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egspo import equality, latex, records, symbolic
from egspo.latex import LatexError
from egspo.rationals import rational
from egspo.workers import Overrun

DATA = Path(__file__).parents[1].parent / "shared" / "data" / "math"
SAME = [
    (r"\frac{1}{2}", "0.5"),
    (r"\dfrac12", "1/2"),
    (r"2\frac{1}{2}", "2.5"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("y = 2x+3", "2x+3"),
    ("(1,2)", "(1, 2)"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"10\text{ cm}", "10 cm"),
    (r"\$18.90", "18.9"),
    (r"10\%", "10"),
    (r"30^\circ", "30"),
    (r"\pm 2", "2,-2"),
    ("2,-2", r"\pm2"),
    ("1,2", r"\{2,1\}"),
    (r"1 \pm \sqrt{5}", r"1-\sqrt5, 1+\sqrt5"),
    ("1011_2", "1011_{2}"),
    ("24_{10}", "24"),
    (r"\frac{10}{\sqrt{3}}", r"\frac{10\sqrt3}{3}"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"),
    ("58,500", "58500"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    (r"(-\infty,2) \cup (2,\infty)", r"(2,\infty)\cup(-\infty,2)"),
    (r"-80\leq g(x)\leq 82", r"-80\le g(x)\le82"),
    (r"0.56 = 56\%", "0.56"),
    ("144", r"12\text{ dozen}"),
    ("5,000,000", r"5\text{ million}"),
    ("5 million", "5000000"),
    ("5", "5 apples"),
    ("x=1,y=2", "1,2"),
    ("1,2", "x=2, y=1"),
    ("x=1, x=2", "2, 1"),
    ("1/3", r"0.\overline{3}"),
    (r"2.1\overline{6}", r"\frac{13}{6}"),
    (r"0.\overline{3}", r"0.\bar{3}"),
    ("(1,2)", "(x,y)=(1,2)"),
    (r"\mathbb{R}", r"(-\infty,\infty)"),
    ("5", "**5**"),
    ("5", "5\\\\"),
    ("5", r"\color{red}5"),
    ("5", r"\textcolor{red}{5}"),
    ("R^2-r^2", "(R-r)(R+r)"),
    ("A_1+a", "a+A_1"),
    (r"0.56 = 56\%", r"56\%"),
    ("3:1", "3:1"),
    (r"8\!:\!34 \text{ p.m.}", "8:34 p.m."),
    (r"6, 8\text{, and }10", "6,8,10"),
    ("[2,5)", r"2 \le x < 5"),
    (r"2 \le x < 5", "[2,5)"),
    (r"x \le 3", r"(-\infty,3]"),
    ("1234", r"1\,234"),
    ("1 1/2", "3/2"),
    (r"12\text{ and }13", "13, 12"),
    (r"(6,235^\circ)", "(6,235)"),
    (r"x \in [1,2]", "[1,2]"),
    (r"\left(3, \frac{\pi}{2}\right)", r"(3,\pi/2)"),
    ("2+3i", "3i+2"),
    (r"\text{(E)}", "E"),
    (r"(\text{E})", "E"),
    ("1,2,3", "1, 2 and 3"),
    ("5", "5.0"),
    ("x^2+2x+1", "(x+1)^2"),
    (r"\text{even}", "even"),
    (r"\begin{pmatrix} \sqrt{2}/2 \\ 0 \end{pmatrix}", r"\begin{pmatrix} 1/\sqrt{2} \\ 0 \end{pmatrix}"),
    ("-2x^2+x-3", "x-3-2x^2"),
    ("8,880", "8880"),
    ("LQSX", "LQSX"),
    ("xyz", "zyx"),
    (r"\frac{1}{2}", r"\frac12"),
    ("4", "3+1=4"),
    ("4", "2^2"),
    ("84a^2 + 100b^2 - 168a - 441 = 0", "441=84a^2+100b^2-168a"),
    ("12", "12 square units"),
    (r"5\sqrt{2}\text{ cm}", r"5\sqrt2"),
    (r"x \le 3", r"3 \ge x"),
    (r"\frac{3}{4}", r"\frac{6}{8}"),
    ("2", r"\text{2}"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"\sin^2 t", r"(\sin t)^2"),
]
DIFFERENT = [
    ("R-r", "r-R"),
    (r"\frac{a+b}{A}", r"\frac{A+B}{a}"),
    (r"\pi r^2", r"\pi R^2"),
    ("A", "a"),
    (r"\text{even}", r"\text{even}\text{odd}"),
    ("5", "5 million"),
    ("5", r"5\text{ hundred}"),
    ("12", r"12\text{ dozen}"),
    ("5", "5 squared"),
    ("x=1,y=2", "2,1"),
    ("1/3", r"0.\overline{34}"),
    ("12", "1 2"),
    ("11/2", "1 1/2"),
    ("1 1/2", "11/2"),
    ("1011_2", "10 11_2"),
    (r"2 \le x < 5", "(2,5)"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", r"\{1,2\}"),
    ("1011_2", "1011"),
    ("1011_2", "11"),
    (r"\frac13", "0.333"),
    (r"\frac13", "0.333333333"),
    ("5", "5 or 6"),
    ("5", "5,6"),
    ("1,2", "1"),
    ("east", "seat"),
    ("x=5", "y=5"),
    ("x=5", "x=6"),
    (r"\text{Evelyn}", "Evelina"),
    ("8:34 p.m.", "8:34 a.m."),
    ("3:1", "1:3"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    (r"\sqrt2", "1.414214"),
    ("5", "-5"),
    ("5", "5x"),
    ("2", "2ab"),
    ("5", ""),
    ("(1,2]", "[1,2)"),
    (r"\pm2", "2"),
    ("2", r"\pm 2"),
    ("2", "x"),
    (r"\text{even}", "odd"),
    ("100, 101", "100101"),
    ("x+1", "x+2"),
    ("[2,5)", "2<x<5"),
    ("12", "12.5"),
    ("10", "1/10"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1,2)"),
    ("1", "1,1"),
    ("e", "2.718281828"),
    ("i", "-i"),
    (r"\pi", "3.14159"),
    ("2", "2 + x - x"),
    ("x", "x!!!!!!"),
    ("1", r"\int_0^1 e^{e^{e^x}} dx"),
    ("5", r"\sum_{n=1}^{\infty} \frac{1}{n^{n}}"),
    ("y=2x+3", "y=2x+4"),
    ("3", "3=4"),
]
ENDLESS = [r"9^{9^{9^9}}", r"10^{10^{10}}", "99999999!!"]
WRITINGS = {
    "no blanks": lambda text: re.sub(r"(?<=[0-9+=({\[}-]) +(?=[^A-Za-z\\ ])", "", text),
    "display fractions": lambda text: text.replace(r"\frac", r"\dfrac"),
    "dollars": "${}$".format,
    "parentheses of LaTeX": r"\( {} \)".format,
    "braces": "{{{}}}".format,
    "full stop": "{}.".format,
    "no sizes": lambda text: text.replace(r"\left", "").replace(r"\right", ""),
}


@pytest.mark.parametrize(("gold", "given"), SAME)
def test_the_same_answer_in_other_writing(gold, given):
    assert symbolic.equal(gold, given)


@pytest.mark.parametrize(("gold", "given"), DIFFERENT)
def test_near_misses(gold, given):
    assert not symbolic.equal(gold, given)


@pytest.mark.parametrize("given", ENDLESS)
def test_what_would_never_end_is_ended(given):
    symbolic.pool().start()
    start = time.monotonic()
    with contextlib.suppress(Overrun):
        assert not symbolic.equal("5", given)
    assert time.monotonic() - start < 20
    assert symbolic.equal(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")


def test_most_verdicts_need_no_worker():
    assert equality.equal(r"\frac{1}{2}", "0.5") is True
    assert equality.equal(r"\frac{1}{2}", "0.333") is False
    assert equality.equal(r"\left( 3, \frac{\pi}{2} \right)", r"(3,\dfrac{\pi}{2})") is True
    assert equality.equal(r"\left( 3, \frac{\pi}{2} \right)", r"[3,\frac{\pi}{2}]") is False
    assert equality.equal("x+1", "1+x") is None


def test_threads_get_the_verdicts_that_one_thread_gets():
    pairs = [*SAME, *DIFFERENT] * 2
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda pair: symbolic.equal(*pair), pairs))
    assert verdicts == ([True] * len(SAME) + [False] * len(DIFFERENT)) * 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1" * 2001, "longer than 2000 characters"),
        ("(" * 20 + "1,2" + ")" * 20, "nested deeper than 12"),
        ("1," * 65 + "1", "more than 64 parts"),
        (r"\{" + ",".join([r"\{1,2,3\}"] * 30) + r"\}", "more than 64 parts"),
    ],
)
def test_answers_beyond_the_limits_are_refused(text, reason):
    with pytest.raises(LatexError, match=reason):
        latex.read(text)


@given(st.fractions(max_denominator=10**6).filter(lambda value: abs(value) < 10**12))
def test_every_writing_of_a_rational_number_has_its_value(value):
    sign, size = ("-" if value < 0 else ""), abs(value)
    whole, rest = divmod(size, 1)
    fraction = rf"\frac{{{rest.numerator}}}{{{rest.denominator}}}"
    assert rational(f"{value.numerator}/{value.denominator}") == value
    assert rational(rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}") == value
    assert rational(f"{sign}{whole}{fraction}") == value
    assert rational(f"{sign}{whole} {fraction}") == value
    assert rational(f"{sign}{whole}.25") == (-1 if sign else 1) * (whole + Fraction(1, 4))


PIECES = [*"0123456789xyi.,:;=+-/^_(){}[]<>|&$ ", r"\{", r"\frac", r"\text{", r"\pm", r"\cup", r"\\"]


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_is_compared_or_refused(text):
    try:
        assert equality.equal("5", text) in (True, False, None)
        assert equality.equal(text, text) is not False or not latex.read(text).text
    except LatexError:
        pass


SLOW = ["1,", "(", "{", r"\{", r"\left", r"\, ", r"\text{a}", r"\frac", " ", "=", r"\pm", r"\\", '"']


@pytest.mark.parametrize("piece", SLOW)
def test_no_text_takes_long(piece):
    start = time.process_time()
    for size in (1990, 100_000):
        with contextlib.suppress(LatexError):
            equality.equal((piece * size)[:size], (piece * size)[:size] + "z")
    assert time.process_time() - start < 1


FILES = ("math500_test.jsonl", "math_test_minus_math500_4500.jsonl.gz", "math_train_7466.jsonl.gz")


@pytest.mark.parametrize("file", FILES)
def test_every_published_answer_equals_its_other_writings(file):
    if not (DATA / file).is_file():
        pytest.skip(f"public file {file} is not here")
    golds = {row["answer"] for _, row in records.read_rows(DATA / file, "data")}
    assert [gold for gold in golds if equality.equal(gold, gold) is not True] == []
    # Plain numbers have a test of their own above; formulas take the writings in turn.
    formulas = sorted(gold for gold in golds if rational(gold) is None)
    turns = zip(formulas, itertools.cycle(WRITINGS))
    assert [turn for turn in turns if equality.equal(turn[0], WRITINGS[turn[1]](turn[0])) is not True] == []

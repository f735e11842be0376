"""The number that an answer states."""

import contextlib
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egspo.quantities import NumberError, read_number

READ = {
    "18": 18,
    "18.": 18,
    " 18 \n": 18,
    "18.0": 18,
    "18.00": 18,
    ".5": "1/2",
    "+18": 18,
    "-5": -5,
    "- 5": -5,
    "\N{MINUS SIGN}5": -5,
    "-$5": -5,
    "$-5": -5,
    "$18": 18,
    "\\$18.00": 18,
    "$18$": 18,
    "\\(18\\)": 18,
    "€18": 18,
    "£ 18": 18,
    "1,234": 1234,
    "$1,234.50": "2469/2",
    "1,000,000": 1_000_000,
    "1{,}234": 1234,
    "1,\\!234": 1234,
    "1\\,234": 1234,
    "18 dollars": 18,
    "18\\text{ dollars}": 18,
    "\\text{18 apples}": 18,
    "\\mathrm{18}": 18,
    "18\\ \\text{dollars}": 18,
    "18 km/h": 18,
    "18 dollars/hour": 18,
    "18 m^2": 18,
    "18\\text{ m}^2": 18,
    "18 cm²": 18,
    "18 m2": 18,
    "5%": 5,
    "5\\%": 5,
    "90^\\circ": 90,
    "1/2": "1/2",
    "\\frac{1}{2}": "1/2",
    "\\dfrac12": "1/2",
    "2 1/2 cups": "5/2",
    "2\\frac{1}{2}": "5/2",
    "-2\\frac12": "-5/2",
    "\\$\\frac{3}{4}": "3/4",
    "**18**": 18,
    "The answer is 18.": 18,
    "x = 18": 18,
    "3 x 4 = 12": 12,
    "3 \\times 4 = 12": 12,
    "$18 ($18.00)": 18,
    "2.5 million": 2_500_000,
    "$5k": 5000,
    "5 km": 5,
    "5 more apples": 5,
}
REFUSED = {
    "": "no number",
    "twelve": "no number",
    "negative 18": "words that change",
    "half of 18": "words that change",
    "isn't 18": "words that change",
    "18 hundred thousand": "words that change",
    "-(-18)": "a calculation",
    "10_2": "several numbers",
    "3 apples and 4 pears": "several numbers",
    "18 or 20": "several numbers",
    "1,2,3": "several numbers",
    "1, 234": "several numbers",
    "1 234": "several numbers",
    "43,50": "several numbers",
    "5:5": "a calculation",
    "7:30": "several numbers",
    "1/2/2020": "several numbers",
    "18-20": "may be negative",
    "1.234,56": "several numbers",
    "1,23,456": "several numbers",
    "1.2.3": "several numbers",
    "3*4": "several numbers",
    "3 \\times 4": "several numbers",
    "3+4": "may be negative",
    "5!": "a calculation",
    "2^{3}": "several numbers",
    "10^3": "several numbers",
    "1e3": "several numbers",
    "0x12": "several numbers",
    "\\sqrt{18}": "a calculation",
    "answer-5": "may be negative or not",
    "1/0": "divides by zero",
    "not 18": "words that change the number",
    "2 and a half": "words that change the number",
    "½": "digits other than",
    "18²": "digits other than",
    "\u0661\u0668": "digits other than",
    "9" * 41: "more than 40 characters",
    "9" * 401: "longer than 400 characters",
}


@pytest.mark.parametrize("text", READ)
def test_numbers_are_read_exactly(text):
    assert read_number(text) == Fraction(READ[text])


@pytest.mark.parametrize("text", REFUSED)
def test_what_states_no_one_number_is_refused(text):
    with pytest.raises(NumberError, match=REFUSED[text]):
        read_number(text)


@given(st.fractions(max_denominator=1000).filter(lambda value: abs(value) < 10**9))
def test_every_writing_of_a_number_has_its_value(value):
    sign, value = ("-" if value < 0 else ""), abs(value)
    whole, rest = divmod(value, 1)
    assert abs(read_number(f"{sign}{value.numerator}/{value.denominator}")) == value
    if rest:
        mixed = f"{sign}{whole}\\frac{{{rest.numerator}}}{{{rest.denominator}}}"
        assert read_number(mixed) == (-value if sign else value)
    assert read_number(f"{sign}${whole:,}.00 in all") == (-whole if sign else whole)


@given(st.text(alphabet="0123456789.,/-+$%\\{}^ =xeEkmfrac\n", max_size=60) | st.text())
def test_any_text_is_read_or_refused(text):
    with contextlib.suppress(NumberError):
        assert isinstance(read_number(text), Fraction)


@pytest.mark.parametrize(
    "piece", ["1", "1,", "1,000", "-", "$", "\\text{", "\\frac{1}", " ", "=", "\\,", "{,}", "m^2"]
)
def test_no_text_takes_long(piece):
    start = time.process_time()
    for size in (399, 100_000):
        with contextlib.suppress(NumberError):
            read_number((piece * size)[:size])
    assert time.process_time() - start < 1

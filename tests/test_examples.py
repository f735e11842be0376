"""The examples run and show what they claim."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_one_page_method_learns():
    spec = importlib.util.spec_from_file_location("one_page", EXAMPLES / "one_page.py")
    one_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(one_page)
    curve = one_page.train(iterations=80)
    # Random weights repeat one of six digits by chance: 1/6.
    assert sum(curve[:3]) / 3 < 0.3
    assert sum(curve[-10:]) / 10 > 0.9


def test_the_one_page_method_fits_its_name():
    assert len((EXAMPLES / "one_page.py").read_text(encoding="utf-8").splitlines()) < 150

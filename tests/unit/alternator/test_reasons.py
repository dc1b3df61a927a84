"""Every reason reads well, and every code of a built-in rule has a sentence."""

import math

import pytest

from alternator import Reason
from alternator.reasons import describe, label

CODES = [value for name, value in vars(Reason).items() if name.isupper()]


def test_codes_are_different():
    assert len(set(CODES)) == len(CODES) >= 21


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(("value", "limit"), [(0.0312, 0.01), (3, 5), (math.inf, math.inf), (-0.5, 1e300), (0, 0)])
def test_every_code_has_a_label_and_a_sentence(code, value, limit):
    assert label(code) != code or code in ("plateau", "diverging", "scheduled", "forced")
    text = describe(code, value, limit)
    assert text
    assert "{" not in text
    assert not text[0].isupper()
    assert not text.endswith(".")


@pytest.mark.parametrize(
    ("code", "value", "limit", "text"),
    [
        (Reason.CHANGING, 0.0312, 0.01, "change rate 0.0312 ≥ 0.01"),
        (Reason.MIN_STEPS, 3, 5, "tenure 3 of 5"),
        (Reason.FEW_LOSSES, 7, 10, "7 of 10 losses seen"),
        (Reason.IMPROVING, 0.1823, 0.01, "still improving: expected gain 18.23% ≥ 1.00%"),
        (Reason.UNSURE, 0.034, 0.01, "not sure yet: the expected gain may be as high as 3.40% ≥ 1.00%"),
        (Reason.PLATEAU, -0.001, 0.01, "plateau: the expected gain is at most -0.10% < 1.00%"),
        (Reason.DIVERGING, -0.6, -0.31, "diverging, the loss rises: expected gain -60.00% < -31.00%"),
        (Reason.RISING, -0.05, -0.012, "the loss rises: expected gain -5.00% ≤ -1.20%"),
        (Reason.BEST_GAIN, -0.001, -0.002, "the loss rises: gain per cost -0.001 ≥ -0.002 of the best other module"),
        (Reason.LESS_GAIN, 0.001, math.inf, "gain per cost 0.001 < inf of another module"),
    ],
)
def test_sentences(code, value, limit, text):
    assert describe(code, value, limit) == text


def test_every_reason_of_a_rise_says_so():
    rising = [code for code in CODES if code.startswith("rising")]
    assert len(rising) == 4
    assert all("the loss rises" in text for code in [*rising, "diverging"] for text in (describe(code, -1, -1),))
    assert all(label(code).startswith("the loss rises") for code in rising)


def test_an_unknown_code_is_its_own_label():
    assert label("my_reason") == "my_reason"
    assert describe("my_reason", 0.5, 2) == "my_reason: 0.5 against 2"

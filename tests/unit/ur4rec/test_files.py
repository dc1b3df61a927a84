"""What is written for people to read too is what it was."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ur4rec.files import in_lines

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.text(), values, max_size=4))
def test_an_object_in_lines_is_json_of_the_same_values(content):
    assert json.loads(in_lines(content)) == content


def test_each_epoch_has_a_line_and_a_row_of_numbers_one_too():
    content = {"epochs": [{"step": step, "losses": [0.5, 0.25]} for step in range(40)], "costs": list(range(40))}
    assert len(in_lines(content).splitlines()) == 2 + 1 + 40 + 1 + 1


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_refused_unless_it_is_allowed(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        in_lines({"loss": [{"value": number}]})
    assert "loss" in json.loads(in_lines({"loss": [{"value": number}]}, allow_nan=True))

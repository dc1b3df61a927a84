"""Reading the decision log back."""

import pytest

from alternator.recordings.log import read_log


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "step\n1,2,3\n", 'step\n"1', "step\nmany\n"])
def test_what_is_no_decision_log_is_refused(content):
    with pytest.raises(ValueError, match=r"not a decision log|invalid literal"):
        read_log(content)

"""The curriculum: one loss after the other, continuous, and full at the end."""

import numpy as np
import pytest

from ur4rec.schedule.stages import FULL, RETRIEVAL_ALONE, curriculum_weights

TARGETS = (1.0, 0.1, 0.2, 0.05)


@pytest.mark.parametrize("num_steps", [7, 100, 1999])
def test_the_ramps_are_those_of_a_plain_interpolation(num_steps):
    rest = 0.9 * num_steps
    for step in range(num_steps + 3):
        done = (step - 0.1 * num_steps) / rest
        expected = (1.0, *(np.interp(done, span, (0, full)) for span, full in zip(SPANS, TARGETS[1:], strict=True)))
        assert curriculum_weights(step, num_steps, warmup_steps=5) == pytest.approx(expected)


SPANS = [(0.0, 0.3), (0.3, 0.6), (0.6, 1.0)]


def test_a_stage_of_unknown_length_has_full_weights_after_the_warm_up():
    assert FULL == TARGETS
    assert [curriculum_weights(step, None, warmup_steps=2) for step in range(4)] == [RETRIEVAL_ALONE] * 2 + [FULL] * 2


def test_a_stage_of_one_step_begins_with_retrieval_alone():
    assert curriculum_weights(0, 1, warmup_steps=0) == RETRIEVAL_ALONE

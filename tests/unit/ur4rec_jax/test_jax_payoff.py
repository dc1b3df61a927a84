"""A Payoff schedule in JAX."""

import pytest

from tests.payoff_tests import (  # noqa: F401
    RULE,
    probe,
    test_a_long_tenure_is_measured_less_often,
    test_it_begins_jointly_and_goes_on_exactly_after_a_resume,
    test_payoffs_are_the_falls_of_the_held_out_loss,
    test_what_cannot_be_measured_is_refused,
)
from ur4rec.errors import ConfigurationError


def test_a_whole_epoch_on_the_device_cannot_measure(make_trainer, probe):  # noqa: F811
    with pytest.raises(ConfigurationError, match="needs the host"):
        make_trainer(rule=RULE, probe=probe, on_device=True)

"""A Payoff schedule in PyTorch."""

from tests.payoff_tests import (  # noqa: F401
    probe,
    test_a_long_tenure_is_measured_less_often,
    test_it_begins_jointly_and_goes_on_exactly_after_a_resume,
    test_payoffs_are_the_falls_of_the_held_out_loss,
    test_what_cannot_be_measured_is_refused,
)

"""The checks that every adapter shares."""

import pytest

from adapters.contract import check_disjoint, check_names, check_turns, refuse_loss, watches_losses
from alternator import ConfigurationError, Cycle, Gain, LossError, Payoff, Trial, UnknownModuleError
from alternator.checks import listed


def test_each_name_is_a_module_by_default_in_the_alternators_order():
    assert check_turns(("b", "a"), ("a", "b"), None) == {"b": ("b",), "a": ("a",)}
    with pytest.raises(ConfigurationError, match=r"names \('a', 'c'\) must be the names of the modules \('a', 'b'\)"):
        check_turns(("a", "c"), ("a", "b"), None)


def test_a_turn_may_be_one_name_or_several():
    turns = {"joint": ["a", "b"], "a": "a"}
    assert check_turns(("a", "joint"), ("a", "b"), turns) == {"a": ("a",), "joint": ("a", "b")}


@pytest.mark.parametrize(
    ("turns", "error", "message"),
    [
        ({"a": "a"}, ConfigurationError, r"turns must have the alternator's names \('a', 'x'\), got \('a',\)"),
        ({"a": "a", "x": "abc"}, UnknownModuleError, r"unknown module 'abc'; expected one of \('a', 'b'\)"),
        ({"a": "a", "x": ()}, ConfigurationError, r"one or more different modules, got \(\) for 'x'"),
        ({"a": "b", "x": ("a", "a")}, ConfigurationError, r"one or more different modules, got \('a', 'a'\) for 'x'"),
        ({"a": "a", "x": "a"}, ConfigurationError, r"must train in some turn, but \['b'\] are in none"),
    ],
)
def test_turns_that_do_not_fit_are_refused(turns, error, message):
    with pytest.raises(error, match=message):
        check_turns(("a", "x"), ("a", "b"), turns)


JOINT = {"both": ("a", "b"), "a": ("a",), "b": "b"}


def test_payoff_takes_turns_of_which_the_first_trains_all():
    rule = Payoff(costs=(3, 2, 2))
    assert check_turns(tuple(JOINT), ("a", "b"), JOINT, rule) == {"both": ("a", "b"), "a": ("a",), "b": ("b",)}
    for order in (("a", "both", "b"), ("a", "b", "both")):
        with pytest.raises(
            ConfigurationError, match=r"Payoff must have a first turn that trains all .* give such turns="
        ):
            check_turns(order, ("a", "b"), JOINT, rule)
    with pytest.raises(ConfigurationError, match="others that leave some out"):
        check_turns(("both", "same"), ("a", "b"), dict.fromkeys(("both", "same"), ("a", "b")), Payoff(costs=(3, 2)))
    with pytest.raises(ConfigurationError, match=r"got \{'a': \('a',\), 'b': \('b',\)\}; give such turns="):
        check_turns(("a", "b"), ("a", "b"), None, Payoff(costs=(3, 2)))
    assert check_turns(("a", "both", "b"), ("a", "b"), JOINT, Gain())


def test_payoff_takes_no_losses():
    refuse_loss(Gain())
    with pytest.raises(
        LossError, match="must be given payoffs, got the loss of a step: give an empty mapping as losses"
    ):
        refuse_loss(Payoff(costs=(3, 2)))


def test_the_name_of_the_always_group_is_reserved():
    with pytest.raises(ConfigurationError, match="'always' is reserved"):
        check_turns(("a", "always"), ("a", "always"), None)


def test_names():
    check_names("schedulers", ("a",), ("a", "b"))
    with pytest.raises(
        ConfigurationError, match=r"schedulers must be named after the modules \('a', 'b'\), got \['c'\]"
    ):
        check_names("schedulers", ("a", "c"), ("a", "b"))


def test_owners():
    check_disjoint({"a": {1: "a.weight"}, "b": {2: "b.weight"}})
    with pytest.raises(ConfigurationError, match=r"leaf must belong to one module, but 'a\.w' of 'a' is 'b\.w' of 'b'"):
        check_disjoint({"a": {1: "a.w"}, "b": {1: "b.w"}}, what="leaf")


def test_lists_are_cut():
    assert listed(["a"]) == "'a'"
    assert listed(["a", "b", "c"]) == "'a', 'b', 'c'"
    assert listed(["a", "b", "c", "d"]) == "'a', 'b', 'c' and 1 more"


def test_the_loss_of_a_step_is_no_held_out_loss():
    assert not watches_losses(Trial())
    with pytest.raises(LossError, match=r"Trial must be given held-out losses.*call Trials.before_step\(\)"):
        refuse_loss(Trial())
    refuse_loss(Cycle(1))

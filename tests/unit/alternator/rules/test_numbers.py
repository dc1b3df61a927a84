"""The numbers that rules take: of any library, as long as they are numbers; huge ones are refused in one line."""

import dataclasses
import math

import numpy as np
import pytest

from alternator import Alternator, AlternatorError, ConfigurationError, Cycle, Payoff, RandomTenure
from alternator.checks import MAX_INTEGER
from alternator.recordings.sweep import parse_grid
from alternator.rules.named import parse_value, rule_from_settings
from tests.unit.alternator.rule_table import MODULES, RULES, losses_of

HUGE = [pytest.param(value, id=name) for name, value in (("1e400", 10**400), ("-", -(10**400)), ("1e5000", 10**5000))]
FIELDS = [
    pytest.param(name, field.name, id=f"{name}-{field.name}")
    for name, rule in RULES.items()
    for field in dataclasses.fields(rule)
    if not isinstance(getattr(rule, field.name), (str, bool))
]


def as_numpy(value):
    if isinstance(value, (list, tuple)):
        return tuple(map(as_numpy, value))
    kinds = {int: np.int64, float: np.float64}
    return kinds[type(value)](value) if type(value) in kinds else value


@pytest.mark.parametrize("name", sorted(RULES))
def test_numbers_of_numpy_are_numbers(name):
    rule = RULES[name]
    values = {field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)}
    given = type(rule)(**{key: as_numpy(value) for key, value in values.items()})
    assert given == rule
    assert repr(given) == repr(rule)
    first, second = Alternator(MODULES, given, nonfinite_limit=np.int32(10)), Alternator(MODULES, rule)
    assert first.fingerprint() == second.fingerprint()
    for loss in losses_of(seed=2, num_steps=60):
        assert first.observe(np.float64(loss), updated=np.True_) == second.observe(loss)
    second.load_state_dict(first.state_dict())


def test_numbers_are_kept_as_pythons_own():
    rule = RandomTenure(np.float32(3.5), np.uint32(7), np.int8(2))
    assert [type(value) for value in (rule.mean, rule.seed, rule.min_steps)] == [float, int, int]
    assert Cycle(np.array([3, 1])) == Cycle([np.int64(3), 1]) == Cycle((3, 1))
    assert Payoff(costs=np.array([3.0, 2.0])).costs == (3.0, 2.0)


@pytest.mark.parametrize("value", [True, np.True_, np.float64(5), "5", None, np.array([5, 5]), np.ndarray])
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(ConfigurationError, match="min_steps must be an integer of at least 1, got"):
        RandomTenure(9, min_steps=value)


@pytest.mark.parametrize(("name", "field"), FIELDS)
@pytest.mark.parametrize("value", HUGE)
def test_integers_beyond_floats_are_refused_in_one_line(name, field, value):
    several = isinstance(getattr(RULES[name], field), tuple)
    with pytest.raises(ConfigurationError, match=field) as caught:
        dataclasses.replace(RULES[name], **{field: (value, 1, 1) if several else value})
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_largest_integers_work(name):
    """Durations that mean never: nothing overflows where a rule computes with them."""
    rule = RULES[name]
    lengths = {
        field.name: MAX_INTEGER
        for field in dataclasses.fields(rule)
        if field.name
        in ("horizon", "max_wait", "max_steps", "max_retry_after", "patience", "cooldown", "confirmations")
    }
    for changes in (lengths, {"min_steps": MAX_INTEGER, **lengths} if hasattr(rule, "min_steps") else lengths):
        if name in ("random_tenure", "gain", "payoff") and "min_steps" in changes:
            continue  # refused: the mean, the longest wait and the first retry have to be longer
        alternator = Alternator(MODULES, dataclasses.replace(rule, **changes))
        for loss in losses_of(seed=4, num_steps=80):
            assert alternator.observe(loss).explain()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cycle", [f"steps={10**400}"]),
        ("cycle", [f"steps=({10**400}, 1)"]),
        ("cycle", ["steps=" + "9" * 5000]),
        ("cycle", ["steps=10**400"]),
        ("plateau", [f"threshold={10**400}"]),
        ("plateau", ["threshold=1e400"]),
        ("gain", [f"costs=({10**400}, 1)"]),
        ("plateau", ["threshold={[]: 1}"]),
        ("plateau", ["threshold=" + "(" * 300]),
    ],
)
def test_settings_that_are_too_much_are_refused_in_one_line(name, settings):
    with pytest.raises(AlternatorError) as caught:
        rule_from_settings(name, settings)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_strings_that_python_cannot_read_stand_for_themselves():
    for text in ("{[]: 1}", "(" * 300, "9" * 5000, "10**400"):
        assert parse_value(text) == text
        assert parse_grid([f"threshold={text}"]) == {"threshold": [text]}
    assert math.isinf(parse_value("1e400"))

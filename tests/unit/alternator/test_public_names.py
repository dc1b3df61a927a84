"""What `import alternator` offers, and what help() says of it."""

import inspect

import pytest

import alternator

CLASSES = [each for name in alternator.__all__ if inspect.isclass(each := getattr(alternator, name))]
NOT_CONSTRUCTED = (alternator.Reason, alternator.Rule, alternator.Facts)  # the machine builds facts
CONSTRUCTED = [each for each in CLASSES if each not in NOT_CONSTRUCTED and not issubclass(each, Exception)]


def test_every_public_name_is_there():
    assert all(hasattr(alternator, name) for name in alternator.__all__)
    assert list(alternator.__all__) == sorted(alternator.__all__)


def test_rules_are_among_those_below():
    assert {alternator.Trend, alternator.Cycle, alternator.Alternator, alternator.Payoffs} <= {*CONSTRUCTED}


@pytest.mark.parametrize("constructed", CONSTRUCTED, ids=lambda each: each.__name__)
def test_help_explains_every_parameter(constructed):
    doc = inspect.getdoc(constructed)
    explained = [line.strip().partition(": ")[0] for line in doc.splitlines() if line.startswith("    ")]
    assert [name for name in inspect.signature(constructed).parameters if name not in explained] == []

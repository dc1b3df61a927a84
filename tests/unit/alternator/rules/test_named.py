"""Rules by name: what commands accept, and how they answer mistakes."""

import pytest

import alternator.rules
from alternator import ConfigurationError, Cycle, Plateau, RandomTenure
from alternator.rules.named import RULES, parse_value, rule_from_settings


def test_every_rule_has_a_name():
    assert sorted(rule.__name__ for rule in RULES.values()) == sorted(alternator.rules.__all__)
    assert RULES["random_tenure"] is RandomTenure


@pytest.mark.parametrize(
    ("name", "settings", "rule"),
    [
        ("plateau", [], Plateau()),
        ("plateau", ["threshold=0.02", "min_steps=3"], Plateau(threshold=0.02, min_steps=3)),
        ("cycle", ["steps=(3, 1)"], Cycle((3, 1))),
        ("random_tenure", ["mean=12.5", "seed=4"], RandomTenure(12.5, seed=4)),
    ],
)
def test_a_rule_is_built_from_texts(name, settings, rule):
    assert rule_from_settings(name, settings) == rule


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("plato", [], "unknown rule 'plato'; expected one of"),
        ("plateau", ["threshold"], "a setting must read name=value, got 'threshold'"),
        (
            "plateau",
            ["treshold=1"],
            r"plateau has no setting 'treshold'; it has \('threshold', 'min_steps', 'window'\)",
        ),
        ("plateau", ["window=two"], "window must be at least 3, got 'two'"),
        ("random_tenure", [], "random_tenure needs mean; give it as mean=VALUE"),
    ],
)
def test_mistakes_are_one_line(name, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        rule_from_settings(name, settings)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3", 3), ("0.5", 0.5), ("(1, 2)", (1, 2)), ("None", None), ("fused", "fused"), ("a b", "a b")],
        *[("true", True), (" false", False), ("True", True), ("none", "none")],
    ],
)
def test_values_from_texts(text, value):
    assert parse_value(text) == value

"""Rules by name, with settings as strings: what commands and configuration files use."""

import ast
import dataclasses
import warnings
from collections.abc import Iterable

from alternator import rules
from alternator.checks import check_choice
from alternator.errors import ConfigurationError
from alternator.rule import Rule


def _snake_case(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


RULES: dict[str, type] = {_snake_case(name): getattr(rules, name) for name in rules.__all__}


def rule_from_settings(name: str, settings: Iterable[str] = ()) -> Rule:
    """Build a rule from its name and from settings such as ``threshold=0.02``.

    Raises:
        ConfigurationError: An unknown rule or setting, a setting without ``=``, or a value that is missing or refused.

    Example:
        >>> rule_from_settings("plateau", ["threshold=0.02"])
        Plateau(threshold=0.02, min_steps=5, window=10)
        >>> rule_from_settings("cycle", ["steps=(3, 1)"])
        Cycle(steps=(3, 1))
        >>> rule_from_settings("plateau", ["treshold=0.02"])
        Traceback (most recent call last):
        ...
        alternator.errors.ConfigurationError: plateau has no setting 'treshold'; it has ('threshold', ...)
    """
    check_choice("rule", name, RULES)
    fields = {field.name: field for field in dataclasses.fields(RULES[name])}
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigurationError(f"a setting must read name=value, got {setting!r}")
        if key not in fields:
            raise ConfigurationError(f"{name} has no setting {key!r}; it has {tuple(fields)}")
        values[key] = parse_value(text)
    missing = [key for key, field in fields.items() if key not in values and field.default is dataclasses.MISSING]
    if missing:
        raise ConfigurationError(f"{name} needs {missing[0]}; give it as {missing[0]}=VALUE")
    rule: Rule = RULES[name](**values)
    return rule


_BOOLEANS = {"true": "True", "false": "False"}
"""As shells, YAML and JSON write them."""


def parse_value(text: str) -> object:
    """The Python literal that a string holds, ``true`` and ``false`` too; any other string stands for itself.

    Example:
        >>> parse_value("(3, 1)"), parse_value("None"), parse_value("true"), parse_value("fused")
        ((3, 1), None, True, 'fused')
    """
    literal = parse_literal(_BOOLEANS.get(text.strip(), text))
    return text if literal is None else literal[0]


def parse_literal(text: str) -> tuple[object] | None:
    """The Python literal that a string holds, alone in a tuple; None where it holds none that could be shown.

    None too for what nests too deeply, has a key that cannot be one, or is an integer of more digits than Python shows.

    Example:
        >>> parse_literal("[1]"), parse_literal("fused"), parse_literal("{[]: 1}"), parse_literal("0x" + "f" * 5000)
        (([1],), None, None, None)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an escape that is none: the string says it better
            value = ast.literal_eval(text)
        repr(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return (value,)

"""Checks of parameters, each with one message in the same words everywhere, and what messages quote."""

import math
import sys
from collections.abc import Iterable
from typing import TypeGuard

from alternator.errors import ConfigurationError, UnknownNameError

MAX_INTEGER = 2**53
"""The largest integer of a setting: beyond it, not every float that stands for one is exact."""


def check_integer(name: str, value: object, minimum: int, maximum: int = MAX_INTEGER) -> None:
    """Refuse anything but an integer of at least ``minimum`` and at most ``maximum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(f"{name} must be an integer of at least {minimum}, got {value!r}")
    if value > maximum:
        raise ConfigurationError(f"{name} must be an integer of at most {maximum}, got {cut(repr(value))}")


def check_max_steps(max_steps: object, min_steps: int) -> None:
    """Refuse anything but None or an integer of at least ``min_steps``."""
    if max_steps is not None:
        check_integer("max_steps", max_steps, min_steps)


def check_positive(name: str, value: object) -> None:
    """Refuse anything but a finite number above 0."""
    if not _is_number(value) or not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} must be a finite number above 0, got {value!r}")


def check_range(name: str, value: object, low: float, high: float, *, closed: bool = False) -> None:
    """Refuse anything but a number of at least ``low`` and below ``high``; where ``closed``, ``high`` is allowed."""
    if not _is_number(value) or not (low <= value < high or (closed and value == high)):
        upper = f"at most {high:g}" if closed else f"below {high:g}"
        raise ConfigurationError(f"{name} must be at least {low:g} and {upper}, got {value!r}")


def check_fraction(name: str, value: object, low: float, high: float) -> None:
    """Refuse anything but a number strictly between ``low`` and ``high``."""
    if not _is_number(value) or not low < value < high:
        raise ConfigurationError(f"{name} must be a number above {low:g} and below {high:g}, got {value!r}")


def check_switch(name: str, value: object) -> None:
    """Refuse anything but True and False: a string such as "false" would count as on."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {value!r}")


def check_choice(kind: str, value: object, choices: Iterable[str]) -> None:
    """Refuse anything but one of the names.

    Example:
        >>> check_choice("rule", "plato", ("plateau", "trend"))
        Traceback (most recent call last):
        ...
        alternator.errors.UnknownNameError: unknown rule 'plato'; expected one of ('plateau', 'trend')
    """
    names = tuple(choices)
    if value not in names:
        raise UnknownNameError(kind, value, names)


def check_costs(costs: object, what: str) -> tuple[float, ...]:
    """The costs as a tuple; refuses anything but a list or tuple of finite numbers above 0, one per ``what``."""
    if not isinstance(costs, (list, tuple)):
        raise ConfigurationError(f"costs must be a tuple of numbers, one per {what}, got {costs!r}")
    for cost in costs:
        check_positive("costs", cost)
    return tuple(costs)


def listed(names: Iterable[str], maximum: int = 3) -> str:
    """A list for messages, cut short where it is long.

    Example:
        >>> listed("abcde")
        "'a', 'b', 'c' and 2 more"
    """
    every = list(names)
    shown = ", ".join(repr(name) for name in every[:maximum])
    return f"{shown} and {len(every) - maximum} more" if len(every) > maximum else shown


def cut(text: str, maximum: int = 60) -> str:
    """The first characters of a string that may be long, for messages.

    Example:
        >>> cut("abcdef", maximum=3), cut("abc", maximum=3)
        ('abc...', 'abc')
    """
    return text if len(text) <= maximum else f"{text[:maximum]}..."


def one_line(text: str, maximum: int = 60) -> str:
    r"""The first characters of a string that may have several lines, in one line.

    Example:
        >>> one_line("not a table:\n  no header")
        'not a table: no header'
    """
    return cut(" ".join(text.split()), maximum)


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a float, or an integer that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, float) or abs(value) <= sys.float_info.max

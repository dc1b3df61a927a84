"""Checks of parameters, each with one message in the same words, for everything above the core too."""

import math
from collections.abc import Iterable

from alternator.errors import ConfigurationError


def check_integer(name: str, value: object, minimum: int) -> None:
    """Refuse anything but an integer of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def check_positive(name: str, value: object) -> None:
    """Refuse anything but a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name} must be a finite number above 0, got {value!r}")


def check_costs(costs: object, what: str) -> tuple[float, ...]:
    """The costs as a tuple; refuses anything but a list or tuple of finite numbers above 0, one per ``what``."""
    if not isinstance(costs, (list, tuple)):
        raise ConfigurationError(f"costs must be a tuple of numbers, one per {what}, got {costs!r}")
    for cost in costs:
        check_positive("costs", cost)
    return tuple(costs)


def check_fraction(name: str, value: object, low: float, high: float) -> None:
    """Refuse anything but a number strictly between ``low`` and ``high``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
        raise ConfigurationError(f"{name} must be a number above {low:g} and below {high:g}, got {value!r}")


def check_max_steps(max_steps: object, min_steps: int) -> None:
    """Refuse anything but None or an integer of at least ``min_steps``."""
    if max_steps is not None:
        check_integer("max_steps", max_steps, min_steps)


def listed(names: Iterable[str], maximum: int = 3) -> str:
    """A list for messages, cut short where it is long.

    Example:
        >>> listed("abcde")
        "'a', 'b', 'c' and 2 more"
    """
    every = list(names)
    shown = ", ".join(repr(name) for name in every[:maximum])
    return f"{shown} and {len(every) - maximum} more" if len(every) > maximum else shown

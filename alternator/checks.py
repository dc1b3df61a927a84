"""Checks of parameters, each with one message in the same words everywhere, and what messages quote."""

import math
import operator
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from alternator.errors import ConfigurationError, LossError, UnknownNameError, quoted

MAX_INTEGER = 2**63 - 1
"""The largest integer that is accepted anywhere: it is exact in 64 bits, and can be converted to a float."""


def plain(value: Any) -> Any:
    """Python's own number in place of a scalar of NumPy, PyTorch or JAX, and a list in place of an array.

    Example:
        >>> import array
        >>> plain(array.array("i", [3, 1])), plain(0.5)
        ([3, 1], 0.5)
    """
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value


def to_integer(value: object) -> int | None:
    """The integer, whatever its type; None for what is not one, for True and False, and beyond `MAX_INTEGER`."""
    value = plain(value)
    if isinstance(value, bool):
        return None
    try:
        integer = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    return integer if -MAX_INTEGER <= integer <= MAX_INTEGER else None


def to_real(value: object) -> float | None:
    """The number as Python's float, or int; None for what is not one, for True and False, and beyond floats."""
    integer = to_integer(value)
    if integer is not None:
        return integer
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def to_float(loss: object) -> float:
    """A loss as a float.

    Raises:
        LossError: It is not a real scalar: a string, a complex number, several numbers, an integer beyond floats.

    Example:
        >>> to_float(1j)
        Traceback (most recent call last):
        ...
        alternator.errors.LossError: a loss must be a real scalar, got 1j (...)
    """
    try:
        value = loss.item() if hasattr(loss, "item") else loss  # Python's: float() drops imaginary parts
        if not isinstance(value, (str, bytes, bytearray)):
            return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise LossError(f"a loss must be a real scalar, got {quoted(loss, 60)} ({error})") from error
    raise LossError(f"a loss must be a real scalar, got the string {quoted(loss)}; convert it with float() first")


def set_fields(instance: object, **values: object) -> None:
    """Store values as the checks return them in the fields of a frozen dataclass, in its ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def check_integer(name: str, value: object, minimum: int, maximum: int = MAX_INTEGER) -> int:
    """The value as an int; refuses anything but an integer of at least ``minimum`` and at most ``maximum``."""
    integer = to_integer(value)
    if integer is None or not minimum <= integer <= maximum:
        is_large = integer is not None and integer > maximum
        is_large = is_large or (isinstance(value, int) and value > MAX_INTEGER)
        bounds = f"at most {maximum}" if is_large else f"at least {minimum}"
        raise ConfigurationError(f"{name} must be an integer of {bounds}, got {quoted(value)}")
    return integer


def check_max_steps(max_steps: object, min_steps: int) -> int | None:
    """None or the value as an int; refuses anything else but an integer of at least ``min_steps``."""
    return None if max_steps is None else check_integer("max_steps", max_steps, min_steps)


def check_positive(name: str, value: object) -> float:
    """The value as a float or int; refuses anything but a finite number above 0."""
    number = to_real(value)
    if number is None or not (math.isfinite(number) and number > 0):
        raise ConfigurationError(f"{name} must be a finite number above 0, got {quoted(value)}")
    return number


def check_range(name: str, value: object, low: float, high: float, *, closed: bool = False) -> float:
    """The value as a float or int; refuses anything but a number from ``low`` to below (``closed``: to) ``high``."""
    number = to_real(value)
    if number is None or not (low <= number < high or (closed and number == high)):
        upper = f"at most {high:g}" if closed else f"below {high:g}"
        raise ConfigurationError(f"{name} must be at least {low:g} and {upper}, got {quoted(value)}")
    return number


def check_fraction(name: str, value: object, low: float, high: float) -> float:
    """The value as a float or int; refuses anything but a number strictly between ``low`` and ``high``."""
    number = to_real(value)
    if number is None or not low < number < high:
        raise ConfigurationError(f"{name} must be a number above {low:g} and below {high:g}, got {quoted(value)}")
    return number


def check_switch(name: str, value: object) -> None:
    """Refuse anything but True and False: a string such as "false" would count as on."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, got {quoted(value)}")


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
    """The costs as floats or ints; refuses anything but a list or tuple of finite numbers above 0, one per ``what``."""
    return tuple(check_positive("costs", cost) for cost in _series("costs", costs, what))


def check_switch_costs(costs: object, what: str) -> tuple[float, ...] | None:
    """None, or the costs as floats or ints; refuses anything but finite numbers of at least 0, one per ``what``."""
    if costs is None:
        return None
    return tuple(check_range("switch_costs", cost, 0, math.inf) for cost in _series("switch_costs", costs, what))


def _series(name: str, values: object, what: str) -> Iterable[object]:
    numbers = plain(values)
    if not isinstance(numbers, (list, tuple)):
        raise ConfigurationError(f"{name} must be a tuple of numbers, one per {what}, got {quoted(values)}")
    return numbers


def amortised(costs: Sequence[float], switch_costs: Sequence[float] | None, steps: int) -> tuple[float, ...]:
    """The cost of a step of each, what beginning costs included, where it trains for that number of steps.

    Example:
        >>> amortised((3.0, 1.0), (0.0, 20.0), steps=10)
        (3.0, 3.0)
    """
    return tuple(cost + more / steps for cost, more in zip(costs, switch_costs or [0.0] * len(costs), strict=True))


def names_in(given: str | Iterable[str]) -> tuple[str, ...]:
    """One name or several, as several.

    Example:
        >>> names_in("head"), names_in(["encoder", "head"])
        (('head',), ('encoder', 'head'))
    """
    return (given,) if isinstance(given, str) else tuple(given)


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


_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # control characters, which terminals obey
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of what follows
    r"\u2028\u2029\ufeff\ufff9-\ufffb\ud800-\udfff]"  # further line ends, marks, and halves of surrogate pairs
)


def printable(text: str, keep: str = "") -> str:
    r"""A string from data as a terminal, a page or a plot may show it: what is no glyph is written as JSON escapes it.

    Args:
        text: The string.
        keep: Characters to leave, such as the line ends of a string of several lines.

    Example:
        >>> printable("The Blob \x1b[2J(1958)"), printable("a\nb", keep="\n")
        ('The Blob \\u001b[2J(1958)', 'a\nb')
    """
    return _UNPRINTABLE.sub(lambda found: found[0] if found[0] in keep else f"\\u{ord(found[0]):04x}", text)

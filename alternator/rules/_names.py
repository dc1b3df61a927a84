"""Parameters by name: values without their names are answered with the spelling that was meant."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from alternator.checks import to_real
from alternator.errors import ConfigurationError, quoted

R = TypeVar("R")


def by_name(*, positional: int = 0, series: str = "") -> Callable[[type[R]], type[R]]:
    """Has a dataclass refuse more values without a name than it takes, in one line that names them.

    Args:
        positional: The number of values that it takes without a name.
        series: How its first parameter takes several numbers, where it does.

    Example:
        >>> from alternator import Cycle
        >>> Cycle(5, 1)
        Traceback (most recent call last):
        ...
        alternator.errors.ConfigurationError: Cycle takes steps as one number or one per module: Cycle(steps=(5, 1))
    """

    def decorate(rule: type[R]) -> type[R]:
        generated: Callable[..., None] = vars(rule)["__init__"]

        @functools.wraps(generated)
        def init(self: R, *values: Any, **named: Any) -> None:
            if len(values) > positional:
                raise ConfigurationError(_meant(rule, values, named, series))
            generated(self, *values, **named)

        setattr(rule, "__init__", init)  # noqa: B010  mypy refuses an assignment to it
        return rule

    return decorate


def _meant(rule: Any, values: Sequence[Any], named: Mapping[str, Any], series: str) -> str:
    fields = [field.name for field in dataclasses.fields(rule)]
    if series and None not in map(to_real, values):
        return f"{rule.__name__} takes {fields[0]} as {series}: {_spelled(rule, {fields[0]: tuple(values), **named})}"
    spelled = _spelled(rule, {**dict(zip(fields, values, strict=False)), **named})
    too_many = f"; it has no more than {', '.join(fields)}" if len(values) > len(fields) else ""
    return f"{rule.__name__} takes its parameters by name: {spelled}{too_many}"


def _spelled(rule: Any, named: Mapping[str, Any]) -> str:
    return f"{rule.__name__}({', '.join(f'{name}={quoted(value)}' for name, value in named.items())})"

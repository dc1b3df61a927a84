"""Sweeps: the same recorded losses replayed with every combination of some parameters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from alternator.errors import ConfigurationError
from alternator.recordings.replay import Replay, replay
from alternator.rules.named import parse_literal, rule_from_settings

MAX_COMBINATIONS = 10_000
"""The number of combinations of a sweep at most."""


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One combination of a sweep."""

    settings: dict[str, object]
    """The swept parameters."""
    result: Replay | None
    """What the rule decided; None if it refused the combination."""
    refusal: str | None
    """Why it refused."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        result = None if self.result is None else self.result.to_dict()
        return {"settings": self.settings, "result": result, "refusal": self.refusal}


def parse_grid(settings: Iterable[str]) -> dict[str, list[object]]:
    """The values of each parameter from strings such as ``threshold=0.005,0.01``.

    Raises:
        ConfigurationError: A string without ``=`` or without values, or too many combinations.

    Example:
        >>> parse_grid(["threshold=0.005,0.01", "mode=min,max", "steps=1,(3, 1)"])
        {'threshold': [0.005, 0.01], 'mode': ['min', 'max'], 'steps': [1, (3, 1)]}
    """
    grid = {}
    for setting in settings:
        name, _, values = setting.partition("=")
        if not name or not values:
            raise ConfigurationError(f"a sweep must read name=value,value,..., got {setting!r}")
        literal = parse_literal(f"[{values}]")
        grid[name] = list(literal[0]) if literal and isinstance(literal[0], list) else list(values.split(","))
    if (number := math.prod(map(len, grid.values()))) > MAX_COMBINATIONS:
        raise ConfigurationError(f"a sweep must have at most {MAX_COMBINATIONS} combinations, got {number}; try fewer")
    return grid


def sweep(
    losses: Mapping[str, Sequence[float | None]],
    rule: str,
    grid: Mapping[str, Sequence[object]],
    settings: Iterable[str] = (),
    **options: Any,
) -> list[SweepRow]:
    """Replay every combination, the last parameter varying fastest.

    Args:
        losses: As for `replay`.
        rule: Name of the rule, as in ``alternator rules``.
        grid: Values of each swept parameter.
        settings: The other parameters, such as ``window=10``.
        options: As for `replay`.

    Raises:
        ConfigurationError: An unknown rule or parameter, or all combinations are refused.

    Example:
        >>> rows = sweep({"a": [1.0] * 40, "b": [1.0] * 40}, "plateau", {"min_steps": [5, 20]})
        >>> [(row.settings, len(row.result.switches)) for row in rows]
        [({'min_steps': 5}, 7), ({'min_steps': 20}, 2)]
    """
    fixed = tuple(settings)
    rows = []
    for values in product(*grid.values()):
        swept = dict(zip(grid, values, strict=True))
        try:
            built = rule_from_settings(rule, [*fixed, *(f"{name}={value!r}" for name, value in swept.items())])
            row = SweepRow(settings=swept, result=replay(losses, built, **options), refusal=None)
        except ConfigurationError as error:
            row = SweepRow(settings=swept, result=None, refusal=str(error))
        rows.append(row)
    if all(row.result is None for row in rows):
        raise ConfigurationError(str(rows[0].refusal))
    return rows

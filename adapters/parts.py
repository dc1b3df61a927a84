"""Parts of a model by name: paths, patterns and the rest, spelt the same for every framework. No framework.

A parameter is known by its dotted path (``"encoder.layers.0.weight"``). A part is named by one or more of

- a path: ``"encoder"`` is everything under it, ``"encoder.layers.0.weight"`` one parameter;
- a pattern with shell wildcards, whose ``*`` also matches dots: ``"*.lora_A"`` is every ``lora_A`` and all under it;
- ``"*"``: the rest, whatever no other part names.

Where several match, the one that matches deepest in the path wins: ``"encoder.norm"`` before ``"encoder"``.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import adapters.own_alternator  # noqa: F401  first: says so where the next line would find another distribution's
from alternator import ConfigurationError
from alternator.checks import listed
from alternator.errors import quoted

REST = "*"
"""Names what no other part names."""


class Match(NamedTuple):
    """Where a parameter belongs."""

    part: str
    """The part's name."""
    node: str
    """The path at which it is named, the parameter's own or one above it; empty for the rest."""


def assign(names: Iterable[str], parts: Mapping[str, str | Iterable[str]]) -> dict[str, Match]:
    """The part of each parameter; one that no part names is left out.

    Args:
        names: The dotted paths of the parameters.
        parts: Per part its paths and patterns.

    Raises:
        ConfigurationError: A path or pattern names nothing, a part is left with nothing, or two parts name the same.

    Example:
        >>> names = ("encoder.proj.weight", "encoder.proj.lora_A.weight", "head.weight")
        >>> matches = assign(names, {"adapter": "*.lora_A", "head": "head", "backbone": "*"})
        >>> [match.part for match in matches.values()]
        ['backbone', 'adapter', 'head']
    """
    known = tuple(names)
    given = {part: patterns_of(part, patterns) for part, patterns in parts.items()}
    found = {name: match for name in known if (match := _deepest(name, given)) is not None}
    _check_used(known, given)
    owners = {match.part for match in found.values()}
    if empty := [part for part in given if part not in owners]:
        raise ConfigurationError(
            f"every part must have a parameter, but all that {listed(empty)} names belongs to parts named more "
            "precisely; leave it out, or name less in the others"
        )
    return found


def nodes_of(name: str) -> list[str]:
    """A dotted path and those above it, the shortest first.

    Example:
        >>> nodes_of("encoder.proj.weight")
        ['encoder', 'encoder.proj', 'encoder.proj.weight']
    """
    keys = name.split(".")
    return [".".join(keys[:length]) for length in range(1, len(keys) + 1)]


def patterns_of(part: str, patterns: str | Iterable[str]) -> tuple[str, ...]:
    """What names a part, as a tuple that can be read more than once.

    Raises:
        ConfigurationError: It is no path or pattern.
    """
    is_one = isinstance(patterns, str) or not isinstance(patterns, Iterable)
    given: tuple[Any, ...] = (patterns,) if is_one else tuple(patterns)
    if not given or any(not isinstance(pattern, str) or not pattern for pattern in given):
        raise ConfigurationError(
            f"a part must be named by a path or pattern, or several, got {quoted(patterns)} for {part!r}; "
            f"give for example 'encoder', '*.lora_A' or {REST!r} for the rest"
        )
    return given


def _deepest(name: str, given: Mapping[str, tuple[str, ...]]) -> Match | None:
    """The match furthest down the path; two parts that match equally far are refused."""
    nodes = nodes_of(name)
    depths = {part: max(_depth(nodes, pattern) for pattern in patterns) for part, patterns in given.items()}
    deepest = max(depths.values(), default=-1)
    if deepest < 0:
        return None
    parts = [part for part, depth in depths.items() if depth == deepest]
    if len(parts) > 1:
        raise ConfigurationError(
            f"a parameter must belong to one part, but {name!r} is named by {listed(parts)} alike; name it more "
            "precisely in the one that it belongs to"
        )
    return Match(parts[0], nodes[deepest - 1] if deepest else "")


def _depth(nodes: list[str], pattern: str) -> int:
    """How many keys of the path the pattern's first match has: 0 for the rest, -1 if it matches nowhere."""
    if pattern == REST:
        return 0
    return next((depth for depth, node in enumerate(nodes, 1) if fnmatchcase(node, pattern)), -1)


def _check_used(names: tuple[str, ...], given: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a path or pattern that matches no parameter: it is most likely misspelt."""
    for part, patterns in given.items():
        for pattern in patterns:
            if not any(_depth(nodes_of(name), pattern) >= 0 for name in names):
                nodes = list(dict.fromkeys(node for name in names for node in nodes_of(name)))
                near = [node for node in nodes if node.endswith(f".{pattern}")] or get_close_matches(
                    pattern, nodes, n=3
                )
                near = near or [node for node in nodes if "." not in node]
                raise ConfigurationError(
                    f"a path or pattern must name parameters of the model, but {pattern!r} of {part!r} names none; "
                    f"there is {listed(near)}"
                )


def owners_around(names: Iterable[str], owners: Mapping[str, str], named: Mapping[str, str]) -> dict[str, list[str]]:
    """The parts of what is no parameter (statistics, submodules): those of the parameters nearest to it.

    A node of the tree belongs to a part where all parameters under it do, or where the part names it. The innermost
    such node around a name decides; if there is none, it belongs to all parts that have parameters near it.

    Args:
        names: The dotted paths to place.
        owners: The part of each parameter, by dotted path.
        named: The part of each node that is named, as `Match` has it.

    Example:
        >>> owners = {"norm.scale": "backbone", "head.norm.scale": "head", "head.norm.bias": "backbone"}
        >>> owners_around(["norm.mean", "head.norm.mean"], owners, {})
        {'norm.mean': ['backbone'], 'head.norm.mean': ['head', 'backbone']}
        >>> owners_around(["head.norm.mean"], owners, {"head": "head"})
        {'head.norm.mean': ['head']}
    """
    inside: dict[str, dict[str, None]] = {}
    for name, part in owners.items():
        for node in ("", *nodes_of(name)):
            inside.setdefault(node, {})[part] = None
    return {name: _nearest(["", *nodes_of(name)], inside, named) for name in names}


def _nearest(nodes: list[str], inside: Mapping[str, Iterable[str]], named: Mapping[str, str]) -> list[str]:
    near: list[str] = []
    for node in reversed(nodes):
        parts = list(inside.get(node, ()))
        if len(parts) == 1:
            return parts
        if node in named:
            return [named[node]]
        near = near or parts
    return near

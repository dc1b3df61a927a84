"""Modules of a Flax NNX model by path, pattern or as the rest: the part of every variable and submodule."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from adapters.contract import ALWAYS
from adapters.parts import REST, Match, assign, owners_around, patterns_of
from alternator import ConfigurationError
from alternator.checks import listed

Modules = Mapping[str, str | Iterable[str]]
"""Per module its path, a pattern, ``"*"`` for the rest, or several of these."""


class Parts(NamedTuple):
    """What belongs to which part."""

    variables: dict[int, list[str]]
    """By ``id``, the parts of each variable; a parameter has one."""
    submodules: tuple[tuple[str, str], ...]
    """(part, path) of each submodule; the path of the model itself is empty."""


def parts_of(model: nnx.Module, params: Mapping[int, Any], modules: Modules, always: tuple[str, ...]) -> Parts:
    """Place every variable and submodule of the model.

    Args:
        model: The model.
        params: The variables that train, by ``id``.
        modules: Per module what it names.
        always: Paths and patterns of what trains in every step.

    Raises:
        ConfigurationError: A name names nothing, a parameter is named by none, or is tied and named by two.
    """
    paths = dict(_paths(model, "", frozenset()))
    given: Modules = {**modules, **({ALWAYS: always} if always else {})}
    given = {part: patterns_of(part, named) for part, named in given.items()}
    matches = assign([path for path, node in paths.items() if id(node) in params], given)
    places: dict[int, list[str]] = {}
    for path, node in paths.items():
        places.setdefault(id(node), []).append(path)
    if unnamed := [places[key][0] for key in params if not any(path in matches for path in places[key])]:
        raise ConfigurationError(
            f"every parameter of the model must belong to a module, but {listed(unnamed)} is named by none of "
            f"{tuple(given)}; give one of them the rest, {REST!r}, or leave it out with wrt="
        )
    owners = {key: _owner({path: matches[path] for path in places[key] if path in matches}) for key in params}
    by_path = {path: owners[id(node)] for path, node in paths.items() if id(node) in params}
    named = {match.node: match.part for match in matches.values()}
    others = owners_around([path for path, node in paths.items() if id(node) not in params], by_path, named)
    variables = {key: [owner] for key, owner in owners.items()}
    submodules = []
    for path, found in others.items():
        if isinstance(paths[path], nnx.Variable):
            variables[id(paths[path])] = list(dict.fromkeys([*variables.get(id(paths[path]), []), *found]))
        else:
            submodules += [(part, path) for part in found]
    return Parts(variables, tuple(submodules))


def _paths(node: Any, path: str, above: frozenset[int]) -> Iterable[tuple[str, Any]]:
    """Every variable and module by dotted path; what is shared has several."""
    if isinstance(node, (nnx.Variable, nnx.Module)):
        yield path, node
    if isinstance(node, nnx.Variable) or id(node) in above:
        return
    for key, child in _children(node):
        yield from _paths(child, f"{path}.{key}" if path else str(key), above | {id(node)})


def _children(node: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, (list, tuple, nnx.List)):
        return enumerate(node)
    if isinstance(node, Mapping):
        return node.items()
    return vars(node).items() if isinstance(node, nnx.Pytree) else ()


def _owner(matches: Mapping[str, Match]) -> str:
    """The part of a parameter, which has a match per place; of several parts the one that names it itself.

    Raises:
        ConfigurationError: It is tied, and two parts name it alike.
    """
    every = {match.part for match in matches.values()}
    itself = {match.part for path, match in matches.items() if match.node == path}
    for parts in (every, itself):
        if ALWAYS in parts:
            return ALWAYS
        if len(parts) == 1:
            return parts.pop()
    paths = list(matches)
    part = matches[paths[0]].part
    raise ConfigurationError(
        f"a parameter must belong to one module, but {listed(paths)} are tied, and belong to {listed(sorted(every))}; "
        f"name it itself in the one that trains it, as in {{{part!r}: [..., {paths[0]!r}]}}, and the other means its "
        "rest; or declare it with always= if it may train in every step"
    )

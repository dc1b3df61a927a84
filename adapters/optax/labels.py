"""Labels by name: which module each parameter belongs to, by dotted path, pattern or as the rest."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from adapters.jax.turns import FROZEN, PyTree
from adapters.parts import REST, assign, patterns_of
from alternator import ConfigurationError
from alternator.checks import listed


def labels_of(parts: Mapping[str, str | Iterable[str]]) -> Callable[[PyTree], PyTree]:
    """A function from parameters to the name of each one's module, to be given as ``labels``.

    A path has the keys of dicts, the indices of sequences and the names of attributes, with dots between them: so it is
    the same for dicts, linen's parameters, an `nnx.State` and Equinox modules. The collection ``{"params": ...}`` of
    linen counts as what it holds.

    Args:
        parts: Per module a path (``"encoder"`` is all under it), a pattern whose ``*`` matches dots too
            (``"*.lora_a"``), ``"*"`` for the rest, or several of these. The deepest match wins. `ALWAYS` and `FROZEN`
            are parts as well: ``{"always": "scale", "frozen": "embed"}``.

    Returns:
        The function. It raises ConfigurationError where a path or pattern names nothing, two modules name the same, or
        a parameter is named by none.

    Example:
        >>> params = {"conv": [{"kernel": 1.0}, {"kernel": 2.0, "lora_a": 3.0}], "head": {"kernel": 4.0}}
        >>> labels_of({"backbone": "*", "adapter": "*.lora_a", "head": "head"})(params)["conv"]
        [{'kernel': 'backbone'}, {'kernel': 'backbone', 'lora_a': 'adapter'}]
    """
    given = {part: patterns_of(part, named) for part, named in parts.items()}

    def labels(params: PyTree) -> PyTree:
        paths = dotted_paths(params)
        matches = assign(paths, given)
        if missing := [path for path in paths if path not in matches]:
            raise ConfigurationError(
                f"every parameter must belong to a part, but {listed(missing)} is named by none of {tuple(given)}; "
                f"give the rest, {REST!r}, to one of them, or {{{FROZEN!r}: {REST!r}}} if it is never to train"
            )
        return jax.tree.unflatten(jax.tree.structure(params), [matches[path].part for path in paths])

    return labels


def dotted_paths(tree: PyTree) -> list[str]:
    """The path of each leaf, without linen's ``params`` where that is all there is at the top.

    Example:
        >>> dotted_paths({"params": {"head": [1.0, 2.0]}})
        ['head.0', 'head.1']
    """
    paths = [[str(_key(entry)) for entry in path] for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    if paths and all(len(path) > 1 and path[0] == "params" for path in paths):
        paths = [path[1:] for path in paths]
    return [".".join(path) for path in paths]


def _key(entry: Any) -> Any:
    """The key of one step of a path, an index, or the name of an attribute."""
    return next(getattr(entry, name) for name in ("key", "idx", "name") if hasattr(entry, name))

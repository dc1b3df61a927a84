"""What a model holds besides parameters: it moves with the modules that it belongs to, and only while these train."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adapters.contract import ALWAYS
from adapters.jax.equinox import trainable
from adapters.jax.turns import Active, PyTree, Turns, owners_of
from adapters.optax.labels import dotted_paths
from adapters.optax.optimizer import Labels
from adapters.parts import owners_around
from alternator import ConfigurationError


def keep_frozen(
    labels: Labels, modules: Iterable[str], *, turns: Mapping[str, str | Iterable[str]] | None = None
) -> Callable[..., PyTree]:
    """Keep the statistics of frozen modules as they were: what a forward pass returns of linen's ``batch_stats``, say.

    A statistic belongs to the module of the parameters nearest to it: those beside it, or those around it if it has
    none. Where these are of several modules, it moves while one of them trains.

    Args:
        labels: As given to `alternating`: the module of each parameter.
        modules: The names of the modules, in the order of the transforms given to `alternating`.
        turns: As given to `alternating`.

    Returns:
        A function ``(params, before, after, *, active)`` that returns ``after``, with the leaves of ``before`` where
        these belong to what is frozen. The two have the same structure, and paths like the parameters'.

    Example:
        >>> keep = keep_frozen({"encoder": "encoder", "head": "head"}, ("encoder", "head"))
        >>> params = {"encoder": {"scale": 1.0}, "head": {"scale": 1.0}}
        >>> before, after = ({name: {"mean": mean} for name in params} for mean in (0.0, 0.5))
        >>> keep(params, before, after, active="head")
        {'encoder': {'mean': 0.0}, 'head': {'mean': 0.5}}
    """
    known = tuple(modules)
    table = Turns.of(known, turns)

    def keep(params: PyTree, before: PyTree, after: PyTree, *, active: Active) -> PyTree:
        kept = trainable(params)
        owners = dict(zip(dotted_paths(kept), owners_of(kept, labels, known, optional=(ALWAYS,)), strict=True))
        old, structure = jax.tree.flatten(before)
        new: Any = jax.tree.structure(after)
        if new != structure:
            raise ConfigurationError("statistics must keep their structure, but those after the step have another one")
        paths = dotted_paths(before)
        near = owners_around(paths, owners, {})
        index = table.find(active)
        moves = [[table.trains(owner, index) for owner in near[path]] for path in paths]
        return jax.tree.unflatten(structure, list(map(_choose, moves, jax.tree.leaves(after), old)))

    return keep


def _choose(moves: list[bool | jax.Array], new: Any, old: Any) -> Any:
    """The new value if any of the parts that it belongs to moves."""
    if all(isinstance(move, bool) for move in moves):
        return new if any(moves) else old
    return jnp.where(jnp.asarray(moves).any(), new, old)

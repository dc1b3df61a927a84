"""The schedules within a state of optax: what of it a new state takes over, where the rest is dropped."""

from typing import Any

import jax
import optax  # type: ignore[import-untyped]

from adapters.jax.turns import PyTree


def schedules_of(state: PyTree) -> PyTree:
    """The state with None in place of all that is no schedule: counts of updates by which options move, and these.

    Example:
        >>> import jax.numpy as jnp
        >>> state = optax.adam(optax.linear_schedule(0.1, 0.0, 10)).init(jnp.ones(2))
        >>> schedules_of(state)[1].count.tolist(), jax.tree.leaves(schedules_of(state)[0])
        (0, [])
    """
    return jax.tree.map(lambda node: _stripped(node) if _is_schedule(node) else None, state, is_leaf=_is_schedule)


def with_schedules(new: PyTree, schedules: PyTree) -> PyTree:
    """A new state in which the schedules are those of an earlier one, as `schedules_of` returned them."""
    nodes, structure = jax.tree.flatten(new, is_leaf=_is_schedule)
    earlier = jax.tree.leaves(schedules, is_leaf=lambda node: node is None or _is_schedule(node))
    taken = [_taken(node, old) if _is_schedule(node) else node for node, old in zip(nodes, earlier, strict=True)]
    return jax.tree.unflatten(structure, taken)


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState) or hasattr(node, "hyperparams")


def _stripped(node: Any) -> Any:
    return node._replace(inner_state=schedules_of(node.inner_state)) if hasattr(node, "hyperparams") else node


def _taken(new: Any, old: Any) -> Any:
    """The earlier schedule; what it has within it (`inject_hyperparams`) is new."""
    if hasattr(new, "hyperparams"):
        return old._replace(inner_state=with_schedules(new.inner_state, old.inner_state))
    return old

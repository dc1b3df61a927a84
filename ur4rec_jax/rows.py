"""The part of a training state that a step with sampled losses needs: a few rows of each array with a row per item.

A step on the rows is AdamW on them alone, so its cost does not grow with the catalogue: a row's moments and weights
decay in the steps that use it, and in no other. `ur4rec_torch.lazy_adamw` does the same.

Shapes: J items of the step, ascending, with the padding, d width.
"""

from collections.abc import Callable
from typing import Any

from jax import Array

from ur4rec_jax.layout import ENCODED, ONE_DEVICE, TABLE, TEXTS, Layout
from ur4rec_jax.state import TrainState


def take_rows(state: TrainState, items_J: Array, active: tuple[str, ...], layout: Layout = ONE_DEVICE) -> TrainState:
    """The state of a model that has only these items; moments only of what trains."""

    def take(tree: Any) -> Any:
        return _changed(tree, TABLE, lambda table: layout.take(table, items_J, of_batch=False))

    params = take(state.params)
    if TABLE[0] not in active:
        return state._replace(params=params)
    return _with_moments(state, lambda adam: adam._replace(mu=take(adam.mu), nu=take(adam.nu)))._replace(params=params)


def take_texts(buffers: Any, items_J: Array, layout: Layout = ONE_DEVICE) -> Any:
    """The buffers of a model that has only these items; but all of their texts' tokens."""
    path = ENCODED if ENCODED[0] in buffers else TEXTS
    return _changed(buffers, path, lambda texts: layout.take(texts, items_J, of_batch=False))


def put_rows(
    whole: TrainState, rows: TrainState, items_J: Array, active: tuple[str, ...], layout: Layout = ONE_DEVICE
) -> TrainState:
    """The state after a step on what `take_rows` gave."""

    def put(tree: Any, moved: Any) -> Any:
        values_Jd = _at(moved, TABLE)
        return _changed(moved, TABLE, lambda _: layout.put(_at(tree, TABLE), items_J, values_Jd))

    if TABLE[0] not in active:
        return rows._replace(params=_changed(rows.params, TABLE, lambda _: _at(whole.params, TABLE)))
    before = whole.optimizers.inner_states[TABLE[0]][0]
    moved = _with_moments(rows, lambda adam: adam._replace(mu=put(before.mu, adam.mu), nu=put(before.nu, adam.nu)))
    return moved._replace(params=put(whole.params, rows.params))


def _with_moments(state: TrainState, change: Callable[[Any], Any]) -> TrainState:
    """The state with the moments of the part that has the table changed."""
    inner = state.optimizers.inner_states
    adam, *rest = inner[TABLE[0]]
    changed = {**inner, TABLE[0]: (change(adam), *rest)}
    return state._replace(optimizers=state.optimizers._replace(inner_states=changed))


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _changed(tree: Any, path: tuple[str, ...], change: Callable[[Any], Any]) -> Any:
    """The nested dictionaries with one leaf changed."""
    if not path:
        return change(tree)
    return {**tree, path[0]: _changed(tree[path[0]], path[1:], change)}

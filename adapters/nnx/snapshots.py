"""Snapshots of a model and its optimizer, on their devices: to try something, undo it, and continue to the bit."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from adapters.nnx.layout import Path, leaves_by_path, named
from alternator import StateError
from alternator.checks import listed

PyTree = Any
Snapshot = PyTree
"""The `nnx.State` of a model and its optimizer, in arrays of its own: a pytree, a value."""


def take(model: nnx.Module, optimizer: Any) -> Snapshot:
    """All variables as they are now, copied on their devices, without waiting for these."""
    return _copied(nnx.state((model, optimizer)))


def restore(model: nnx.Module, optimizer: Any, snapshot: Snapshot) -> None:
    """Set all variables to copies of a snapshot's: a step that donates them leaves the snapshot as it is.

    Raises:
        StateError: The variables are others now; nothing has been changed then.
    """
    here, before = (_shapes(each) for each in (nnx.state((model, optimizer)), snapshot))
    if changed := {path for path in {*here, *before} if here.get(path) != before.get(path)}:
        raise StateError(
            "a snapshot must be of the same model and optimizer as there are, but "
            f"{listed(sorted(named(path[1:]) for path in changed))} has been added, removed or has another shape; take "
            "it again"
        )
    nnx.update((model, optimizer), _copied(snapshot))


def _copied(state: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, state)


def _shapes(state: PyTree) -> Mapping[Path, tuple[int, ...]]:
    return {path: jnp.shape(leaf) for path, leaf in leaves_by_path(state)}

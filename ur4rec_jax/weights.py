"""Arrays of a model by the names, and in the layout, that they have in PyTorch: as files of weights hold them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ur4rec.errors import CheckpointError

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def export_weights(tree: Any) -> dict[str, NDArray[Any]]:
    """Arrays by canonical name, laid out as in PyTorch.

    Args:
        tree: Nested dictionaries: the model's parameters or a part of them, or what an optimizer keeps for each.
    """
    return {canonical_name(path): _turned(path, np.asarray(leaf)) for path, leaf in _leaves(tree)}


def import_weights(tree: Any, weights: Mapping[str, NDArray[Any]]) -> Any:
    """A tree like this one with the arrays that `export_weights` returns.

    Raises:
        CheckpointError: A name is missing or unknown, or a shape differs.
    """
    named = {canonical_name(path): (path, leaf) for path, leaf in _leaves(tree)}
    if different := sorted(set(named) ^ set(weights)):
        listed = ", ".join(different[:3]) + (f" and {len(different) - 3} more" if len(different) > 3 else "")
        raise CheckpointError(f"the weights must be of the same model, but only one of the two has {listed}")
    arrays = [_turned(path, np.asarray(weights[name])) for name, (path, _) in named.items()]
    for (name, (path, leaf)), array in zip(named.items(), arrays, strict=True):
        if array.shape != leaf.shape:
            shapes = (_turned(path, each).shape for each in (leaf, array))
            raise CheckpointError("{} must have the shape {}, got {}".format(name, *shapes))
    return jax.tree.unflatten(jax.tree.structure(tree), [jnp.asarray(array) for array in arrays])


def canonical_name(path: tuple[str, ...]) -> str:
    """The name in PyTorch of what is at a path of the model's state.

    Example:
        >>> canonical_name(("sasrec", "blocks", "layers", "0", "attention", "query", "kernel"))
        'sasrec.blocks.0.attention.query.weight'
    """
    *modules, leaf = (part for part in path if part != "layers")
    return ".".join((*modules, _LEAF_NAMES.get(leaf, leaf)))


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(tuple(str(key.key) for key in keys), leaf) for keys, leaf in flat]


def _turned(path: tuple[str, ...], array: Any) -> NDArray[Any]:
    """From Flax's layout to PyTorch's or back: linear layers hold the transposed matrix."""
    return np.ascontiguousarray(array.T) if path[-1] == "kernel" else np.asarray(array)

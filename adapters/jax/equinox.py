"""What trains in an Equinox module: its arrays of real or complex numbers, and nothing else that is a leaf of it.

Equinox is not needed: where it has not been imported no tree has modules of it.
"""

import sys
from typing import Any

import jax

from adapters.jax.turns import PyTree, has_gradient


def trainable(tree: PyTree) -> PyTree:
    """The tree with None for all in Equinox modules that Equinox does not train either; other trees as they are.

    That is what `equinox.filter` keeps with ``is_inexact_array``: not activation functions, strings, Python's numbers
    (the rate of a dropout) and arrays of integers.

    Example:
        >>> import equinox as eqx
        >>> network = eqx.nn.Sequential([eqx.nn.PReLU(0.25), eqx.nn.Dropout(0.5), eqx.nn.Lambda(jax.nn.relu)])
        >>> jax.tree.leaves(trainable({"network": network, "scale": 2.0}))
        [Array(0.25, dtype=float32, weak_type=True), 2.0]
    """
    if not is_equinox_loaded():
        return tree
    return jax.tree.map(lambda node: jax.tree.map(_array, node) if is_module(node) else node, tree, is_leaf=is_module)


def combined(changed: PyTree, whole: PyTree) -> PyTree:
    """The whole tree with what `trainable` has kept of it replaced."""
    if not is_equinox_loaded():
        return changed
    return jax.tree.map(lambda new, old: old if new is None else new, changed, whole, is_leaf=lambda node: node is None)


def is_equinox_loaded() -> bool:
    """Whether a tree can have an Equinox module in it."""
    return "equinox" in sys.modules


def is_module(node: Any) -> bool:
    """Whether a node of a tree is an Equinox module."""
    return isinstance(node, sys.modules["equinox"].Module)


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") and has_gradient(leaf) else None

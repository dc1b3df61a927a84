"""Factors of the catalogue's logits at random, and their cross-entropy in a backend."""

import numpy as np

NAMES = ("hidden", "table", "queries", "keys", "weights")


def draw_factors(num_rows=37, num_items=23):
    """Random factors of all kinds by name, and targets."""
    random = np.random.default_rng(3)
    shapes = {"hidden": (num_rows, 4), "table": (num_items, 4), "queries": (num_rows, 3, 5), "keys": (num_items, 5)}
    factors = {name: random.normal(size=shape) for name, shape in shapes.items()} | {"weights": np.array([0.8, 1.3])}
    return factors, random.integers(num_items, size=num_rows)


def catalogue_loss(backend, factors, targets_N, smoothing=0.0):
    """The loss under test, of those factors (arrays of the framework) that are there."""
    found = {
        "sasrec": (factors["hidden"], factors["table"]) if "hidden" in factors else None,
        "retriever": (factors["queries"], factors["keys"]) if "queries" in factors else None,
    }
    compute = backend.part("catalogue_loss").catalogue_cross_entropy
    return compute(backend.array(targets_N), **found, weights_2=factors.get("weights"), smoothing=smoothing)

"""What the generators of `players` learn to draw, the features in which drawings are judged, and distances there.

Shapes: N examples, I pixels or coordinates, F features.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

NUM_TRAIN, NUM_HELD_OUT = 1000, 400
NUM_FEATURES = 32


class Examples(NamedTuple):
    """Of one kind: some to train on, and the features of the others."""

    train_NI: np.ndarray
    held_out_NF: np.ndarray
    test_NF: np.ndarray
    features: Callable[[np.ndarray], np.ndarray]
    """Of examples."""
    is_bounded: bool
    """Whether all numbers lie between -1 and 1."""


@cache
def digits() -> Examples:
    """Those of scikit-learn, 8 × 8, 397 of them for the test.

    Features are the hidden units of a classifier that has learned the training digits: right about 97% of the others.
    """
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    pixels_NI, labels_N = (np.asarray(each) for each in load_digits(return_X_y=True))
    order_N = np.random.default_rng(0).permutation(len(labels_N))
    digits_NI, labels_N = (pixels_NI[order_N] / 8 - 1).astype(np.float32), labels_N[order_N]
    classifier = MLPClassifier((NUM_FEATURES,), batch_size=50, random_state=0)  # pyright: ignore[reportArgumentType]
    for _ in range(60):
        classifier.partial_fit(digits_NI[:NUM_TRAIN], labels_N[:NUM_TRAIN], classes=range(10))
    weights_IF, biases_F = classifier.coefs_[0], classifier.intercepts_[0]
    scale = np.maximum(digits_NI[:NUM_TRAIN] @ weights_IF + biases_F, 0).std(axis=0).mean()

    def features(examples_NI: np.ndarray) -> np.ndarray:
        hidden_NF: np.ndarray = np.maximum(examples_NI @ weights_IF + biases_F, 0) / scale
        return hidden_NF

    return _split(digits_NI, features, is_bounded=True)


@cache
def ring() -> Examples:
    """Eight normal distributions on a circle, 1,000 examples for the test.

    Features are random waves over the plane (Rahimi & Recht 2007), as long as the distance between neighbours.
    """
    random = np.random.default_rng(0)
    angles_N = 2 * np.pi * random.integers(8, size=NUM_TRAIN + NUM_HELD_OUT + 1000) / 8
    examples_N2 = 2 * np.stack([np.cos(angles_N), np.sin(angles_N)], axis=1) + 0.1 * random.normal(
        size=(len(angles_N), 2)
    )
    waves_2F, phases_F = 2 * random.normal(size=(2, NUM_FEATURES)), random.uniform(0, 2 * np.pi, NUM_FEATURES)
    return _split(
        examples_N2.astype(np.float32), lambda each_N2: np.cos(each_N2 @ waves_2F + phases_F), is_bounded=False
    )


def _split(examples_NI: np.ndarray, features: Callable[[np.ndarray], np.ndarray], *, is_bounded: bool) -> Examples:
    train_NI, held_out_NI, test_NI = np.split(examples_NI, [NUM_TRAIN, NUM_TRAIN + NUM_HELD_OUT])
    return Examples(train_NI, features(held_out_NI), features(test_NI), features, is_bounded)


def frechet_distance(one_NF: np.ndarray, two_NF: np.ndarray) -> float:
    """Between the normal distributions that have the means and covariances of two samples.

    Example:
        >>> sample = np.random.default_rng(0).normal(size=(500, 3))
        >>> round(frechet_distance(sample, sample + [1, 0, 2]), 6)
        5.0
    """
    cov_one, cov_two = np.cov(one_NF.T), np.cov(two_NF.T)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(cov_one @ cov_two).real, 0)).sum()
    distance = np.square(one_NF.mean(axis=0) - two_NF.mean(axis=0)).sum()
    return float(distance + np.trace(cov_one) + np.trace(cov_two) - 2 * roots)


def energy_distance(one_NF: np.ndarray, two_MF: np.ndarray) -> float:
    """Estimated without bias from two samples (Székely & Rizzo 2004).

    Example:
        >>> energy_distance(np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]]))
        2.0
    """
    across, one, two = (
        np.linalg.norm(left[:, None] - right[None], axis=-1)
        for left, right in ((one_NF, two_MF), (one_NF, one_NF), (two_MF, two_MF))
    )
    within = sum(each.sum() / (len(each) * (len(each) - 1)) for each in (one, two))
    return float(2 * across.mean() - within)

"""How often each item is used in the training data, and its popularity, which may be a term of the fused scores.

With a weight of 1 popularity is what an item has in its favour before anything is known of a user: the logarithm of its
share of the training data, up to a number that is the same for all. One use more than there were keeps it finite.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import ModelConfig
from ur4rec.errors import ConfigurationError


def check_item_counts(
    setting: str, item_counts: ArrayLike | None, num_items: int, *, some: bool = False
) -> NDArray[np.float64]:
    """The counts, (I,), if they are such.

    Args:
        setting: What needs them, for the message.
        item_counts: How often each item is a target in the training data, (I,).
        num_items: Size of the catalogue.
        some: Whether one of them must be above 0.

    Raises:
        ConfigurationError: They are missing, or are no counts of the model's items, or all 0 where some must not be.
    """
    counts_I = np.asarray([] if item_counts is None else item_counts, np.float64)
    are_counts = counts_I.shape == (num_items,) and np.isfinite(counts_I).all() and counts_I.min() >= 0
    if not are_counts or (some and not counts_I.any()):
        found = "none" if item_counts is None else f"an array of shape {counts_I.shape}"
        raise ConfigurationError(
            f"{setting} needs item_counts, how often each of the {num_items} items is a target, got {found}; "
            "give TrainBatches.item_counts"
        )
    return counts_I


def item_popularity(model: ModelConfig, item_counts: ArrayLike | None) -> NDArray[np.float32] | None:
    """The logarithm of 1 + the uses of each item, and last 0 for padding, (I + 1,); None where it is not fused.

    Args:
        model: The shape of the model.
        item_counts: The uses of each item in the training data, (I,); needed, and read, with ``fusion_popularity``.

    Raises:
        ConfigurationError: They are missing, or are no counts of the model's items.

    Example:
        >>> item_popularity(ModelConfig(num_items=2, fusion_popularity=True), [0, 1])
        array([0.       , 0.6931472, 0.       ], dtype=float32)
    """
    if not model.fusion_popularity:
        return None
    counts_I = check_item_counts("fusion_popularity=True", item_counts, model.num_items)
    return np.append(np.log1p(counts_I), 0).astype(np.float32)

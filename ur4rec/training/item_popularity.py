"""The popularity of items, which may be a term of the fused scores.

With a weight of 1 it is what every item has in its favour before anything is known of a user: the logarithm of its
share of the training data, up to a number that is the same for all. One use more than there were keeps it finite.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import ModelConfig
from ur4rec.errors import ConfigurationError


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
    counts_I = np.asarray([] if item_counts is None else item_counts, np.float64)
    if counts_I.shape != (model.num_items,) or not np.isfinite(counts_I).all() or counts_I.min() < 0:
        found = "none" if item_counts is None else f"an array of shape {counts_I.shape}"
        raise ConfigurationError(
            f"fusion_popularity=True needs item_counts, how often each of the {model.num_items} items is used in the "
            f"training data, got {found}; give TrainBatches.item_counts"
        )
    return np.append(np.log1p(counts_I), 0).astype(np.float32)

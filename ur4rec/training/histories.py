"""What a scorer can be fed with: histories as rows of item numbers, padded on the right, checked on the host.

Shapes: B rows, L positions.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import ModelConfig
from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import DataError


def check_histories(items_BL: ArrayLike, config: ModelConfig) -> NDArray[np.int64]:
    """The histories as an array of the host; refuses what the model would silently score as something else.

    Rows of nothing but padding pass: they fill up a batch.

    Args:
        items_BL: Item numbers; ``num_items`` is padding.
        config: The model's.

    Raises:
        DataError: They are no rows of whole numbers, longer than ``max_seq_len``, have an item that does not exist, or
            padding before an item.
    """
    given = np.asarray(items_BL)
    if given.ndim != 2 or given.dtype.kind not in "iu":
        raise DataError(
            f"histories must be rows of whole numbers (B, L), got an array of {given.dtype} of shape {given.shape}; "
            f"pad shorter ones at the end with {config.num_items}"
        )
    items = given.astype(np.int64, copy=False)
    if items.shape[1] > config.max_seq_len:
        raise DataError(
            f"histories must have at most max_seq_len={config.max_seq_len} positions, got {items.shape[1]}; "
            f"cut them to their last {config.max_seq_len} items"
        )
    _refuse_any((items < 0) | (items > config.num_items), items, f"hold items in 0 .. {config.num_items - 1}", config)
    padding = items == config.num_items
    _refuse_any(padding[:, :-1] & ~padding[:, 1:], items, "have their padding at the end", config)
    return items


def check_batch(batch: EvaluationBatch, config: ModelConfig) -> None:
    """Refuse a batch of targets that cannot be ranked: see `check_histories`; its targets are items too.

    Raises:
        DataError: With the first row that is wrong.
    """
    check_histories(batch.items_BL, config)
    targets_B = np.asarray(batch.targets_B)[: batch.num_valid, None]
    _refuse_any((targets_B < 0) | (targets_B >= config.num_items), targets_B, "have targets among the items", config)


def _refuse_any(
    wrong_BL: NDArray[np.bool_], items_BL: NDArray[np.integer[Any]], rule: str, config: ModelConfig
) -> None:
    if wrong_BL.any():
        row, position = np.argwhere(wrong_BL)[0]
        raise DataError(
            f"histories must {rule}, got {items_BL[row, position]} at position {position} of row {row}; items are "
            f"numbered 0 .. {config.num_items - 1}, and {config.num_items} pads shorter histories at the end"
        )

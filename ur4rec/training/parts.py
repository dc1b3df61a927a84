"""The part of a training batch that one of several processes trains on.

Losses are means over a batch's targets, or over its rows that have some. A process computes them on its part and
multiplies them by its share, so that their means over the processes, and those of their gradients, are the batch's.

Shapes: B rows, L positions, N positions with a target.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.batches import Batch
from ur4rec.training.processes import part_of


class BatchPart(NamedTuple):
    """A part of a batch, and where it is in the whole one.

    A part without a target is another part's row, which counts for nothing: so there is always something to compute.
    """

    batch: Batch
    """The rows of the part."""
    rows: slice
    """Which of the batch's rows they are."""
    num_rows: int
    """The number of rows of the whole batch."""
    size: int
    """The number of rows of the largest part."""
    targets: slice
    """Which of the batch's targets are those of the part."""
    targets_N: NDArray[np.int64]
    """All targets of the batch, in order."""
    counts: bool
    """Whether the part has a target of its own."""
    target_share: float
    """By what the part's mean over targets is to be multiplied; NaN in a batch without any."""
    row_share: float
    """By what its mean over rows with a target is to be multiplied."""
    whole: Batch
    """The whole batch."""
    num_items: int
    """The padding index."""

    def items_with(self, items_C: NDArray[np.integer]) -> NDArray[np.int64]:
        """All items of the whole batch and these, and the padding; ascending, each once."""
        found = np.concatenate((np.ravel(self.whole[0]), self.targets_N, items_C))
        return np.unique(np.append(found, self.num_items)).astype(np.int64)


def cut_batch(batch: Batch, num_items: int, part: int, num_parts: int) -> BatchPart:
    """A part of a batch.

    Args:
        batch: The whole batch.
        num_items: The padding index.
        part: Which part.
        num_parts: The number of parts.

    Example:
        >>> batch = Batch(*(np.array(each) for each in ([[0], [1], [2]], [[1], [2], [3]], [0, 1, 2])))
        >>> cut_batch(batch, 9, part=1, num_parts=2).batch.items_BL.tolist()
        [[2]]
        >>> [round(cut_batch(batch, 9, part, 2).target_share, 2) for part in range(2)]
        [1.33, 0.67]
    """
    is_target_BL = np.asarray(batch[1]) != num_items
    counts_B = is_target_BL.sum(1)
    num_rows, num_targets, num_full = len(counts_B), int(counts_B.sum()), int((counts_B > 0).sum())
    rows = part_of(num_rows, part, num_parts)
    counts = bool(counts_B[rows].any())
    target_share = num_parts * counts_B[rows].sum() / num_targets if num_targets else float("nan")
    row_share = num_parts * (counts_B[rows] > 0).sum() / max(num_full, 1)
    if not counts:
        first = int((counts_B > 0).argmax())
        rows = slice(first, first + 1)
    before = int(counts_B[: rows.start].sum())
    return BatchPart(
        batch=Batch(*(np.asarray(each)[rows] for each in batch)),
        rows=rows,
        num_rows=num_rows,
        size=-(-num_rows // num_parts),
        targets=slice(before, before + int(counts_B[rows].sum())),
        targets_N=np.asarray(batch[1], np.int64)[is_target_BL],
        counts=counts,
        target_share=float(target_share),
        row_share=float(row_share),
        whole=batch,
        num_items=num_items,
    )

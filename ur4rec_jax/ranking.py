"""Ranks of evaluation targets, computed on the device.

Shapes: B rows, L positions, I items, M coordinates of seen items.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike, NDArray

from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import DataError, NonFiniteError


def rank_loader(
    scores: Callable[[ArrayLike, ArrayLike | None], dict[str, Array]], loader: Iterable[EvaluationBatch]
) -> dict[str, NDArray[np.int64]]:
    """The rank of every target by each scorer, in the loader's order; the host reads them once, at the end.

    Args:
        scores: Maps histories (B, L) and their users (B,), None where the batch names none, to scores (B, I) by scorer.
        loader: Evaluation batches.

    Raises:
        NonFiniteError: A target or a candidate has a score that is NaN or infinite.
        DataError: The loader is empty.
    """
    ranks: dict[str, list[tuple[Array, int]]] = {}
    finite = []
    for batch in loader:
        for scorer, scores_BI in scores(batch.items_BL, batch.users_B).items():
            ranks_B, is_finite = rank_batch(scores_BI, batch)
            ranks.setdefault(scorer, []).append((ranks_B, batch.num_valid))
            finite.append(is_finite)
    if not ranks:
        raise DataError("evaluation needs at least one batch, got an empty loader")
    if not all(map(bool, finite)):
        raise NonFiniteError("scores must be finite, got NaN or infinite ones; lower the learning rate and train anew")
    return {
        scorer: np.concatenate([np.asarray(ranks_B, np.int64)[:num_valid] for ranks_B, num_valid in parts])
        for scorer, parts in ranks.items()
    }


@jax.jit
def rank_batch(scores_BI: Array, batch: EvaluationBatch) -> tuple[Array, Array]:
    """Ranks of the targets, and whether all scores that count are finite.

    The rank is 1 + the number of other unseen items that score at least as much as the target: ties count against us.
    The target is never filtered. Rows and coordinates that only fill up are out of range and dropped.
    """
    rows_B = jnp.arange(len(scores_BI))
    candidates_BI = jnp.ones(scores_BI.shape, bool)
    candidates_BI = candidates_BI.at[batch.seen_rows_M, batch.seen_items_M].set(False, mode="drop")
    candidates_BI = candidates_BI.at[rows_B, batch.targets_B].set(True)
    counts_B1 = (rows_B < batch.num_valid)[:, None]
    finite = (jnp.isfinite(scores_BI) | ~candidates_BI | ~counts_B1).all()
    at_least_BI = candidates_BI & (scores_BI >= scores_BI[rows_B, batch.targets_B][:, None])
    return at_least_BI.sum(1), finite

"""Ranks of a batch of evaluation targets, computed on the device.

Shapes: B rows, I items, M coordinates of seen items.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ur4rec.data.batches import EvaluationBatch


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

"""Ranks of a batch of evaluation targets, computed on the device.

Shapes: B rows, I items, M coordinates of seen items.
"""

import torch
from torch import Tensor

from ur4rec.data.batches import EvaluationBatch


def rank_batch(scores_BI: Tensor, batch: EvaluationBatch) -> tuple[Tensor, Tensor]:
    """Ranks of the targets of the valid rows, and whether all scores that count are finite.

    The rank is 1 + the number of other unseen items that score at least as much as the target: ties count against us.
    The target is never filtered.
    """
    device, num_valid = scores_BI.device, batch.num_valid
    scores_BI = scores_BI[:num_valid]
    rows_B = torch.arange(num_valid, device=device)
    targets_B = torch.as_tensor(batch.targets_B[:num_valid], dtype=torch.long, device=device)
    seen_rows_M = torch.as_tensor(batch.seen_rows_M[: batch.num_seen], dtype=torch.long, device=device)
    seen_items_M = torch.as_tensor(batch.seen_items_M[: batch.num_seen], dtype=torch.long, device=device)
    candidates_BI = torch.ones_like(scores_BI, dtype=torch.bool)
    candidates_BI[seen_rows_M, seen_items_M] = False
    candidates_BI[rows_B, targets_B] = True
    finite = (torch.isfinite(scores_BI) | ~candidates_BI).all()
    at_least_BI = candidates_BI & (scores_BI >= scores_BI[rows_B, targets_B].unsqueeze(1))
    return at_least_BI.sum(1), finite

"""Ranks of evaluation targets, computed on the device.

Shapes: B rows, L positions, I items, M coordinates of seen items.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import DataError, NonFiniteError
from ur4rec_torch.device import to_indices


def rank_loader(
    scores: Callable[[Tensor, Tensor | None], dict[str, Tensor]],
    loader: Iterable[EvaluationBatch],
    device: torch.device,
) -> dict[str, NDArray[np.int64]]:
    """The rank of every target by each scorer, in the loader's order; the host reads them once, at the end.

    Args:
        scores: Maps histories (B, L) and their users (B,), None where the batch names none, to scores (B, I) by scorer.
        loader: Evaluation batches.
        device: Where to score.

    Raises:
        NonFiniteError: A target or a candidate has a score that is NaN or infinite.
        DataError: The loader is empty.
    """
    ranks: dict[str, list[Tensor]] = {}
    all_finite = torch.ones((), dtype=torch.bool, device=device)
    for batch in loader:
        found = scores(to_indices(batch.items_BL, device), to_indices(batch.users_B, device))
        for scorer, scores_BI in found.items():
            ranks_B, finite = rank_batch(scores_BI, batch)
            ranks.setdefault(scorer, []).append(ranks_B)
            all_finite = all_finite & finite
    if not ranks:
        raise DataError("evaluation needs at least one batch, got an empty loader")
    if not all_finite:
        raise NonFiniteError("scores must be finite, got NaN or infinite ones; lower the learning rate and train anew")
    return {scorer: torch.cat(parts).cpu().numpy() for scorer, parts in ranks.items()}


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

"""Scorer: a trained model that ranks and scores, and nothing else; ranks are computed on the device.

Shapes: B rows, L positions, I items, M coordinates of seen items, S scorers, k places.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ur4rec.data.batches import EvaluationBatch
from ur4rec.training.backend import check_model
from ur4rec.training.memory import enough_for_model
from ur4rec.training.scorer import NO_ITEM, ModelScorer, ScoreFunction
from ur4rec_torch.device import find_device, to_host, to_indices
from ur4rec_torch.retriever import Catalogue
from ur4rec_torch.ur4rec import UR4Rec

_FLOAT32_COUNTS = 2**24
"""The whole numbers that float32 adds up exactly."""


def rank_batch(scores_BI: Tensor, batch: EvaluationBatch) -> tuple[Tensor, Tensor]:
    """Ranks of the targets of the valid rows, and whether all scores that count are finite.

    The rank is 1 + the number of other unseen items that score at least as much as the target: ties count against us.
    The target is never filtered. The scores are overwritten: each copy of them would be as large as they are.
    """
    device, num_valid = scores_BI.device, batch.num_valid
    scores_BI = scores_BI[:num_valid]
    rows_B = torch.arange(num_valid, device=device)
    targets_B = torch.as_tensor(batch.targets_B[:num_valid], dtype=torch.long, device=device)
    seen_rows_M = torch.as_tensor(batch.seen_rows_M[: batch.num_seen], dtype=torch.long, device=device)
    seen_items_M = torch.as_tensor(batch.seen_items_M[: batch.num_seen], dtype=torch.long, device=device)
    target_scores_B = scores_BI[rows_B, targets_B]
    below_B = torch.nextafter(target_scores_B, torch.full_like(target_scores_B, -torch.inf))  # counts for nothing
    scores_BI[seen_rows_M, seen_items_M] = below_B[seen_rows_M]
    scores_BI[rows_B, targets_B] = target_scores_B
    extremes_2B = torch.stack([scores_BI.amin(1), scores_BI.amax(1)])  # NaN if any score is
    at_least_BI = scores_BI.ge_(target_scores_B.unsqueeze(1))
    counting = torch.float32 if scores_BI.shape[1] <= _FLOAT32_COUNTS else torch.float64  # the former is much faster
    return at_least_BI.sum(1, dtype=counting).long(), torch.isfinite(extremes_2B).all()


def top_batch(
    scores: Sequence[Tensor], batch: EvaluationBatch, candidates_I: NDArray[np.bool_] | None, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best items by the first scores, their probabilities by all, and whether the scores that count are finite."""
    device = scores[0].device
    seen_rows_M = torch.as_tensor(batch.seen_rows_M[: batch.num_seen], dtype=torch.long, device=device)
    seen_items_M = torch.as_tensor(batch.seen_items_M[: batch.num_seen], dtype=torch.long, device=device)
    for scores_BI in scores:
        scores_BI[seen_rows_M, seen_items_M] = -torch.inf
        if candidates_I is not None:
            scores_BI.masked_fill_(~torch.as_tensor(candidates_I, device=device), -torch.inf)
    items_Bk = _first(scores[0], k)
    is_item_Bk = scores[0].gather(1, items_Bk) > -torch.inf
    logs = [scores_BI.logsumexp(1, keepdim=True) for scores_BI in scores]
    shares = [(each.gather(1, items_Bk) - log_B1).exp() for each, log_B1 in zip(scores, logs, strict=True)]
    log_SB = torch.cat(logs, 1).T[:, : batch.num_valid]
    finite = (torch.isfinite(log_SB) | torch.isneginf(log_SB)).all()  # the logarithm of no candidates
    return items_Bk.where(is_item_Bk, NO_ITEM), torch.stack(shares).where(is_item_Bk, 0.0), finite


def _first(scores_BI: Tensor, k: int) -> Tensor:
    """The items of the k largest scores, (B, k); of equal scores, those with the lower numbers."""
    values_Bj, items_Bj = scores_BI.topk(min(k + 1, scores_BI.shape[1]))
    items_Bk = items_Bj[:, :k].sort(1).values
    items_Bk = items_Bk.gather(1, scores_BI.gather(1, items_Bk).argsort(dim=1, descending=True, stable=True))
    last_B, next_B = values_Bj[:, k - 1], values_Bj[:, -1]
    are_tied_B = (last_B == next_B) & (last_B > -torch.inf)  # topk leaves open which of equal scores it takes
    if values_Bj.shape[1] > k and are_tied_B.any():
        items_Bk[are_tied_B] = scores_BI[are_tied_B].argsort(dim=1, descending=True, stable=True)[:, :k]
    return items_Bk


class Scorer(ModelScorer[Tensor]):
    """Ranks and scores with a model as it is.

    `JointTrainer` does the same for a model that it trains; to build its optimizers alone takes a second or two.

    Args:
        model: The model; it is moved to the device and put in inference mode.
        device: ``auto`` is a CUDA device where there is one.

    Attributes:
        model: The model.

    Example:
        >>> import numpy as np
        >>> model = UR4Rec(3, np.eye(3), text_embedding_dim=3, sasrec_hidden_dim=4, max_seq_len=2)
        >>> Scorer(model, device="cpu").score([[0, 3]]).shape
        (1, 3)
    """

    _rank_batch = staticmethod(rank_batch)
    _top_batch = staticmethod(top_batch)
    _to_host = staticmethod(to_host)

    def __init__(self, model: UR4Rec, *, device: str | torch.device = "auto") -> None:
        check_model(model)
        self._model_config = model.config
        self.device = find_device(device)
        with torch.no_grad(), enough_for_model(model.config):
            self.model = model.to(self.device).eval()
            self._catalogue = self.model.retriever.catalogue()

    @contextmanager
    def _scoring(self, scorers: tuple[str, ...]) -> Iterator[ScoreFunction[Tensor]]:
        with torch.no_grad():
            yield scores_of(self.model, self._catalogue, self.device, scorers)

    def _explain(self, items_BL: ArrayLike, candidates_BC: ArrayLike, users_B: ArrayLike | None) -> Tensor:
        users = None if users_B is None else to_indices(users_B, self.device)
        with torch.no_grad():
            items, candidates = (to_indices(each, self.device) for each in (items_BL, candidates_BC))
            return self.model.explain(items, candidates, self._catalogue, users)


def scores_of(
    model: UR4Rec, catalogue: Catalogue, device: torch.device, scorers: tuple[str, ...]
) -> ScoreFunction[Tensor]:
    """The scores of a model by these scorers, as a function of histories and their users."""
    return lambda items_BL, users_B: model.scores(
        to_indices(items_BL, device), scorers, catalogue, None if users_B is None else to_indices(users_B, device)
    )

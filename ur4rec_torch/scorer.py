"""Scorer: a trained model that ranks and scores, and nothing else; ranks are computed on the device.

Shapes: B rows, L positions, I items, M coordinates of seen items.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ur4rec.data.batches import EvaluationBatch
from ur4rec.training.backend import check_model
from ur4rec.training.memory import enough_for_model
from ur4rec.training.scorer import BaseScorer, ScoreFunction
from ur4rec_torch.device import find_device, to_host, to_indices
from ur4rec_torch.retriever import Catalogue
from ur4rec_torch.ur4rec import UR4Rec


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


class Scorer(BaseScorer[Tensor]):
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


def scores_of(
    model: UR4Rec, catalogue: Catalogue, device: torch.device, scorers: tuple[str, ...]
) -> ScoreFunction[Tensor]:
    """The scores of a model by these scorers, as a function of histories and their users."""
    return lambda items_BL, users_B: model.scores(
        to_indices(items_BL, device), scorers, catalogue, None if users_B is None else to_indices(users_B, device)
    )

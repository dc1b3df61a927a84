"""Scorer: a trained model that ranks and scores, and nothing else.

Shapes: B rows, L positions, I items.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import SCORERS
from ur4rec.data.batches import EvaluationBatch
from ur4rec_torch.device import find_device, to_indices
from ur4rec_torch.ranking import rank_loader
from ur4rec_torch.ur4rec import UR4Rec


class Scorer:
    """Ranks and scores with a model as it is.

    `JointTrainer` does the same for a model that it trains; to build its optimizers alone takes a second or two.

    Args:
        model: The model; it is moved to the device and put in inference mode.
        device: ``auto`` is a CUDA device where there is one.

    Attributes:
        model: The model.

    Example:
        >>> model = UR4Rec(3, np.eye(3), text_embedding_dim=3, sasrec_hidden_dim=4, max_seq_len=2)
        >>> Scorer(model, device="cpu").score([[0, 3]]).shape
        (1, 3)
    """

    def __init__(self, model: UR4Rec, *, device: str | torch.device = "auto") -> None:
        self.device = find_device(device)
        self.model = model.to(self.device).eval()
        with torch.no_grad():
            self._catalogue = self.model.retriever.catalogue()

    def rank(self, loader: Iterable[EvaluationBatch], scorer: str = "fused") -> NDArray[np.int64]:
        """The rank of every target, in the loader's order; see `JointTrainer.rank`."""
        return self.rank_all(loader, (scorer,))[scorer]

    def rank_all(
        self, loader: Iterable[EvaluationBatch], scorers: Iterable[str] = SCORERS
    ) -> dict[str, NDArray[np.int64]]:
        """The rank of every target by several scorers; each module is run once."""
        wanted = tuple(scorers)
        with torch.no_grad():
            return rank_loader(
                lambda items_BL, users_B: self.model.scores(items_BL, wanted, self._catalogue, users_B),
                loader,
                self.device,
            )

    def score(
        self, items_BL: ArrayLike, scorer: str = "fused", users_B: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Scores of every item as the next one of right-padded histories, (B, I); of these users, if any are named."""
        return self.scores(items_BL, users_B, (scorer,))[scorer]

    def scores(
        self, items_BL: ArrayLike, users_B: ArrayLike | None = None, scorers: Iterable[str] = SCORERS
    ) -> dict[str, NDArray[np.float32]]:
        """The scores of several scorers by name, as `score` gives them; each module is run once."""
        items, users = to_indices(items_BL, self.device), to_indices(users_B, self.device)
        with torch.no_grad():
            found = self.model.scores(items, scorers, self._catalogue, users)
        return {scorer: scores_BI.cpu().numpy() for scorer, scores_BI in found.items()}

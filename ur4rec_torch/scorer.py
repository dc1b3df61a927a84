"""Scorer: a trained model that ranks and scores, and nothing else; ranks are computed on the device.

Shapes: B rows, L positions, C candidates.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ur4rec.training.backend import check_model
from ur4rec.training.memory import enough_for_model
from ur4rec.training.scorer import ModelScorer, Scores
from ur4rec.training.slices import DEFAULT_MEMORY, parse_memory
from ur4rec_torch.device import find_device, to_host, to_indices
from ur4rec_torch.slices import ModelScores
from ur4rec_torch.ur4rec import UR4Rec


class Scorer(ModelScorer[Tensor]):
    """Ranks and scores with a model as it is.

    `JointTrainer` does the same for a model that it trains; to build its optimizers alone takes a second or two.

    Args:
        model: The model; it is moved to the device and put in inference mode.
        device: ``auto`` is a CUDA device where there is one.
        memory: Bytes that scores may take at once, a number or a string such as ``4GB``.

    Attributes:
        memory: The same, as a number.
        model: The model.

    Example:
        >>> import numpy as np
        >>> model = UR4Rec(3, np.eye(3), text_embedding_dim=3, sasrec_hidden_dim=4, max_seq_len=2)
        >>> Scorer(model, device="cpu").score([[0, 3]]).shape
        (1, 3)
    """

    _to_host = staticmethod(to_host)

    def __init__(
        self, model: UR4Rec, *, device: str | torch.device = "auto", memory: int | str = DEFAULT_MEMORY
    ) -> None:
        check_model(model)
        self.memory = parse_memory(memory)
        self._model_config = model.config
        self.device = find_device(device)
        with torch.no_grad(), enough_for_model(model.config):
            self.model = model.to(self.device).eval()
            self._catalogue = self.model.catalogue()

    @contextmanager
    def _scoring(self, scorers: tuple[str, ...]) -> Iterator[Scores[Tensor]]:
        with torch.no_grad():
            yield ModelScores(self.model, self._catalogue, self.device, scorers)

    def _explain(self, items_BL: ArrayLike, candidates_BC: ArrayLike, users_B: ArrayLike | None) -> Tensor:
        users = None if users_B is None else to_indices(users_B, self.device)
        with torch.no_grad():
            items, candidates = (to_indices(each, self.device) for each in (items_BL, candidates_BC))
            return self.model.explain(items, candidates, self._catalogue, users)

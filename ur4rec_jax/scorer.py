"""Scorer: a trained model that ranks and scores, and nothing else.

Shapes: B rows, L positions, I items.
"""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import ArrayLike, NDArray

from ur4rec.batches import EvaluationBatch
from ur4rec.config import SCORERS, TrainerConfig, check_choice
from ur4rec_jax.compiled import compiled, functions_of
from ur4rec_jax.device import find_device, to_indices
from ur4rec_jax.ranking import rank_loader
from ur4rec_jax.ur4rec import UR4Rec


class Scorer:
    """Ranks and scores with a model as it is.

    `JointTrainer` does the same for a model that it trains.

    Args:
        model: The model; its arrays are moved to the device.
        device: ``auto`` is an accelerator where there is one.

    Attributes:
        model: The model.

    Example:
        >>> model = UR4Rec(3, np.eye(3), text_embedding_dim=3, sasrec_hidden_dim=4, max_seq_len=2)
        >>> Scorer(model, device="cpu").score([[0, 3]]).shape
        (1, 3)
    """

    def __init__(self, model: UR4Rec, *, device: str | jax.Device = "auto") -> None:
        self.device = find_device(device)
        self.model = model
        graphdef, params, buffers = nnx.split(model, nnx.Param, ...)
        functions = functions_of(graphdef, TrainerConfig())
        arrays = jax.device_put((nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)), self.device)
        self._score = partial(functions.score, *arrays, functions.project(*arrays))
        self._scores = compiled(
            lambda items_BL, users_B: {scorer: self._score(items_BL, users_B, scorer=scorer) for scorer in SCORERS}
        )

    def rank(self, loader: Iterable[EvaluationBatch], scorer: str = "fused") -> NDArray[np.int64]:
        """The rank of every target, in the loader's order; see `JointTrainer.rank`."""
        return rank_loader(self._scorer(scorer), loader)

    def score(
        self, items_BL: ArrayLike, scorer: str = "fused", users_B: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Scores of every item as the next one of right-padded histories, (B, I); of these users, if any are named."""
        return np.asarray(self._scorer(scorer)(to_indices(items_BL), users_B))

    def scores(self, items_BL: ArrayLike, users_B: ArrayLike | None = None) -> dict[str, NDArray[np.float32]]:
        """The scores of both modules and of their fusion, by the names of the scorers: one program, compiled once."""
        scores = self._scores(to_indices(items_BL), self._known(users_B))
        return {scorer: np.asarray(scores[scorer]) for scorer in SCORERS}

    def _scorer(self, scorer: str) -> Callable[[ArrayLike, ArrayLike | None], Array]:
        check_choice("scorer", scorer, SCORERS)
        return lambda items_BL, users_B: self._score(items_BL, self._known(users_B), scorer=scorer)

    def _known(self, users_B: ArrayLike | None) -> NDArray[np.int32] | None:
        """The users, for a model that has texts of theirs."""
        return to_indices(users_B) if self.model.config.num_users else None

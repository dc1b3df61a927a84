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

from ur4rec.config import SCORERS, TrainerConfig
from ur4rec.data.batches import EvaluationBatch
from ur4rec_jax.compiled import functions_of
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
        self._scores = partial(functions.scores, *arrays, functions.project(*arrays))

    def rank(self, loader: Iterable[EvaluationBatch], scorer: str = "fused") -> NDArray[np.int64]:
        """The rank of every target, in the loader's order; see `JointTrainer.rank`."""
        return self.rank_all(loader, (scorer,))[scorer]

    def rank_all(
        self, loader: Iterable[EvaluationBatch], scorers: Iterable[str] = SCORERS
    ) -> dict[str, NDArray[np.int64]]:
        """The rank of every target by several scorers; each module is run once."""
        wanted = tuple(scorers)
        ranks = rank_loader(self._chosen(wanted), loader)
        return {scorer: ranks[scorer] for scorer in wanted}

    def score(
        self, items_BL: ArrayLike, scorer: str = "fused", users_B: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Scores of every item as the next one of right-padded histories, (B, I); of these users, if any are named."""
        return self.scores(items_BL, users_B, (scorer,))[scorer]

    def scores(
        self, items_BL: ArrayLike, users_B: ArrayLike | None = None, scorers: Iterable[str] = SCORERS
    ) -> dict[str, NDArray[np.float32]]:
        """The scores of several scorers by name, as `score` gives them; each module is run once."""
        wanted = tuple(scorers)
        found = self._chosen(wanted)(to_indices(items_BL), users_B)
        return {scorer: np.asarray(found[scorer]) for scorer in wanted}

    def _chosen(self, scorers: tuple[str, ...]) -> Callable[[ArrayLike, ArrayLike | None], dict[str, Array]]:
        return lambda items_BL, users_B: self._scores(items_BL, self._known(users_B), scorers=scorers)

    def _known(self, users_B: ArrayLike | None) -> NDArray[np.int32] | None:
        """The users, for a model that has texts of theirs."""
        return to_indices(users_B) if self.model.config.num_users else None

"""Scorer: a trained model that ranks and scores, and nothing else; ranks are computed on the device.

Shapes: B rows, L positions, I items, M coordinates of seen items.
"""

from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ur4rec.config import TrainerConfig
from ur4rec.data.batches import EvaluationBatch
from ur4rec.training.backend import check_model
from ur4rec.training.memory import enough_for_model
from ur4rec.training.scorer import BaseScorer, ScoreFunction
from ur4rec_jax.compiled import Functions, functions_of, split_model
from ur4rec_jax.device import find_device, to_host, to_indices
from ur4rec_jax.ur4rec import UR4Rec


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


class Scorer(BaseScorer[Array]):
    """Ranks and scores with a model as it is.

    `JointTrainer` does the same for a model that it trains.

    Args:
        model: The model; its arrays are moved to the device.
        device: ``auto`` is an accelerator where there is one.

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

    def __init__(self, model: UR4Rec, *, device: str | jax.Device = "auto") -> None:
        check_model(model)
        self._model_config = model.config
        self.device = find_device(device)
        self.model = model
        graphdef, params, buffers = split_model(model)
        self._functions = functions_of(graphdef, TrainerConfig())
        with enough_for_model(model.config):
            params, buffers = jax.device_put((params, buffers), self.device)
            self._arrays = (params, buffers, self._functions.project(params, buffers))

    def _scoring(self, scorers: tuple[str, ...]) -> nullcontext[ScoreFunction[Array]]:
        with_users = self.model.config.num_users > 0
        return nullcontext(scores_of(self._functions, self._arrays, scorers, with_users=with_users))


def scores_of(
    functions: Functions, arrays: tuple[Any, Any, Any], scorers: tuple[str, ...], *, with_users: bool
) -> ScoreFunction[Array]:
    """The scores of a model by these scorers, as a function of histories and their users.

    Args:
        functions: The model's.
        arrays: Its parameters, its buffers and the catalogue.
        scorers: Which.
        with_users: Whether it has user texts; if not, users are left out, so that they cause no further compilation.
    """
    return lambda items_BL, users_B: functions.scores(
        *arrays,
        to_indices(items_BL),
        to_indices(users_B) if with_users and users_B is not None else None,
        scorers=scorers,
    )

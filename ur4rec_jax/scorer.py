"""Scorer: a trained model that ranks and scores, and nothing else; ranks are computed on the device.

Shapes: B rows, L positions, C candidates.
"""

from contextlib import nullcontext

import jax
from jax import Array
from numpy.typing import ArrayLike

from ur4rec.config import TrainerConfig
from ur4rec.training.backend import check_model
from ur4rec.training.memory import enough_for_model
from ur4rec.training.scorer import ModelScorer, Scores
from ur4rec.training.slices import DEFAULT_MEMORY, parse_memory
from ur4rec_jax.compiled import functions_of, split_model
from ur4rec_jax.device import find_device, to_indices
from ur4rec_jax.layout import to_host
from ur4rec_jax.slices import ModelScores
from ur4rec_jax.ur4rec import UR4Rec


class Scorer(ModelScorer[Array]):
    """Ranks and scores with a model as it is.

    `JointTrainer` does the same for a model that it trains.

    Args:
        model: The model; its arrays are moved to the device.
        device: ``auto`` is an accelerator where there is one.
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

    def __init__(self, model: UR4Rec, *, device: str | jax.Device = "auto", memory: int | str = DEFAULT_MEMORY) -> None:
        check_model(model)
        self.memory = parse_memory(memory)
        self._model_config = model.config
        self.device = find_device(device)
        self.model = model
        graphdef, params, buffers = split_model(model)
        self._functions = functions_of(graphdef, TrainerConfig())
        with enough_for_model(model.config):
            params, buffers = jax.device_put((params, buffers), self.device)
            self._arrays = (params, buffers, self._functions.project(params, buffers))

    def _scoring(self, scorers: tuple[str, ...]) -> nullcontext[Scores[Array]]:
        return nullcontext(ModelScores(self._functions, self._arrays, scorers, self._model_config, self.device))

    def _explain(self, items_BL: ArrayLike, candidates_BC: ArrayLike, users_B: ArrayLike | None) -> Array:
        users = None if users_B is None else to_indices(users_B)
        explained: Array = self._functions.explain(
            *self._arrays, to_indices(items_BL), to_indices(candidates_BC), users
        )
        return explained

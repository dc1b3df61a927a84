"""Snapshots of a model's modules, and scores with them: what a `Payoff` schedule measures by.

Shapes: B rows, L positions, I items, s items of a slice, d width.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from ur4rec.data.batches import EvaluationBatch
from ur4rec.training import held_out
from ur4rec.training.checkpoint import Arrays
from ur4rec_torch.checkpoint import plain_name
from ur4rec_torch.device import send, to_host, to_indices
from ur4rec_torch.layout import Layout
from ur4rec_torch.retriever import PreferenceRetriever
from ur4rec_torch.sasrec import SASRec
from ur4rec_torch.spread import gathered, spread_like
from ur4rec_torch.ur4rec import UR4Rec

Snapshot = held_out.Snapshot[Tensor]


class ModuleSnapshots:
    """See `ur4rec.training.held_out.SnapshotScores`.

    Args:
        model: The model.
        device: Where it is.
        inference: Puts it in inference mode and back.
        layout: Which parts of it this process has; of snapshots it has the same ones.
    """

    def __init__(
        self,
        model: UR4Rec,
        device: torch.device,
        inference: Callable[[], AbstractContextManager[None]],
        layout: Layout,
    ) -> None:
        self._model = model
        self._layout = layout
        self._device = device
        self._inference = inference

    def take(self, module: str, batch: EvaluationBatch, weights: Mapping[str, NDArray[Any]] | None) -> Snapshot:
        """The snapshot of a module as it is, or with these weights."""
        parameters = dict(getattr(self._model, module).named_parameters())
        if weights is None:
            kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        else:
            own = self._layout.cut({f"{module}.{name}": array for name, array in weights.items()})
            kept = {
                name: spread_like(torch.tensor(own[f"{module}.{plain_name(name)}"], device=self._device), parameter)
                for name, parameter in parameters.items()
            }
        reader = _READERS[module](getattr(self._model, module))
        items_BL = to_indices(batch.items_BL, self._device)
        users_B = None if batch.users_B is None else to_indices(batch.users_B, self._device)
        with self._inference():
            texts_JT = self._model.item_texts() if self._model.config.has_text_encoder else None
            given = (items_BL, users_B, self._model.last(items_BL), texts_JT)
            outputs_Bd, table_Id = functional_call(
                reader, {f"module.{name}": gathered(each) for name, each in kept.items()}, given
            )
        return Snapshot(kept, outputs_Bd, table_Id, module)

    def weights(self, snapshot: Snapshot) -> Arrays:
        """Its weights, by the names in a checkpoint."""
        names = ((plain_name(name), weight) for name, weight in snapshot.weights.items())
        whole = ((name, self._layout.gather(f"{snapshot.module}.{name}", weight)) for name, weight in names)
        return {name: to_host(weight) for name, weight in whole if weight is not None}

    def score(self, module: str, snapshot: Snapshot, first: int, width: int) -> Tensor:
        """Scores of a module alone for some items, (B, s)."""
        with torch.no_grad():
            scores_Bs: Tensor = getattr(self._model, module).score(
                snapshot.outputs_Bd, snapshot.table_Id[first : first + width]
            )
        return scores_Bs

    def fuse(
        self, scores: tuple[Tensor, ...], first: int, totals: tuple[NDArray[np.float32], ...] | None
    ) -> NDArray[np.float32]:
        """Fused scores of items from the first, (B, s)."""
        sasrec_Bs, retriever_Bs = scores
        items = slice(first, first + sasrec_Bs.shape[1])
        on_device = None if totals is None else [send(each, self._device) for each in totals]
        with torch.no_grad():
            return to_host(self._model.fuse(sasrec_Bs, retriever_Bs, on_device, items))


class _Reader(nn.Module):
    """Calls a module, so that it can be called with other weights."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class _States(_Reader):
    module: SASRec

    def forward(
        self, items_BL: Tensor, users_B: Tensor | None, last_B: Tensor, texts_JT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self.module(items_BL, last_B)[:, 0], self.module.item_table()


class _Preferences(_Reader):
    module: PreferenceRetriever

    def forward(
        self, items_BL: Tensor, users_B: Tensor | None, last_B: Tensor, texts_JT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        catalogue = self.module.catalogue(with_users=False, texts_JT=texts_JT)
        return self.module(items_BL, catalogue, users_B, last_B)[:, 0], catalogue.keys_Id


_READERS: dict[str, type[_Reader]] = {"sasrec": _States, "retriever": _Preferences}

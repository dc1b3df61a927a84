"""Snapshots of a model's modules, and scores with them: what a `Payoff` schedule measures by.

Shapes: B rows, L positions, I items, s items of a slice, d width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from ur4rec.data.batches import EvaluationBatch
from ur4rec.training import held_out
from ur4rec.training.checkpoint import Arrays
from ur4rec_jax.compiled import Functions
from ur4rec_jax.device import to_indices
from ur4rec_jax.layout import Layout, to_host
from ur4rec_jax.weights import export_weights, import_weights

Snapshot = held_out.Snapshot[Any]


class ModuleSnapshots:
    """See `ur4rec.training.held_out.SnapshotScores`.

    Args:
        functions: The model's.
        arrays: Returns its parameters by part and its buffers, as they are now.
        place: Puts the parameters of a module on the device.
        layout: Where the model is.
        padding: The padding index.
        reads_users: Whether the model has user texts.
    """

    def __init__(
        self,
        functions: Functions,
        arrays: Callable[[], tuple[dict[str, Any], Any]],
        place: Callable[[Any], Any],
        layout: Layout,
        *,
        padding: int,
        reads_users: bool,
    ) -> None:
        self._functions = functions
        self._arrays = arrays
        self._place = place
        self._layout = layout
        self._padding = padding
        self._reads_users = reads_users

    def take(self, module: str, batch: EvaluationBatch, weights: Mapping[str, NDArray[Any]] | None) -> Snapshot:
        """The snapshot of a module as it is, or with these weights; a step consumes its own arrays, so it is a copy."""
        params, buffers = self._arrays()
        if weights is None:
            kept = jax.tree.map(jnp.copy, params[module])
        else:
            kept = self._place(import_weights(self._layout.model_shape(params[module]), weights))
        users_B = to_indices(batch.users_B) if self._reads_users and batch.users_B is not None else None
        items_BL = to_indices(batch.items_BL)
        rows = (
            self._place((items_BL, users_B))
            if self._layout.mesh is None
            else self._layout.place_histories(items_BL, users_B, self._padding)
        )
        outputs_Bd, table_Id = self._functions.read(
            {**params, module: kept}, buffers, *rows, module=module, num_rows=len(items_BL)
        )
        return Snapshot(kept, outputs_Bd, table_Id)

    def weights(self, snapshot: Snapshot) -> Arrays:
        """Its weights, by the names in a checkpoint."""
        return export_weights(self._layout.fetch(snapshot.weights))

    def score(self, module: str, snapshot: Snapshot, first: int, width: int) -> Array:
        """Scores of a module alone for some items, (B, s)."""
        outputs_Bd, table_Id = snapshot.outputs_Bd, snapshot.table_Id
        scores_Bs: Array = self._functions.compare(
            *self._arrays(), outputs_Bd, table_Id, self._place(np.int32(first)), module=module, width=width
        )
        return scores_Bs

    def fuse(
        self, scores: tuple[Array, ...], first: int, totals: tuple[NDArray[np.float32], ...] | None
    ) -> NDArray[np.float32]:
        """Fused scores of items from the first, (B, s)."""
        start, on_device = self._place(np.int32(first)), self._place(totals)
        return to_host(self._functions.fuse(*self._arrays(), *scores, start, on_device))

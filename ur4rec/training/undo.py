"""What a trainer can undo, as a `Trial` schedule asks for it; see `ur4rec.schedule.trial_probe.Training`."""

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ur4rec.training.checkpoint import FROZEN, MOMENTS, WEIGHTS, Arrays

StateT = TypeVar("StateT")


class Undoable(Protocol[StateT]):
    """The hooks of a trainer."""

    def _take_state(self) -> StateT:
        """All that training changes, copied on the device."""

    def _set_state(self, state: StateT, /) -> None:
        """Set all that to what it was; the state may be set again."""

    def _export_arrays(self) -> tuple[Arrays, Arrays]:
        """The weights and moments of a checkpoint."""

    def _restore_arrays(self, weights: Arrays, moments: Arrays, /) -> None:
        """Take over the weights and moments of a checkpoint."""


class Undo(Generic[StateT]):
    """Snapshots of a trainer, in memory, and in a checkpoint as one of the model would be.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: Undoable[StateT]) -> None:
        self._trainer = trainer

    def take(self) -> StateT:
        """All that training changes, copied on the device."""
        return self._trainer._take_state()

    def restore(self, state: StateT) -> None:
        """Set all that to what it was."""
        self._trainer._set_state(state)

    def export(self, state: StateT) -> Arrays:
        """Its arrays by name, in whatever layout those of one process; the trainer is left as it is."""
        now = self.take()
        self.restore(state)
        weights, moments = self._trainer._export_arrays()
        arrays = {f"{WEIGHTS}{name}": np.array(each) for name, each in weights.items() if name not in FROZEN}
        arrays |= {f"{MOMENTS}{name}": np.array(each) for name, each in moments.items()}  # no views of what is set now
        self.restore(now)
        return arrays

    def load(self, arrays: Mapping[str, NDArray[Any]], weights: Mapping[str, NDArray[Any]]) -> StateT:
        """What `export` had; the trainer is left as it is.

        Args:
            arrays: What `export` returned.
            weights: Those of the checkpoint, among them what never changes in the course of a run.

        Raises:
            CheckpointError: It does not fit the model.
        """
        now = self.take()
        own, moments = (
            {name.removeprefix(prefix): each for name, each in arrays.items() if name.startswith(prefix)}
            for prefix in (WEIGHTS, MOMENTS)
        )
        frozen = {name: each for name, each in weights.items() if name in FROZEN}
        self._trainer._restore_arrays({**frozen, **own}, moments)
        state = self.take()
        self.restore(now)
        return state

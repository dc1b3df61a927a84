"""What an adapter's author writes to be measured: one training run of the problem, behind these few methods."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from alternator import Decision
from tests.conformance.problem import Batch, Setup

Snapshot = dict[str, dict[str, np.ndarray]]


class Unsupported(Exception):  # noqa: N818
    """Raised by a mutant for a case that its naive way has nothing to do with. No backend may raise it."""


class Harness(Protocol):
    """A training run. The constructor takes a `Setup`; the weights are those of `problem.initial_weights`."""

    @property
    def active(self) -> str:
        """The name (module or turn) that trains in the next step."""
        ...

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        """Train what is active on a batch, and decide.

        Args:
            batch: The data.
            losses: The losses reported to the alternator, by name; by default each module's own loss on this batch
                (for a turn of several modules, their sum).
            updated: False for a step whose update the optimizer skips: nothing but the counts may change.
        """
        ...

    def force(self, name: str) -> None:
        """Start a new tenure of a name now."""
        ...

    def snapshot(self) -> Snapshot:
        """Copies of everything that belongs to each module (and to ``always``), bit for bit.

        Keys begin with the clause that they fall under: ``parameters/``, ``optimizer/`` (moments, step counts),
        ``schedule/`` (whatever the learning rate depends on) and, but for the always group, ``buffers/``. Wherever a
        state is, it is in here; one that has been dropped is what it was at first.
        """
        ...

    def held(self) -> set[str]:
        """The groups of whose moments something is on the device where training runs."""
        ...

    def computed(self) -> set[str]:
        """The groups for whose parameters the last step computed gradients other than zero, or left some behind."""
        ...

    def own_losses(self, batch: Batch) -> dict[str, float]:
        """Each module's own loss on a batch, in inference mode."""
        ...

    def scores(self, batch: Batch) -> np.ndarray:
        """The sum of all predictions on a batch, each times its mix, in inference mode."""
        ...

    def save(self) -> Any:
        """Everything that later steps depend on."""
        ...

    def load(self, saved: Any) -> None:
        """Resume where another run of the same setup was saved."""
        ...

    def take(self) -> Any:
        """A snapshot of all that training changes, in memory, as the adapter takes it; the schedule is not part."""
        ...

    def rollback(self, kept: Any) -> None:
        """Go back to what `take` returned in this run; it may be used again."""
        ...

    def num_traces(self) -> int | None:
        """How often training steps of this setup were traced or compiled; None if the backend never does so."""
        ...


Build = Callable[[Setup], Harness]

"""Measures for a `Payoff` schedule what each module's training was worth on held-out targets.

Shapes: B held-out targets, I items, s items of a slice, G groups.
"""

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alternator import Alternator, Payoff, Payoffs
from ur4rec.schedule.stages import MODULES, TURNS, turns_of

PREFIX = "payoff."
"""Names of its arrays in a checkpoint begin so."""
_POSITION = f"{PREFIX}position"
_TURNS = {turn: TURNS[turn] for turn in turns_of(MODULES)}

SnapshotT = TypeVar("SnapshotT")
"""A module as it was: its weights, and what it says of the held-out histories."""


class HeldOut(Protocol[SnapshotT]):
    """What a trainer computes on held-out targets."""

    def take(self, module: str, weights: Mapping[str, NDArray[Any]] | None = None) -> SnapshotT:
        """The snapshot of a module as it is now, or with these weights, to the bit as when it had them."""

    def weights(self, snapshot: SnapshotT) -> dict[str, NDArray[Any]]:
        """The weights of a snapshot by name, without what never changes."""

    def losses(self, snapshots: Mapping[str, SnapshotT]) -> NDArray[np.float64]:
        """The logarithm to base 2 of each target's smooth rank, (B,), with a snapshot of each module."""


class PayoffProbe(Generic[SnapshotT]):
    """Measures payoffs in the course of a tenure, and records them.

    It measures after ``min_steps`` steps, and again when as many have passed since, or a quarter of the tenure if that
    is more: what has paid for long is measured less often, so that the cost of measuring fades.

    A module's snapshot is what it says of the held-out histories, so a measurement costs one forward pass of what has
    trained; mixed snapshots are fused, slice by slice of the catalogue, and the loss is the logarithm of a
    target's smooth rank, the mean of each group of targets. A checkpoint keeps the weights that a snapshot came from.

    Args:
        alternator: With a `Payoff` rule, over the turns of `MODULES`.
        held_out: What is computed on the held-out targets.
    """

    def __init__(self, alternator: Alternator, held_out: HeldOut[SnapshotT]) -> None:
        assert isinstance(alternator.rule, Payoff)
        self._alternator = alternator
        self._rule = alternator.rule
        self._held_out = held_out
        self._payoffs: Payoffs[SnapshotT] | None = None
        self._position = (-1, 0)
        self.num_forwards = 0
        """How often the held-out histories have been scored by a module, which is what measuring costs."""

    def before_step(self) -> None:
        """Measure and record, if it is time; at the beginning of a tenure, start from scratch."""
        stats = self._alternator.stats()
        tenure, (number, measured) = stats.steps_since_switch, self._position
        if self._payoffs is None:
            self._payoffs = Payoffs(_TURNS, self._snapshot, self._losses)
            self._position = (stats.switch_count, tenure)
        elif number != stats.switch_count:
            self._payoffs.restart()
            self._position = (stats.switch_count, tenure)
        elif tenure - measured >= max(self._rule.min_steps, tenure // 4):
            for turn, values in self._payoffs.measure(self._alternator.active, tenure - measured).items():
                for value in values:
                    self._alternator.record(turn, value)
            self._position = (number, tenure)

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """The weights of the snapshots and the position, by name; empty before the first step."""
        if self._payoffs is None:
            return {}
        weights = {
            f"{PREFIX}{module}.{name}": array
            for module, snapshot in self._payoffs.before.items()
            for name, array in self._held_out.weights(snapshot).items()
        }
        return {_POSITION: np.array(self._position, np.int32), **weights}

    def load_state_dict(self, arrays: Mapping[str, ArrayLike], weights: Mapping[str, NDArray[Any]]) -> None:
        """Continue exactly where `state_dict` was taken; other arrays, and the model's weights, are left alone.

        Of an earlier version's state, which has scores in place of weights, measuring starts again.
        """
        starts = {module: f"{PREFIX}{module}." for module in MODULES}
        own = {
            module: {
                name.removeprefix(start): np.asarray(each) for name, each in arrays.items() if name.startswith(start)
            }
            for module, start in starts.items()
        }
        if _POSITION not in arrays or not all(own.values()):
            return
        before = {module: self._held_out.take(module, each) for module, each in own.items()}
        self._payoffs = Payoffs(_TURNS, self._snapshot, self._losses, before)
        number, measured = np.asarray(arrays[_POSITION]).tolist()
        self._position = (number, measured)

    def _snapshot(self, name: str) -> SnapshotT:
        self.num_forwards += 1
        return self._held_out.take(name)

    def _losses(self, snapshots: Mapping[str, SnapshotT]) -> list[float]:
        losses_B = self._held_out.losses(snapshots)
        return [float(group.mean()) for group in np.array_split(losses_B, self._rule.groups)]

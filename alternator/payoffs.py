"""Payoffs: what each module's training has been worth, measured by undoing it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from alternator.checks import check_integer, to_float
from alternator.errors import ConfigurationError

T = TypeVar("T")


class Payoffs(Generic[T]):
    """Measures by how much each turn's modules have lowered a held-out loss; a `Payoff` rule decides by the results.

    Let L be the held-out loss with all modules as they were at the last measurement, and M the loss with a turn's
    modules as they are now and all others as they were. L - M is what the turn's training was worth without that of the
    others. All losses are computed on the same examples, so their noise cancels in the differences.

    Args:
        turns: The names of the modules that each turn trains.
        snapshot: Returns what represents a module as it is now: a copy of its parameters, or, cheaper, its outputs
            for the held-out examples.
        losses: Returns the held-out losses, one per group of examples, given one snapshot of each module.
        before: The snapshots to measure from, to resume from a saved `before`; by default, those of now.

    Raises:
        ConfigurationError: There are no turns.

    Example:
        >>> weights = {"a": 1.0, "b": 1.0}
        >>> payoffs = Payoffs(
        ...     {"both": ("a", "b"), "a": ("a",), "b": ("b",)},
        ...     snapshot=lambda name: weights[name],
        ...     losses=lambda mix: [mix["a"] + 3 * mix["b"], mix["a"] + 5 * mix["b"]],
        ... )
        >>> weights.update(a=0.5, b=0.75)
        >>> payoffs.measure("both", num_steps=10)
        {'both': [0.125, 0.175], 'a': [0.05, 0.05], 'b': [0.075, 0.125]}
        >>> weights.update(a=0.25)
        >>> payoffs.measure("a", num_steps=10)
        {'a': [0.025, 0.025]}
    """

    def __init__(
        self,
        turns: Mapping[str, Sequence[str]],
        snapshot: Callable[[str], T],
        losses: Callable[[Mapping[str, T]], Sequence[float]],
        before: Mapping[str, T] | None = None,
    ) -> None:
        if not turns:
            raise ConfigurationError("turns must name at least one turn, got none")
        self._turns = {name: tuple(members) for name, members in turns.items()}
        self._snapshot = snapshot
        self._losses = losses
        self.before = self._snapshots() if before is None else dict(before)

    def restart(self) -> None:
        """Measure from the modules as they are now."""
        self.before = self._snapshots()

    def measure(self, active: str, num_steps: int) -> dict[str, list[float]]:
        """The payoff per step of each turn whose modules have all trained; the next measurement starts from here.

        Args:
            active: The turn that has trained since the last measurement.
            num_steps: The number of its steps since then.

        Returns:
            Turn → payoffs per step, one per group of examples; positive where the held-out loss has fallen.

        Raises:
            ConfigurationError: There are no such steps.
            LossError: A held-out loss is not a real scalar.
        """
        check_integer("num_steps", num_steps, 1)
        trained = self._turns[active]
        after = {name: self._snapshot(name) for name in trained}
        base = self._losses(self.before)
        payoffs = {}
        for turn, members in self._turns.items():
            if set(members) <= set(trained):
                losses = self._losses({**self.before, **{name: after[name] for name in members}})
                payoffs[turn] = [
                    (was - now) / num_steps for was, now in zip(map(to_float, base), map(to_float, losses), strict=True)
                ]
        self.before = {**self.before, **after}
        return payoffs

    def _snapshots(self) -> dict[str, T]:
        names = dict.fromkeys(name for turn in self._turns.values() for name in turn)
        return {name: self._snapshot(name) for name in names}

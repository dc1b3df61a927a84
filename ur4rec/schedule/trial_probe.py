"""Tries what a `Trial` schedule asks for: measures on held-out targets, undoes, and says what was undone."""

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alternator import Alternator, Trial, Trials
from alternator.rules.trial import NOBODY, TO_KEPT
from ur4rec.schedule.stages import MODULES

PREFIX = "trial."
"""Names of its arrays in a checkpoint begin so."""
_SINCE = f"{PREFIX}since"
_SNAPSHOTS = ("start", "kept")
SNAPSHOTS = tuple(f"{PREFIX}{name}." for name in _SNAPSHOTS)
"""Names of the arrays of a snapshot begin so."""
UNDONE, STAYS, WINS = "undone", "stays", "wins"

StateT = TypeVar("StateT")
"""All that training changes, as it was: in memory, on the device."""


class Training(Protocol[StateT]):
    """What a trainer can undo."""

    def take(self) -> StateT:
        """All that training changes, copied."""

    def restore(self, state: StateT, /) -> None:
        """Set all that to what it was."""

    def export(self, state: StateT, /) -> dict[str, NDArray[Any]]:
        """Its arrays by name, for a checkpoint."""

    def load(self, arrays: Mapping[str, NDArray[Any]], weights: Mapping[str, NDArray[Any]], /) -> StateT:
        """What `export` had, with what never changes taken from the weights of the checkpoint."""


class Attempt(NamedTuple):
    """Steps on trial that are over, and what became of them."""

    step: int
    """The last of them, in steps of the stage."""
    first: int
    """The first of them."""
    candidate: str
    """What was tried, such as ``sasrec + 8 retriever``."""
    loss: float
    """The held-out loss by then, the mean logarithm to base 2 of a smooth rank; NaN at a verdict."""
    outcome: str
    """`UNDONE`: the model went back to where the trial began. `STAYS`: they are the incumbent's, and it trains on from
    there, unless the next one says otherwise. `WINS`: the incumbent's steps were undone in their turn, and training
    continues from where this candidate's last attempt ended."""


class TrialProbe(Generic[StateT]):
    """Runs the trials of a schedule in a trainer.

    A measurement is the logarithm to base 2 of the held-out targets' smooth ranks with the model as it is, the mean of
    each group of targets. Batches, dropout and sampled negatives go on with the count of steps, and so do learning
    rates: what was tried is charged. A checkpoint in the middle of a trial keeps what the model returns to.

    Args:
        alternator: With a `Trial` rule.
        measure: The logarithm of each target's smooth rank, (B,).
        training: What is undone.
    """

    def __init__(
        self, alternator: Alternator, measure: Callable[[], NDArray[np.float64]], training: Training[StateT]
    ) -> None:
        assert isinstance(alternator.rule, Trial)
        self._alternator = alternator
        self._rule = alternator.rule
        self._measure = measure
        self._training = training
        self._trials = self._begin({})
        self._since, self._looked_at = 0, -1
        self._loss = float("nan")
        self.num_forwards = 0
        """How often the held-out histories have been scored by a module, which is what measuring costs."""
        self.attempts: list[Attempt] = []
        """What has been tried since this was built."""

    def before_step(self) -> None:
        """Measure, go back and take a snapshot, if it is time."""
        step, state = self._alternator.step, self._alternator.rule_state
        if step == self._looked_at:
            return
        self._looked_at = step
        self._trials.before_step()
        if state.pending != NOBODY:
            self._note(step, state.pending, self._loss, UNDONE if state.returns else STAYS)
        elif state.returns == TO_KEPT:
            self._note(step, state.incumbent, float("nan"), WINS)
        if state.returns or state.begins:
            self._since = step

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """The snapshots of a trial that is under way, and where it began, by name."""
        arrays: dict[str, NDArray[np.generic]] = {_SINCE: np.array(self._since, np.int64)}
        for name in _SNAPSHOTS:
            state = getattr(self._trials, name)
            if state is not None:
                arrays |= {f"{PREFIX}{name}.{key}": each for key, each in self._training.export(state).items()}
        return arrays

    def load_state_dict(self, arrays: Mapping[str, ArrayLike], weights: Mapping[str, NDArray[Any]]) -> None:
        """Continue exactly where `state_dict` was taken; other arrays are left alone."""
        found = {}
        for name in _SNAPSHOTS:
            start = f"{PREFIX}{name}."
            own = {key.removeprefix(start): np.asarray(each) for key, each in arrays.items() if key.startswith(start)}
            if own:
                found[name] = self._training.load(own, weights)
        self._since = int(np.asarray(arrays.get(_SINCE, 0)))
        self._trials = self._begin(found)

    def _begin(self, snapshots: Mapping[str, StateT]) -> Trials[StateT]:
        training = self._training
        return Trials(
            self._alternator, snapshot=training.take, restore=training.restore, losses=self._losses, **snapshots
        )

    def _losses(self) -> list[float]:
        self.num_forwards += len(MODULES)
        losses = [float(group.mean()) for group in np.array_split(self._measure(), self._rule.groups)]
        self._loss = float(np.mean(losses))
        return losses

    def _note(self, step: int, candidate: int, loss: float, outcome: str) -> None:
        names = self._alternator.modules
        turns = [names[turn] for turn in self._rule.sequences(len(names))[candidate]]
        self.attempts.append(Attempt(step, self._since + 1, describe_sequence(turns), loss, outcome))


def describe_sequence(turns: list[str]) -> str:
    """A candidate in words.

    Example:
        >>> describe_sequence(["sasrec", *["retriever"] * 8]), describe_sequence(["both"])
        ('sasrec + 8 retriever', 'both')
    """
    counted = [(turn, len(list(steps))) for turn, steps in groupby(turns)]
    return " + ".join(turn if count == 1 else f"{count} {turn}" for turn, count in counted)


def describe_attempt(attempt: Attempt) -> str:
    """An attempt in words.

    Example:
        >>> describe_attempt(Attempt(120, 101, "both", 4.6543, UNDONE))
        'steps 101 to 120 on trial (both): held-out loss 4.6543, undone'
        >>> describe_attempt(Attempt(141, 121, "sasrec", float("nan"), WINS))
        'steps 121 to 141 undone: sasrec was better, and trains on from where its trial ended'
    """
    steps = f"steps {attempt.first} to {attempt.step}"
    if attempt.outcome == WINS:
        return f"{steps} undone: {attempt.candidate} was better, and trains on from where its trial ended"
    fate = "undone" if attempt.outcome == UNDONE else "the incumbent's, not undone"
    return f"{steps} on trial ({attempt.candidate}): held-out loss {attempt.loss:.4f}, {fate}"

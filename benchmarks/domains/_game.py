"""A run of players who oppose or chase each other: a rule chooses who trains, and all that it looks at is charged."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from alternator import Alternator, Rule, Trial, Trials

from ._domain import Outcome, Point

BOTH = "both"
LOSSES = "losses"


class Game(Protocol):
    """Two players in training."""

    @property
    def players(self) -> tuple[str, str]:
        """Who may train alone; ``both`` is both."""
        ...

    @property
    def costs(self) -> Mapping[str, float]:
        """Of a step of each, and of ``both``."""
        ...

    @property
    def measuring_cost(self) -> float:
        """Of `held_out_losses`."""
        ...

    def step(self, turn: str) -> Mapping[str, float]:
        """Train; returns what was seen on the way: losses by the player's name, and signals."""
        ...

    def look(self) -> tuple[float, float]:
        """The metric, of which less is better, on held-out and on test data."""
        ...

    def held_out_losses(self) -> Sequence[float]:
        """Losses of groups of held-out examples, the same each time."""
        ...

    def snapshot(self) -> Any:
        """All that training changes."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Go back to it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A rule and what it is given to see."""

    rule: Rule | None
    """Chooses who trains; None: both train in each step."""
    signal: str | None = None
    """What is recorded: None for the loss of who trains, ``losses`` for both losses in each step, or the name of a
    signal, which is recorded for the first player."""
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    """By player, as a multiple of the game's, where it is not 1."""


class Match:
    """One run.

    Args:
        game: At its beginning.
        schedule: Who trains.
        budget: What may be spent.
        num_looks: The number of looks, at equal distances of cost.
    """

    def __init__(self, game: Game, schedule: Schedule, budget: float, num_looks: int) -> None:
        self._game, self._schedule, self._budget, self._num_looks = game, schedule, budget, num_looks
        self._cost, self._steps, self._curve = 0.0, Counter[str](), list[Point]()
        self._alternator = None if schedule.rule is None else Alternator(game.players, schedule.rule)
        self._trials: Trials[Any] | None = None
        if self._alternator is not None and isinstance(schedule.rule, Trial):
            self._trials = Trials(
                self._alternator, snapshot=self._snapshot, restore=self._restore, losses=self._held_out_losses
            )

    def play(self) -> Outcome:
        """Train to the end of the budget."""
        while self._cost < self._budget:
            if self._trials is not None:
                if self._is_trying and self._cost + self._game.measuring_cost > self._budget:
                    break
                self._trials.before_step()
            self._step()
            if self._cost >= self._budget * (len(self._curve) + 1) / self._num_looks and not self._is_trying:
                self._curve.append(Point(self._cost, *self._game.look()))
        if self._trials is not None and self._is_trying:
            self._restore(self._trials.start)
            self._curve.append(Point(self._cost, *self._game.look()))
        total = self._steps.total()
        shares = {turn: count / total for turn, count in sorted(self._steps.items())}
        return Outcome.at_best(self._curve, higher_is_better=False, shares=shares)

    @property
    def _is_trying(self) -> bool:
        """Whether what trains now may be undone."""
        return self._trials is not None and self._trials.start is not None

    def _step(self) -> None:
        turn = BOTH if self._alternator is None else self._alternator.active
        seen = self._game.step(turn)
        self._cost += self._game.costs[turn]
        self._steps[turn] += 1
        if self._alternator is not None:
            for player, value in self._recorded(turn, seen).items():
                self._alternator.record(player, value)
            self._alternator.advance()

    def _recorded(self, turn: str, seen: Mapping[str, float]) -> Mapping[str, float]:
        signal = self._schedule.signal
        if self._trials is not None:
            return {}
        if signal is None:
            return {turn: seen[turn]}
        if signal == LOSSES:
            return {player: seen[player] for player in self._game.players}
        return {self._game.players[0]: seen[signal]} if signal in seen else {}

    def _held_out_losses(self) -> Sequence[float]:
        self._cost += self._game.measuring_cost
        return self._game.held_out_losses()

    def _snapshot(self) -> tuple[Any, Counter[str]]:
        return self._game.snapshot(), self._steps.copy()

    def _restore(self, snapshot: Any) -> None:
        before, self._steps = snapshot[0], snapshot[1].copy()
        self._game.restore(before)

"""A run in PyTorch: a schedule trains a model through the real adapter; what it tries or measures is charged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Payoff, Payoffs, Rule, Trial, Trials

from ._domain import Outcome, Point
from ._rules import Order


@dataclass(frozen=True)
class Schedule:
    """Who may train, and the rule that decides."""

    rule: Rule
    turns: Mapping[str, tuple[str, ...]]
    """Per turn, the modules that train in it."""


@dataclass(kw_only=True)
class Problem:
    """A model to train, the losses of its steps, and what it is worth."""

    modules: Mapping[str, nn.Module]
    model: nn.Module
    optimizers: Mapping[str, Optimizer]
    loss: Callable[[], Tensor]
    """The loss of the next training batch."""
    held_out: Callable[[], Sequence[float]]
    """What the rules that measure may see: a value per held-out example, lower is better."""
    look: Callable[[], tuple[float, float]]
    """The metric on held-out and on test data."""
    higher_is_better: bool
    costs: Mapping[str, float] | None = None
    """Of a step of each turn; None: 1 each."""
    measuring_cost: float = 0.0
    """Of computing ``held_out`` once, in the same unit."""
    drops_states: bool = False
    """Whether the optimizer state of what stops training is lost, as where memory holds one block's only."""
    before_step: Callable[["Run"], object] = field(default=lambda run: None)
    """What a published method does before each step; it may switch, and charges what it computes."""


class Run:
    """Trains through a budget.

    Args:
        problem: What is trained.
        schedule: Who decides.
        budget: What may be spent, in the unit of the costs.
        look_every: The cost between two looks at held-out and test data, which are free, as everybody needs them.
    """

    def __init__(self, problem: Problem, schedule: Schedule, budget: float, look_every: float) -> None:
        self._problem = problem
        self._budget = budget
        self._look_every = look_every
        self._turns = schedule.turns
        self._rule = schedule.rule
        self.alternator = Alternator(tuple(schedule.turns), rule=schedule.rule)
        self.alternating = AlternatingOptimizer(
            self.alternator,
            dict(problem.modules),
            dict(problem.optimizers),
            model=problem.model,
            turns=schedule.turns,
            frozen_mode="inference",
        )
        if isinstance(schedule.rule, Order):
            self.alternating.force(self.alternator.modules[schedule.rule.first_turn])
        self._costs = problem.costs or dict.fromkeys(schedule.turns, 1.0)
        self._steps = dict.fromkeys(schedule.turns, 0)
        self._cost = 0.0
        self.last_loss: Tensor | None = None
        """Of the last step's training batch, before its update."""
        self._measures = self._build_measures()

    def train(self) -> Outcome:
        """To the end of the budget."""
        points, next_look = [self._look()], self._look_every
        while self._cost + self._costs[self.alternator.active] <= self._budget * (1 + 1e-9):
            self._measures.before_step()
            if self._cost >= next_look and not self._measures.is_trying:
                points.append(self._look())
                next_look = self._cost + self._look_every
            self._step()
        self._measures.end()
        points.append(self._look())
        total = sum(self._steps.values())
        shares = {turn: steps / total for turn, steps in self._steps.items() if steps}
        return Outcome.at_best(points, higher_is_better=self._problem.higher_is_better, shares=shares)

    def charge(self, cost: float) -> None:
        """Something has been computed besides the steps of training."""
        self._cost += cost

    def _step(self) -> None:
        self.alternating.train()
        self._problem.before_step(self)
        turn = self.alternator.active
        if self._problem.drops_states:
            self._drop_states(turn)
        loss = self._problem.loss()
        self.last_loss = loss.detach()
        self.alternating.step(loss, self._measures.losses)
        self._cost += self._costs[turn]
        self._steps[turn] += 1

    def _drop_states(self, turn: str) -> None:
        """Forget the optimizer states of what does not train."""
        for name, optimizer in self._problem.optimizers.items():
            if name not in self._turns[turn]:
                optimizer.state.clear()

    def _look(self) -> Point:
        self.alternating.eval()
        with torch.no_grad():
            return Point(self._cost, *self._problem.look())

    def _held_out(self) -> Sequence[float]:
        self._cost += self._problem.measuring_cost
        self.alternating.eval()
        with torch.no_grad():
            return self._problem.held_out()

    def _build_measures(self) -> "_Measures":
        if isinstance(self._rule, Trial):
            return _Trying(self.alternating, self._held_out)
        if isinstance(self._rule, Payoff):
            return _Paying(self.alternating, self._rule, self._problem.modules, self._turns, self._held_out)
        return _Measures()


class _Measures:
    """What a rule needs besides the losses of steps: nothing."""

    losses: Mapping[str, Any] | None = None
    """What is recorded of a step; None is its loss."""

    @property
    def is_trying(self) -> bool:
        """Whether what trains now may be undone."""
        return False

    def before_step(self) -> None:
        """Measure, and undo."""

    def end(self) -> None:
        """The budget is spent: leave the model as it is to be used."""


class _Trying(_Measures):
    """For `Trial`."""

    losses: Mapping[str, Any] | None = {}

    def __init__(self, alternating: AlternatingOptimizer, held_out: Callable[[], Sequence[float]]) -> None:
        self._alternating = alternating
        self._trials = Trials(
            alternating.alternator, snapshot=alternating.snapshot, restore=alternating.rollback, losses=held_out
        )

    @property
    def is_trying(self) -> bool:
        return self._trials.start is not None

    def before_step(self) -> None:
        self._trials.before_step()

    def end(self) -> None:
        if self._trials.start is not None:
            self._alternating.rollback(self._trials.start)


class _Paying(_Measures):
    """For `Payoff`: measured after ``min_steps`` steps, then whenever a quarter of the tenure has passed."""

    losses: Mapping[str, Any] | None = {}

    def __init__(
        self,
        alternating: AlternatingOptimizer,
        rule: Payoff,
        modules: Mapping[str, nn.Module],
        turns: Mapping[str, tuple[str, ...]],
        held_out: Callable[[], Sequence[float]],
    ) -> None:
        self._alternator, self._rule, self._modules = alternating.alternator, rule, modules
        self._alternating = alternating
        self._held_out = held_out
        self._payoffs = Payoffs(turns, self._snapshot, self._mixed_losses)
        self._position = (0, 0)

    def before_step(self) -> None:
        stats = self._alternator.stats()
        tenure, (number, measured) = stats.steps_since_switch, self._position
        if number != stats.switch_count:
            self._payoffs.restart()
            self._position = (stats.switch_count, tenure)
        elif tenure - measured >= max(self._rule.min_steps, tenure // 4):
            for turn, values in self._payoffs.measure(self._alternator.active, tenure - measured).items():
                for value in values:
                    self._alternator.record(turn, value)
            self._position = (number, tenure)

    def _snapshot(self, name: str) -> dict[str, Tensor]:
        return {key: value.detach().clone() for key, value in self._modules[name].state_dict().items()}

    def _mixed_losses(self, mix: Mapping[str, dict[str, Tensor]]) -> list[float]:
        """Held-out losses with these modules; afterwards the model is what it was."""
        now = self._alternating.snapshot()
        with torch.no_grad():
            for name, state in mix.items():
                for key, value in self._modules[name].state_dict(keep_vars=True).items():
                    value.data.copy_(state[key])
        losses = self._held_out()
        self._alternating.rollback(now)
        return means_of_parts(losses, self._rule.groups)


def means_of_parts(values: Sequence[float], num_parts: int) -> list[float]:
    """The means of consecutive parts of nearly equal length.

    Example:
        >>> means_of_parts([1.0, 3.0, 5.0, 7.0], 2)
        [2.0, 6.0]
    """
    edges = pairwise(round(part * len(values) / num_parts) for part in range(num_parts + 1))
    return [sum(values[first:last]) / (last - first) for first, last in edges]

"""Budgets: what each step is charged, what is spent, and where the learning rate is by then."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ur4rec.data.batches import Batch, TrainBatches
from ur4rec.runs.step_costs import StepCosts
from ur4rec.schedule.stages import MODULES, TURNS, turns_of
from ur4rec.training.trainer import AnyTrainer

BASES = ("updates", "cost")
"""What can be held equal: module updates, or seconds of computation."""


class Ledger:
    """Charges the steps of a run against a budget.

    Args:
        updates: Module updates of the budget.
        costs: What steps cost; the cost budget is that of ``updates`` steps of parity.
        basis: The budget that ends the run and drives the learning rate: ``updates`` or ``cost``.

    Example:
        >>> costs = StepCosts(first={"sasrec": 2, "retriever": 1}, later={"sasrec": 1, "retriever": 1})
        >>> ledger = Ledger(4, costs, "cost")
        >>> while ledger.fits("sasrec", 1.0):
        ...     ledger.charge("sasrec")
        >>> ledger.updates, ledger.cost, ledger.progress
        (5, 6.0, 1.0)
    """

    def __init__(self, updates: int, costs: StepCosts, basis: str) -> None:
        self.budget = {"updates": float(updates), "cost": float(costs.parity(updates))}
        self.turns: list[str] = []
        self._basis = basis
        self._costs = costs
        self._spent = {"updates": 0.0, "cost": 0.0}

    @property
    def updates(self) -> int:
        """Module updates so far."""
        return int(self._spent["updates"])

    @property
    def cost(self) -> float:
        """Seconds charged so far."""
        return self._spent["cost"]

    @property
    def progress(self) -> float:
        """The part of the budget that is spent."""
        return self._spent[self._basis] / self.budget[self._basis]

    def fits(self, turn: str, part: float) -> bool:
        """Whether one more step brings the run nearer to a part of the budget, rather than further past it."""
        price = self._price(turn)[self._basis]
        return self._spent[self._basis] + price / 2 <= part * self.budget[self._basis] * (1 + 1e-9)

    def charge(self, turn: str) -> None:
        """Count a step."""
        for basis, price in self._price(turn).items():
            self._spent[basis] += price
        self.turns.append(turn)

    def charge_probes(self, count: int) -> None:
        """Charge what a schedule measured on held-out targets."""
        self._spent["cost"] += count * self._costs.probe

    def _price(self, turn: str) -> dict[str, float]:
        seconds = self._costs.of_step(turn, self.turns[-1] if self.turns else None)
        return {"updates": len(TURNS[turn]), "cost": seconds}


class Course:
    """The training batches of a run in order, from one evaluation to the next, each step charged.

    It is what a trainer iterates over: a step's turn is known when its batch is asked for, and charged after it.

    Args:
        trainer: Its schedule decides what a step trains.
        batches: All batches; step n takes the n-th, whoever trains, so that every arm of a seed sees the same data.
        ledger: Where steps are charged.
    """

    def __init__(self, trainer: AnyTrainer, batches: TrainBatches, ledger: Ledger) -> None:
        self._trainer = trainer
        self._batches = batches
        self._ledger = ledger
        self.until = 1.0

    @property
    def usual_targets(self) -> int:
        """As for `TrainBatches`: a backend that compiles takes it for a constant shape."""
        return self._batches.usual_targets

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self._batches.batch_size

    def __iter__(self) -> Iterator[Batch]:
        while self._ledger.fits(turn := self._trainer.alternator.active, self.until):
            epoch, index = divmod(len(self._ledger.turns), len(self._batches))
            probed = self._trainer.num_probe_forwards
            yield self._batches.batch(epoch, index)
            self._ledger.charge(turn)
            self._ledger.charge_probes(self._trainer.num_probe_forwards - probed)


def describe_turns(turns: Sequence[str], modules: Sequence[str] = MODULES) -> dict[str, Any]:
    """Who trained when: shares of the updates, switches, and every tenure.

    Args:
        turns: The turn of each step.
        modules: The modules of the model.

    Example:
        >>> summary = describe_turns(["sasrec", "sasrec", "retriever", "both"])
        >>> summary["shares"], summary["switches"], summary["tenures"]
        ({'sasrec': 0.6, 'retriever': 0.4}, 2, [['sasrec', 2], ['retriever', 1], ['both', 1]])
    """
    tenures = [[turn, len(list(steps))] for turn, steps in groupby(turns)]
    updates = {module: sum(module in TURNS[turn] for turn in turns) for module in modules}
    total = sum(updates.values())
    return {
        "steps": len(turns),
        "turn_steps": {turn: turns.count(turn) for turn in turns_of(modules)},
        "shares": {module: count / total if total else 0.0 for module, count in updates.items()},
        "switches": max(len(tenures) - 1, 0),
        "mean_tenure": len(turns) / len(tenures) if tenures else 0.0,
        "tenures": tenures,
    }

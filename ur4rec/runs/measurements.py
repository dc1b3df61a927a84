"""What a `Payoff` schedule measured, and what it compared that with: ``payoffs.csv`` of a run."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, variance
from typing import NamedTuple

from alternator import Alternator, Payoff
from ur4rec.runs.rows import read_rows, write_rows
from ur4rec.schedule.stages import MODULES, TURNS


class Measurement(NamedTuple):
    """What the training of one module paid, by one measurement.

    In a joint turn that is what the module's training added to the others', against the share of what all together
    paid; the module is left out when ``payoff + z * stderr < limit``, as often in a row as the rule asks. Where the
    module trained alone, it is what its training paid, against what the other one had paid last.
    """

    step: int
    """The step after which it was judged."""
    active: str
    """The turn that had trained."""
    module: str
    """The module."""
    payoff: float
    """By how much a step's training lowered the held-out loss, in halvings of a rank, per unit of cost."""
    limit: float
    """What that was compared with, in the same unit."""
    stderr: float
    """Standard error of payoff - limit, over the groups of held-out targets; 0 where none was needed."""
    z: float
    """Standard errors by which the payoff had to be below the limit."""

    @property
    def margin(self) -> float:
        """Standard errors by which the payoff was above the limit."""
        return (self.payoff - self.limit) / self.stderr if self.stderr else 0.0


class PayoffWatch:
    """Notices after each step whether a `Payoff` schedule has measured, from the values that it was given."""

    def __init__(self) -> None:
        self._histories: dict[str, list[float]] = {}
        self._last: dict[str, float] = {}

    def restore(self, alternator: Alternator, records: Sequence[Measurement]) -> None:
        """Continue with a schedule that has given these measurements."""
        self._histories = _histories(alternator)
        self._last = {each.module: each.payoff for each in records}

    def after_step(self, alternator: Alternator, step: int) -> list[Measurement]:
        """The measurements that are new, one per module."""
        before, self._histories = self._histories, _histories(alternator)
        fresh = [turn for turn, values in self._histories.items() if values and values != before.get(turn)]
        if not fresh:
            return []
        found = self._of_joint(alternator, step) if alternator.modules[0] in fresh else []
        found = found or [self._of_smaller(alternator, step, turn) for turn in fresh if turn in MODULES]
        self._last |= {each.module: each.payoff for each in found}
        return found

    def _of_joint(self, alternator: Alternator, step: int) -> list[Measurement]:
        rule, (joint, *smaller) = alternator.rule, alternator.modules
        assert isinstance(rule, Payoff)
        costs = dict(zip(alternator.modules, rule.costs, strict=True))
        whole = self._histories[joint]
        limits = [rule.share * value / costs[joint] for value in whole]
        found = []
        for turn in smaller:
            part, saved = self._histories[turn], costs[joint] - costs[turn]
            if len(part) < rule.groups:
                continue
            paid = [(both - own) / saved for both, own in zip(whole, part, strict=True)]
            enough = [payoff - limit for payoff, limit in zip(paid, limits, strict=True)]
            stderr = sqrt(variance(enough) / len(enough))
            (module,) = (name for name in MODULES if name not in TURNS[turn])
            found.append(Measurement(step, joint, module, fmean(paid), fmean(limits), stderr, rule.z))
        return found

    def _of_smaller(self, alternator: Alternator, step: int, turn: str) -> Measurement:
        rule = alternator.rule
        assert isinstance(rule, Payoff)
        paid = fmean(self._histories[turn]) / rule.costs[alternator.modules.index(turn)]
        (other,) = (name for name in MODULES if name != turn)
        return Measurement(step, turn, turn, paid, self._last.get(other, 0.0), 0.0, 0.0)


def write_measurements(records: Sequence[Measurement], *, header: bool) -> str:
    """Rows of ``payoffs.csv``."""
    return write_rows(Measurement._fields, records, header=header)


def read_measurements(content: str) -> list[Measurement]:
    """The records that `write_measurements` wrote.

    Raises:
        ValueError, LookupError, TypeError: A row is not such a record.

    Example:
        >>> records = [Measurement(20, "both", "sasrec", 0.5, 0.25, 0.125, 1.0)]
        >>> read_measurements(write_measurements(records, header=True)) == records
        True
        >>> records[0].margin
        2.0
    """
    rows = read_rows(content)
    if unknown := {row[2] for row in rows} - set(MODULES):
        raise ValueError(f"unknown module {min(unknown)!r}")
    return [Measurement(int(row[0]), row[1], row[2], *map(float, row[3:])) for row in rows]


def _histories(alternator: Alternator) -> dict[str, list[float]]:
    if not isinstance(alternator.rule, Payoff):
        return {}
    return {turn: alternator.loss_history(turn) for turn in alternator.modules}

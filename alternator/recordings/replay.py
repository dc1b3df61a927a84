"""Replay: what a rule would have decided on recorded losses, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alternator.checks import check_integer, plain
from alternator.decision import Decision
from alternator.errors import LossError
from alternator.machine import Alternator
from alternator.reasons import describe, label
from alternator.rule import Rule

CAVEAT = (
    "A replay cannot know how the losses would have moved under other decisions: "
    "it shows what the rule says about these losses, not what a run with it would have reached."
)


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One switch of a replay.

    Attributes:
        step: The step after which it happened, as the record numbers its steps.
        previous: The module that had trained.
        active: The module that took over.
        reason: A code of `Reason`.
        why: The reason in words, with its numbers.
        all_plateaued: Whether every module's last tenure had ended on a plateau.
    """

    step: int
    previous: str
    active: str
    reason: str
    why: str
    all_plateaued: bool


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What a rule decided on recorded losses.

    Attributes:
        modules: The modules, in order.
        rule: The rule and its parameters.
        steps: The steps of the record.
        actives: Per step, the module that would have trained.
        switches: The switches, in order.
        training_steps: Per module, the steps in which it would have trained.
        shares: Per module, its share of all steps.
        longest_wait: Per module, the longest row of steps in which it would not have trained.
        holds: Why the rule held, in words, and how often; the most frequent first.
        last_decision: The last decision in words.
        blind_steps: Steps for which the record has no loss of the module that would have trained.
        nonfinite_losses: Per module, NaN and infinite losses in the record.
        caveat: What a replay cannot show.
    """

    modules: tuple[str, ...]
    rule: str
    steps: tuple[int, ...]
    actives: tuple[str, ...]
    switches: tuple[Switch, ...]
    training_steps: dict[str, int]
    shares: dict[str, float]
    longest_wait: dict[str, int]
    holds: dict[str, int]
    last_decision: str
    blind_steps: int
    nonfinite_losses: dict[str, int]
    caveat: str = CAVEAT

    def to_dict(self) -> dict[str, Any]:
        """Everything but the step-by-step lists, as plain JSON values."""
        plain = asdict(self)
        del plain["steps"], plain["actives"]
        return {
            **plain,
            "modules": list(self.modules),
            "num_steps": len(self.steps),
            "switches": list(plain["switches"]),
        }


def replay(
    losses: Mapping[str, Sequence[float | None]],
    rule: Rule | None = None,
    *,
    modules: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    delay: int = 0,
    nonfinite_limit: int = 10,
) -> Replay:
    """Run a rule over recorded losses: when it would have switched, and why it would have held.

    Use it to choose a rule and its parameters on the losses of a run that you have, and to learn why one does (not)
    switch. What is known of a step is recorded, then the step is counted; where the record has no loss of the module
    that would have trained (it was frozen), the rule sees nothing new, and the step counts as blind.

    Args:
        losses: Per module one value per step; None where it has none. NaN is a value: a non-finite loss.
        rule: The rule; `Plateau`, the original method, by default.
        modules: The modules in the order of turns; by default those of ``losses``.
        steps: Numbers of the steps, for the report; 1, 2, ... by default.
        delay: The number of steps by which the rule sees a loss late. Training loops that read losses late have 1.
        nonfinite_limit: As for `Alternator`.

    Raises:
        LossError: The columns or ``steps`` have different lengths or no rows, or a module has no column.
        ConfigurationError: The rule or the modules are refused, or ``delay`` is negative.

    Example:
        >>> from alternator import Plateau, replay
        >>> result = replay({"a": [1.0, 0.9, 0.9, 0.9], "b": [2.0, 2.0, 2.0, 2.0]}, Plateau(min_steps=2, window=3))
        >>> [(switch.step, switch.active, switch.why) for switch in result.switches]
        [(3, 'b', 'change rate 0 < 0.01')]
        >>> result.shares, result.holds
        ({'a': 0.75, 'b': 0.25}, {'tenure < min_steps': 2, 'too few losses seen': 1})
    """
    alternator = Alternator(losses if modules is None else modules, rule, nonfinite_limit=nonfinite_limit)
    check_integer("delay", delay, 0)
    columns, numbers = _check_columns(losses, alternator.modules, steps)
    decisions = []
    for row in range(len(numbers)):
        for name in alternator.modules if row >= delay else ():
            value = columns[name][row - delay]
            if value is not None:
                alternator.record(name, value, step=row - delay + 1)
        decisions.append(alternator.advance())
    return _report(alternator, columns, numbers, decisions)


def _check_columns(
    losses: Mapping[str, Sequence[float | None]], modules: tuple[str, ...], steps: Sequence[int] | None
) -> tuple[dict[str, Sequence[float | None]], tuple[int, ...]]:
    missing = [name for name in modules if name not in losses]
    if missing:
        raise LossError(f"there are no losses of module {missing[0]!r}; got those of {tuple(losses)}")
    columns = {name: losses[name] for name in modules}
    lengths = {name: len(column) for name, column in columns.items()}
    num_rows = lengths[modules[0]]
    numbers = tuple(range(1, num_rows + 1) if steps is None else map(plain, steps))
    if len({*lengths.values(), len(numbers)}) > 1 or num_rows == 0:
        raise LossError(
            f"losses must have one row or more, the same number for each module; got {lengths} for {len(numbers)} steps"
        )
    return columns, numbers


def _report(
    alternator: Alternator,
    columns: Mapping[str, Sequence[float | None]],
    numbers: tuple[int, ...],
    decisions: Sequence[Decision],
) -> Replay:
    actives = tuple(decision.previous for decision in decisions)
    stats = alternator.stats().modules
    holds = Counter(label(decision.reason) for decision in decisions if not decision.switched)
    return Replay(
        modules=alternator.modules,
        rule=repr(alternator.rule),
        steps=numbers,
        actives=actives,
        switches=tuple(_switch(decision, numbers) for decision in decisions if decision.switched),
        training_steps={name: stats[name].training_steps for name in alternator.modules},
        shares={name: stats[name].training_ratio for name in alternator.modules},
        longest_wait={name: _longest_wait(name, actives) for name in alternator.modules},
        holds=dict(holds.most_common()),
        last_decision=decisions[-1]._replace(step=numbers[-1]).explain(),
        blind_steps=sum(columns[name][row] is None for row, name in enumerate(actives)),
        nonfinite_losses={name: stats[name].nonfinite_losses for name in alternator.modules},
    )


def _switch(decision: Decision, numbers: tuple[int, ...]) -> Switch:
    return Switch(
        step=numbers[decision.step - 1],
        previous=decision.previous,
        active=decision.active,
        reason=decision.reason,
        why=describe(decision.reason, decision.value, decision.limit),
        all_plateaued=decision.all_plateaued,
    )


def _longest_wait(name: str, actives: Sequence[str]) -> int:
    longest = waited = 0
    for active in actives:
        waited = 0 if active == name else waited + 1
        longest = max(longest, waited)
    return longest

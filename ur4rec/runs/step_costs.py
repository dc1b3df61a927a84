"""What each kind of step costs: timed alone, interleaved, medians kept, so that a noisy machine does not decide."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alternator import Trial
from ur4rec.data.batches import Batch, TrainBatches
from ur4rec.evaluation.metrics import smooth_ranks
from ur4rec.runs.prepared import PreparedData
from ur4rec.schedule.alternators import SEQUENCE, parse_schedule, trial_costs, trial_turns
from ur4rec.schedule.stages import ALL, BOTH, MODULES, TEXT_ENCODER, TURNS, turns_of
from ur4rec.training.memory import enough_for_steps
from ur4rec.training.trainer import AnyTrainer

PROBE = "probe"
WHICH = ("first", "later")
STALE = f"{BOTH} after {ALL}"
"""The first step of both modules after one of all: all texts are encoded in it."""
WARM_UP = 3
_MIXTURES = 2
"""Rankings by mixed snapshots for each of a module's forward passes: four for both modules'."""


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Seconds of one step of each turn, timed alone.

    The first step of a tenure has a price of its own: there the frozen retriever's catalogue is computed, once. So has
    the first step after a text encoder has trained: there all texts are encoded, once.
    """

    first: Mapping[str, float]
    """Of the first step of a tenure."""
    later: Mapping[str, float]
    """Of every other step."""
    probe: float = 0.0
    """Of one module's scores of the held-out targets on which a schedule measures."""
    refresh: float = 0.0
    """Of encoding the texts of all items, in the first step after a text encoder has trained."""

    def of_step(self, turn: str, before: str | None) -> float:
        """The price of a step of a turn after one of the turn before; None before the first step."""
        price = (self.later if turn == before else self.first)[turn]
        is_stale = before is not None and TEXT_ENCODER in TURNS[before] and TEXT_ENCODER not in TURNS[turn]
        return price + self.refresh * is_stale

    def parity(self, num_steps: int) -> float:
        """The cost of this number of parity steps, each the first of its tenure."""
        modules = [name for name in (*MODULES, TEXT_ENCODER) if name in self.first]
        turns = [modules[step % len(modules)] for step in range(num_steps)]
        return sum(map(self.of_step, turns, [None, *turns]))


def kinds_of(turns: Sequence[str]) -> tuple[str, ...]:
    """What is timed for these turns, of which the last trains all modules.

    The first step of a tenure and the others; a step of all modules is always the same. With a text encoder, what
    follows its training. Last, what a schedule that measures pays for one module's scores of the held-out targets and
    their ranks: half of both modules' together.

    Example:
        >>> kinds_of(turns_of(MODULES))
        ('sasrec first', 'sasrec later', 'retriever first', 'retriever later', 'both', 'probe')
    """
    *others, joint = turns
    steps = [f"{turn} {which}" for turn in others for which in WHICH]
    return (*steps, joint, *((STALE,) if joint == ALL else ()), PROBE)


def time_steps(
    build: Callable[[str], AnyTrainer], prepared: PreparedData, turns: Sequence[str], device: str, rounds: int
) -> dict[str, list[float]]:
    """Time every kind of step, each on the same batches.

    On the CPU the processor's time is taken, which other processes do not lengthen, on an accelerator the clock's.

    Args:
        build: Builds a trainer of a schedule.
        prepared: The data.
        turns: The turns, `BOTH` among them, the last that of all modules.
        device: Where it trains.
        rounds: The number of times, after `WARM_UP` that do not count.

    Returns:
        Seconds by kind.
    """
    kinds = kinds_of(turns)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    clock = time.process_time if device == "cpu" else time.perf_counter
    for number, (kind, seconds) in enumerate(_timed(build, prepared, turns, clock, rounds + WARM_UP)):
        if number >= WARM_UP * len(kinds):
            times[kind].append(seconds)
    return times


def costs_of(seconds: Mapping[str, float]) -> StepCosts:
    """The prices of steps, of the seconds of each kind.

    Example:
        >>> costs = costs_of(dict(zip(kinds_of(turns_of(MODULES)), (3, 2, 4, 4, 6, 1), strict=True)))
        >>> costs.first["sasrec"], costs.later["sasrec"], costs.later["both"]
        (3, 2, 6)
    """
    *others, joint = turns_of((*MODULES, TEXT_ENCODER) if STALE in seconds else MODULES)
    first, later = ({**{turn: seconds[f"{turn} {which}"] for turn in others}, joint: seconds[joint]} for which in WHICH)
    return StepCosts(first=first, later=later, probe=seconds[PROBE], refresh=_refresh(seconds))


def with_costs(schedule: str, costs: StepCosts) -> str:
    """A schedule that weighs payoffs or trials against costs, with the measured ones, where it does not name its own.

    `trial` tries sequences that begin many tenures, so it is told what beginning one costs; `payoff`, whose tenures are
    long, is not.

    Example:
        >>> later = {"both": 0.2, "sasrec": 0.15, "retriever": 0.1}
        >>> costs = StepCosts(first={**later, "sasrec": 0.16}, later=later)
        >>> with_costs("payoff,share=0.5", costs)
        'payoff,share=0.5,costs=(1.0, 0.75, 0.5)'
        >>> with_costs("trial", costs)
        'trial,costs=(1.0, 0.75, 0.5),switch_costs=(0.0, 0.05, 0.0)'
        >>> with_costs("plateau", costs)
        'plateau'
    """
    parsed = parse_schedule(schedule)
    if not parsed.measures or "costs=" in schedule:
        return schedule
    is_trial, later = isinstance(parsed.rule, Trial), costs.later
    turns = trial_turns((*MODULES, TEXT_ENCODER) if is_trial and TEXT_ENCODER in later else MODULES)
    schedule = f"{schedule},costs={tuple(round(later[turn] / later[BOTH], 3) for turn in turns)}"
    if not is_trial:
        return schedule
    begins = [
        max(costs.first[turn] - later[turn], 0.0) + costs.refresh * (TEXT_ENCODER in TURNS[turn]) for turn in turns
    ]
    return f"{schedule},switch_costs={tuple(round(each / later[BOTH], 3) for each in begins)}"


def describe_trial(seconds: Mapping[str, float]) -> str:
    """A `Trial` over the turns of a model with a text encoder, with what was measured of `BOTH` and `ALL`.

    Example:
        >>> describe_trial({"both first": 2, "both later": 2, "all": 7, "both after all": 3, "probe": 1})[:30]
        'trial,costs=(1.0, 0.65, 0.7, 2'
    """
    modules, step = (*MODULES, TEXT_ENCODER), seconds[f"{BOTH} later"]
    relative = trial_costs(modules, max(seconds[ALL] - step, 0.0) / step)
    later = {turn: step * cost for turn, cost in zip(trial_turns(modules), relative, strict=True)}
    return with_costs("trial", StepCosts(first=later, later=later, refresh=_refresh(seconds)))


def _refresh(seconds: Mapping[str, float]) -> float:
    """Seconds of encoding all texts; 0 without a text encoder."""
    return max(seconds[STALE] - seconds[f"{BOTH} later"], 0.0) if STALE in seconds else 0.0


def median_seconds(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each kind."""
    return {kind: statistics.median(values) for kind, values in times.items()}


def _timed(
    build: Callable[[str], AnyTrainer],
    prepared: PreparedData,
    turns: Sequence[str],
    clock: Callable[[], float],
    rounds: int,
) -> Iterator[tuple[str, float]]:
    """Kind and seconds of every step: tenures of two steps of one trainer, and a step of another that trains both.

    With a text encoder one trainer does all: its tenures come last, and after them one of both modules, which leaves
    nothing stale.
    """
    *others, turn_of_all = turns
    tenures = [(turn, 2) for turn in others]
    if turn_of_all == ALL:
        tenures += [(ALL, 1), (BOTH, 1)]
    alternating = build(f"{SEQUENCE}{tuple(tenures)}")
    joint = alternating
    if turn_of_all == BOTH:
        joint = build("joint")
        joint.set_training_stage("end_to_end")
    batches, probe = prepared.train, prepared.probe()
    ranked = probe.targets_B, *probe.seen
    for number in range(rounds):
        with enough_for_steps(prepared.model, batches.batch_size):
            batch = batches.batch(*divmod(number, len(batches)))
        for kind in kinds_of(turns)[:-1]:
            trainer = joint if kind == BOTH else alternating
            started = clock()
            trainer.train_epoch(_OneBatch(batch, batches))
            yield kind, clock() - started
        started = clock()
        for module in MODULES:
            scores_BI = joint.score(probe.items_BL, module)
            for _ in range(_MIXTURES):
                smooth_ranks(scores_BI, *ranked)
        yield PROBE, (clock() - started) / len(MODULES)


class _OneBatch(list[Any]):
    """A loader of one batch, with the constant shapes of all."""

    def __init__(self, batch: Batch, batches: TrainBatches) -> None:
        super().__init__([batch])
        self.usual_targets = batches.usual_targets
        self.length_counts = batches.length_counts
        self.batch_size = batches.batch_size

"""What each kind of step costs: timed alone, interleaved, medians kept, so that a noisy machine does not decide."""

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ur4rec.compare.budget import StepCosts
from ur4rec.compare.runner import build_trainer, machine_facts, prepare_study, study_facts
from ur4rec.compare.study import StudyConfig
from ur4rec.evaluation.metrics import negative_log_likelihood
from ur4rec.files import hash_bytes
from ur4rec.schedule.alternators import SEQUENCE
from ur4rec.schedule.stages import ALL, BOTH, MODULES, TEXT_ENCODER, turns_of
from ur4rec.training.memory import enough_for_steps

PROBE = "probe"
WHICH = ("first", "later")
STALE = f"{BOTH} after {ALL}"
"""The first step of both modules after one of all: all texts are encoded in it."""
WARM_UP, ROUNDS = 3, 40
_MIXTURES = 2
"""Likelihoods of mixed snapshots for each of a module's forward passes: four for both modules'."""


def kinds_of(modules: Sequence[str]) -> tuple[str, ...]:
    """What is timed for these modules.

    The first step of a tenure and the others; a step of all modules is always the same. With a text encoder, what
    follows its training. Last, what a schedule that measures pays for one module's scores of the held-out targets and
    their likelihoods: half of both modules' together.

    Example:
        >>> kinds_of(MODULES)
        ('sasrec first', 'sasrec later', 'retriever first', 'retriever later', 'both', 'probe')
    """
    *turns, joint = turns_of(modules)
    steps = [f"{turn} {which}" for turn in turns for which in WHICH]
    return (*steps, joint, *((STALE,) if TEXT_ENCODER in modules else ()), PROBE)


def measure_costs(study: StudyConfig, data_dir: Path | None = None, rounds: int = ROUNDS) -> dict[str, Any]:
    """Time every kind of step under the study's loss, each on the same batches.

    On the CPU the processor's time is taken, which other processes do not lengthen, on an accelerator the clock's.

    Returns:
        ``seconds`` per kind (the median), its quartiles, and the machine; see `read_costs`.
    """
    before = machine_facts()
    kinds = kinds_of(study.modules)
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number, (kind, seconds) in enumerate(_timed_steps(study, data_dir, rounds + WARM_UP)):
        if number >= WARM_UP * len(kinds):
            times[kind].append(seconds)
    return {
        "seconds": {kind: statistics.median(values) for kind, values in times.items()},
        "quartiles": {kind: statistics.quantiles(values, n=4)[::2] for kind, values in times.items()},
        "rounds": rounds,
        "load_average_before": before["load_average"],
        "facts": study_facts(prepare_study(study, study.seeds[0], data_dir), study),
    }


def read_costs(content: Mapping[str, Any]) -> StepCosts:
    """The prices that `measure_costs` found.

    Example:
        >>> costs = read_costs({"seconds": dict(zip(kinds_of(MODULES), (3, 2, 4, 4, 6, 1), strict=True))})
        >>> costs.first["sasrec"], costs.later["sasrec"], costs.later["both"]
        (3, 2, 6)
    """
    seconds = content["seconds"]
    turns = turns_of((*MODULES, TEXT_ENCODER) if STALE in seconds else MODULES)
    first, later = ({turn: seconds.get(f"{turn} {which}", seconds.get(turn)) for turn in turns} for which in WHICH)
    refresh = max(seconds[STALE] - seconds[f"{BOTH} later"], 0.0) if STALE in seconds else 0.0
    return StepCosts(first=first, later=later, probe=seconds[PROBE], refresh=refresh)


def hash_costs(content: Mapping[str, Any]) -> str:
    """SHA-256 of the prices: runs that were charged with the same ones can be compared.

    Example:
        >>> hash_costs({"seconds": {"both": 0.5}})[:16]
        '03862d4bcba648bb'
    """
    return hash_bytes(json.dumps(content["seconds"], sort_keys=True).encode())


def _timed_steps(study: StudyConfig, data_dir: Path | None, rounds: int) -> Iterator[tuple[str, float]]:
    """Kind and seconds of every step: tenures of two steps of one trainer, and a step of another that trains all.

    With a text encoder its tenures come last, and after them a tenure of both modules, which leaves nothing stale.
    """
    seed, clock = study.seeds[0], time.process_time if study.device == "cpu" else time.perf_counter
    prepared = prepare_study(study, seed, data_dir)
    *turns, turn_of_all = turns_of(study.modules)
    tenures = [(turn, 2) for turn in turns]
    if TEXT_ENCODER in study.modules:
        tenures += [(turn_of_all, 1), (BOTH, 1)]
    alternating = build_trainer(study, prepared, f"{SEQUENCE}{tuple(tenures)}", seed)
    joint = build_trainer(study, prepared, "joint", seed)
    joint.set_training_stage("end_to_end")
    batches, probe = prepared.train, prepared.probe()
    for number in range(rounds):
        with enough_for_steps(prepared.model, batches.batch_size):
            batch = batches.batch(*divmod(number, len(batches)))
        for kind in kinds_of(study.modules)[:-1]:
            trainer = joint if kind == turn_of_all and len(study.modules) == len(MODULES) else alternating
            started = clock()
            trainer.train_epoch(_OneBatch(batch, batches.usual_targets))
            yield kind, clock() - started
        started = clock()
        for module in MODULES:
            scores_BI = joint.score(probe.items_BL, module)
            for _ in range(_MIXTURES):
                negative_log_likelihood(scores_BI, probe.targets_B)
        yield PROBE, (clock() - started) / len(MODULES)


class _OneBatch(list[Any]):
    """A loader of one batch, with the constant shape of all."""

    def __init__(self, batch: Any, usual_targets: int) -> None:
        super().__init__([batch])
        self.usual_targets = usual_targets

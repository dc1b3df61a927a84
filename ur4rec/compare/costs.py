"""What each kind of step costs: timed alone, interleaved, medians kept, so that a noisy machine does not decide."""

import json
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ur4rec.compare.budget import StepCosts
from ur4rec.compare.runner import build_trainer, machine_facts, prepare_study, study_facts
from ur4rec.compare.study import StudyConfig
from ur4rec.evaluation.metrics import negative_log_likelihood
from ur4rec.files import hash_bytes
from ur4rec.schedule.stages import BOTH, MODULES
from ur4rec.training.memory import enough_for_steps

PROBE = "probe"
KINDS = ("sasrec first", "sasrec later", "retriever first", "retriever later", BOTH, PROBE)
"""The first step of a tenure and the others; a step of both modules is always the same. Last, what a schedule that
measures pays for one module's scores of the held-out targets and their likelihoods: half of both modules' together."""
WARM_UP, ROUNDS = 3, 40
_MIXTURES = 2
"""Likelihoods of mixed snapshots for each of a module's forward passes: four for both modules'."""


def measure_costs(study: StudyConfig, data_dir: Path | None = None, rounds: int = ROUNDS) -> dict[str, Any]:
    """Time every kind of step under the study's loss, each on the same batches.

    On the CPU the processor's time is taken, which other processes do not lengthen, on an accelerator the clock's.

    Returns:
        ``seconds`` per kind (the median), its quartiles, and the machine; see `read_costs`.
    """
    before = machine_facts()
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number, (kind, seconds) in enumerate(_timed_steps(study, data_dir, rounds + WARM_UP)):
        if number >= WARM_UP * len(KINDS):
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
        >>> costs = read_costs({"seconds": dict(zip(KINDS, (3, 2, 4, 4, 6, 1), strict=True))})
        >>> costs.first["sasrec"], costs.later["sasrec"], costs.later["both"]
        (3, 2, 6)
    """
    seconds = content["seconds"]
    return StepCosts(
        first={"sasrec": seconds["sasrec first"], "retriever": seconds["retriever first"], BOTH: seconds[BOTH]},
        later={"sasrec": seconds["sasrec later"], "retriever": seconds["retriever later"], BOTH: seconds[BOTH]},
        probe=seconds[PROBE],
    )


def hash_costs(content: Mapping[str, Any]) -> str:
    """SHA-256 of the prices: runs that were charged with the same ones can be compared.

    Example:
        >>> hash_costs({"seconds": {"both": 0.5}})[:16]
        '03862d4bcba648bb'
    """
    return hash_bytes(json.dumps(content["seconds"], sort_keys=True).encode())


def _timed_steps(study: StudyConfig, data_dir: Path | None, rounds: int) -> Iterator[tuple[str, float]]:
    """Kind and seconds of every step: tenures of two steps of one trainer, and a step of another that trains both."""
    seed, clock = study.seeds[0], time.process_time if study.device == "cpu" else time.perf_counter
    prepared = prepare_study(study, seed, data_dir)
    alternating = build_trainer(study, prepared, "2:2", seed)
    joint = build_trainer(study, prepared, "joint", seed)
    joint.set_training_stage("end_to_end")
    batches, probe = prepared.train, prepared.probe()
    for number in range(rounds):
        with enough_for_steps(prepared.model, batches.batch_size):
            batch = batches.batch(*divmod(number, len(batches)))
        for kind in KINDS[:-1]:
            trainer = joint if kind == BOTH else alternating
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

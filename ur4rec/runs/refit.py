"""A refit: the model that validation chose, trained again from the same first weights on validation data too.

A run's last interactions are held out to choose its epochs, and are then the newest that a model could learn from. Once
the run has chosen, they are no longer needed for that. A refit trains on all that is not tested, for as many steps of
each stage as the chosen model had: steps, not epochs, since the data has grown. It chooses nothing and validates
nothing, and is tested where the run's own models were chosen.

Its learning rates are those that the chosen model had at the same steps: it goes along the cosine of the run's stage
and ends where that model was, rather than at the end of a shorter cosine.

A schedule that measures held-out targets, `Payoff` or `Trial`, has none left. Its decisions are replayed: the turns of
the steps that made the chosen model, in their order, each with the learning rate that it had. What a `Trial` undid is
no part of that model, and is left out. Held-out users to decide on anew would be lost for training, and would give
another model than the one that was validated. Every other schedule decides by the losses of the refit itself. Fusion
weights that were chosen on validation targets (``fusion_fit="held_out"``) are those of the chosen model.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alternator.recordings.log import StepRecord
from ur4rec.data.batches import SteppedBatches
from ur4rec.data.splits import with_validation
from ur4rec.errors import ConfigurationError
from ur4rec.evaluation.results import Result, build_result
from ur4rec.runs.attempts import kept_steps
from ur4rec.runs.plan import TABLE_ROWS, Plan, next_stage_begins_with
from ur4rec.runs.run import RESULT, SAVED, TrainingRun
from ur4rec.schedule.alternators import SEQUENCE, parse_schedule
from ur4rec.schedule.stages import DECIDING_STAGE
from ur4rec.training.checkpoint import load_checkpoint
from ur4rec.training.fusion_fit import FusionWeights


class StageSteps(NamedTuple):
    """The steps of a stage that made the chosen model."""

    stage: str
    """The stage."""
    length: int
    """Steps of the whole stage, over which its learning rates fall."""
    positions_S: NDArray[np.int64]
    """Which of them, ascending, 0-based: those that were not undone."""
    first: int
    """Steps of the run before the stage."""


class Refit(TrainingRun):
    """The refit of a run that has ended; it is kept in the directory ``refit`` of the run's own.

    It is resumed and stopped as a run is. With a `Trial` that undid steps, learning rates are those of the steps that
    are left; a curriculum's weights go by the number of steps.

    Args:
        run: The run, trained to its end.
        progress: Whether to show a progress bar per epoch; None is only on a terminal.

    Raises:
        AlternatorError: The run has not ended, or its data cannot be folded.
    """

    saved_form = {**SAVED, "results": {str: {**RESULT, "validation": {str: float}}}}  # noqa: RUF012
    suffix = ", refit"

    def __init__(self, run: TrainingRun, *, progress: bool | None = None) -> None:
        if run.plan.stage is not None:
            raise ConfigurationError(f"a run must have ended before its refit, got one in {run.plan.stage}; train it")
        self._run_directory = run.directory
        self._run_locked = run.locked
        per_epoch = len(run.prepared.train)
        final = run.final_epoch
        stages = steps_of_stages(run, final)
        epochs = {each.stage: -(-len(each.positions_S) // per_epoch) for each in stages}
        config = replace(run.config, epochs=epochs, early_stopping=None, refit=False)
        self._replays = parse_schedule(config.schedule).measures
        if self._replays:
            config = replace(config, schedule=replayed_schedule(config.schedule, stages, run.logs.decisions.records))
        lengths = [
            min(per_epoch, len(each.positions_S) - start)
            for each in stages
            for start in range(0, len(each.positions_S), per_epoch)
        ]
        split = with_validation(run.prepared.interactions, run.prepared.split)
        train = SteppedBatches(run.prepared.train, split.train, lengths)
        self._stages = {each.stage: each for each in stages}
        if any(map(num_undone, stages)):
            self._position = self._place_of_chosen
        self._tested = _tested_epochs(run.epochs, run.results, final, epochs)
        if run.processes.rank == 0:
            run.directory.refit.path.mkdir(exist_ok=True)
        prepared = replace(run.prepared, split=split, train=train)
        super().__init__(config, prepared, run.directory.refit, progress=progress, processes=run.processes)
        self.plan = Plan(config=self.config, validates=False)

    def train(self, *, stop: Callable[[], bool] = lambda: False) -> list[Result]:
        """Train through all stages, and add the results to the run's ``metrics.json``; see `TrainingRun.train`."""
        results = super().train(stop=stop)
        if self._writes:
            metrics = self._run_directory.read_json("metrics.json")
            refit = self.directory.read_json("metrics.json")["final"]
            self._run_directory.write_json("metrics.json", {**metrics, "refit": refit})
        return results

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other processes from training in the run's directory and in this one."""
        stack = ExitStack()
        with stack:
            stack.enter_context(self._run_locked())
            stack.enter_context(super().locked())
            return stack.pop_all()  # type: ignore[return-value]

    @property
    def resumed_from(self) -> Path:
        """The directory with which it is resumed: the run's."""
        return self._run_directory.path

    def explain(self) -> str:
        """What was trained, in a sentence."""
        parts = []
        for name, each in self._stages.items():
            left_out = f" without {count} that were undone" if (count := num_undone(each)) else ""
            parts.append(f"{name} to step {each.positions_S[-1] + 1} of {each.length}{left_out}")
        replays = "; who trained was replayed" if self._replays and DECIDING_STAGE in self._stages else ""
        return (
            f"Refit on training and validation interactions, as long as the chosen model: {', '.join(parts)}{replays}."
        )

    def _keep_data(self) -> None:
        """The run has kept it."""

    def _length_of(self, stage: str) -> int:
        return self._stages[stage].length

    def _place_of_chosen(self) -> float:
        """How far the chosen model was in the stage when it made the step that comes next."""
        assert self.plan.stage is not None
        positions_S = self._stages[self.plan.stage].positions_S
        return float(positions_S[min(self.trainer.stage_step, len(positions_S) - 1)])

    def _set_fusion(self) -> FusionWeights:
        """Take those of the chosen model, which were chosen on what is trained on now."""
        chosen = load_checkpoint(self._run_directory.require_checkpoint("best")).averaged()
        weights = chosen.weights["fusion.weights"]
        self.trainer.set_fusion_weights(weights)
        return FusionWeights.of(weights)

    def _evaluate(self, epoch: int, stage: str) -> tuple[dict[str, dict[str, float]], bool]:
        """Test where a model of the run was chosen; the end of the last stage is what the refit is for."""
        rows = self._tested.get((stage, self.plan.stage_epoch), {})
        for scorer, ranks_T in (self._rank(self._test, self.trainer, rows, "test") if rows else {}).items():
            row = rows[scorer]
            self.results[row] = build_result(f"{row}{self.suffix}", epoch, {}, ranks_T)
        return {}, self.plan.after({}).stage is None

    def _title(self) -> str:
        return f"{self.prepared.interactions.name}, refit, {self.config.backend}, seed {self.config.seed}"


def num_undone(steps: StageSteps) -> int:
    """The number of steps before the last that are no part of the model.

    Example:
        >>> num_undone(StageSteps("joint_finetune", 9, np.array([0, 1, 4]), 0))
        2
    """
    return int(steps.positions_S[-1]) + 1 - len(steps.positions_S)


def steps_of_stages(run: TrainingRun, final: int) -> list[StageSteps]:
    """The steps that made the model of an epoch, by stage; a stage of which none is left is left out.

    Of a stage that another one followed, they end with the epoch that the other began with.
    """
    found, first = [], 0
    for stage, rows in groupby(run.epochs[: final + 1], key=lambda row: str(row["stage"])):
        end = [*rows][-1]["epoch"]
        made = end if end == final else next_stage_begins_with(run.epochs[: end + 1])
        last = run.epochs[made]["step"]
        kept_S = kept_steps(first, last, run.logs.trials.records, run.logs.decisions.records)
        length = run.config.epochs[stage] * len(run.prepared.train)
        if len(kept_S):
            found.append(StageSteps(stage, length, kept_S, first))
        first = run.epochs[end]["step"]
    return found


def replayed_schedule(schedule: str, stages: Sequence[StageSteps], records: Sequence[StepRecord]) -> str:
    """The schedule that trains in each step what was trained in it; the same one where it has decided nothing.

    Args:
        schedule: The schedule of the run.
        stages: The steps that are replayed.
        records: The decision log.
    """
    for each in stages:
        if each.stage == DECIDING_STAGE:
            turns = [records[each.first + int(position)].active for position in each.positions_S]
            tenures = tuple((turn, len([*steps])) for turn, steps in groupby(turns))
            return f"{SEQUENCE}{tenures!r}"
    return "joint"


def _tested_epochs(
    rows: Sequence[Mapping[str, Any]],
    results: Mapping[str, Result],
    final: int,
    epochs: Mapping[str, int],
) -> dict[tuple[str, int], dict[str, str]]:
    """Rows of the results table by scorer, by the stage and its epoch after which they are tested."""
    tested: dict[tuple[str, int], dict[str, str]] = {}
    for name, result in results.items():
        if result.epoch < 0:
            continue  # popularity, which needs no training
        stage = str(rows[result.epoch]["stage"])
        place = sum(row["stage"] == stage for row in rows[: result.epoch])
        if result.epoch == final:  # of which steps may have been undone, and so of fewer epochs
            place = epochs[stage] - 1
        scorer = next(scorer for scorer, row in TABLE_ROWS[stage][1].items() if row == name)
        tested.setdefault((stage, place), {})[scorer] = name
    return tested

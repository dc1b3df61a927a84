"""A training run: the stages in order, validation in between, and everything kept in the run directory."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from alternator import Trial
from alternator.recordings.log import StepRecord
from ur4rec.config import HELD_OUT, SCORERS, TrainerConfig
from ur4rec.data.kept import hash_contents
from ur4rec.data.splits import with_validation
from ur4rec.errors import ConfigurationError, refuse_malformed
from ur4rec.evaluation.metrics import summarise
from ur4rec.evaluation.popularity import PopularityGroup, by_popularity, popularity_ranks
from ur4rec.evaluation.results import K_LIST, METRICS, Result, build_result
from ur4rec.files import check_form
from ur4rec.runs.config import RunConfig, read_config, text_encoder_sizes
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.event_log import EventLog
from ur4rec.runs.logs import LOG_STATE, RunLogs
from ur4rec.runs.plan import (
    FUSION_WEIGHTS,
    TABLE_ROWS,
    Plan,
    Validated,
    best_epoch,
    describe_number,
    next_stage_begins_with,
    quality,
)
from ur4rec.runs.popularity import scorer_rows, write_popularity
from ur4rec.runs.prepared import PreparedData, keep_data, run_facts, with_absolute_paths
from ur4rec.runs.progress import Heartbeat, describe_epoch, describe_place
from ur4rec.runs.ranking import Ranking, Ranks
from ur4rec.runs.result_files import ResultFiles
from ur4rec.runs.step_costs import describe_trial, median_seconds, time_steps
from ur4rec.schedule.alternators import AUTO, Schedule, parse_schedule, resolve_schedule
from ur4rec.schedule.stages import ALL, BOTH, DECIDING_STAGE, JOINT_STAGES
from ur4rec.text.tokens import ItemTokens
from ur4rec.training.backend import load_backend, load_scorer
from ur4rec.training.checkpoint import check_same, check_settings, remedy_for
from ur4rec.training.fusion_fit import FusionWeights
from ur4rec.training.processes import ONE_PROCESS, Processes, check_equal
from ur4rec.training.scorer import AnyScorer
from ur4rec.training.slices import parse_memory
from ur4rec.training.trainer import AnyTrainer

logger = logging.getLogger(__name__)

RESULT = {"name": str, "epoch": int, "validation": METRICS, "test": METRICS}
_EPOCH = {
    "epoch": int,
    "stage": str,
    "step": int,
    "train": {str: float},
    "validation": {str: METRICS},
    "train_seconds": float,
    "evaluation_seconds": float,
}
SAVED = {"run": {}, "epochs": [_EPOCH], "seconds": float, "results": {str: RESULT}, "logs": [LOG_STATE]}
"""What a checkpoint keeps of a run."""
TIMED_ROUNDS = 5
"""The number of times that steps are timed of which a schedule is to know the costs."""
STOP_EVERY = 8
"""Steps between two questions of several processes to each other whether one of them is to stop."""
_RANKS = "test_ranks."
"""Names of the arrays of a checkpoint with the ranks of a result's targets begin so."""


class Stopped(Exception):  # noqa: N818  (what was asked for is no error)
    """The run was asked to stop, and is saved.

    Args:
        step: Training steps that are saved.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def read_resumable(directory: RunDirectory) -> RunConfig:
    """The configuration of a run that is to be resumed, known to be that of its newest checkpoint, if it has one.

    Raises:
        AlternatorError: The configuration is damaged, or is not the checkpoint's, or a checkpoint is missing.
    """
    config = read_config(directory)
    if (checkpoint := directory.newest_checkpoint()) is not None:
        trainer = TrainerConfig(**config.trainer, seed=config.seed)
        check_settings(checkpoint, config.model_config(num_items=2), trainer)
    return config


class TrainingRun:
    """One training run.

    Args:
        config: What to run; what it leaves to the data is decided by the counts of ``prepared``.
        prepared: The data, from `ur4rec.runs.prepared.prepare`.
        directory: Where everything is kept.
        progress: Whether to show a progress bar per epoch; None is only on a terminal.
        processes: Those that train together. All do the same; the first one alone writes, and shows progress.

    Attributes:
        saved_form: What a checkpoint keeps of it.
        config: The configuration, with what was left to the data, the schedule and the like decided.
        choices: What the data has decided, and why; empty for a run that is resumed.
        logs: What was decided, measured and tried.
        events: Receives every step and epoch; set it before training to log them.

    Raises:
        AlternatorError: The backend is missing, or a setting does not fit.
    """

    saved_form: ClassVar[dict[str, Any]] = SAVED

    def __init__(
        self,
        config: RunConfig,
        prepared: PreparedData,
        directory: RunDirectory,
        *,
        progress: bool | None = None,
        processes: Processes = ONE_PROCESS,
    ) -> None:
        config, self.choices = config.settled(prepared.counts)
        schedule = resolve_schedule(
            config.schedule,
            fusion=prepared.model.fusion,
            num_targets=len(prepared.split.validation),
            refresh=prepared.refresh,
        )
        if config.schedule == AUTO and schedule == "trial" and processes.count == 1:
            schedule = self._time_trial(config, prepared)
        model_settings = {**config.model, **text_encoder_sizes(prepared.model)}
        config = dataclasses.replace(config, schedule=schedule, repeats=prepared.split.repeats, model=model_settings)
        self.config = config
        self.prepared = prepared
        self.directory = directory
        self.processes = processes
        self._writes = processes.rank == 0
        progress = progress if self._writes else False
        self._check_processes()
        self.epochs: list[dict[str, Any]] = []
        self.results: dict[str, Result] = {}
        self._seconds = 0.0
        self._saved_step = 0
        self._chosen: dict[str, float] = {}
        self.events: EventLog | None = None
        self._stop: Callable[[], bool] = lambda: False
        self._schedule = parse_schedule(config.schedule)
        if config.refit:
            self._check_refit()
        validation, num_users = prepared.split.validation, config.eval_users
        memory = parse_memory(config.memory)
        sampled = validation if num_users is None else validation.sample(num_users)
        self.validation = Ranking(sampled, prepared.model, memory, processes)
        self._files = ResultFiles(directory, prepared)
        self._test = Ranking(prepared.split.test, prepared.model, memory, processes)
        self.plan = Plan(config=config)
        self._heartbeat = Heartbeat(progress)
        self.trainer = _build_trainer(
            *(config, prepared, self._schedule),
            memory=memory,
            progress=progress,
            on_step=self._record,
            mesh=config.mesh,
            shard=config.shard,
            processes=processes,
        )
        tries = isinstance(self._schedule.rule, Trial)
        self.logs = RunLogs(directory.path, self.trainer.modules, tries=tries)
        chosen = self.trainer.config.catalogue_loss
        if chosen != "full" or "catalogue_loss" in config.trainer:  # what "auto" has chosen, as the schedule
            self.config = dataclasses.replace(config, trainer={**config.trainer, "catalogue_loss": chosen})

    def train(self, *, stop: Callable[[], bool] = lambda: False) -> list[Result]:
        """Train through all stages; after every epoch the run is saved, after every stage tested and drawn.

        After `resume` it continues with the next step, and ends as if it had never stopped.

        Args:
            stop: Asked after every step, and while targets are ranked, whether to save and stop. All processes stop
                if one is asked to; several ask each other at every `STOP_EVERY` steps.

        Returns:
            The rows of the results table, each at its best epoch by validation.

        Raises:
            AlternatorError: Too many losses in a row were not finite, or another process trains in the directory.
            OSError: The disk is full or not writable; what was saved before is whole.
            Stopped: ``stop`` said so; everything is saved.
        """
        self._stop = lambda: self.processes.any(stop())
        with self.locked():
            if not self.trainer.step:
                self.write_config()
            while (stage := self.plan.stage) is not None:
                self._run_epoch(len(self.epochs), stage)
                if self.plan.stage not in (stage, None):
                    self._draw()
            if self._writes:
                self.logs.write()
            self._write_results()
            self._draw()
            if self._writes:
                write_popularity(self.directory.path, self.by_popularity, self._title(), scorer_rows(self.results))
        return list(self.results.values())

    def write_config(self) -> None:
        """Write what is known of the run before it trains: its settings and facts, and its data if it keeps them."""
        self.config = with_absolute_paths(self.config)
        if self._writes:
            self.directory.write_json("config.json", {**self.config.to_json(), "facts": self._facts})
            self._keep_data()

    @staticmethod
    def _time_trial(config: RunConfig, prepared: PreparedData) -> str:
        """A trial whose costs are measured: how much a step costs that trains the text encoder."""
        logger.info("timing steps that train the text encoder, and steps that do not")

        def build(schedule: str) -> AnyTrainer:
            return _build_trainer(config, prepared, parse_schedule(schedule), progress=False)

        seconds = median_seconds(time_steps(build, prepared, (BOTH, ALL), config.device, TIMED_ROUNDS))
        return describe_trial(seconds)

    @property
    def resumed_from(self) -> Path:
        """The directory with which it is resumed."""
        return self.directory.path

    def release(self) -> None:
        """Let go of the trainer and its memory, once the run has ended and before something else trains."""
        del self.trainer

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other runs from training in the directory."""
        return self.directory.locked() if self._writes else nullcontext()

    def _check_refit(self) -> None:
        """Refuse now what could not be trained again when the run has ended; see `ur4rec.runs.refit`.

        Raises:
            AlternatorError: The data cannot be folded, or the schedule cannot be replayed.
        """
        with_validation(self.prepared.interactions, self.prepared.split)
        stages = [stage for stage, num in self.config.epochs.items() if num]
        if isinstance(self._schedule.rule, Trial) and DECIDING_STAGE in stages:
            later = {*stages[stages.index(DECIDING_STAGE) :]} - {*JOINT_STAGES}
            if later:
                raise ConfigurationError(
                    f"the refit of a trial needs the joint stages last, got {min(later)} after {DECIDING_STAGE}; leave "
                    "out --refit, or change the order of the stages"
                )

    def _check_processes(self) -> None:
        """Refuse processes that would not train the same: of other settings, data or versions.

        Raises:
            ProcessesError: In all of them; says what differs.
        """
        if self.processes.count == 1:
            return
        facts = run_facts(self.prepared, self.config.backend)
        texts: NDArray[Any] | None = self.prepared.item_text_vectors_IT
        if isinstance(self.prepared.encoder, ItemTokens):
            texts = self.prepared.encoder.ids_IS
        assert texts is not None
        equal = {
            "the settings of the run": self.identity | {"mesh": self.config.mesh, "shard": self.config.shard},
            "the data": facts["interactions_hash"],
            "the text vectors": [texts.shape, float(texts.sum(dtype=np.float64))],
            "the versions": [facts["python"], facts["versions"]],
        }
        for what, value in equal.items():
            check_equal(self.processes, what, json.dumps(value, sort_keys=True))

    def resume(self) -> None:
        """Go back to the newest checkpoint of the run directory; a run that has saved none starts from the beginning.

        Raises:
            AlternatorError: The checkpoint is missing, damaged, or of another configuration or other data; or the
                decision log is damaged.
        """
        self.directory.checkpoint("best")  # a BEST that names none is refused now, not when the next one is saved
        checkpoint = self.directory.newest_checkpoint()
        check_equal(self.processes, "whether there is a checkpoint", str(checkpoint is not None))
        if checkpoint is None:
            return
        check_equal(self.processes, "the checkpoint to continue from", checkpoint.name)
        saved = self.trainer.load_checkpoint(checkpoint, position=self._position)
        with refuse_malformed(f"{checkpoint}: its metrics", remedy_for(checkpoint)):
            self._restore(saved["metrics"], saved.get("arrays", {}))

    def _restore(self, saved: Mapping[str, Any], ranks: Mapping[str, NDArray[Any]]) -> None:
        check_same("run", {**RunConfig().decisive(), **saved["run"]}, self.identity)  # settings have been added since
        check_form(saved, self.saved_form)
        self._warn_of_rounding()
        self.epochs, self._seconds = saved["epochs"], saved["seconds"]
        steps = [row["step"] for row in self.epochs]
        for number, row in enumerate(self.epochs):
            if (number, self.plan.stage) != (row["epoch"], row["stage"]):
                raise ValueError("the epochs are not those of the run's stages")
            needed = TABLE_ROWS[row["stage"]][1].keys() if self.plan.is_validated else set()
            if not needed <= row["validation"].keys() <= {*SCORERS}:
                raise ValueError("the validations are not those of the run's stages")
            self.plan = self.plan.after(row["validation"])
        if steps != sorted(steps):
            raise ValueError("the steps of the epochs are not in order")
        self.results = {
            name: Result.from_json({"test_ranks": ranks.get(f"{_RANKS}{name}"), **result})  # an older one has its own
            for name, result in saved["results"].items()
        }
        if any(result.test_ranks.shape != (len(self.prepared.split.test),) for result in self.results.values()):
            raise ValueError("the ranks are not those of the run's targets")
        for name, result in self.results.items():
            if result.epoch not in ([-1] if name == "popularity" else range(len(steps))):
                raise ValueError("the results are not of the run's epochs")
        self.logs.load_state_dicts(saved["logs"], self.trainer.alternator)
        if self.events is not None:
            self.events.restore(self.logs.decisions.records)
        self._saved_step = self.trainer.step

    def _warn_of_rounding(self) -> None:
        """Say so if the run continues on another number of processes or threads: sums are taken in another order."""
        facts = self.directory.read_json("config.json")["facts"]
        if (count := facts.get("processes", 1)) != self.processes.count:
            logger.warning(
                "the run began with %s processes and continues with %d: results are the same up to rounding",
                *(count, self.processes.count),
            )
        before, now = facts.get("threads"), self._facts["threads"]
        if before not in (None, now):
            logger.warning(
                "the run began on %s CPU threads and continues on %d: results are the same to the bit only on the same "
                "number (OMP_NUM_THREADS for PyTorch, PJRT_NPROC for JAX)",
                *(before, now),
            )

    def _record(self, record: StepRecord) -> None:
        self.logs.decisions.records.append(record)
        if self.events is not None:
            self.events.step(record)

    @property
    def _epoch_steps(self) -> int:
        """Steps of this epoch that are done."""
        return int(self.trainer.step) - (self.epochs[-1]["step"] if self.epochs else 0)

    def _run_epoch(self, epoch: int, stage: str) -> None:
        """An epoch, from where it was left, its validation, and the test at the end of its stage."""
        self._raise_if_stopped()
        if not self._epoch_steps and not self.plan.stage_epoch:
            self._enter(stage)
        started = time.perf_counter() - self._seconds
        try:
            metrics = self.trainer.train_epoch(
                self.prepared.train,
                epoch=epoch,
                start=self._epoch_steps,
                after_step=lambda: self._after_step(epoch, started),
            )
            self._raise_if_stopped()
            trained = time.perf_counter()
            validation, is_best = self._evaluate(epoch, stage)
        except Stopped:
            self._save_within(epoch, started)
            raise
        self.epochs.append(
            {
                "epoch": epoch,
                "stage": stage,
                "step": self.trainer.step,
                "train": {**metrics, **(self._chosen if validation else {})},
                "validation": validation,
                "train_seconds": trained - started,
                "evaluation_seconds": time.perf_counter() - trained,
            }
        )
        self._heartbeat.say(describe_epoch(self.plan, self.epochs))
        self.plan = self.plan.after(validation)
        self._seconds = 0.0
        if self.events is not None:
            self.events.epoch(self.epochs[-1])
        self._write_results()
        self._save(epoch, best=is_best)

    def _enter(self, stage: str) -> None:
        """Begin a stage, with the model of the best epoch of the one before."""
        if self.epochs and (epoch := next_stage_begins_with(self.epochs)) != len(self.epochs) - 1:
            logger.info("going on from %s, its best", describe_number(epoch, self.epochs))
            self.trainer.load_weights(self.directory.require_checkpoint("best"))
        joint = stage == DECIDING_STAGE and self._schedule.rule is None
        name, num_steps = "end_to_end" if joint else stage, self._length_of(stage)
        self.trainer.set_training_stage(name, num_steps=num_steps, position=self._position)
        self._fit_fusion(stage)
        self.logs.begin_stage()

    _position: Callable[[], float] | None = None
    """How far the stage has come, in steps; by default the steps that were trained in it."""

    def _length_of(self, stage: str) -> int:
        """Steps of a stage, over which its learning rates fall."""
        return self.config.epochs[stage] * len(self.prepared.train)

    def _keep_data(self) -> None:
        keep_data(self.directory, self.prepared)

    def _after_step(self, epoch: int, started: float) -> bool:
        """Keep what was measured, and save if it is time; at the end of the epoch the validation comes first."""
        self.logs.after_step(self.trainer)
        every = self.config.checkpoint_every
        due = every > 0 and self.trainer.step - self._saved_step >= every
        if due and self._epoch_steps < len(self.prepared.train):
            self._save_within(epoch, started)
        self._heartbeat.beat(lambda: f"{self._place}, step {self._epoch_steps} of {len(self.prepared.train)}")
        if self.processes.count > 1 and self.trainer.step % STOP_EVERY:
            return False
        return self._stop()

    def _save_within(self, epoch: int, started: float) -> None:
        if self.trainer.step == self._saved_step:
            return
        self._seconds = time.perf_counter() - started
        self._save(epoch, best=False)

    def _raise_if_stopped(self) -> None:
        if self._stop():
            raise Stopped(self.trainer.step)

    def _rank(self, ranking: Ranking, scorer: AnyScorer, scorers: Iterable[str], what: str) -> Ranks:
        def before_batch(index: int, count: int) -> None:
            self._raise_if_stopped()
            self._heartbeat.beat(lambda: f"{self._place}, ranking {what} targets: batch {index} of {count} done")

        return ranking.ranks(scorer, scorers, before_batch)

    @property
    def _place(self) -> str:
        return describe_place(self.plan)

    def _evaluate(self, epoch: int, stage: str) -> tuple[dict[str, dict[str, float]], bool]:
        """Validate if it is time, and test at the end of a stage.

        Returns:
            Validation metrics by scorer, and whether they are the best so far.
        """
        if not self.results:
            self._add_popularity()
        validation = self._validate(stage) if self.plan.is_validated else {}
        best = best_epoch(self.epochs, stage)
        is_best = bool(validation) and (best is None or quality(stage, validation) > quality(*best[1:]))
        if self.plan.after(validation).stage != stage:
            self._test_stage(stage, (epoch, stage, validation) if best is None or is_best else best)
        return validation, is_best

    def _fit_fusion(self, stage: str) -> None:
        """Choose the fusion weights of a joint stage on validation targets, unless they learn with the modules."""
        is_chosen = stage in JOINT_STAGES and self.trainer.config.fusion_fit == HELD_OUT
        chosen = self._set_fusion()._asdict() if is_chosen else {}
        if not self.prepared.model.fusion_popularity:
            chosen.pop("popularity", None)
        self._chosen = {FUSION_WEIGHTS[name]: value for name, value in chosen.items()}

    def _set_fusion(self) -> FusionWeights:
        """Choose them for the modules as they are."""
        return self.trainer.fit_fusion(self.prepared.fusion_batches())

    def _validate(self, stage: str) -> dict[str, dict[str, float]]:
        """Validation metrics of the scorers that the stage can change."""
        self._fit_fusion(stage)
        ranks = self._rank(self.validation, self.trainer, TABLE_ROWS[stage][1], "validation")
        return {scorer: summarise(ranks_T, K_LIST) for scorer, ranks_T in ranks.items()}

    @property
    def final_epoch(self) -> int:
        """The epoch of the `best` checkpoint: the newest of the best epochs, of each stage's criterion."""
        found = (best_epoch(self.epochs, stage) for stage in TABLE_ROWS)
        return max(best[0] for best in found if best is not None)

    def _test_stage(self, stage: str, best: Validated) -> None:
        """Test the best epoch of a stage that ends; one of an earlier stage has been tested before.

        Once, rather than whenever an epoch is the best so far: there are as many test as validation targets.
        """
        epoch, _, validation = best
        rows = TABLE_ROWS[stage][1]
        if any(name in self.results and self.results[name].epoch == epoch for name in rows.values()):
            return
        scorer: AnyScorer = self.trainer
        if epoch != len(self.epochs):  # not this one, which has not been saved
            scorer = load_scorer(
                self.config.backend,
                self.directory.require_checkpoint("best"),
                device=self.config.device,
                memory=self.config.memory,
            )
            scorer.part = self.trainer.part
        ranks = self._rank(self._test, scorer, rows, "test")
        for name, row in rows.items():
            self.results[row] = build_result(row, epoch, validation[name], ranks[name])

    def _add_popularity(self) -> None:
        split, targets = self.prepared.split, self.validation.targets
        ranks = [popularity_ranks(split.train, each, split.num_items) for each in (targets, split.test)]
        self.results["popularity"] = build_result("popularity", -1, summarise(ranks[0], K_LIST), ranks[1])

    def _write_results(self) -> None:
        """Write what follows from the epochs; a crash before they are saved leaves it ahead of them, no harm done."""
        if self._writes:
            popularity = self.by_popularity if self.plan.stage is None else None
            self._files.write(self.results, self.epochs, popularity, self._facts)

    def _draw(self) -> None:
        if self._writes:
            self._files.draw(self.logs, self.epochs, self._title())

    def _save(self, epoch: int, *, best: bool) -> None:
        """Save the run as it is now, the checkpoint last: so whatever it stands for is there when it is."""
        new = self.directory.new_checkpoint(self.trainer.step, best=best) if self._writes else nullcontext(Path())
        with new as path:
            self.trainer.flush()
            if self._writes:
                self.logs.write()
            state = {
                "run": self.identity,
                "epochs": self.epochs,
                "seconds": self._seconds,
                "results": {name: result.to_json() for name, result in self.results.items()},
                "logs": self.logs.state_dicts(),
            }
            ranks = {f"{_RANKS}{name}": result.test_ranks for name, result in self.results.items()}
            self.trainer.save_checkpoint(path, epoch=epoch, metrics=state, arrays=ranks, shares_texts=True)
        self._saved_step = self.trainer.step

    @cached_property
    def by_popularity(self) -> list[PopularityGroup]:
        """The test metrics of a run that has ended, by popularity of the target."""
        ranks = {name: result.test_ranks for name, result in self.results.items()}
        split = self.prepared.split
        return by_popularity(ranks, split.test, split.train.count_items(split.num_items))

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        return {**self.config.decisive(), "split_hash": self.prepared.split.hash}

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What a reader needs to run it again: data, split and versions."""
        count = self.processes.count
        return {
            **run_facts(self.prepared, self.config.backend),
            **({"processes": count} if count > 1 else {}),
            "data_hash": hash_contents(self.prepared.interactions),
        }

    def _title(self) -> str:
        config = self.config
        return f"{self.prepared.interactions.name}, schedule {config.schedule}, {config.backend}, seed {config.seed}"


def _build_trainer(config: RunConfig, prepared: PreparedData, schedule: Schedule, **settings: Any) -> AnyTrainer:
    """A trainer with the run's first weights."""
    backend = load_backend(config.backend)
    return backend.JointTrainer(
        backend.UR4Rec(**prepared.model_arguments(), seed=config.seed),
        device=config.device,
        rule=schedule.rule,
        probe=prepared.probe() if schedule.measures else None,
        seed=config.seed,
        item_counts=prepared.train.item_counts,
        **settings,
        **config.trainer,
    )

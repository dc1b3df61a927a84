"""A training run: the stages in order, validation after every epoch, and everything kept in the run directory."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alternator.recordings.log import StepRecord, read_log, write_log
from ur4rec.config import SCORERS, TrainerConfig
from ur4rec.data.batches import EvaluationBatch, EvaluationBatches
from ur4rec.errors import refuse_malformed
from ur4rec.evaluation.metrics import summarise
from ur4rec.evaluation.popularity import popularity_ranks
from ur4rec.evaluation.results import CRITERION, K_LIST, Result, build_result, summarise_kinds
from ur4rec.files import check_form
from ur4rec.runs.config import RunConfig, read_config
from ur4rec.runs.directory import AppendedLog, RunDirectory
from ur4rec.runs.event_log import EventLog
from ur4rec.runs.measurements import Measurement, PayoffWatch, read_measurements, write_measurements
from ur4rec.runs.plot import plot_schedule
from ur4rec.runs.prepared import PreparedData, run_facts
from ur4rec.schedule.alternators import parse_schedule, resolve_schedule
from ur4rec.schedule.stages import MODULES
from ur4rec.training.backend import load_backend
from ur4rec.training.checkpoint import check_same, check_settings

logger = logging.getLogger(__name__)

_JOINT_ROWS = ("fused", {"sasrec": "SASRec in it", "retriever": "retriever in it", "fused": "fused"})
TABLE_ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "pretrain_sasrec": ("sasrec", {"sasrec": "SASRec alone"}),
    "pretrain_retriever": ("retriever", {"retriever": "retriever alone"}),
    "joint_finetune": _JOINT_ROWS,
    "end_to_end": _JOINT_ROWS,
}
"""Per stage: the scorer whose validation chooses the epoch, and the rows of the results table that it fills."""
_METRICS = {f"{metric}@{k}": float for k in K_LIST for metric in ("hit", "ndcg")} | {"mrr": float}
_RESULT = {"name": str, "epoch": int, "validation": _METRICS, "test": _METRICS, "test_ranks": [int]}
_EPOCH = {
    "epoch": int,
    "stage": str,
    "step": int,
    "train": {str: float},
    "validation": dict.fromkeys(SCORERS, _METRICS),
    "train_seconds": float,
    "evaluation_seconds": float,
}
_LOG = {"num_records": int, "sha256": str}
_SAVED = {"run": {}, "epochs": [_EPOCH], "seconds": float, "results": {str: _RESULT}, "logs": [_LOG]}
"""What a checkpoint keeps of a run."""
Ranks = dict[str, NDArray[np.int64]]


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
        AlternatorError: The configuration is damaged, or is not the checkpoint's.
    """
    config = read_config(directory)
    if (checkpoint := directory.checkpoint("latest")) is not None:
        trainer = TrainerConfig(**config.trainer, seed=config.seed)
        check_settings(checkpoint, config.model_config(num_items=2), trainer)
    return config


class TrainingRun:
    """One training run.

    Args:
        config: What to run.
        prepared: The data, from `ur4rec.runs.prepared.prepare`.
        directory: Where everything is kept.
        progress: Whether to show a progress bar per epoch; None is only on a terminal.

    Attributes:
        events: Receives every step and epoch; set it before training to log them.

    Raises:
        AlternatorError: The backend is missing, or a setting does not fit.
    """

    def __init__(
        self, config: RunConfig, prepared: PreparedData, directory: RunDirectory, *, progress: bool | None = None
    ) -> None:
        schedule = resolve_schedule(
            config.schedule, fusion=prepared.model.fusion, num_targets=len(prepared.split.validation)
        )
        config = dataclasses.replace(config, schedule=schedule, repeats=prepared.split.repeats)
        self.config = config
        self.prepared = prepared
        self.directory = directory
        self.epochs: list[dict[str, Any]] = []
        self.results: dict[str, Result] = {}
        self._seconds = 0.0
        self._saved_step = 0
        self.events: EventLog | None = None
        self._stop: Callable[[], bool] = lambda: False
        self._schedule = parse_schedule(config.schedule)
        self._validation = prepared.evaluation(prepared.split.validation)
        self._test = prepared.evaluation(prepared.split.test)
        backend = load_backend(config.backend)
        model = backend.UR4Rec(
            prepared.split.num_items,
            prepared.item_text_vectors_IT,
            user_text_vectors=prepared.user_text_vectors_UT,
            seed=config.seed,
            **config.model,
        )
        self.trainer = backend.JointTrainer(
            model,
            device=config.device,
            rule=self._schedule.rule,
            probe=prepared.probe() if self._schedule.measures else None,
            seed=config.seed,
            progress=progress,
            on_step=self._record,
            **config.trainer,
        )

    def train(self, *, stop: Callable[[], bool] = lambda: False) -> list[Result]:
        """Train through all stages; after every epoch the run is validated and saved, after every stage drawn.

        After `resume` it continues with the next step, and ends as if it had never stopped.

        Args:
            stop: Asked after every step, and while targets are ranked, whether to save and stop.

        Returns:
            The rows of the results table, each at its best epoch by validation.

        Raises:
            AlternatorError: Too many losses in a row were not finite, or another process trains in the directory.
            OSError: The disk is full or not writable; what was saved before is whole.
            Stopped: ``stop`` said so; everything is saved.
        """
        self._stop = stop
        with self.directory.locked():
            if not self.trainer.step:
                self.directory.write_json("config.json", {**self.config.to_json(), "facts": self._facts})
            plan = self.config.plan
            for epoch in range(len(self.epochs), len(plan)):
                self._run_epoch(epoch, plan[epoch])
                if epoch + 1 < len(plan) and plan[epoch + 1] != plan[epoch]:
                    self._draw()
            for log in self._logs:
                log.write()
            self._write_results()
            self._draw()
        return list(self.results.values())

    def resume(self) -> None:
        """Go back to the newest checkpoint of the run directory; a directory without one starts from the beginning.

        Raises:
            AlternatorError: The checkpoint or the decision log is damaged, or of another configuration or other data.
        """
        self.directory.checkpoint("best")  # a BEST that names none is refused now, not when the next one is saved
        checkpoint = self.directory.checkpoint("latest")
        if checkpoint is None:
            return
        saved = self.trainer.load_checkpoint(checkpoint)["metrics"]
        with refuse_malformed(f"{checkpoint}: its metrics", "take another checkpoint"):
            self._restore(saved)

    def _restore(self, saved: Mapping[str, Any]) -> None:
        check_same("run", saved["run"], self._identity)
        check_form(saved, _SAVED)
        self._warn_of_threads()
        self.epochs, self._seconds = saved["epochs"], saved["seconds"]
        steps = [row["step"] for row in self.epochs]
        if [row["stage"] for row in self.epochs] != [*self.config.plan[: len(steps)]] or steps != sorted(steps):
            raise ValueError("the epochs are not those of the run's stages")
        self.results = {name: Result.from_json(result) for name, result in saved["results"].items()}
        if any(len(result.test_ranks) != len(self.prepared.split.test) for result in self.results.values()):
            raise ValueError("the ranks are not those of the run's targets")
        for log, state in zip(self._logs, saved["logs"], strict=True):
            log.load_state_dict(state)
        self._watch.restore(self.trainer.alternator, self.payoffs.records)
        if self.events is not None:
            self.events.restore(self.decisions.records)
        self._saved_step = self.trainer.step

    def _warn_of_threads(self) -> None:
        """Say so if the run continues on another number of threads: sums are then taken in another order."""
        before, now = self.directory.read_json("config.json")["facts"].get("threads"), self._facts["threads"]
        if before not in (None, now):
            logger.warning(
                "the run began on %s CPU threads and continues on %d: results are the same to the bit only on the same "
                "number (OMP_NUM_THREADS for PyTorch, PJRT_NPROC for JAX)",
                *(before, now),
            )

    def _record(self, record: StepRecord) -> None:
        self.decisions.records.append(record)
        if self.events is not None:
            self.events.step(record)

    @cached_property
    def decisions(self) -> AppendedLog[StepRecord]:
        """The decision log: one record per step."""
        return AppendedLog(self.directory.path / "decisions.csv", partial(write_log, modules=MODULES), read_log)

    @cached_property
    def payoffs(self) -> AppendedLog[Measurement]:
        """What a `Payoff` schedule has measured; empty for every other one."""
        return AppendedLog(self.directory.path / "payoffs.csv", write_measurements, read_measurements)

    @cached_property
    def _watch(self) -> PayoffWatch:
        return PayoffWatch()

    @property
    def _logs(self) -> tuple[AppendedLog[Any], ...]:
        return self.decisions, self.payoffs

    @property
    def _epoch_steps(self) -> int:
        """Steps of this epoch that are done."""
        return int(self.trainer.step) - (self.epochs[-1]["step"] if self.epochs else 0)

    def _run_epoch(self, epoch: int, stage: str) -> None:
        """An epoch, from where it was left, and its validation."""
        if self._stop():
            raise Stopped(self.trainer.step)
        if not self._epoch_steps and (epoch == 0 or stage != self.config.plan[epoch - 1]):
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
            ranks = self._rank(self._validation, SCORERS)
            if not self.results:
                self._add_popularity()
            best = self._keep_best(epoch, stage, ranks)
        except Stopped:
            self._save_within(epoch, started)
            raise
        self.epochs.append(
            {
                "epoch": epoch,
                "stage": stage,
                "step": self.trainer.step,
                "train": metrics,
                "validation": {scorer: summarise(ranks[scorer], K_LIST) for scorer in SCORERS},
                "train_seconds": trained - started,
                "evaluation_seconds": time.perf_counter() - trained,
            }
        )
        self._seconds = 0.0
        if self.events is not None:
            self.events.epoch(self.epochs[-1])
        self._write_results()
        self._save(epoch, best=best)

    def _enter(self, stage: str) -> None:
        num_steps = self.config.epochs[stage] * len(self.prepared.train)
        joint = stage == "joint_finetune" and self._schedule.rule is None
        self.trainer.set_training_stage("end_to_end" if joint else stage, num_steps=num_steps)

    def _after_step(self, epoch: int, started: float) -> bool:
        """Keep what was measured, and save if it is time; at the end of the epoch the validation comes first."""
        self.payoffs.records += self._watch.after_step(self.trainer.alternator, self.trainer.step)
        every = self.config.checkpoint_every
        due = every > 0 and self.trainer.step - self._saved_step >= every
        if due and self._epoch_steps < len(self.prepared.train):
            self._save_within(epoch, started)
        return self._stop()

    def _save_within(self, epoch: int, started: float) -> None:
        if self.trainer.step == self._saved_step:
            return
        self._seconds = time.perf_counter() - started
        self._save(epoch, best=False)

    def _raise_if_stopped(self) -> None:
        if self._stop():
            raise Stopped(self.trainer.step)

    def _rank(self, targets: EvaluationBatches, scorers: Iterable[str]) -> Ranks:
        ranks: Ranks = self.trainer.rank_all(self._until_stopped(targets), scorers)
        return ranks

    def _until_stopped(self, targets: EvaluationBatches) -> Iterator[EvaluationBatch]:
        for batch in targets:
            self._raise_if_stopped()
            yield batch

    def _keep_best(self, epoch: int, stage: str, ranks: Ranks) -> bool:
        """Test this epoch if validation says that it is the best so far of its rows of the results table."""
        criterion, rows = TABLE_ROWS[stage]
        value = summarise(ranks[criterion], K_LIST)[CRITERION]
        before = self.results.get(rows[criterion])
        if before is not None and value <= before.validation[CRITERION]:
            return False
        test_ranks = self._rank(self._test, rows)
        for scorer, name in rows.items():
            self.results[name] = build_result(name, epoch, ranks[scorer], test_ranks[scorer])
        return True

    def _add_popularity(self) -> None:
        split = self.prepared.split
        ranks = [popularity_ranks(split.train, targets, split.num_items) for targets in (split.validation, split.test)]
        self.results["popularity"] = build_result("popularity", -1, *ranks)

    def _write_results(self) -> None:
        """Write what follows from the epochs; a crash before they are saved leaves it ahead of them, no harm done."""
        self.directory.write_csv("test_ranks.csv", self._rank_rows(), ["user", "item", *self.results])
        self.directory.write_json("metrics.json", self._metrics())

    def _save(self, epoch: int, *, best: bool) -> None:
        """Save the run as it is now, the checkpoint last: so whatever it stands for is there when it is."""
        with self.directory.new_checkpoint(self.trainer.step, best=best) as path:
            self.trainer.flush()
            for log in self._logs:
                log.write()
            state = {
                "run": self._identity,
                "epochs": self.epochs,
                "seconds": self._seconds,
                "results": {name: result.to_json(ranks=True) for name, result in self.results.items()},
                "logs": [log.state_dict() for log in self._logs],
            }
            self.trainer.save_checkpoint(path, epoch=epoch, metrics=state)
        self._saved_step = self.trainer.step

    @property
    def _identity(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        return {**self.config.decisive(), "split_hash": self.prepared.split.hash}

    def _draw(self) -> None:
        plot_schedule(
            self.directory.path / "schedule.png",
            self.decisions.records,
            self.payoffs.records,
            self.epochs,
            self._title(),
        )

    def _metrics(self) -> dict[str, Any]:
        repeated_T = self.prepared.split.test.is_repeated
        return {
            "final": {
                name: {**result.to_json(), "test_by_kind": summarise_kinds(result.test_ranks, repeated_T)}
                for name, result in self.results.items()
            },
            "schedule": self.trainer.alternator.get_stats(),
            "train_seconds": sum(row["train_seconds"] for row in self.epochs),
            "facts": self._facts,
            "epochs": self.epochs,
        }

    def _rank_rows(self) -> list[dict[str, Any]]:
        interactions, test = self.prepared.interactions, self.prepared.split.test
        columns = {name: result.test_ranks.tolist() for name, result in self.results.items()}
        return [
            {
                "user": interactions.user_ids[user],
                "item": interactions.item_ids[item],
                **{name: ranks[row] for name, ranks in columns.items()},
            }
            for row, (user, item) in enumerate(zip(test.users_T, test.items_T, strict=True))
        ]

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What a reader needs to run it again: data, split and versions."""
        return run_facts(self.prepared, self.config.backend)

    def _title(self) -> str:
        config = self.config
        return f"{self.prepared.interactions.name}, schedule {config.schedule}, {config.backend}, seed {config.seed}"

"""A training run: the stages in order, validation after every epoch, and everything kept in the run directory."""

import time
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ur4rec.backends import load_backend
from ur4rec.config import SCORERS
from ur4rec.decisions import FIELDS, StepRecord, read_decisions
from ur4rec.experiment import Experiment
from ur4rec.facts import experiment_facts
from ur4rec.metrics import summarise
from ur4rec.popularity import popularity_ranks
from ur4rec.results import CRITERION, K_LIST, Result, build_result
from ur4rec.run_config import RunConfig
from ur4rec.run_directory import RunDirectory
from ur4rec.schedule_plot import plot_schedule
from ur4rec.schedules import parse_schedule

_JOINT_ROWS = ("fused", {"sasrec": "SASRec in it", "retriever": "retriever in it", "fused": "fused"})
TABLE_ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "pretrain_sasrec": ("sasrec", {"sasrec": "SASRec alone"}),
    "pretrain_retriever": ("retriever", {"retriever": "retriever alone"}),
    "joint_finetune": _JOINT_ROWS,
    "end_to_end": _JOINT_ROWS,
}
"""Per stage: the scorer whose validation chooses the epoch, and the rows of the results table that it fills."""
Ranks = dict[str, NDArray[np.int64]]


class Run:
    """One training run.

    Args:
        config: What to run.
        experiment: The data, from `ur4rec.experiment.prepare`.
        directory: Where everything is kept.
        progress: Whether to show a progress bar per epoch; None is only on a terminal.

    Raises:
        AlternatorError: The backend is missing, or a setting does not fit.
    """

    def __init__(
        self, config: RunConfig, experiment: Experiment, directory: RunDirectory, *, progress: bool | None = None
    ) -> None:
        self.config = config
        self.experiment = experiment
        self.directory = directory
        self.records: list[StepRecord] = []
        self.epochs: list[dict[str, Any]] = []
        self.results: dict[str, Result] = {}
        self._schedule = parse_schedule(config.schedule)
        self._validation = experiment.evaluation(experiment.split.validation)
        self._test = experiment.evaluation(experiment.split.test)
        backend = load_backend(config.backend)
        model = backend.UR4Rec(
            experiment.split.num_items, experiment.item_text_vectors_IT, seed=config.seed, **config.model
        )
        self.trainer = backend.JointTrainer(
            model,
            device=config.device,
            rule=self._schedule.rule,
            seed=config.seed,
            progress=progress,
            on_step=self.records.append,
            **config.trainer,
        )

    def train(self) -> list[Result]:
        """Train through all stages; after every epoch the run is validated and saved, after every stage drawn.

        After `resume` it goes on with the next epoch, and ends as if it had never stopped.

        Returns:
            The rows of the results table, each at its best epoch by validation.

        Raises:
            AlternatorError: Too many losses in a row were not finite.
            OSError: The disk is full or not writable; what was saved before is whole.
        """
        plan = self.config.plan
        if not self.epochs:
            self.directory.write_json("config.json", {**self.config.to_json(), "facts": self._facts})
            self._add_popularity()
        for epoch in range(len(self.epochs), len(plan)):
            stage = plan[epoch]
            if epoch == 0 or stage != plan[epoch - 1]:
                self._enter(stage)
            self._run_epoch(epoch, stage)
            if epoch + 1 == len(plan) or stage != plan[epoch + 1]:
                plot_schedule(self.directory.path / "schedule.png", self.records, self.epochs, self._title())
        return list(self.results.values())

    def resume(self) -> None:
        """Go back to the newest checkpoint of the run directory; a directory without one starts from the beginning.

        Raises:
            AlternatorError: The checkpoint or the decision log is damaged, or of another configuration.
        """
        checkpoint = self.directory.latest_checkpoint()
        if checkpoint is None:
            return
        saved = self.trainer.load_checkpoint(checkpoint)["metrics"]
        self.epochs = saved["epochs"]
        self.results = {name: Result.from_json(result) for name, result in saved["results"].items()}
        self.records[:] = read_decisions(self.directory.path / "decisions.csv", self.epochs[-1]["step"])

    def _enter(self, stage: str) -> None:
        num_steps = self.config.epochs[stage] * len(self.experiment.train)
        joint = stage == "joint_finetune" and self._schedule.rule is None
        self.trainer.set_training_stage("end_to_end" if joint else stage, num_steps=num_steps)

    def _run_epoch(self, epoch: int, stage: str) -> None:
        started = time.perf_counter()
        metrics = self.trainer.train_epoch(self.experiment.train, epoch=epoch)
        trained = time.perf_counter()
        ranks = {scorer: self.trainer.rank(self._validation, scorer=scorer) for scorer in SCORERS}
        best = self._keep_best(epoch, stage, ranks)
        self.epochs.append(
            {
                "epoch": epoch,
                "stage": stage,
                "step": len(self.records),
                "train": metrics,
                "validation": {scorer: summarise(ranks[scorer], K_LIST) for scorer in SCORERS},
                "train_seconds": trained - started,
                "evaluation_seconds": time.perf_counter() - trained,
            }
        )
        self._save(epoch, best)

    def _keep_best(self, epoch: int, stage: str, ranks: Ranks) -> bool:
        """Test this epoch if validation says that it is the best so far of its rows of the results table."""
        criterion, rows = TABLE_ROWS[stage]
        value = summarise(ranks[criterion], K_LIST)[CRITERION]
        before = self.results.get(rows[criterion])
        if before is not None and value <= before.validation[CRITERION]:
            return False
        for scorer, name in rows.items():
            test_ranks = self.trainer.rank(self._test, scorer=scorer)
            self.results[name] = build_result(name, epoch, ranks[scorer], test_ranks)
        return True

    def _add_popularity(self) -> None:
        split = self.experiment.split
        ranks = [popularity_ranks(split.train, targets, split.num_items) for targets in (split.validation, split.test)]
        self.results["popularity"] = build_result("popularity", -1, *ranks)

    def _save(self, epoch: int, best: bool) -> None:
        """Write everything whole, the checkpoint last: so whatever it stands for is there when it is."""
        self.directory.write_csv("decisions.csv", (record.row() for record in self.records), FIELDS)
        self.directory.write_csv("test_ranks.csv", self._rank_rows(), ["user", *self.results])
        self.directory.write_json("metrics.json", self._metrics())
        state = {
            "epochs": self.epochs,
            "results": {name: result.to_json(ranks=True) for name, result in self.results.items()},
        }
        with self.directory.new_checkpoint(len(self.records), best=best) as path:
            self.trainer.save_checkpoint(path, epoch=epoch, metrics=state)

    def _metrics(self) -> dict[str, Any]:
        return {
            "final": {name: result.to_json() for name, result in self.results.items()},
            "schedule": self.trainer.alternator.get_stats(),
            "train_seconds": sum(row["train_seconds"] for row in self.epochs),
            "facts": self._facts,
            "epochs": self.epochs,
        }

    def _rank_rows(self) -> list[dict[str, Any]]:
        interactions, test = self.experiment.interactions, self.experiment.split.test
        columns = {name: result.test_ranks.tolist() for name, result in self.results.items()}
        return [
            {"user": interactions.user_ids[user], **{name: ranks[row] for name, ranks in columns.items()}}
            for row, user in enumerate(test.users_T)
        ]

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """What a reader needs to run it again: data, split and versions."""
        return experiment_facts(self.experiment, self.config.backend)

    def _title(self) -> str:
        config = self.config
        return f"{self.experiment.interactions.name}, schedule {config.schedule}, {config.backend}, seed {config.seed}"

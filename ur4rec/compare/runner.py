"""One run of a study: an arm, a seed, a budget; trained, evaluated at every point, and kept.

Shapes: B rows of a batch, I items, L positions, P evaluation points, S steps, M modules, T targets.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alternator.recordings.log import StepRecord
from ur4rec.compare.arms import schedule_string
from ur4rec.compare.budget import Course, Ledger, describe_turns
from ur4rec.compare.study import StudyConfig
from ur4rec.data import Interactions, Split, load_dataset, sample_users, synthetic, without_texts
from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import NonFiniteError
from ur4rec.evaluation.metrics import negative_log_likelihood, summarise, target_ranks
from ur4rec.evaluation.results import CRITERION
from ur4rec.options import DataOptions
from ur4rec.runs.prepared import PreparedData, prepare_data, run_facts
from ur4rec.runs.step_costs import StepCosts, with_costs
from ur4rec.schedule.alternators import Schedule, parse_schedule
from ur4rec.schedule.stages import DECIDING_STAGE
from ur4rec.training.backend import load_backend
from ur4rec.training.scorer import AnyScorer
from ur4rec.training.trainer import AnyTrainer


class RunKey(NamedTuple):
    """Which run of a study."""

    arm: str
    """The arm."""
    seed: int
    """The seed."""
    basis: str
    """The budget that is held equal: ``updates`` or ``cost``."""


class RankedTargets(NamedTuple):
    """What one set of targets got."""

    ranks_T: NDArray[np.int32]
    """The rank of each target among the items that its user has not seen."""
    nll_T: NDArray[np.float32]
    """Minus the log-probability of each target: a softmax of the scores over the whole catalogue."""

    def summary(self) -> dict[str, float]:
        """Hit@10, NDCG@10 and the mean NLL."""
        metrics = summarise(self.ranks_T, (10,))
        return {
            "hit@10": metrics["hit@10"],
            "ndcg@10": metrics["ndcg@10"],
            "nll": float(self.nll_T.mean(dtype=np.float64)),
        }


def evaluate(trainer: AnyScorer, batches: Iterable[EvaluationBatch]) -> RankedTargets:
    """Score every target's history once, fused, and take rank and likelihood from the same scores.

    Raises:
        NonFiniteError: A score that counts is NaN or infinite.
    """
    ranks, likelihoods = [], []
    for batch in batches:
        scores_BI = np.asarray(trainer.score(batch.items_BL))[: batch.num_valid]
        targets_B = batch.targets_B[: batch.num_valid]
        ranks.append(target_ranks(scores_BI, targets_B, *batch.seen))
        likelihoods.append(negative_log_likelihood(scores_BI, targets_B))
    return RankedTargets(np.concatenate(ranks).astype(np.int32), np.concatenate(likelihoods).astype(np.float32))


class ArmRun:
    """Trains one arm through the budget.

    Args:
        study: The study.
        key: Which run.
        costs: What steps cost.
        original: For a control, what its original's run reported.
        start: A checkpoint of the pretraining stages, where the study has them.
        data_dir: Where to look for a built-in dataset before it is downloaded.
    """

    def __init__(
        self,
        study: StudyConfig,
        key: RunKey,
        costs: StepCosts,
        *,
        original: Mapping[str, Any] | None = None,
        start: Path | None = None,
        data_dir: Path | None = None,
    ) -> None:
        self.study = study
        self.key = key
        schedule = key.arm if original is None else schedule_string(key.arm, turns=original["turns"], seed=key.seed)
        self.schedule = with_costs(schedule, costs)
        self.prepared = prepare_study(study, key.seed, data_dir)
        self.ledger = Ledger(study.updates, costs, key.basis)
        self.records: list[StepRecord] = []
        self.points: list[dict[str, Any]] = []
        self.outcomes: dict[str, list[RankedTargets]] = {"validation": [], "test": []}
        self._start = start

    def train(self) -> dict[str, Any]:
        """Train and evaluate to the end of the budget.

        Returns:
            What is kept as JSON; a run whose losses or scores stop being finite ends there, with an ``error``.
        """
        started, error = time.perf_counter(), None
        trainer = build_trainer(self.study, self.prepared, self.schedule, self.key.seed, on_step=self.records.append)
        if self._start is not None:
            trainer.load_checkpoint(self._start)
        num_steps = self.study.updates
        stage = joint_stage(parse_schedule(self.schedule))
        trainer.set_training_stage(stage, num_steps, position=lambda: self.ledger.progress * num_steps)
        course = Course(trainer, self.prepared.train, self.ledger)
        try:
            for number, part in enumerate(self.study.points):
                course.until = part
                trainer.train_epoch(course, epoch=number)
                self._evaluate(trainer)
        except NonFiniteError as caught:
            error = str(caught)
        return self._report(time.perf_counter() - started, error)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Ranks and NLL of every target at every point, and the training losses of every step."""
        modules = self.study.modules
        losses_SM = [[record.losses.get(module, np.nan) for module in modules] for record in self.records]
        arrays: dict[str, NDArray[Any]] = {"losses_SM": np.array(losses_SM, np.float32)}
        for split, outcomes in self.outcomes.items():
            arrays[f"{split}_ranks_PT"] = np.array([outcome.ranks_T for outcome in outcomes], np.int32)
            arrays[f"{split}_nll_PT"] = np.array([outcome.nll_T for outcome in outcomes], np.float32)
        return arrays

    def _evaluate(self, trainer: AnyTrainer) -> None:
        point: dict[str, Any] = {
            "step": len(self.ledger.turns),
            "updates": self.ledger.updates,
            "cost": self.ledger.cost,
        }
        for split in self.outcomes:
            outcome = evaluate(trainer, self.prepared.evaluation(getattr(self.prepared.split, split)))
            self.outcomes[split].append(outcome)
            point[split] = outcome.summary()
        self.points.append(point)

    def _report(self, seconds: float, error: str | None) -> dict[str, Any]:
        quality = [point["validation"][CRITERION] for point in self.points]
        return {
            **self.key._asdict(),
            "schedule": self.schedule,
            "error": error,
            "budget": self.ledger.budget,
            "spent": {"updates": self.ledger.updates, "cost": self.ledger.cost},
            "best": int(np.argmax(quality)) if quality else None,
            "points": self.points,
            "turns": describe_turns(self.ledger.turns, self.study.modules),
            **_targets_per_user(self.prepared.split),
            "seconds": seconds,
            "facts": study_facts(self.prepared, self.study),
        }


def _targets_per_user(split: Split) -> dict[str, Any]:
    """The number of targets of each user, in their order, where some user has several."""
    held_out = {"validation": split.validation, "test": split.test}
    counts = {name: np.unique(targets.users_T, return_counts=True)[1].tolist() for name, targets in held_out.items()}
    return {"targets_per_user": counts} if max(map(max, counts.values())) > 1 else {}


def prepare_study(study: StudyConfig, seed: int, data_dir: Path | None = None) -> PreparedData:
    """Data, split and batches of one seed; the data is read once per process.

    Raises:
        UR4RecError: The data cannot be had or is malformed, or a setting does not fit it.
    """
    data = json.dumps(dict(study.data), sort_keys=True)
    interactions = _load(study.dataset, data, study.num_users, study.user_seed, study.blank_texts, data_dir)
    return prepare_data(study.run_config("parity", seed), interactions)


@lru_cache(maxsize=1)
def _load(
    dataset: str,
    data: str,
    num_users: int | None,
    user_seed: int,
    blank_texts: bool,
    data_dir: Path | None,
) -> Interactions:
    if dataset == "synthetic" and data != "{}":
        interactions = synthetic(**json.loads(data))
    else:
        interactions = load_dataset(dataset, directory=data_dir, options=DataOptions.from_json(json.loads(data)))
    if num_users is not None:
        interactions = sample_users(interactions, num_users, user_seed)
    return without_texts(interactions) if blank_texts else interactions


def build_trainer(study: StudyConfig, prepared: PreparedData, schedule: str, seed: int, **settings: Any) -> AnyTrainer:
    """A `JointTrainer` of the study's backend with the initial weights of a seed.

    Args:
        study: The study.
        prepared: Its data.
        schedule: Who trains in the joint stage.
        seed: Of weights, dropout and sampled negatives.
        **settings: Further arguments of the trainer.
    """
    config, parsed = study.run_config(schedule, seed), parse_schedule(schedule)
    backend = load_backend(study.backend)
    model = backend.UR4Rec(**prepared.model_arguments(), seed=seed)
    return backend.JointTrainer(
        model,
        device=study.device,
        memory=study.memory,
        rule=parsed.rule,
        probe=prepared.probe() if parsed.measures else None,
        seed=seed,
        progress=False,
        item_counts=prepared.train.item_counts,
        **settings,
        **config.trainer,
    )


def joint_stage(schedule: Schedule) -> str:
    """The stage in which a schedule trains."""
    return "end_to_end" if schedule.rule is None else DECIDING_STAGE


def study_facts(prepared: PreparedData, study: StudyConfig) -> dict[str, Any]:
    """What a reader needs to run it again."""
    return {**run_facts(prepared, study.backend), **machine_facts(), "commit": source_commit()}


def pretrain(study: StudyConfig, seed: int, path: Path, data_dir: Path | None = None) -> None:
    """Train the two pretraining stages of a seed, and save where its arms start."""
    prepared = prepare_study(study, seed, data_dir)
    trainer = build_trainer(study, prepared, "parity", seed)
    for stage in ("pretrain_sasrec", "pretrain_retriever"):
        trainer.set_training_stage(stage, num_steps=study.pretrain)
        left, epoch = study.pretrain, 0
        while left:
            steps = min(left, len(prepared.train))
            trainer.train_epoch(prepared.train, epoch=epoch, max_steps=steps)
            left, epoch = left - steps, epoch + 1
    trainer.save_checkpoint(path)


def machine_facts() -> dict[str, Any]:
    """The processor, and how busy the machine is."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def source_commit() -> str | None:
    """The git commit that this code was checked out at, with ``+`` if files have changed since; None elsewhere."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def _processor() -> str:
    """The processor's name as the system has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

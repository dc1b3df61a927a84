"""What the runs of a study start from: data, a trainer with a seed's initial weights, and its batches in order."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from ur4rec.compare.budget import Ledger
from ur4rec.compare.study import StudyConfig
from ur4rec.data import Interactions, load_dataset, sample_users, synthetic, without_texts
from ur4rec.data.batches import Batch, TrainBatches
from ur4rec.runs.prepared import PreparedData, prepare_data
from ur4rec.schedule.names import Schedule, parse_schedule
from ur4rec.training.backend import Trainer, load_backend


def prepare_study(study: StudyConfig, seed: int, data_dir: Path | None = None) -> PreparedData:
    """Data, split and batches of one seed; the data is read once per process.

    Raises:
        UR4RecError: The data cannot be had or is malformed, or a setting does not fit it.
    """
    data = tuple(sorted(study.data.items()))
    interactions = _load(study.dataset, data, study.num_users, study.user_seed, study.blank_texts, data_dir)
    return prepare_data(study.run_config("parity", seed), interactions)


@lru_cache(maxsize=1)
def _load(
    dataset: str,
    data: tuple[tuple[str, Any], ...],
    num_users: int | None,
    user_seed: int,
    blank_texts: bool,
    data_dir: Path | None,
) -> Interactions:
    interactions = synthetic(**dict(data)) if data else load_dataset(dataset, directory=data_dir)
    if num_users is not None:
        interactions = sample_users(interactions, num_users, user_seed)
    return without_texts(interactions) if blank_texts else interactions


def build_trainer(study: StudyConfig, prepared: PreparedData, schedule: str, seed: int, **settings: Any) -> Trainer:
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
    model = backend.UR4Rec(prepared.split.num_items, prepared.item_text_vectors_IT, seed=seed, **config.model)
    return backend.JointTrainer(
        model,
        device=study.device,
        rule=parsed.rule,
        probe=prepared.probe() if parsed.measures else None,
        seed=seed,
        progress=False,
        **settings,
        **config.trainer,
    )


def joint_stage(schedule: Schedule) -> str:
    """The stage in which a schedule trains."""
    return "end_to_end" if schedule.rule is None else "joint_finetune"


class Course:
    """The training batches of a run in order, from one evaluation to the next, each step charged.

    It is what a trainer iterates over: a step's turn is known when its batch is asked for, and charged after it.

    Args:
        trainer: Whose schedule says what a step trains.
        batches: All batches; step n takes the n-th, whoever trains, so that every arm of a seed sees the same data.
        ledger: Where steps are charged.
    """

    def __init__(self, trainer: Trainer, batches: TrainBatches, ledger: Ledger) -> None:
        self._trainer = trainer
        self._batches = batches
        self._ledger = ledger
        self.until = 1.0

    @property
    def usual_targets(self) -> int:
        """As for `TrainBatches`: a backend that compiles takes it for a constant shape."""
        return self._batches.usual_targets

    def __iter__(self) -> Iterator[Batch]:
        while self._ledger.fits(turn := self._trainer.alternator.active, self.until):
            epoch, index = divmod(len(self._ledger.turns), len(self._batches))
            probed = self._trainer.num_probe_forwards
            yield self._batches.batch(epoch, index)
            self._ledger.charge(turn)
            self._ledger.charge_probes(self._trainer.num_probe_forwards - probed)

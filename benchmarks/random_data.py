"""Random sequences of a given shape, and trainers for them: what is measured does not depend on their content."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from ur4rec.data.batches import Batch, TrainBatches
from ur4rec.data.interactions import Sequences
from ur4rec.schedule.stages import TURNS

PACKAGES = {"torch": "ur4rec_torch", "jax": "ur4rec_jax"}


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """Sizes of data, batches and model."""

    users: int
    """Sequences; more than a few batches of them change nothing."""
    items: int
    """The catalogue."""
    mean_length: float
    """Of a sequence; the lengths are spread as those of an exponential distribution."""
    max_seq_len: int
    """Positions of a row."""
    batch_size: int
    """Rows of a batch."""
    width: int
    """Of SASRec and of the retriever."""
    text_width: int = 64
    """Of the texts."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A kind of training step."""

    stage: str
    """The stage."""
    turn: str
    """What trains."""

    @property
    def trained(self) -> tuple[str, ...]:
        """The modules that train."""
        return TURNS[self.turn]

    @property
    def run(self) -> tuple[str, ...]:
        """The modules that are run: under the fused loss of a joint stage, both."""
        return self.trained if self.stage.startswith("pretrain") else ("sasrec", "retriever")

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.stage}, {self.turn}" if self.stage == "joint_finetune" else self.stage


STEPS = (
    Step(stage="pretrain_sasrec", turn="sasrec"),
    Step(stage="joint_finetune", turn="sasrec"),
    Step(stage="joint_finetune", turn="retriever"),
    Step(stage="end_to_end", turn="both"),
)


class RandomData:
    """Random sequences and texts.

    Args:
        shape: Their sizes.
        device: Where trainers train.

    Attributes:
        loader: Training batches.
        texts_IT: Texts of items.
        histories_BL: Histories to score.
    """

    def __init__(self, shape: DataShape, device: str) -> None:
        rng = np.random.default_rng(0)
        self.shape, self.device = shape, device
        lengths = np.maximum(2, rng.exponential(shape.mean_length, shape.users).astype(int))
        lengths[0] = shape.max_seq_len + 1
        sequences = Sequences.from_lists([rng.integers(shape.items, size=length).tolist() for length in lengths])
        sizes = {"max_seq_len": shape.max_seq_len, "batch_size": shape.batch_size}
        self.loader = TrainBatches(sequences, shape.items, seed=0, **sizes)
        self.texts_IT = rng.normal(size=(shape.items, shape.text_width)).astype(np.float32)
        self.histories_BL = rng.integers(shape.items, size=(64, shape.max_seq_len)).astype(np.int32)
        self.model = {
            "text_embedding_dim": shape.text_width,
            "sasrec_hidden_dim": shape.width,
            "retriever_output_dim": shape.width,
            "retriever_num_queries": 2,
            "max_seq_len": shape.max_seq_len,
        }

    def train(self, trainer: Any, count: int) -> None:
        """The first steps of the first epoch, as training does them: with rows grouped by length, where that pays."""
        trainer.train_epoch(self.loader, 0, max_steps=min(count, len(self.loader)))

    def batches(self, count: int) -> list[Batch]:
        """Some batches of the first epoch, again from its beginning where it has fewer."""
        return [self.loader.batch(0, index % len(self.loader)) for index in range(count)]

    def trainer(self, backend: str, step: Step, *, device: str | None = None, **settings: Any) -> Any:
        """A trainer in which every step is of one kind."""
        package = import_module(PACKAGES[backend])
        model = package.UR4Rec(self.shape.items, self.texts_IT, **self.model)
        given = {"catalogue_loss": "full", "item_counts": self.loader.item_counts, **settings}
        trainer = package.JointTrainer(model, device=device or self.device, progress=False, warmup=0.0, **given)
        trainer.set_training_stage(step.stage)
        if step.stage == "joint_finetune":
            getattr(trainer._alternating, "force", trainer.alternator.force)(step.turn)
        return trainer

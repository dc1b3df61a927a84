"""`ur4rec_jax` as a user writes it: a model, its trainer, a scorer."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, assert_type

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from alternator import Alternator, Decision, Trend
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import Batch, EvaluationBatches, TrainBatches
from ur4rec_jax import JointTrainer, Scorer, UR4Rec, load_model


def main() -> None:
    split = leave_one_out(synthetic(num_users=40, num_items=60))
    text_vectors_IT = np.eye(split.num_items)
    model = UR4Rec(
        split.num_items, text_vectors_IT, text_embedding_dim=split.num_items, fusion="weighted", max_seq_len=8
    )
    assert_type(model.score(jnp.array([[3, 1, 4]]), "sasrec"), Array)
    assert_type(model.scores(jnp.array([[3, 1, 4]])), dict[str, Array])
    trainer = JointTrainer(model, device="cpu", rule=Trend(), progress=False, sasrec_lr=1e-3)
    trainer.set_training_stage("joint_finetune", num_steps=20)
    assert_type(trainer.alternator, Alternator)
    batches = TrainBatches(split.train, split.num_items, max_seq_len=8, batch_size=4, seed=0)
    assert_type(trainer.train_epoch(batches, epoch=0, max_steps=2), dict[str, Any])
    assert_type(trainer.train_step(next(iter(batches))), Decision)
    targets = EvaluationBatches(split.validation, split.num_items, max_seq_len=8, batch_size=4)
    metrics = trainer.evaluate(targets, k_list=[5, 10])
    assert_type(metrics, dict[str, float])
    assert_type(trainer.rank(targets), NDArray[np.int64])
    with TemporaryDirectory() as directory:
        path = Path(directory) / "checkpoint"
        trainer.save_checkpoint(path, epoch=0, metrics=metrics)
        assert_type(trainer.load_checkpoint(path), dict[str, Any])
        scorer = Scorer(load_model(path), device="cpu")
    assert_type(scorer.score([[3, 1, 4]]), NDArray[np.float32])
    assert_type(scorer.rank(targets, "retriever"), NDArray[np.int64])


def misuse(model: UR4Rec, trainer: JointTrainer, batch: Batch) -> None:
    UR4Rec("30", [[0.0]])  # type: ignore[arg-type]
    UR4Rec(30, [[0.0]], fusion=1)  # type: ignore[arg-type]
    UR4Rec(30, [[0.0]], sasrec_hidden=64)  # type: ignore[call-arg]
    JointTrainer(model, rule="trend")  # type: ignore[arg-type]
    JointTrainer(model, sasrec_lr="high")  # type: ignore[arg-type]
    JointTrainer(model, sasrec_rate=1e-3)  # type: ignore[call-arg]
    model.score([[3, 1, 4]])  # type: ignore[arg-type]
    trainer.set_training_stage(1)  # type: ignore[arg-type]
    trainer.train_epoch(batch, epoch="0")  # type: ignore[arg-type]
    Scorer("checkpoint")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

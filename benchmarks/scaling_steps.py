"""How does a step grow with the catalogue?  `python benchmarks/scaling_steps.py BACKEND full|sampled ITEMS`."""

import sys
import time

import numpy as np

from ur4rec.data import Sequences
from ur4rec.data.batches import TrainBatches
from ur4rec.training.backend import load_backend

LENGTH, NUM_USERS = 50, 512


def main(backend: str, loss: str, num_items: int, num_steps: int = 4) -> None:
    """Processor seconds of a joint step of both modules: 64 rows of 50, d = 64."""
    drawn = np.random.default_rng(1).integers(0, num_items, NUM_USERS * (LENGTH + 1)).astype(np.int32)
    sequences = Sequences(drawn, np.arange(NUM_USERS + 1) * (LENGTH + 1))
    batches = TrainBatches(sequences, num_items, max_seq_len=LENGTH, batch_size=64, seed=0)
    texts_IT = np.random.default_rng(0).standard_normal((num_items, 64), np.float32)
    shape = {"sasrec_hidden_dim": 64, "sasrec_num_heads": 2, "retriever_output_dim": 64, "text_embedding_dim": 64}
    package = load_backend(backend)
    model = package.UR4Rec(num_items, texts_IT, max_seq_len=LENGTH, **shape)
    trainer = package.JointTrainer(
        model, device="cpu", progress=False, catalogue_loss=loss, item_counts=batches.item_counts
    )
    trainer.set_training_stage("end_to_end")
    for index in range(2):
        trainer.train_step(batches.batch(0, index))
    trainer.flush()
    started = time.process_time()
    for index in range(2, 2 + num_steps):
        trainer.train_step(batches.batch(0, index))
    trainer.flush()
    print(f"{backend} {loss} {num_items:,} items: {(time.process_time() - started) / num_steps:.3f} s per step")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

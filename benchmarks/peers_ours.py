"""SASRec alone in this library, an epoch at a time: the stage pretrain_sasrec. `peers.py` starts it."""

import os
from importlib import import_module
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from peers_worker import Job, Recorder, clocks, since, versions, work

from ur4rec.data.batches import TrainBatches

RETRIEVER = {"text_embedding_dim": 1, "retriever_output_dim": 1, "retriever_num_queries": 1}
"""The retriever, which this stage leaves alone, is as small as can be."""
FRAMEWORKS = {"ur4rec_torch": ("torch",), "ur4rec_jax": ("jax", "flax", "optax")}


def program(job: Job, recorder: Recorder) -> None:
    """Train and rank."""
    settings, split = job.settings, recorder.task.split
    if settings["package"] == "ur4rec_torch":
        import_module("torch").set_num_threads(1)
    package: Any = import_module(settings["package"])
    shape = {**settings["model"], **RETRIEVER, "max_seq_len": job.max_seq_len}
    model = package.UR4Rec(split.num_items, np.zeros((split.num_items, 1)), seed=job.own_seed, **shape)
    loader = TrainBatches(
        split.train,
        split.num_items,
        max_seq_len=job.max_seq_len,
        batch_size=settings["batch_size"],
        seed=job.own_seed,
        shifted=settings["shifted"],
    )
    trainer = package.JointTrainer(
        model, device="cpu", progress=False, seed=job.own_seed, item_counts=loader.item_counts, **settings["trainer"]
    )
    trainer.set_training_stage("pretrain_sasrec", num_steps=job.epochs * len(loader))
    recorder.about |= {"targets_per_epoch": loader.num_targets, "steps_per_epoch": len(loader)}
    recorder.about["versions"] = versions("numpy", *FRAMEWORKS[settings["package"]])

    def ranks(part: str) -> dict[str, Any]:
        return recorder.ranks(lambda batch: trainer.score(batch.items_BL, "sasrec"), part)

    for epoch in range(job.epochs):
        start = clocks()
        trainer.train_epoch(loader, epoch)
        recorder.epoch(since(start), ranks)


if __name__ == "__main__":
    work(program)

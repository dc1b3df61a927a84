"""The parts of `gpu.py` that train epochs: how batches are read, and MovieLens-1M to the quality that is published."""

import statistics
import time
from typing import Any

import torch
from gpu_measures import SAMPLED, Context
from gpu_results import Record, Skipped
from random_data import STEPS, RandomData

from ur4rec.data import Split, leave_one_out, load_dataset, synthetic
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec.errors import SourceError
from ur4rec.evaluation.metrics import summarise
from ur4rec_torch import JointTrainer, UR4Rec

PUBLISHED = {"ndcg@10": 0.182, "hit@10": 0.315}
"""SASRec alone on MovieLens-1M: all 3,416 items ranked, leave-one-out (gSASRec's table, RecSys 2023)."""
MODEL = {"sasrec_hidden_dim": 64, "sasrec_num_blocks": 2, "sasrec_num_heads": 2, "sasrec_dropout": 0.2}
MODEL |= {"text_embedding_dim": 1, "retriever_output_dim": 1, "retriever_num_queries": 1}
RESERVE = 0.15
"""The part of the time of `quality` that starting, the test and its writing may take."""


def epochs(context: Context, record: Record) -> None:
    """Milliseconds of a step of epochs whose batches are built and sent as they are needed, and ahead by a thread."""
    for name, shape in context.shapes.items():
        data = RandomData(shape, context.device)
        steps = min(len(data.loader), context.steps)
        for kind, settings in {"": {}, ", sampled": SAMPLED}.items():
            for readers in (0, 1):
                trainer = data.trainer("torch", STEPS[-1], readers=readers, **settings)
                times = []
                for epoch in range(context.rounds + 1):  # the first is to warm up
                    started = time.perf_counter()
                    trainer.train_epoch(data.loader, epoch, max_steps=steps)
                    times.append((time.perf_counter() - started) / steps * 1000)
                full = f"{name}, end_to_end{kind}, {readers} reader{'' if readers == 1 else 's'}"
                record.figure(full, statistics.median(times[1:]), unit="ms", detail="batches built and losses read")


def load_split(context: Context, record: Record) -> Split:
    """MovieLens-1M, or something small for a look.

    Raises:
        Skipped: Its files are nowhere.
    """
    if context.quick:
        return leave_one_out(synthetic(num_users=200, num_items=80, mean_length=20, seed=0))
    try:
        interactions = load_dataset("ml-1m", directory=context.data_dir)
    except SourceError as error:
        raise Skipped(f"MovieLens-1M is not here: name its folder with --data-dir ({error})") from error
    record.fact("data", f"{interactions.source}, hash {interactions.hash[:12]}")
    return leave_one_out(interactions)


def quality(context: Context, record: Record) -> None:
    """SASRec alone until the time is over, over which the learning rate falls; validation as it goes, then the test."""
    split = load_split(context, record)
    length, batch_size = (12, 16) if context.quick else (200, 128)
    loader = TrainBatches(split.train, split.num_items, max_seq_len=length, batch_size=batch_size, seed=0, shifted=True)
    validation, test = (
        EvaluationBatches(targets, split.num_items, max_seq_len=length, batch_size=512)
        for targets in (split.validation, split.test)
    )
    model = UR4Rec(split.num_items, torch.zeros(split.num_items, 1), seed=0, max_seq_len=length, **MODEL)
    trainer = JointTrainer(model, device=context.device, progress=False, seed=0, sasrec_lr=2e-3, readers=1)
    budget = 3.0 if context.quick else context.left * (1 - RESERVE)
    started = time.monotonic()
    part = lambda: min(1.0, (time.monotonic() - started) / budget)  # noqa: E731
    trainer.set_training_stage("pretrain_sasrec", num_steps=1000, position=lambda: 1000 * part())
    curve: list[dict[str, Any]] = []
    epoch, best, kept = 0, -1.0, {}
    while part() < 1:
        trainer.train_epoch(loader, epoch, after_step=lambda: part() >= 1)
        epoch += 1
        if part() < 1 and epoch % 4:
            continue  # a validation costs about as much as an epoch
        ndcg = summarise(trainer.rank(validation, "sasrec"), [10])["ndcg@10"]
        curve.append({"seconds": round(time.monotonic() - started, 1), "epoch": epoch, "ndcg@10": round(ndcg, 4)})
        record.fact("validation", curve)
        if ndcg > best:
            best, kept = ndcg, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    found = summarise(trainer.rank(test, "sasrec"), [10])
    seconds = time.monotonic() - started
    for metric, published in PUBLISHED.items():
        detail = f"published {published}; {epoch} epochs, {seconds:.0f} s"
        bar = None if context.quick else published
        record.figure(f"test {metric}, unseen items", found[metric], bar=bar, at_least=True, detail=detail)

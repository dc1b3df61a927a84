"""What do rows grouped by length save?  `python benchmarks/length_groups.py` measures steps with and without groups.

The data are drawn with the shape of Amazon Sports: 18,357 items and short histories, five interactions at least and 8.3
on average, whose rows of 50 positions are a tenth full. The two trainers, ``length_groups=True`` and ``False``, take
turns in one process, on the same batches; each round gives one ratio of CPU times, and the median over the rounds is
reported with its 10% and 90% quantiles. Preparing the batches counts.
"""

import argparse
import itertools
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from overhead import RESULTS, SEED, Row, machine, save, side_by_side
from overhead_jax import TENURE  # which sets XLA to one thread

import ur4rec_jax
import ur4rec_torch
from ur4rec.data import Sequences
from ur4rec.data.batches import TrainBatches
from ur4rec.training.length_groups import find_groups

QUESTION = "What do rows grouped by length save?"
NUM_ITEMS, MEAN_LENGTH, LEAST_LENGTH, MAX_SEQ_LEN = 18_357, 8.3, 5, 50
HELD_OUT = 2
"""Interactions of each user that are not trained on."""
PACKAGES = {"torch": ur4rec_torch, "jax": ur4rec_jax}
STAGES = {"pretrain_sasrec": "SASRec alone", "end_to_end": "joint"}
LOSSES = ("full", "sampled")


def sequences(num_users: int) -> Sequences:
    """Histories with the lengths of Sports, without what is held out; items are drawn by Zipf's law."""
    draws = np.random.default_rng(SEED)
    excess = MEAN_LENGTH - LEAST_LENGTH
    lengths_U = LEAST_LENGTH - HELD_OUT + draws.geometric(1 / (1 + excess), num_users) - 1
    shares_I = 1 / np.arange(1, NUM_ITEMS + 1)
    lengths_U[-1] = MAX_SEQ_LEN + 1  # as in Sports, somebody fills a row
    items_N = draws.choice(NUM_ITEMS, int(lengths_U.sum()), p=shares_I / shares_I.sum())
    return Sequences.from_lists([each.tolist() for each in np.split(items_N, lengths_U.cumsum()[:-1])])


def build(package: Any, loader: TrainBatches, width: int, stage: str, loss: str, *, groups: bool) -> Any:
    """A trainer of SASRec and a retriever of this width."""
    texts_IT = np.random.default_rng(SEED).normal(size=(NUM_ITEMS, 64)).astype(np.float32)
    model = package.UR4Rec(
        NUM_ITEMS,
        texts_IT,
        text_embedding_dim=64,
        max_seq_len=MAX_SEQ_LEN,
        sasrec_hidden_dim=width,
        retriever_output_dim=width,
    )
    trainer = package.JointTrainer(
        model,
        device="cpu",
        progress=False,
        length_groups=groups,
        catalogue_loss=loss,
        item_counts=loader.item_counts,
    )
    trainer.set_training_stage(stage)
    return trainer


def measure(backend: str, loader: TrainBatches, width: int, stage: str, loss: str, rounds: int) -> Row:
    """A kind of step with groups beside the same without."""
    trainers = [build(PACKAGES[backend], loader, width, stage, loss, groups=groups) for groups in (True, False)]
    calls = [partial(each.train_epoch, loader, max_steps=TENURE) for each in trainers]
    name = f"{backend}: {STAGES[stage]}, {loss} softmax, batches of {loader.batch_size}, d = {width}"
    row = side_by_side(name, "rows of 50 positions", *calls, rounds=rounds, calls=TENURE, bar=None)
    assert trainers[0].length_groups is not None
    assert trainers[1].length_groups is None
    return row


def main(arguments: list[str] | None = None) -> int:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", default=list(PACKAGES), choices=list(PACKAGES))
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES), help="which steps")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=LOSSES, help="the items under the softmax")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 512], help="rows of a batch")
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 128], help="of SASRec and of the retriever")
    parser.add_argument("--users", type=int, default=35_598, help="users whose histories are drawn (default: Sports')")
    parser.add_argument("--rounds", type=int, default=15, help=f"turns of each kind, of {TENURE} steps (default: 15)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    drawn, measured = sequences(options.users), []
    for batch_size in options.batch_sizes:
        loader = TrainBatches(drawn, NUM_ITEMS, max_seq_len=MAX_SEQ_LEN, batch_size=batch_size, seed=SEED)
        print(f"batches of {batch_size}: {find_groups(loader)} positions", flush=True)
        kinds = itertools.product(options.backends, options.stages, options.losses, options.widths)
        for backend, stage, loss, width in kinds:
            row = measure(backend, loader, width, stage, loss, options.rounds)
            print(f"{row.name}: {row.value:.3f} ({row.low:.3f} to {row.high:.3f}); {row.detail}", flush=True)
            measured.append(row)
    about = machine()
    about["torch"] = f"{about['torch']}, jax {jax.__version__}"
    words = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python benchmarks/length_groups.py", *words])
    hardware = f"cpu{os.cpu_count()}"
    save(measured, options.out, hardware, command, theme="length_groups", question=QUESTION, about=about)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The shapes of data, the random settings and one run of `benchmarks/defaults.py`."""

import json
import time
from dataclasses import asdict
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ur4rec.compare.runner import machine_facts, source_commit
from ur4rec.data import Interactions, synthetic
from ur4rec.files import scratch_directory
from ur4rec.runs.config import RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import counts_of, prepare_data, run_facts, split_of
from ur4rec.runs.presets import preset
from ur4rec.runs.run import TrainingRun
from ur4rec.runs.sizes import Counts

DEFAULT = "default"
SHAPES: dict[str, dict[str, Any]] = {
    "dense, short catalogue": {"num_users": 300, "num_items": 160, "num_clusters": 16, "mean_length": 50},
    "sparse, large catalogue": {"num_users": 1500, "num_items": 3000, "num_clusters": 75, "mean_length": 8},
    "long histories": {"num_users": 100, "num_items": 800, "num_clusters": 40, "mean_length": 200},
    "few users": {"num_users": 80, "num_items": 300, "num_clusters": 25, "mean_length": 30},
    "strong text, cold items": {
        **{"num_users": 500, "num_items": 2000, "num_clusters": 50, "mean_length": 12},
        **{"follow": 0.1, "stay": 0.8},
    },
}
"""Arguments of `ur4rec.data.synthetic`. Nothing was tuned on them: they are to judge the default, not to choose it."""
DATA_SEED = 71
LENGTHS, WIDTHS, HEADS = (16, 32, 64, 128, 200), (32, 64, 128, 256), (1, 2, 4)
BATCHES = (32, 64, 128, 256, 512)
DROPOUTS = (0.0, 0.6)
RATES = {"sasrec_lr": (3e-4, 1e-2), "retriever_lr": (1e-4, 1e-2)}
EPOCHS = {"pretrain_sasrec": (10, 200), "pretrain_retriever": (2, 40), "joint_finetune": (5, 80)}
"""Epochs are drawn too: the learning rate falls over them. The most of each is what the default may take at most."""
VALIDATIONS, EARLY_STOPPING = 25, 8


class Cell(NamedTuple):
    """One run."""

    shape: str
    arm: str
    """``default``, or ``random NUMBER``."""
    seed: int

    def __str__(self) -> str:
        return f"{self.shape}: {self.arm}, seed {self.seed}"


class Search(NamedTuple):
    """What is common to all runs."""

    backend: str = "torch"
    quick: bool = False
    """Whether to take a tenth of the users and one epoch of each stage, for a look."""


@lru_cache(maxsize=len(SHAPES))
def load_shape(shape: str, quick: bool) -> Interactions:
    """The data of a shape."""
    arguments = SHAPES[shape]
    if quick:
        arguments = {**arguments, "num_users": max(arguments["num_users"] // 10, 30)}
    return synthetic(**arguments, seed=DATA_SEED)


@lru_cache(maxsize=len(SHAPES))
def counts_of_shape(shape: str, quick: bool) -> Counts:
    """What the default sees of a shape."""
    return counts_of(split_of(RunConfig(dataset="synthetic"), load_shape(shape, quick)))


def random_setting(shape: str, number: int) -> dict[str, Any]:
    """A setting of the search: log-uniform rates and epochs, uniform dropout, sizes from short lists.

    Example:
        >>> found = random_setting("few users", 3)
        >>> found == random_setting("few users", 3), found == random_setting("few users", 4)
        (True, False)
        >>> found["sasrec_hidden_dim"] % found["sasrec_num_heads"]
        0
    """
    rng = np.random.default_rng([list(SHAPES).index(shape), number])
    width = int(rng.choice(WIDTHS))
    epochs = {stage: round(float(np.exp(rng.uniform(*np.log(ends))))) for stage, ends in EPOCHS.items()}
    return {
        "max_seq_len": int(rng.choice(LENGTHS)),
        "batch_size": int(rng.choice(BATCHES)),
        "sasrec_hidden_dim": width,
        "sasrec_num_heads": int(rng.choice(HEADS)),
        "sasrec_dropout": round(float(rng.uniform(*DROPOUTS)), 3),
        "retriever_output_dim": width,
        **{name: float(f"{np.exp(rng.uniform(*np.log(ends))):.3g}") for name, ends in RATES.items()},
        **epochs,
        "end_to_end": 0,
        "eval_every": max(round(max(epochs.values()) / VALIDATIONS), 1),
        "early_stopping": EARLY_STOPPING,
    }


def config_of(cell: Cell, search: Search) -> RunConfig:
    """The settings of a run, with all that the data decides."""
    base = preset(
        DEFAULT,
        dataset="synthetic",
        encoder="tfidf",
        backend=search.backend,
        device="cpu",
        seed=cell.seed,
        checkpoint_every=0,
    )
    if cell.arm == DEFAULT:
        config, _ = base.settled(counts_of_shape(cell.shape, search.quick))
    else:
        config = base.with_values(random_setting(cell.shape, int(cell.arm.split()[1])))
    return config.with_values({stage: min(num, 1) for stage, num in config.epochs.items()}) if search.quick else config


def run_cell(cell: Cell, search: Search) -> dict[str, Any]:
    """Train, and test at the best epoch by validation; what is kept of it."""
    config = config_of(cell, search)
    started = time.process_time()
    with scratch_directory() as folder:
        prepared = prepare_data(config, load_shape(cell.shape, search.quick))
        run = TrainingRun(config, prepared, RunDirectory(folder), progress=False)
        run.train()
    fused = run.results["fused"]
    return {
        **cell._asdict(),
        "config": json.loads(json.dumps(config.to_json())),
        "counts": asdict(prepared.counts),
        "validation": fused.validation["ndcg@10"],
        "test": {name: result.test["ndcg@10"] for name, result in run.results.items()},
        "test_ranks": fused.test_ranks.tolist(),
        "epochs": {stage: sum(row["stage"] == stage for row in run.epochs) for stage in config.epochs},
        "cpu_seconds": time.process_time() - started,
        "facts": {**run_facts(prepared, config.backend), **machine_facts(), "commit": source_commit()},
    }

"""A tiny run in a process that something happens to at a chosen moment, forked from one that has imported everything.

A moment is a place in the order of what the process does: training steps, and each opening, moving and removing of a
file in the run directory. `sys.addaudithook` tells of those before they happen; nothing of the run is replaced.
"""

import errno
import gc
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import torch._dynamo  # noqa: F401  (the first optimizer imports it: seconds)
import typer

from ur4rec.cli.options import one_line_errors
from ur4rec.cli.train import train_until_stopped
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import TrainBatches
from ur4rec.runs.config import RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import PreparedData
from ur4rec.runs.run import TrainingRun
from ur4rec.text.encoders import TextEncoder
from ur4rec_jax import JointTrainer  # noqa: F401  (so that a child need not import it)
from ur4rec_torch import JointTrainer as _  # noqa: F401

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload([__name__])

CONFIG = RunConfig(
    dataset="synthetic",
    schedule="plateau,threshold=0.3,min_steps=1,window=3",
    epochs={"pretrain_retriever": 2, "joint_finetune": 3},
    early_stopping=1,
    eval_every=2,
    eval_users=30,
    batch_size=8,
    device="cpu",
    model={
        **{"max_seq_len": 5, "sasrec_hidden_dim": 8, "sasrec_num_heads": 1, "sasrec_num_blocks": 1},
        **{"text_embedding_dim": 8, "retriever_output_dim": 8, "retriever_num_queries": 2, "sasrec_dropout": 0.3},
    },
    checkpoint_every=3,
)
_FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}


class Moment(NamedTuple):
    """A place in a run."""

    step: int
    """Training steps that were begun; -1 is before the first batch is asked for."""
    event: int
    """Of what is done to files since; 0 is the batch itself."""


class Clock:
    """Tells each moment to a file, and lets something happen at one.

    Args:
        directory: Of the run.
        log: The file: one line per moment, on the way to the disk when the moment comes.
        end: The moment; None is never.
        signals: Sent to the process then; none is a disk that is full from then on.
    """

    def __init__(self, directory: Path, log: Path, end: Moment | None, signals: tuple[signal.Signals, ...]) -> None:
        self._directory = str(directory)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._end, self._signals = end, signals
        self._now = Moment(-1, 0)
        sys.addaudithook(self._hear)

    def begin_step(self, step: int) -> None:
        self._come_to(Moment(step, 0), "batch")

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        path = str(args[0]) if event in _FILE_EVENTS and isinstance(args[0], str | Path) else ""
        if path.startswith(self._directory):
            self._come_to(self._now._replace(event=self._now.event + 1), f"{event} {Path(path).name}")
            if not self._signals and self._end <= self._now and event == "open" and args[2] & os.O_CREAT:
                raise OSError(errno.ENOSPC, "No space left on device", path)

    def _come_to(self, moment: Moment, what: str) -> None:
        before, self._now = self._now, moment
        os.write(self._log, f"{moment.step} {moment.event} {what}\n".encode())
        if self._end is not None and before < self._end <= moment:
            for each in self._signals:
                os.kill(os.getpid(), each)


class TimedBatches(TrainBatches):
    """Training batches that tell a clock when they are asked for."""

    clock: Clock

    def batch(self, epoch, index):
        self.clock.begin_step(epoch * len(self) + index)
        return super().batch(epoch, index)


def train(
    backend: str,
    path: Path,
    log: Path,
    end: Moment | None,
    cache: Path,
    signals: tuple[signal.Signals, ...] = (signal.SIGKILL,),
) -> None:
    """Train, or go on with training, as the command does: what the process is for."""
    for name, value in (("dir", str(cache)), ("min_compile_time_secs", 0), ("min_entry_size_bytes", -1)):
        prefix = "jax_compilation_cache_" if name == "dir" else "jax_persistent_cache_"
        jax.config.update(prefix + name, value)
    gc.disable()  # a fifth of the time that JAX takes to trace, in a process that does not live long
    sys.stderr = log.with_suffix(".stderr").open("w")
    config = replace(CONFIG, backend=backend)
    prepared = tiny_data(config)
    prepared.train.clock = Clock(path, log, end, signals)
    run = TrainingRun(config, prepared, RunDirectory(path), progress=False)
    try:
        with one_line_errors():
            train_until_stopped(run, resume=(path / "config.json").exists())
    except typer.Exit as leaving:
        sys.stderr.flush()
        sys.exit(leaving.exit_code)


def tiny_data(config: RunConfig) -> PreparedData:
    interactions = synthetic(num_users=50, num_items=24, num_clusters=4, mean_length=7)
    split = leave_one_out(interactions)
    vectors_IT = np.random.default_rng(0).normal(size=(split.num_items, 8)).astype(np.float32)
    model = config.model_config(split.num_items)
    train = TimedBatches(split.train, split.num_items, max_seq_len=model.max_seq_len, batch_size=8, seed=0)
    return PreparedData(
        interactions=interactions,
        split=split,
        item_text_vectors_IT=vectors_IT,
        model=model,
        train=train,
        encoder=TextEncoder("tfidf", 8, {"neutral": vectors_IT[0]}),
    )


def run_in_child(*arguments: object) -> int:
    """The exit code of `train` with these arguments, in a process of its own."""
    process = FORKING.Process(target=train, args=arguments)
    process.start()
    process.join()
    return process.exitcode

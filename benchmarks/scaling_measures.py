"""What `benchmarks/scaling.py` measures: a function of a `Subject` that prepares the work and returns it.

Another row of the table is one more entry of `MEASURES`.
"""

import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alternator import Payoff
from ur4rec.data import Interactions, Sequences, Targets
from ur4rec.data.batches import EvaluationBatch, EvaluationBatches, TrainBatches
from ur4rec.runs.config import RunConfig
from ur4rec.runs.prepared import PROBE_ROWS, evaluation_batches, load_interactions, prepare_data, split_of
from ur4rec.training.backend import load_backend
from ur4rec.training.slices import DEFAULT_MEMORY

BACKENDS = ("torch", "jax")
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "users": ("num_users", (10_000, 100_000, 1_000_000)),
    "catalogue": ("num_items", (3_000, 30_000, 300_000, 1_000_000)),
    "length": ("length", (50, 100, 200, 500)),
    "width": ("width", (64, 128, 256, 512)),
}
"""Per axis the field of `Subject` that grows along it, and its sizes."""
PER_USER = 10
"""Interactions of each user, on the axis of users."""
EVAL_USERS = 2_000
ENOUGH_SECONDS, MAX_CALLS = 3.0, 7
"""A measurement is repeated until its calls took so long, and at most so often."""
Work = Callable[[], "dict[str, float] | None"]
"""What is timed; it may return further figures."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model of a catalogue, and users with histories of drawn items."""

    backend: str
    num_items: int = 3_000
    num_users: int = 512
    length: int = 50
    width: int = 64
    memory: int = DEFAULT_MEMORY

    @cached_property
    def package(self) -> Any:
        """The backend's."""
        return load_backend(self.backend)

    @property
    def shape(self) -> dict[str, Any]:
        """Of the model."""
        widths = dict.fromkeys(("sasrec_hidden_dim", "retriever_output_dim", "text_embedding_dim"), self.width)
        return {**widths, "sasrec_num_heads": 2, "max_seq_len": self.length}

    @cached_property
    def histories(self) -> Sequences:
        """Of each user."""
        return self._drawn(self.length)

    @cached_property
    def targets(self) -> Targets:
        """One of each user, who has seen his history."""
        items_T = np.random.default_rng(2).integers(0, self.num_items, self.num_users).astype(np.int32)
        users_T = np.arange(self.num_users, dtype=np.int32)
        return Targets(users_T=users_T, items_T=items_T, histories=self.histories, seen=self.histories)

    @cached_property
    def model(self) -> Any:
        """With its first weights: what is measured does not depend on them."""
        texts_IT = np.random.default_rng(0).standard_normal((self.num_items, self.width), np.float32)
        return self.package.UR4Rec(self.num_items, texts_IT, **self.shape)

    @cached_property
    def scorer(self) -> Any:
        """Of the model."""
        return self.package.Scorer(self.model, device="cpu", memory=self.memory)

    @cached_property
    def interactions(self) -> Interactions:
        """Of `PER_USER` rounds in which each user takes a drawn item."""
        users_N = np.tile(np.arange(self.num_users, dtype=np.int32), PER_USER)
        return Interactions(
            users_N=users_N,
            items_N=np.random.default_rng(3).integers(0, self.num_items, len(users_N)).astype(np.int32),
            timestamps_N=np.arange(len(users_N)),
            user_ids=[f"u{user}" for user in range(self.num_users)],
            item_ids=[f"i{item}" for item in range(self.num_items)],
            titles=[f"i{item}" for item in range(self.num_items)],
            texts=[f"i{item}" for item in range(self.num_items)],
            name="drawn",
            source="drawn",
        )

    def trainer(self, **settings: Any) -> Any:
        """Of the model."""
        return self.package.JointTrainer(self.model, device="cpu", progress=False, memory=self.memory, **settings)

    def training_batches(self, batch_size: int = 64) -> TrainBatches:
        """Rows of `length` targets."""
        drawn = self._drawn(self.length + 1)
        return TrainBatches(drawn, self.num_items, max_seq_len=self.length, batch_size=batch_size, seed=0)

    def probe(self) -> EvaluationBatch:
        """Held-out targets of a `Payoff` schedule."""
        batches = EvaluationBatches(
            self.targets.take(np.arange(PROBE_ROWS)),
            self.num_items,
            max_seq_len=self.length,
            batch_size=PROBE_ROWS,
        )
        return next(iter(batches))

    def _drawn(self, length: int) -> Sequences:
        drawn = np.random.default_rng(1).integers(0, self.num_items, self.num_users * length)
        return Sequences(drawn.astype(np.int32), np.arange(self.num_users + 1) * length)


def full_step(subject: Subject) -> Work:
    """A step of both modules on their fused loss over the whole catalogue: 64 rows."""
    return _step(subject, "full")


def sampled_step(subject: Subject) -> Work:
    """The same with 256 negatives of each kind."""
    return _step(subject, "sampled")


def _step(subject: Subject, loss: str) -> Work:
    batches = subject.training_batches()
    trainer = subject.trainer(catalogue_loss=loss, item_counts=batches.item_counts)
    trainer.set_training_stage("end_to_end")

    def work() -> None:
        trainer.train_step(batches.batch(0, trainer.step % len(batches)))
        trainer.flush()

    return work


def rank(subject: Subject) -> Work:
    """The targets of 512 users, by all scorers."""
    scorer, batches = subject.scorer, evaluation_batches(subject.targets, subject.model.config, subject.memory)

    def work() -> None:
        scorer.rank_all(batches)

    return work


def recommend(subject: Subject) -> Work:
    """Ten items for each of 512 users, without what they have seen."""
    scorer, histories = subject.scorer, subject.histories

    def work() -> None:
        list(scorer.top(histories, 10, excluded=histories))

    return work


def checkpoint(subject: Subject) -> Work:
    """A checkpoint of a run after a step, beside the texts that all of its checkpoints share."""
    return _saving(subject.trainer(), subject)


def checkpoint_with_payoff(subject: Subject) -> Work:
    """The same under a Payoff schedule, whose snapshots it keeps."""
    return _saving(subject.trainer(rule=Payoff(costs=(1.0, 0.6, 0.5)), probe=subject.probe()), subject)


def _saving(trainer: Any, subject: Subject) -> Work:
    trainer.set_training_stage("joint_finetune", num_steps=10)
    trainer.train_step(subject.training_batches(batch_size=1).batch(0, 0))

    def work() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder) / "step", shares_texts=True)
            shared_MB = _size(Path(folder), "texts-*")
            return {"file_MB": _size(Path(folder)) - shared_MB, "shared_MB": shared_MB}

    return work


def _size(folder: Path, pattern: str = "*") -> float:
    return sum(each.stat().st_size for each in folder.rglob(pattern) if each.is_file()) / 1e6


def measure_payoff(subject: Subject) -> Work:
    """One measurement of a Payoff schedule on 256 held-out targets, both modules having trained."""
    trainer = subject.trainer(rule=Payoff(costs=(1.0, 0.6, 0.5), min_steps=2), probe=subject.probe())
    trainer.set_training_stage("joint_finetune", num_steps=10)
    trainer.train_step(subject.training_batches(batch_size=1).batch(0, 0))
    payoffs = trainer._measuring._payoffs

    def work() -> None:
        payoffs.measure("both", 1)

    return work


def encode_titles(subject: Subject) -> Work:
    """The TF-IDF vectors of titles, each of six of 20,000 words: width 384."""
    ranks = np.random.default_rng(0).zipf(1.3, (subject.num_items, 6)) % 20_000
    return _encoding([" ".join(f"w{rank}" for rank in row) for row in ranks.tolist()])


def encode_ids(subject: Subject) -> Work:
    """The same of items that have no texts but their ids."""
    return _encoding(subject.interactions.texts)


def _encoding(texts: list[str]) -> Work:
    from ur4rec.text.encoders import fit_encoder

    fit_encoder(["a fox", "a hen"], encoder="tfidf", dim=2, cache_dir=tempfile.mkdtemp())  # what it imports

    def work() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            fit_encoder(texts, encoder="tfidf", dim=384, cache_dir=folder)
            return {"file_MB": _size(Path(folder))}

    return work


def load(subject: Subject) -> Work:
    """Reading a Parquet file of ten interactions per user."""
    file = Path(tempfile.mkdtemp()) / "drawn.parquet"
    writer = multiprocessing.get_context("spawn").Process(target=_write_interactions, args=(subject, file))
    writer.start()  # in a process of its own, for its memory does not count
    writer.join()
    config = RunConfig(dataset=str(file))

    def work() -> None:
        load_interactions(config)

    return work


def _write_interactions(subject: Subject, file: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    found = subject.interactions
    columns = {"user": found.users_N, "item": found.items_N, "time": found.timestamps_N}
    parquet.write_table(pyarrow.table(columns), file)


def split(subject: Subject) -> Work:
    """Leaving one out, or what else the data asks for."""
    interactions, config = subject.interactions, RunConfig()

    def work() -> None:
        split_of(config, replace(interactions))

    return work


def _run(subject: Subject, folder: Path) -> Any:
    """A run with results, which has not trained."""
    from ur4rec.evaluation.results import build_result
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.run import TrainingRun

    config = RunConfig(
        dataset="synthetic", encoder="tfidf", model=subject.shape, eval_users=EVAL_USERS, backend=subject.backend
    )
    prepared = prepare_data(config, subject.interactions, cache_dir=folder)
    run = TrainingRun(config, prepared, RunDirectory.create(folder / "run"), progress=False)
    ranks_T = np.random.default_rng(0).integers(1, subject.num_items, len(prepared.split.test))
    run.results = {name: build_result(name, 0, {}, ranks_T) for name in ("popularity", "sasrec", "fused")}
    return run


def save_run(subject: Subject) -> Work:
    """A checkpoint of a run with three rows of results for each user."""
    folder = Path(tempfile.mkdtemp())
    run = _run(subject, folder)

    def work() -> dict[str, float]:
        run._save(0, best=False)
        path = run.directory.require_checkpoint("latest")
        return {"file_MB": _size(path), "state_MB": _size(path, "state.json")}

    return work


def write_results(subject: Subject) -> Work:
    """The tables of results, one of which has a row per user."""
    run = _run(subject, Path(tempfile.mkdtemp()))
    run._write_results()  # which hashes the data, once
    return lambda: run._write_results()


def validate(subject: Subject) -> Work:
    """The validation of 2,000 of the users."""
    run = _run(subject, Path(tempfile.mkdtemp()))
    return lambda: run._validate("end_to_end") and None


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured along which axes."""

    prepare: Callable[[Subject], Work]
    axes: tuple[str, ...] = ("catalogue",)
    backends: tuple[str, ...] = BACKENDS
    """The first alone, where both do the same; an empty string, where neither takes part."""
    largest: int | None = None
    """The last size that is tried."""


FIRST, NEITHER = BACKENDS[:1], ("",)
MEASURES: dict[str, Measure] = {
    "joint step, full softmax": Measure(prepare=full_step, largest=300_000),
    "joint step, sampled": Measure(prepare=sampled_step, axes=("catalogue", "length", "width")),
    "ranking 512 users": Measure(prepare=rank, axes=("catalogue", "length", "width")),
    "recommending to 512 users": Measure(prepare=recommend),
    "saving a checkpoint": Measure(prepare=checkpoint, axes=("catalogue", "width")),
    "saving one with Payoff's snapshots": Measure(prepare=checkpoint_with_payoff),
    "measuring payoffs": Measure(prepare=measure_payoff),
    "TF-IDF of titles": Measure(prepare=encode_titles, backends=NEITHER),
    "TF-IDF without texts": Measure(prepare=encode_ids, backends=NEITHER),
    "loading": Measure(prepare=load, axes=("users",), backends=NEITHER),
    "splitting": Measure(prepare=split, axes=("users",), backends=NEITHER),
    "saving a run": Measure(prepare=save_run, axes=("users",), backends=FIRST),
    "writing results": Measure(prepare=write_results, axes=("users",), backends=FIRST),
    "validating 2,000 users": Measure(prepare=validate, axes=("users",), backends=FIRST),
}
"""What is measured, by what it is called."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one measurement found."""

    axis: str
    size: int
    measure: str
    backend: str
    seconds: float = 0.0
    """Processor time of a call at least; the first one, which may compile, does not count where there are more."""
    calls: int = 0
    peak_MB: float = 0.0
    """Resident memory of the whole process at most."""
    before_MB: float = 0.0
    """The same before the work: the model, its catalogue or its optimizers."""
    extra: dict[str, float] = field(default_factory=dict)
    """Sizes of files."""
    wall: float = 0.0
    """Seconds that the whole measurement took, its process included."""
    failed: str = ""
    """Why there are no figures."""


def subject_of(axis: str, size: int, backend: str, memory: int = DEFAULT_MEMORY) -> Subject:
    """The subject at a size of an axis."""
    return replace(Subject(backend=backend, memory=memory), **{AXES[axis][0]: size})


def measure(name: str, axis: str, size: int, backend: str, memory: int = DEFAULT_MEMORY) -> Figures:
    """One measurement, in this process."""
    work = MEASURES[name].prepare(subject_of(axis, size, backend, memory))
    forget_peak()
    before, extra = resident_peak(), None
    seconds: list[float] = []
    while _is_short(seconds, backend):
        started = time.process_time()
        extra = work()
        seconds.append(time.process_time() - started)
    return Figures(
        axis=axis,
        size=size,
        measure=name,
        backend=backend,
        seconds=min(seconds[1:] or seconds),
        calls=len(seconds),
        peak_MB=max(resident_peak(), before),  # pages may have been given back since
        before_MB=before,
        extra=extra or {},
    )


def _is_short(seconds: list[float], backend: str) -> bool:
    """Whether there must be another call: JAX compiles in the first, PyTorch in no call of many seconds."""
    if len(seconds) < 2:
        return not seconds or backend == "jax" or seconds[0] < ENOUGH_SECONDS
    return len(seconds) < MAX_CALLS and sum(seconds[1:]) < ENOUGH_SECONDS


def resident_peak() -> float:
    """MB of memory that the process has had at most since `forget_peak`."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak() -> None:
    """Let the peak be what the process has now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")

"""How do time, memory and files grow with the catalogue?  `python benchmarks/scaling.py` measures both backends.

Each catalogue is a process of its own with one thread; the peak of its resident memory is reset before each measurement
(on Linux alone). `MEASURES` holds what is measured: a function of a `Subject` that prepares the work and returns it, so
another row is one more entry.
Growth is the slope of the logarithm of the figure between the two largest catalogues, 1 for what is proportional.
"""

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from alternator import Payoff
from ur4rec.data import Sequences, Targets
from ur4rec.data.batches import EvaluationBatch, EvaluationBatches, TrainBatches
from ur4rec.runs.prepared import PROBE_ROWS, evaluation_batches
from ur4rec.training.backend import load_backend
from ur4rec.training.slices import DEFAULT_MEMORY, parse_memory

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PJRT_NPROC"), "1")
QUESTION = "How do time, memory and files grow with the catalogue?"
CATALOGUES = (3_000, 30_000, 300_000, 1_000_000)
BACKENDS = ("torch", "jax")
NUM_USERS, LENGTH = 512, 50
SHAPE = {
    "sasrec_hidden_dim": 64,
    "sasrec_num_heads": 2,
    "retriever_output_dim": 64,
    "text_embedding_dim": 64,
    "max_seq_len": LENGTH,
}
Work = Callable[[], "dict[str, float] | None"]
"""What is timed; it may return further figures."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model of a catalogue, and users with histories of drawn items."""

    backend: str
    num_items: int
    memory: int = DEFAULT_MEMORY
    fusion: str = "logit"

    @cached_property
    def package(self) -> Any:
        """The backend's."""
        return load_backend(self.backend)

    @cached_property
    def histories(self) -> Sequences:
        """Of each user."""
        drawn = np.random.default_rng(1).integers(0, self.num_items, NUM_USERS * LENGTH)
        return Sequences(drawn.astype(np.int32), np.arange(NUM_USERS + 1) * LENGTH)

    @cached_property
    def targets(self) -> Targets:
        """One of each user, who has seen his history."""
        items_T = np.random.default_rng(2).integers(0, self.num_items, NUM_USERS).astype(np.int32)
        users_T = np.arange(NUM_USERS, dtype=np.int32)
        return Targets(users_T=users_T, items_T=items_T, histories=self.histories, seen=self.histories)

    @cached_property
    def model(self) -> Any:
        """With its first weights: what is measured does not depend on them."""
        texts_IT = np.random.default_rng(0).standard_normal((self.num_items, 64), np.float32)
        return self.package.UR4Rec(self.num_items, texts_IT, fusion=self.fusion, **SHAPE)

    @cached_property
    def scorer(self) -> Any:
        """Of the model."""
        return self.package.Scorer(self.model, device="cpu", memory=self.memory)

    def trainer(self, **settings: Any) -> Any:
        """Of the model."""
        return self.package.JointTrainer(self.model, device="cpu", progress=False, memory=self.memory, **settings)

    def training_batches(self, batch_size: int = 64) -> TrainBatches:
        """Rows of `LENGTH` targets."""
        return TrainBatches(self.histories, self.num_items, max_seq_len=LENGTH, batch_size=batch_size, seed=0)

    def probe(self) -> EvaluationBatch:
        """Held-out targets of a `Payoff` schedule."""
        batches = EvaluationBatches(
            self.targets.take(np.arange(PROBE_ROWS)), self.num_items, max_seq_len=LENGTH, batch_size=PROBE_ROWS
        )
        return next(iter(batches))


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


def _size(folder: Path) -> dict[str, float]:
    files = [each.stat().st_size for each in folder.rglob("*") if each.is_file()]
    shared = [each.stat().st_size for each in folder.glob("texts-*")]
    return {"file_MB": (sum(files) - sum(shared)) / 1e6, "shared_MB": sum(shared) / 1e6}


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
            return _size(Path(folder))

    return work


def measure_payoff(subject: Subject) -> Work:
    """One measurement of a Payoff schedule on 256 held-out targets, both modules having trained."""
    trainer = subject.trainer(rule=Payoff(costs=(1.0, 0.6, 0.5), min_steps=2), probe=subject.probe())
    trainer.set_training_stage("joint_finetune", num_steps=10)
    trainer.train_step(subject.training_batches(batch_size=1).batch(0, 0))
    payoffs = trainer._payoffs._payoffs

    def work() -> None:
        payoffs.measure("both", 1)

    return work


MEASURES: dict[str, Callable[[Subject], Work]] = {
    "ranking 512 users": rank,
    "recommending to 512 users": recommend,
    "saving a checkpoint": checkpoint,
    "saving one with Payoff's snapshots": checkpoint_with_payoff,
    "measuring payoffs": measure_payoff,
}
"""What is measured, by what it is called."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one measurement found."""

    measure: str
    backend: str
    num_items: int
    seconds: float
    """Processor time of the second call; the first one compiles."""
    peak_MB: float
    """Resident memory of the whole process at most."""
    before_MB: float
    """The same before the work: the model, its catalogue or its optimizers."""
    extra: dict[str, float] = field(default_factory=dict)
    """Sizes of files."""


def resident_peak() -> float:
    """MB of memory that the process has had at most since `forget_peak`."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak() -> None:
    """Let the peak be what the process has now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def measure(name: str, subject: Subject) -> Figures:
    """One measurement, in this process."""
    work = MEASURES[name](subject)
    forget_peak()
    before, extra, seconds = resident_peak(), None, math.nan
    for _ in range(2):
        started = time.process_time()
        extra = work()
        seconds = time.process_time() - started
    return Figures(
        measure=name,
        backend=subject.backend,
        num_items=subject.num_items,
        seconds=seconds,
        peak_MB=resident_peak(),
        before_MB=before,
        extra=extra or {},
    )


def measure_apart(names: Iterable[str], subject: Subject) -> Iterator[Figures]:
    """Measurements of a subject, in a process of their own; none from where that was killed."""
    arguments = ["--backend", subject.backend, "--items", str(subject.num_items), "--memory", str(subject.memory)]
    command = [sys.executable, __file__, "--one", *names, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ONE_THREAD}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Figures(**json.loads(line))
    if process.returncode:
        sys.stderr.write(f"{subject.backend}, {subject.num_items:,}: ended with {process.returncode}\n")


def growth(found: Iterable[Figures], value: Callable[[Figures], float]) -> float:
    """The exponent between the two largest catalogues; NaN where there are not two."""
    last = sorted(found, key=lambda each: each.num_items)[-2:]
    if len(last) < 2 or min(map(value, last)) <= 0:
        return math.nan
    rise, sizes = (math.log(value(last[1]) / value(last[0])), math.log(last[1].num_items / last[0].num_items))
    return rise / sizes


VALUES: dict[str, Callable[[Figures], float]] = {
    "seconds": lambda each: each.seconds,
    "MB at most, model included": lambda each: each.peak_MB,
    "MB more than before": lambda each: each.peak_MB - each.before_MB,
    "file MB": lambda each: each.extra.get("file_MB", 0.0),
    "shared MB": lambda each: each.extra.get("shared_MB", 0.0),
}


def series(found: list[Figures]) -> dict[tuple[str, str], list[Figures]]:
    """The figures of each measure and backend, in the order of catalogues."""
    keys = dict.fromkeys((each.measure, each.backend) for each in found)
    of = {key: [each for each in found if (each.measure, each.backend) == key] for key in keys}
    return {key: sorted(each, key=lambda figures: figures.num_items) for key, each in of.items()}


def to_markdown(found: list[Figures], catalogues: tuple[int, ...], memory: int, facts: dict[str, Any]) -> str:
    """A table per value."""
    lines = [f"# {QUESTION}", "", f"`python benchmarks/scaling.py`, {facts['date']}, {facts['processor']}, one thread."]
    lines += [f"{NUM_USERS} users, histories of {LENGTH}, widths of 64, `--memory` {memory / 2**20:.0f} MiB.", ""]
    for title, value in VALUES.items():
        shown = {key: each for key, each in series(found).items() if any(map(value, each))}
        lines += [f"## {title}", "", f"| | {' | '.join(f'{num:,}' for num in catalogues)} | exponent |"]
        lines += [f"|---|{'---|' * (len(catalogues) + 1)}"]
        for (name, backend), each in shown.items():
            by_size = {figures.num_items: f"{value(figures):.3g}" for figures in each}
            cells = [by_size.get(num, "–") for num in catalogues]
            exponent = growth(each, value)
            shown_exponent = "–" if math.isnan(exponent) else f"{exponent:.2f}"
            lines.append(f"| {name}, {backend} | {' | '.join(cells)} | {shown_exponent} |")
        lines.append("")
    return "\n".join(lines)


def draw(found: list[Figures], path: Path) -> None:
    """A panel per value, on logarithmic axes."""
    shown = dict(list(VALUES.items())[:4])
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(shown), 4), layout="constrained")
    for axes, (title, value) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        for (name, backend), each in series(found).items():
            points = [(figures.num_items, value(figures)) for figures in each if value(figures) > 0]
            if points:
                line = "-" if backend == "torch" else "--"
                axes.plot(*zip(*points, strict=True), line, marker="o", markersize=3, label=f"{name}, {backend}")
        axes.set(xscale="log", yscale="log", xlabel="items", title=title)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> int:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--items", type=int, nargs="+", default=list(CATALOGUES), help="sizes of the catalogue")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: both")
    parser.add_argument("--only", default="", help="the measures whose name holds this")
    parser.add_argument("--memory", default=str(DEFAULT_MEMORY), help="bytes that scores may take (default: 1GiB)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of the result files"
    )
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    memory, backends = parse_memory(options.memory), tuple(options.backend or BACKENDS)
    if options.one is not None:
        subject = Subject(backend=backends[0], num_items=options.items[0], memory=memory)
        for name in options.one:
            sys.stdout.write(json.dumps(asdict(measure(name, replace(subject)))) + "\n")  # a model of its own
            sys.stdout.flush()
        return 0
    from overhead import machine  # which loads PyTorch: not where memory is measured

    facts = {"date": datetime.now(UTC).date().isoformat(), **machine()}
    stem = options.out / f"scaling_cpu{os.cpu_count()}_{facts['date']}"
    found: list[Figures] = []
    for num_items, backend in product(options.items, backends):
        subject = Subject(backend=backend, num_items=num_items, memory=memory)
        for figures in measure_apart([name for name in MEASURES if options.only in name], subject):
            found.append(figures)
            sys.stderr.write(f"{figures.measure}, {backend}, {num_items:,}: {figures.seconds:.3g} s, ")
            sys.stderr.write(f"{figures.peak_MB:.0f} MB, {figures.extra}\n")
            save(found, stem, tuple(options.items), memory, facts)
    sys.stdout.write(to_markdown(found, tuple(options.items), memory, facts))
    return 0


def save(found: list[Figures], stem: Path, catalogues: tuple[int, ...], memory: int, facts: dict[str, Any]) -> None:
    """Write what was found so far."""
    content = {"question": QUESTION, "memory": memory, "facts": facts, "figures": [asdict(each) for each in found]}
    stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    stem.with_suffix(".md").write_text(to_markdown(found, catalogues, memory, facts))
    draw(found, stem.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())

"""What every system of `peers.py` does in its own process: a job in, an epoch at a time, a run out.

    python peers_SYSTEM.py JOB.json

The job names the system, its seed, its settings, the folder of the task and the file that is to be written; see `Job`.
Standard library, NumPy and `ur4rec` alone, since the environments of the peers import it too.
"""

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from peers_curves import METRICS, SCORINGS, Epoch, SystemRun
from peers_task import PARTS, Score, Task, rank_scores, read_task

from ur4rec.evaluation.metrics import summarise
from ur4rec.files import write_whole

OWN = "own_ndcg@10_differs_by"
"""By how much a system's own figure differs from ours at most, among what is said of a run."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one system."""

    system: str
    """Its name in the report."""
    seed: int
    """Counted from 0; the system's own seed may start elsewhere."""
    first_seed: int
    """The system's own seed for our seed 0."""
    settings: Mapping[str, Any]
    """What its program takes."""
    max_seq_len: int
    """The number of newest items that it reads."""
    epochs: int
    """The maximum number of epochs."""
    patience: int | None
    """Epochs without a better validation by either scoring after which it is stopped; None never stops it."""
    limit_seconds: float
    """Processor seconds of training, scoring and ranking after which no further epoch is begun."""
    task: str
    """The folder of the task."""
    out: str
    """The file of the run."""
    sitting: str
    """When the benchmark was started."""

    @property
    def own_seed(self) -> int:
        """The seed that the system is given."""
        return self.first_seed + self.seed


def clocks() -> dict[str, float]:
    """Both clocks now; the processor's is user and system time of this process with its threads."""
    return {"wall": time.perf_counter(), "processor": time.process_time()}


def since(start: Mapping[str, float]) -> dict[str, float]:
    """Seconds from then to now."""
    return {clock: now - start[clock] for clock, now in clocks().items()}


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of packages, in this environment."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def unfinished(out: Path) -> Path:
    """Where the epochs of a run are kept that has not ended: its peer cannot go on with it, but they were trained."""
    return out.with_suffix(".unfinished.json")


class Stopped(Exception):  # noqa: N818 (it is no error)
    """The run is over, and written."""


@dataclass
class Recorder:
    """Counts epochs, ranks what the system scores, decides when it is enough, and writes the run.

    Validation happens after every epoch; test too, where validation is the best so far by either scoring, since that
    is the only epoch that may be reported. None of it counts as time of training.
    """

    job: Job
    """What is run."""
    task: Task
    """On what."""
    about: dict[str, Any] = field(default_factory=dict)
    """The system's settings and checks, as it says them."""
    epochs: list[Epoch] = field(default_factory=list)
    """What has been."""

    def __post_init__(self) -> None:
        self._started = clocks()
        self._best = dict.fromkeys(SCORINGS, -1.0)
        self._waited = 0
        self._batches = {part: self.task.batches(part, self.job.max_seq_len) for part in PARTS}

    def ranks(self, score: Score, part: str) -> dict[str, Any]:
        """The ranks of scores that are computed batch by batch."""
        return rank_scores(score, self._batches[part])

    def epoch(
        self,
        train_seconds: Mapping[str, float],
        ranks: Callable[[str], dict[str, Any]],
        own_ndcg: float | None = None,
    ) -> None:
        """Take an epoch.

        Args:
            train_seconds: Its time of training, by clock.
            ranks: How its model ranks a part, by scoring.
            own_ndcg: What the system itself says of its validation NDCG@10, unfiltered, if it does.

        Raises:
            Stopped: That was the last one.
        """
        start = clocks()
        found = {"validation": ranks("validation")}
        summaries = {scoring: summarise(each, [10]) for scoring, each in found["validation"].items()}
        better = [scoring for scoring in SCORINGS if summaries[scoring]["ndcg@10"] > self._best[scoring]]
        self._best |= {scoring: summaries[scoring]["ndcg@10"] for scoring in better}
        self._waited = 0 if better else self._waited + 1
        if better:
            found["test"] = ranks("test")
        if own_ndcg is not None:
            gap = abs(own_ndcg - summaries["unfiltered"]["ndcg@10"])
            self.about[OWN] = max(self.about.get(OWN, 0.0), gap)
        self.epochs.append(
            Epoch(
                train_seconds=dict(train_seconds),
                validation_seconds=since(start),
                validation={scoring: {name: each[name] for name in METRICS} for scoring, each in summaries.items()},
                test_ranks={scoring: found["test"][scoring].tolist() for scoring in better},
            )
        )
        self._say()
        if reason := self._is_over():
            self.finish(reason)
        self._write(unfinished(Path(self.job.out)), f"unfinished, after {len(self.epochs)} epochs")

    def _say(self) -> None:
        epoch, spent = self.epochs[-1], since(self._started)
        total = sum(each.train_seconds["processor"] for each in self.epochs)
        figures = ", ".join(f"{scoring} {each['ndcg@10']:.4f}" for scoring, each in epoch.validation.items())
        print(
            f"{self.job.system}, seed {self.job.seed}, epoch {len(self.epochs)}/{self.job.epochs}: NDCG@10 {figures}; "
            f"processor {epoch.train_seconds['processor']:.1f} s of training (so far {total:.0f}), "
            f"{epoch.validation_seconds['processor']:.1f} s of evaluation; "
            f"{spent['processor']:.0f} of {self.job.limit_seconds:.0f} s in all, {spent['wall']:.0f} by the clock",
            flush=True,
        )

    def _is_over(self) -> str:
        if len(self.epochs) >= self.job.epochs:
            return "after all epochs"
        if self.job.patience is not None and self._waited >= self.job.patience:
            return f"{self.job.patience} epochs without a better validation"
        if since(self._started)["processor"] >= self.job.limit_seconds:
            return f"at the limit of {self.job.limit_seconds:g} s"
        return ""

    def finish(self, reason: str) -> None:
        """Write the run.

        Raises:
            Stopped: Always.
        """
        out = Path(self.job.out)
        self._write(out, reason)
        unfinished(out).unlink(missing_ok=True)
        raise Stopped(reason)

    def _write(self, file: Path, ended: str) -> None:
        run = SystemRun(
            system=self.job.system,
            seed=self.job.seed,
            sitting=self.job.sitting,
            about={**self.about, "ended": ended, "settings": dict(self.job.settings)},
            epochs=self.epochs,
        )
        write_whole(file, json.dumps(run.reported().to_json()).encode())


def work(program: Callable[[Job, Recorder], None]) -> None:
    """Run a system's program on the job that the command line names, until it is stopped or returns."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    del sys.argv[1:]  # some libraries read the command line too
    recorder = Recorder(job, read_task(Path(job.task)))
    try:
        program(job, recorder)
        recorder.finish("by itself")
    except Stopped as reason:
        print(f"{job.system}, seed {job.seed}: ended {reason}", flush=True)

"""What the parts of `gpu.py` share: where they run, their sizes, and the clock."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_results import Record
from random_data import DataShape, RandomData

SHAPES = {
    "MovieLens-1M": DataShape(users=6040, items=3416, mean_length=163, max_seq_len=200, batch_size=128, width=64),
    "large catalogue": DataShape(users=4096, items=50_000, mean_length=60, max_seq_len=50, batch_size=256, width=128),
}
QUICK = {"quick": DataShape(users=40, items=60, mean_length=8, max_seq_len=12, batch_size=16, width=8, text_width=6)}
SAMPLED = {"catalogue_loss": "sampled"}
KINDS: dict[str, dict[str, Any]] = {"": {}, ", bf16": {"bf16": True}, ", sampled": SAMPLED}
"""Settings under which nothing may make the host wait, and what is frozen may not change."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where a part runs, and for how long."""

    device: str
    """``cuda`` or ``cpu``."""
    quick: bool
    """Whether tiny sizes will do."""
    seconds: float
    """After which it is killed."""
    data_dir: Path | None
    """The files of MovieLens-1M, if they are beside."""
    started: float
    """When it began, by `time.monotonic`."""

    @property
    def is_accelerator(self) -> bool:
        """Whether there is a device that computes while the host goes on."""
        return self.device != "cpu"

    @property
    def kind(self) -> str:
        """The sizes of `rates.SIZES`."""
        return "quick" if self.quick else "accelerator" if self.is_accelerator else "cpu"

    @property
    def shapes(self) -> dict[str, DataShape]:
        """The sizes of steps."""
        return QUICK if self.quick else SHAPES

    @property
    def rounds(self) -> int:
        """Rounds of a measurement."""
        return 2 if self.quick else 5

    @property
    def steps(self) -> int:
        """Steps of a round."""
        return 3 if self.quick else 30

    @property
    def left(self) -> float:
        """Seconds until it is killed."""
        return self.seconds - (time.monotonic() - self.started)


def milliseconds(steps: Callable[[], object], wait: Callable[[], object], num_steps: int, rounds: int) -> list[float]:
    """Of a step, per round of some: the clock from one wait for the device to the next, after a round to warm up."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        steps()
        wait()
        times.append((time.perf_counter() - started) / num_steps * 1000)
    return times[1:]


def times_of(context: Context, data: RandomData, trainer: Any, wait: Callable[[], object]) -> list[float]:
    """Milliseconds of a step of a trainer, per round of an epoch's first steps."""
    count = min(context.steps, len(data.loader))
    return milliseconds(partial(data.train, trainer, count), wait, count, context.rounds)


def add_times(record: Record, name: str, values: Sequence[float], detail: str = "") -> float:
    """Keep milliseconds as a figure, with their spread; the median."""
    low, median, high = (float(each) for each in np.quantile(values, [0.1, 0.5, 0.9]))
    record.figure(name, median, unit="ms", low=low, high=high, detail=detail)
    return statistics.median(values)


def count_changed(before: Sequence[bytes], after: Sequence[bytes]) -> int:
    """Arrays whose bits differ."""
    return sum(first != second for first, second in zip(before, after, strict=True))

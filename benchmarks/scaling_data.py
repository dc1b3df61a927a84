"""How do time, memory and disk grow with the number of interactions?  `python benchmarks/scaling_data.py`.

Interactions are drawn (items by Zipf's law, times in no order), written as Parquet, prepared with the function of
`ur4rec data prepare`, mapped, trained on for some steps and validated on 1,000 users: with PyTorch, on one thread. Each
stage is a process of its own, whose peak of resident memory (Linux alone) holds what it has mapped of the files.
Growth is the slope of the logarithm of a figure between the two largest sizes, 1 for what is proportional.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from scaling import ONE_THREAD, machine, resident_peak

QUESTION = "How do time, memory and disk grow with the number of interactions?"
SIZES = (100_000, 1_000_000, 10_000_000, 100_000_000)
PER_USER, NUM_ITEMS, NUM_STEPS, NUM_VALIDATED = 66, 30_000, 50, 1_000
SHAPE = {
    "sasrec_hidden_dim": 32,
    "retriever_output_dim": 32,
    "text_embedding_dim": 32,
    "max_seq_len": 50,
}
_PIECE = 2**20


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of one stage at one size."""

    num_interactions: int
    stage: str
    seconds: float
    """Of the processor: they do not depend on what else runs."""
    peak_MB: float
    """Resident memory of the process at most, mapped files included."""
    disk_MB: float = 0.0
    """What the stage has written."""


def generate(path: Path, num_interactions: int) -> None:
    """Write drawn interactions as Parquet: some users have far more than others, and items follow Zipf's law."""
    rng = np.random.default_rng(0)
    num_users = max(num_interactions // PER_USER, 2)
    shares_I = np.cumsum(1 / np.arange(1, NUM_ITEMS + 1))
    names = np.random.default_rng(1).permutation(num_users)
    schema = pa.schema([("user", pa.int64()), ("item", pa.int64()), ("timestamp", pa.int64())])
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, num_interactions, _PIECE):
            count = min(_PIECE, num_interactions - first)
            users = names[(num_users * rng.random(count) ** 1.3).astype(np.int64)]
            items = np.searchsorted(shares_I, rng.random(count) * shares_I[-1])
            times = rng.integers(1_600_000_000, 1_700_000_000, count)
            writer.write_table(pa.table([users, items, times], schema=schema))


def prepare(folder: Path, memory: int) -> float:
    """Prepare the drawn interactions; the bytes on the disk."""
    from ur4rec.data.preparing import prepare_files

    prepare_files([folder / "drawn.parquet"], folder / "prepared", memory=memory)
    return float(sum(path.stat().st_size for path in (folder / "prepared").iterdir()))


def train(folder: Path) -> dict[str, float]:
    """Open, train and validate; the seconds of each."""
    from ur4rec.data import load_dataset, make_split
    from ur4rec.data.batches import TrainBatches
    from ur4rec.runs.ranking import Ranking
    from ur4rec.training.backend import load_backend

    seconds = {}
    started = time.process_time()
    split = make_split(load_dataset(folder / "prepared"))
    seconds["opening"] = time.process_time() - started
    backend = load_backend("torch")
    texts = np.random.default_rng(0).standard_normal((split.num_items, SHAPE["text_embedding_dim"]), np.float32)
    started = time.process_time()
    batches = TrainBatches(split.train, split.num_items, max_seq_len=50, batch_size=16, seed=0, shifted=True)
    batches.batch(0, 0)
    seconds["first batch of an epoch"] = time.process_time() - started
    model = backend.UR4Rec(split.num_items, texts, **SHAPE)
    trainer = backend.JointTrainer(
        model,
        device="cpu",
        progress=False,
        item_counts=batches.item_counts,
        catalogue_loss="sampled",
        num_negatives=256,
    )
    started = time.process_time()
    trainer.train_epoch(batches, max_steps=NUM_STEPS)
    seconds[f"{NUM_STEPS} steps of 16 rows"] = time.process_time() - started
    started = time.process_time()
    Ranking(split.validation.sample(NUM_VALIDATED), model.config).ranks(trainer, ("fused",))
    seconds[f"validating {NUM_VALIDATED:,} users"] = time.process_time() - started
    return seconds


def measure(stage: str, folder: Path, num_interactions: int, memory: int) -> list[Figures]:
    """The figures of one stage, in this process."""
    started = time.process_time()
    disk, parts = 0.0, {}
    if stage == "drawing":
        generate(folder / "drawn.parquet", num_interactions)
        disk = float((folder / "drawn.parquet").stat().st_size)
    elif stage == "preparing":
        disk = prepare(folder, memory)
    else:
        parts = train(folder)
    whole = time.process_time() - started
    return [
        Figures(
            num_interactions=num_interactions, stage=name, seconds=seconds, peak_MB=resident_peak(), disk_MB=disk / 1e6
        )
        for name, seconds in (parts or {stage: whole}).items()
    ]


def measure_apart(stage: str, folder: Path, num_interactions: int, memory: int) -> list[Figures]:
    """The figures of one stage, in a process of its own."""
    command = [sys.executable, __file__, "--one", stage, str(folder), "--sizes", str(num_interactions)]
    found = subprocess.run(
        [*command, "--memory", str(memory)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
        check=True,
    )
    return [Figures(**each) for each in json.loads(found.stdout)]


def growth(found: list[Figures], value: Callable[[Figures], float]) -> float:
    """The exponent between the two largest sizes; NaN where there are not two."""
    last = sorted(found, key=lambda each: each.num_interactions)[-2:]
    if len(last) < 2 or min(map(value, last)) <= 0:
        return math.nan
    return math.log(value(last[1]) / value(last[0])) / math.log(last[1].num_interactions / last[0].num_interactions)


VALUES: dict[str, Callable[[Figures], float]] = {
    "processor seconds": lambda each: each.seconds,
    "MB of memory at most": lambda each: each.peak_MB,
    "MB on the disk": lambda each: each.disk_MB,
}


def to_markdown(found: list[Figures], memory: int, facts: dict[str, Any]) -> str:
    """A table per value."""
    sizes = sorted({each.num_interactions for each in found})
    lines = [
        f"# {QUESTION}",
        "",
        f"`python benchmarks/scaling_data.py`, {facts['date']}, {facts['processor']}, one thread.",
    ]
    lines += [f"A user for {PER_USER} interactions, {NUM_ITEMS:,} items, `--memory` {memory / 1e9:g} GB.", ""]
    for title, value in VALUES.items():
        lines += [f"## {title}", "", f"| | {' | '.join(f'{size:,}' for size in sizes)} | exponent |"]
        lines += [f"|---|{'---|' * (len(sizes) + 1)}"]
        for stage in dict.fromkeys(each.stage for each in found if value(each)):
            of_stage = [each for each in found if each.stage == stage]
            by_size = {each.num_interactions: f"{value(each):.3g}" for each in of_stage}
            exponent = growth(of_stage, value)
            shown = "–" if math.isnan(exponent) else f"{exponent:.2f}"
            lines.append(f"| {stage} | {' | '.join(by_size.get(size, '–') for size in sizes)} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of interactions")
    parser.add_argument("--memory", type=int, default=2 * 10**9, help="bytes for pieces and buckets (default: 2 GB)")
    parser.add_argument("--folder", type=Path, help="where the files are (default: a temporary folder)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of the result files"
    )
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one is not None:
        stage, folder = options.one
        found = measure(stage, Path(folder), options.sizes[0], options.memory)
        sys.stdout.write(json.dumps([asdict(each) for each in found]) + "\n")
        return 0
    facts = {"date": datetime.now(UTC).date().isoformat(), **machine()}
    stem = options.out / f"scaling_data_cpu{os.cpu_count()}_{facts['date']}"
    found = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for stage in ("drawing", "preparing", "training"):
                found += measure_apart(stage, Path(folder), size, options.memory)
                sys.stderr.write(f"{size:,}: {found[-1]}\n")
                content = {"question": QUESTION, "memory": options.memory, "facts": facts}
                content["figures"] = [asdict(each) for each in found]
                stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
                stem.with_suffix(".md").write_text(to_markdown(found, options.memory, facts))
    sys.stdout.write(to_markdown(found, options.memory, facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())

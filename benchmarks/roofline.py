"""How near is a training step to what this processor can do?  `python benchmarks/roofline.py` writes a table.

First what the machine does in a second with one thread: a large product, a copy of a large array, exponentials
(`rates.py`). Then what a step must do (`work.py`), and the least time of each kind of work at those rates. A roofline
says that a step takes at least the longer of the times of products and memory; exponentials are a third, which a core
cannot hide behind the others. Then the processor time of a step of both backends, and the part of it that the least
time is. Needed is what real positions need; padding and pairs of positions that attention masks are computed beside it.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import torch
from overhead import RESULTS, machine, measure, spread
from random_data import STEPS, DataShape, RandomData, Step
from rates import jax_rates, torch_rates
from work import Rates, Shape, step_work

SHAPES = {
    "demo": DataShape(users=943, items=1682, mean_length=104, max_seq_len=50, batch_size=64, width=64),
    "MovieLens-1M": DataShape(users=512, items=3416, mean_length=163, max_seq_len=200, batch_size=32, width=64),
    "Sports": DataShape(users=2048, items=18_357, mean_length=6.3, max_seq_len=50, batch_size=256, width=64),
}
QUICK = {"quick": DataShape(users=40, items=60, mean_length=8, max_seq_len=12, batch_size=16, width=8, text_width=6)}


STEPS_OF_A_ROUND = 4


@dataclass(frozen=True, kw_only=True)
class Line:
    """A kind of step beside its roofline."""

    backend: str
    """The backend."""
    shape: str
    """The sizes."""
    step: str
    """The kind of step."""
    milliseconds: float
    """Processor time: median over rounds."""
    low: float
    """10% quantile."""
    high: float
    """90% quantile."""
    needed_gigaflops: float
    """Billions of operations of products that real positions need."""
    computed_gigaflops: float
    """Of those that are computed: with some padding, and pairs that attention masks."""
    least: dict[str, float]
    """Least milliseconds of products, memory and exponentials at the rates of the machine, of what is needed."""

    @property
    def roofline(self) -> float:
        """The part of the time that products or memory need at least."""
        return max(self.least["products"], self.least["memory"]) / self.milliseconds

    @property
    def with_exponentials(self) -> float:
        """The part that this and exponentials need, one after the other."""
        return self.roofline + self.least["exponentials"] / self.milliseconds


def lines(shapes: dict[str, DataShape], backends: Sequence[str], rates: Rates, rounds: int) -> Iterator[Line]:
    """All kinds of steps, of one size after the other."""
    for name, shape in shapes.items():
        data = RandomData(shape, "cpu")
        for step in STEPS:
            for backend in backends:
                yield line(data, name, backend, step, rates, rounds)


def line(data: RandomData, name: str, backend: str, step: Step, rates: Rates, rounds: int) -> Line:
    """A kind of step of one backend."""
    trainer = data.trainer(backend, step)
    batches = data.batches(min(STEPS_OF_A_ROUND, len(data.loader)))
    steps = partial(data.train, trainer, len(batches))
    measure(steps)  # compiles, and fills caches
    times = [measure(steps) / len(batches) * 1000 for _ in range(rounds)]
    median, low, high = spread(times) if rounds > 1 else (times[0],) * 3
    config = trainer.model.config
    needed, computed = (
        [step_work(shape(batch, data.shape.items, config), step.trained, step.run) for batch in batches]
        for shape in (Shape.needed, partial(Shape.computed, groups=trainer.length_groups))
    )
    least = [work.seconds(rates) for work in needed]
    return Line(
        backend=backend,
        shape=name,
        step=step.name,
        milliseconds=median,
        low=low,
        high=high,
        needed_gigaflops=statistics.mean(work.flops for work in needed) / 1e9,
        computed_gigaflops=statistics.mean(work.flops for work in computed) / 1e9,
        least={kind: statistics.mean(each[kind] for each in least) * 1000 for kind in least[0]},
    )


def best(*found: Rates) -> Rates:
    """What the machine can do: the best of what was seen."""
    return Rates(**{name: max(getattr(each, name) for each in found) for name in Rates.__dataclass_fields__})


def table(found: Sequence[Line], rates: dict[str, Rates], about: dict[str, Any], command: str) -> str:
    """The result as Markdown."""
    rows = [
        "# How near is a training step to what the processor can do?",
        "",
        f"`{command}` on {about['processor']}, one thread; Python {about['python']}, torch {about['torch']}. Processor "
        "time, medians over rounds with 10% and 90% quantiles.",
        "",
        "| in a second | products of float32, GFLOP | copy, GB | exponentials, billions |",
        "|---|---|---|---|",
    ]
    for name, each in rates.items():
        rows.append(f"| {name} | {each.flops / 1e9:.1f} | {each.bytes / 1e9:.1f} | {each.exponentials / 1e9:.2f} |")
    rows += [
        "",
        "Least times are those of what is needed (real positions, pairs of a position and those before it) at the best "
        "of these rates. *Roofline*: the longer of products and memory, as part of the time of the step; *and exp.*: "
        "with exponentials after it.",
        "",
        "| backend | sizes | step | ms | 10% – 90% | GFLOP needed | computed | products ms | memory ms | exp. ms | "
        "roofline | and exp. |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        least = " | ".join(f"{each.least[kind]:.2f}" for kind in ("products", "memory", "exponentials"))
        rows.append(
            f"| {each.backend} | {each.shape} | {each.step} | {each.milliseconds:.2f} | {each.low:.2f} – "
            f"{each.high:.2f} | {each.needed_gigaflops:.3f} | {each.computed_gigaflops:.3f} | {least} | "
            f"{each.roofline:.0%} | {each.with_exponentials:.0%} |"
        )
    return "\n".join(rows) + "\n"


def plot(found: Sequence[Line], file: Path) -> None:
    """The parts of each step's time that its products, memory and exponentials need at least."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    from ur4rec.compare.plots import to_png

    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(found) + 1.5), layout="constrained")
    places = range(len(found))
    axes.barh(places, [each.with_exponentials for each in found], color="tab:orange", label="and exponentials")
    axes.barh(places, [each.roofline for each in found], color="tab:blue", label="products or memory")
    axes.set_yticks(places, [f"{each.backend}, {each.shape}, {each.step}" for each in found], fontsize=7)
    axes.axvline(1, color="grey", linestyle=":")
    axes.set_xlabel("least time as part of the time of a step")
    axes.invert_yaxis()
    axes.legend()
    file.write_bytes(to_png(figure))
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny shape, for a look; figures are rough")
    parser.add_argument("--backend", choices=("torch", "jax"), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of four steps (default: 20)")
    parser.add_argument("--only", choices=tuple(SHAPES), action="append", help="these sizes alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    kind = "quick" if options.quick else "cpu"
    rates = {"torch": torch_rates("cpu", kind), "JAX": jax_rates(kind)}
    shapes = QUICK if options.quick else {name: SHAPES[name] for name in options.only or SHAPES}
    found = []
    for each in lines(shapes, options.backend or ["torch", "jax"], best(*rates.values()), options.rounds):
        print(
            f"{each.backend}, {each.shape}, {each.step}: {each.milliseconds:.2f} ms, {each.roofline:.0%} of the "
            f"roofline, {each.with_exponentials:.0%} with exponentials",
            flush=True,
        )
        found.append(each)
    about = machine()
    about["torch"] = f"{about['torch']}, jax {jax.__version__}"
    command = " ".join(["python benchmarks/roofline.py", *(sys.argv[1:] if arguments is None else arguments)])
    options.out.mkdir(parents=True, exist_ok=True)
    hardware = f"cpu{os.cpu_count()}" + ("-quick" if options.quick else "")
    stem = options.out / f"roofline_{hardware}_{datetime.datetime.now(datetime.UTC).date()}"
    result = {"command": command, "machine": about, "rates": {name: asdict(each) for name, each in rates.items()}}
    result["lines"] = [
        {**asdict(each), "roofline": each.roofline, "with_exponentials": each.with_exponentials} for each in found
    ]
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    stem.with_suffix(".md").write_text(table(found, rates, about, command))
    plot(found, stem.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What does scheduling cost?  `python benchmarks/overhead.py` writes a JSON result, a table and a plot.

Every ratio is measured side by side: the two things take turns in short rounds within one process, each round gives one
ratio of CPU times, and the median over the rounds is reported with its 10% and 90% quantiles. So a noisy machine widens
the spread and does not move the figure.
"""

import argparse
import datetime
import json
import platform
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import alternator
from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle, Plateau, Rule
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import TrainBatches
from ur4rec_torch import JointTrainer, UR4Rec
from ur4rec_torch.device import to_device

SEED = 0
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = ("a", "b")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result."""

    name: str
    """What is measured."""
    against: str
    """What it is compared with; empty for an absolute figure."""
    value: float
    """The ratio, or the figure."""
    low: float
    """10% quantile over the rounds."""
    high: float
    """90% quantile over the rounds."""
    unit: str
    """``×`` for ratios."""
    bar: float | None
    """The maximum that is allowed; None where the figure is for information only."""
    detail: str
    """The two absolute medians, or how it was measured."""

    @property
    def passes(self) -> bool:
        """Whether it keeps to its bar."""
        return self.bar is None or self.value <= self.bar


def measure(calls: Callable[[], None]) -> float:
    """CPU seconds of one round."""
    start = time.process_time()
    calls()
    return time.process_time() - start


def side_by_side(
    name: str,
    against: str,
    ours: Callable[[], None],
    theirs: Callable[[], None],
    *,
    rounds: int,
    calls: int,
    bar: float,
) -> Row:
    """The ratio of two kinds of round that take turns."""
    pairs = turns(ours, theirs, rounds)
    median, low, high = spread([mine / other for mine, other in pairs])
    mine_us, other_us = (statistics.median(column) / calls * 1e6 for column in zip(*pairs, strict=True))
    detail = f"{mine_us:.2f} µs against {other_us:.2f} µs"
    return Row(name=name, against=against, value=median, low=low, high=high, unit="×", bar=bar, detail=detail)


def turns(ours: Callable[[], None], theirs: Callable[[], None], rounds: int) -> list[tuple[float, float]]:
    """CPU seconds of either in each round, after one round of each to warm up."""
    measure(theirs), measure(ours)
    pairs = []
    for index in range(rounds):  # who goes first alternates, so that a drift of the machine cancels
        if index % 2:
            pairs.append((measure(ours), measure(theirs)))
        else:
            pairs.append((measure(theirs), measure(ours))[::-1])
    return pairs


def spread(values: list[float]) -> tuple[float, float, float]:
    """Median, 10% and 90% quantiles."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return statistics.median(values), deciles[0], deciles[-1]


def losses(count: int) -> list[float]:
    """A falling loss with the noise of mini-batches."""
    generator = random.Random(SEED)
    return [2.0 * 0.999**step * (1 + 0.02 * generator.gauss(0, 1)) for step in range(count)]


# --- the core ---------------------------------------------------------------------------------------------------------


def observe_rows(rounds: int, calls: int) -> Iterator[Row]:
    """`observe` against the scheduler that PyTorch users know, in the same rounds."""
    values = losses(calls)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))

    def theirs() -> None:
        step = scheduler.step
        for value in values:
            step(value)

    def row(name: str, given: list, rule: Rule, bar: float) -> Row:
        observe = Alternator(NAMES, rule=rule).observe

        def ours() -> None:
            for value in given:
                observe(value)

        return side_by_side(name, "ReduceLROnPlateau.step", ours, theirs, rounds=rounds, calls=calls, bar=bar)

    yield row("observe(loss), Plateau", values, Plateau(), 3.0)
    yield row("observe({a: ..., b: ...}), Plateau", [{"a": value, "b": value} for value in values], Plateau(), 4.0)
    for name, rule in rules().items():
        yield row(f"observe(loss), {name}", values, rule, 8.0 if name == "Trend" else 4.0)


def rules() -> dict[str, Rule]:
    """Every other rule of the library, with its defaults where it has them."""
    arguments = {
        "RandomTenure": {"mean": 20.0},
        "Payoff": {"costs": (2.0, 1.0)},
        "Plateau": None,
    }
    found = {}
    for name in alternator.__all__:
        kind = getattr(alternator, name)
        given = arguments.get(name, {})
        if isinstance(kind, type) and hasattr(kind, "ring_size") and kind is not Rule and given is not None:
            found[name] = kind(**given)
    return found


def memory_row(num_steps: int) -> Row:
    """Growth of memory over many steps, after a tenth of them."""
    observing = Alternator(NAMES)
    values = losses(1000)

    def steps(count: int) -> None:
        for index in range(count):
            observing.observe(values[index % 1000])

    tracemalloc.start()
    steps(num_steps // 10)
    before, _ = tracemalloc.get_traced_memory()
    steps(num_steps - num_steps // 10)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    growth = float(max(after - before, 0))
    detail = f"{before} bytes after {num_steps // 10:,} steps, {after} after {num_steps:,}"
    name = f"memory gained in {num_steps:,} steps"
    return Row(name=name, against="", value=growth, low=growth, high=growth, unit="bytes", bar=1024.0, detail=detail)


def import_rows(rounds: int) -> Iterator[Row]:
    """What `import alternator` adds to a new interpreter: milliseconds, and modules of third parties."""
    timed = "import time; start = time.process_time(); import alternator; print(time.process_time() - start)"
    median, low, high = spread([float(child_output(timed)) * 1000 for _ in range(rounds)])
    detail = "CPU time of the statement in a new interpreter"
    yield Row(
        name="import alternator", against="", value=median, low=low, high=high, unit="ms", bar=60.0, detail=detail
    )
    loaded = "import sys; old = set(sys.modules); import alternator; print(*(set(sys.modules) - old))"
    names = {name.split(".")[0] for name in child_output(loaded).split()}
    foreign = names - set(sys.stdlib_module_names) - {"alternator"}
    count = float(len(foreign))
    name = "third-party modules that it loads"
    detail = " ".join(sorted(foreign))
    yield Row(name=name, against="", value=count, low=count, high=count, unit="modules", bar=0.0, detail=detail)


def child_output(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


# --- the PyTorch adapter ----------------------------------------------------------------------------------------------

TENURE = 5


class Towers:
    """Two towers, a batch, and two ways to train them in turns, ``a`` first; one way for each instance."""

    def __init__(self, width: int, batch_size: int) -> None:
        torch.manual_seed(SEED)
        self.modules = {name: tower(width) for name in NAMES}
        self.optimizers = {name: torch.optim.AdamW(module.parameters()) for name, module in self.modules.items()}
        self.x_BD = torch.randn(batch_size, width)
        self.alternating = AlternatingOptimizer(
            Alternator(NAMES, rule=Cycle(TENURE)), self.modules, self.optimizers, delay=0
        )

    def loss(self) -> torch.Tensor:
        """Both towers in a row."""
        return self.modules["b"](self.modules["a"](self.x_BD)).square().mean()

    def by_hand(self) -> None:
        """A tenure of each, frozen by hand."""
        for active, following in zip(NAMES, reversed(NAMES), strict=True):
            optimizer = self.optimizers[active]
            for _ in range(TENURE):
                loss = self.loss()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                loss.item()
            for name, module in self.modules.items():
                module.requires_grad_(name == following).train(name == following)

    def adapted(self) -> None:
        """The same with the adapter."""
        for _ in range(2 * TENURE):
            self.alternating.step(self.loss())


def tower(width: int, depth: int = 4) -> nn.Sequential:
    """A plain network with dropout: eight parameters, twelve submodules."""
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU(), nn.Dropout())))


def adapter_rows(rounds: int, milliseconds: float = 5.0) -> Iterator[Row]:
    """`AlternatingOptimizer.step` against the same loop by hand, at a step of about 5 ms and at the smallest."""
    width, batch_size = 192, 32
    while milliseconds_of(width, batch_size) < milliseconds:
        batch_size = int(batch_size * 1.25)
    against = "two optimizers by hand"
    towers, plain = Towers(width, batch_size), Towers(width, batch_size)
    smallest, plain_smallest = Towers(4, 2), Towers(4, 2)
    calls = 2 * TENURE
    name = f"adapters.torch, step of {milliseconds:g} ms"
    yield side_by_side(name, against, towers.adapted, plain.by_hand, rounds=rounds, calls=calls, bar=1.02)
    name = f"by hand again, step of {milliseconds:g} ms: the error of this measurement"
    yield side_by_side(name, against, plain.by_hand, plain.by_hand, rounds=rounds, calls=calls, bar=None)
    name = "adapters.torch, smallest step"
    yield side_by_side(name, against, smallest.adapted, plain_smallest.by_hand, rounds=rounds, calls=calls, bar=None)


def milliseconds_of(width: int, batch_size: int) -> float:
    """A hand-written step."""
    by_hand = Towers(width, batch_size).by_hand
    by_hand()
    return statistics.median(measure(by_hand) for _ in range(5)) / (2 * TENURE) * 1000


def retriever_row(rounds: int) -> Row:
    """A step of `JointTrainer` in which the retriever alone trains, against the same step by hand."""
    split = leave_one_out(synthetic(num_users=256, num_items=500, seed=SEED))
    texts_IT = torch.randn(split.num_items, 64, generator=torch.Generator().manual_seed(SEED))
    model = UR4Rec(split.num_items, texts_IT, text_embedding_dim=64, retriever_output_dim=64, max_seq_len=20)
    trainer = JointTrainer(model, device="cpu", progress=False, warmup=0.0)
    trainer.set_training_stage("pretrain_retriever")
    loader = TrainBatches(split.train, split.num_items, max_seq_len=20, batch_size=64, seed=SEED)
    batches = [loader.batch(0, index) for index in range(2)]
    retriever = model.retriever
    optimizer = torch.optim.AdamW(retriever.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def by_hand() -> None:
        for batch in batches:
            inputs = to_device(batch, split.num_items, trainer.device)
            catalogue = retriever.catalogue()
            preferences_NKd = retriever(inputs.items_BL, catalogue).flatten(0, 1)[inputs.positions_N]
            loss = cross_entropy(retriever.score(preferences_NKd, catalogue.keys_Id), inputs.targets_N)
            loss.backward()
            nn.utils.clip_grad_norm_(retriever.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()

    def trained() -> None:
        for batch in batches:
            trainer.train_step(batch)

    name, against = "JointTrainer, a step of the retriever alone", "the same step by hand"
    return side_by_side(name, against, trained, by_hand, rounds=rounds, calls=len(batches), bar=1.1)


# --- the report -------------------------------------------------------------------------------------------------------


def machine() -> dict[str, object]:
    """Where and with what it was measured."""
    models = [line.split(":")[1].strip() for line in cpuinfo() if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": torch.multiprocessing.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seed": SEED,
        "clock": "CPU time of the process",
    }


def cpuinfo() -> list[str]:
    """Lines of /proc/cpuinfo where there is one."""
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


QUESTION = "What does scheduling cost?"


def table(rows: list[Row], about: dict[str, object], command: str, question: str = QUESTION) -> str:
    """The result as Markdown."""
    lines = [
        f"# {question}",
        "",
        f"`{command}` on {about['processor']}, {about['cores']} cores, {about['threads']} thread; Python "
        f"{about['python']}, torch {about['torch']}.",
        "Medians over rounds that take turns, with 10% and 90% quantiles; CPU time.",
        "",
        "| what | against | median | 10% – 90% | bar | kept | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bar = "" if row.bar is None else f"≤ {row.bar:g} {row.unit}"
        kept = "" if row.bar is None else "yes" if row.passes else "**no**"
        style = ".3f" if row.unit == "×" else ".3g"
        figures = f"{row.value:{style}} {row.unit} | {row.low:{style}} – {row.high:{style}}"
        lines.append(f"| {row.name} | {row.against} | {figures} | {bar} | {kept} | {row.detail} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], file: Path) -> None:
    """The ratios as bars with their spread, and their bars as lines."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    from ur4rec.compare.plots import to_png

    ratios = [row for row in rows if row.unit == "×"][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(ratios) + 1.5), layout="constrained")
    for position, row in enumerate(ratios):
        errors = [[row.value - row.low], [row.high - row.value]]
        axes.barh(position, row.value, xerr=errors, color="tab:green" if row.passes else "tab:red", capsize=3)
        if row.bar is not None:
            axes.plot([row.bar, row.bar], [position - 0.45, position + 0.45], color="black", linewidth=2)
    axes.set_yticks(range(len(ratios)), [f"{row.name}\nagainst {row.against}" for row in ratios], fontsize=7)
    axes.axvline(1, color="grey", linestyle=":")
    axes.set_xlabel("times the cost of what it is compared with (black: the bar)")
    file.write_bytes(to_png(figure))
    pyplot.close(figure)


def run(*, quick: bool) -> list[Row]:
    """All rows."""
    rounds, calls = (4, 200) if quick else (60, 2000)
    return [
        *observe_rows(rounds, calls),
        memory_row(20_000 if quick else 1_000_000),
        *import_rows(3 if quick else 25),
        *adapter_rows(2 if quick else 300, 0.5 if quick else 5.0),
        retriever_row(2 if quick else 200),
    ]


def save(
    rows: list[Row],
    folder: Path,
    hardware: str,
    command: str,
    *,
    theme: str = "overhead",
    question: str = QUESTION,
    about: dict[str, object] | None = None,
) -> Path:
    """JSON, table and plot under one name; returns the JSON."""
    about = machine() if about is None else about
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"{theme}_{hardware}_{datetime.datetime.now(datetime.UTC).date()}"
    result = {"question": question, "command": command, "machine": about}
    result["rows"] = [{**asdict(row), "passes": row.passes} for row in rows]
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    stem.with_suffix(".md").write_text(table(rows, about, command, question))
    plot(rows, stem.with_suffix(".png"))
    return stem.with_suffix(".json")


def main(arguments: list[str] | None = None) -> int:
    """Measure, save, and fail if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, for a look; figures are rough, no bar is judged"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = run(quick=options.quick)
    if options.quick:
        rows = [replace(row, bar=None) for row in rows]  # too few rounds to judge by
    hardware = f"cpu{torch.multiprocessing.cpu_count()}" + ("-quick" if options.quick else "")
    file = save(rows, options.out, hardware, "python benchmarks/overhead.py" + (" --quick" if options.quick else ""))
    print(table(rows, machine(), "benchmarks/overhead.py"))
    print(f"written: {file.stem}.json, .md, .png")
    missed = [row.name for row in rows if not row.passes]
    kept = "no bar is judged" if options.quick else "every bar is kept"
    print(f"bars missed: {', '.join(missed)}" if missed else kept)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

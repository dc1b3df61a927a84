"""How many bytes does a training step move, and where does each layout saturate?  `python benchmarks/scaling_layouts.py`

Arithmetic, no measurement: nothing is run. The bytes are those that one device sends in one step; the formulas are in
`LAYOUTS`, one function each, and follow `ur4rec_torch` collective by collective. Seconds are bytes over the bandwidth
of the slowest link that a group of devices crosses, and products over the speed of a device; both are arguments.

What a device sends for n bytes in a group of W: all-reduce 2·n·(W−1)/W, all-gather (of n bytes in all) and
reduce-scatter n·(W−1)/W.

Symbols: P parameters, I items, d width of both modules, T width of text vectors, K queries, L positions, B rows of a
device, N = B·L positions with a target, J items of a step with sampled losses, D parts of a batch, S parts of the items.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FLOAT = 4
"""Bytes of a float32 number, in which all is sent."""
PER_PARAMETER = 4 * FLOAT
"""Bytes of a parameter that trains: itself, its gradient, AdamW's two moments."""
LAYOUT_NAMES = ("ddp", "fully_shard", "items")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and a batch on some devices."""

    num_items: int
    width: int = 256
    text_width: int = 384
    queries: int = 4
    blocks: int = 2
    length: int = 50
    rows: int = 128
    """Rows of a device's batch."""
    sampled: bool = False
    """Whether the losses are sampled."""
    negatives: int = 2048

    @property
    def positions(self) -> int:
        return self.rows * self.length

    @property
    def items_of_step(self) -> int:
        """Items of a device's rows and the negatives, if all differ."""
        return min(self.num_items, self.rows * (self.length + 1) + self.negatives)

    @property
    def table(self) -> int:
        """Parameters of the item table."""
        return self.num_items * self.width

    @property
    def projections(self) -> int:
        """Parameters of the retriever that are applied to the items' texts, and its queries."""
        return 3 * (self.text_width + 1) * self.width + self.queries * self.width

    @property
    def rest(self) -> int:
        """All other parameters than the table."""
        d = self.width
        sasrec = self.length * d + self.blocks * (12 * d * d + 13 * d) + 2 * d
        retriever = self.projections + d * d + d + self.queries * self.length
        return sasrec + retriever + 2

    @property
    def products(self) -> float:
        """Floating-point operations of a step on all rows of a device, the whole catalogue scored on it."""
        d, scored = self.width, self.items_of_step if self.sampled else self.num_items
        per_pair = (1 + self.queries) * 3 * 2 * d  # logits of both modules, and the gradients of both factors
        texts = 3 * 3 * 2 * self.text_width * d * scored  # three projections
        body = 6 * (self.rest - self.projections) * self.positions
        pairs = self.positions * (self.negatives + 1 if self.sampled else scored)
        return float(per_pair * pairs + texts + body)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices in machines, and how fast they are. Defaults: figures of an H100 with NVLink and one 400 Gb/s port each."""

    per_machine: int = 8
    nvlink: float = 450e9
    """Bytes per second that a device sends within its machine."""
    network: float = 50e9
    """Bytes per second that a device sends to other machines."""
    speed: float = 150e12
    """Floating-point operations per second that the products reach."""
    memory: float = 80e9
    """Bytes of a device."""

    def link(self, span: int) -> float:
        """The slowest link of a group whose devices lie within so many consecutive ones."""
        return self.nvlink if span <= self.per_machine else self.network


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A step of one layout on one device."""

    layout: str
    devices: int
    data: int
    items: int
    sent: dict[str, float]
    """Bytes by what they are."""
    seconds_sent: float
    seconds_computed: float
    held: float
    """Bytes of parameters, gradients, moments and texts."""

    @property
    def efficiency(self) -> float:
        """Part of the time that is computing, if nothing is sent meanwhile."""
        return self.seconds_computed / (self.seconds_computed + self.seconds_sent)


def all_reduce(num: float, size: int) -> float:
    """Bytes that a device sends to sum ``num`` float32 numbers over a group."""
    return FLOAT * 2 * num * (size - 1) / size


def all_gather(num: float, size: int) -> float:
    """Bytes that a device sends so that all have ``num`` float32 numbers of which each had a part."""
    return FLOAT * num * (size - 1) / size


def ddp(problem: Problem, data: int, items: int) -> Iterator[tuple[str, float, int]]:
    """Every device holds all: 2·P·(W−1)/W, of the table only the step's rows with sampled losses."""
    yield "gradients", all_reduce(problem.rest, data), data
    rows = data * problem.items_of_step * problem.width if problem.sampled else problem.table
    yield "table's gradients", all_reduce(min(rows, problem.table), data), data


def fully_shard(problem: Problem, data: int, items: int) -> Iterator[tuple[str, float, int]]:
    """Parameters gathered before the forward pass and again before the backward pass, gradients scattered: 3·P·(W−1)/W.

    Where they are kept between the two passes it is 2·P·(W−1)/W, as in DDP.
    """
    num = problem.rest + problem.table
    yield "parameters", 2 * all_gather(num, data), data
    yield "gradients", all_gather(num, data), data


def in_items(problem: Problem, data: int, items: int) -> Iterator[tuple[str, float, int]]:
    """The catalogue in parts: rows that are looked up, sums of positions and their gradients; gradients over data."""
    d, spanned = problem.width, items
    if problem.sampled:
        yield "rows looked up", all_reduce(problem.items_of_step * (d + problem.text_width), items), spanned
        rows = min(data * problem.items_of_step * d, problem.table) / items
        yield "table's gradients", all_reduce(rows, data), data * items
    else:
        yield "rows looked up", all_reduce(problem.positions * (2 * d + problem.queries), items), spanned
        yield "row sums", 2 * FLOAT * problem.positions * (items - 1), spanned
        yield "gradients of states", all_reduce(problem.positions * d * (1 + problem.queries), items), spanned
        yield "gradients of projections", all_reduce(problem.projections, items), spanned
        yield "table's gradients", all_reduce(problem.table / items, data), data * items
    yield "gradients", all_reduce(problem.rest, data), data * items


Formula = Callable[[Problem, int, int], Iterator[tuple[str, float, int]]]
LAYOUTS: dict[str, Formula] = {"ddp": ddp, "fully_shard": fully_shard, "items": in_items}
"""Each yields what is sent, in bytes of a device, and within how many consecutive devices."""


def cost(layout: str, problem: Problem, devices: int, machine: Machine) -> Cost:
    """A step on so many devices; the items are divided within a machine, batches among machines.

    All layouts train on the same global batch: with the items divided, a device has the rows of its whole group.
    """
    items = min(devices, machine.per_machine) if layout == "items" else 1
    data = devices // items
    shared = replace(problem, rows=problem.rows * items)
    sent = list(LAYOUTS[layout](shared, data, items))
    held = problem.table / items * PER_PARAMETER + FLOAT * problem.num_items * problem.text_width / items
    held += problem.rest * PER_PARAMETER
    if layout == "fully_shard":  # what is gathered, and its gradients, are whole for a while
        num = problem.table + problem.rest
        held = 2 * FLOAT * num + num * PER_PARAMETER / data + FLOAT * problem.num_items * problem.text_width
    return Cost(
        layout=layout,
        devices=devices,
        data=data,
        items=items,
        sent={name: num for name, num, _ in sent},
        seconds_sent=sum(num / machine.link(span) for _, num, span in sent),
        seconds_computed=_products(shared, items) / machine.speed,
        held=held,
    )


def _products(problem: Problem, items: int) -> float:
    """Operations of one device: what has a row per item is divided; what has one per position alone is done by all."""
    body = 6 * (problem.rest - problem.projections) * problem.positions
    if problem.sampled:
        return problem.products
    return body + (problem.products - body) / items


def saturation(layout: str, problem: Problem, machine: Machine, *, efficiency: float = 0.5) -> int | None:
    """The first number of devices (8, 16, ... 4096) at which less than this part of the time is computing."""
    for devices in (2**power for power in range(3, 13)):
        if cost(layout, problem, devices, machine).efficiency < efficiency:
            return devices
    return None


def table(problems: Iterable[Problem], devices: Iterable[int], machine: Machine) -> list[Cost]:
    """The costs of all layouts."""
    devices = list(devices)
    return [cost(layout, each, num, machine) for each in problems for layout in LAYOUTS for num in devices]


def report(problems: Iterable[Problem], devices: Iterable[int], machine: Machine) -> str:
    """The table in Markdown."""
    devices = list(devices)
    heads = [f"{num}: MB, ms" for num in devices]
    lines = [
        f"| loss | items | d | layout | GB held, at {devices[0]} | ms computed, at {devices[0]} | {' | '.join(heads)} | saturates at |",
        f"|---|---|---|---|---|---|{'---|' * len(devices)}---|",
    ]
    for problem in problems:
        for layout in LAYOUTS:
            costs = [cost(layout, problem, num, machine) for num in devices]
            fits = "" if costs[0].held <= machine.memory else " (too much)"
            cells = [f"{sum(each.sent.values()) / 1e6:,.0f}, {1e3 * each.seconds_sent:.2g}" for each in costs]
            first = costs[0]
            lines.append(
                f"| {'sampled' if problem.sampled else 'full'} | {problem.num_items / 1e6:g}M | {problem.width} | {layout} "
                f"| {first.held / 1e9:.3g}{fits} | {1e3 * first.seconds_computed:.3g} | {' | '.join(cells)} "
                f"| {saturation(layout, problem, machine) or 'no number up to 4096'} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table; with --json write the figures too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10**6, 10**7])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--rows", type=int, default=128, help="rows of a device's batch")
    parser.add_argument("--json", type=Path, help="write all costs there")
    for name, default in asdict(Machine()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = parser.parse_args()
    machine = Machine(**{name: getattr(given, name) for name in asdict(Machine())})
    problems = [
        Problem(num_items=num_items, width=width, rows=given.rows, sampled=sampled)
        for sampled in (False, True)
        for num_items in given.items
        for width in given.widths
    ]
    print(report(problems, given.devices, machine))
    if given.json is not None:
        costs = [asdict(each) for each in table(problems, given.devices, machine)]
        given.json.write_text(json.dumps({"machine": asdict(machine), "costs": costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()

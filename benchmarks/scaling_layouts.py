"""How many bytes does a training step move, and where does each layout saturate?

``python benchmarks/scaling_layouts.py`` prints the table. It is arithmetic: nothing is run or measured. The bytes are
those that one device sends in one step. The formulas are in `LAYOUTS`, one function each, and follow `ur4rec_torch`
message by message. Seconds are bytes over the bandwidth of the slowest link that a group of devices crosses, and
operations over the speed of a device; all of these are arguments.

What a device of W sends for n bytes: in an all-reduce 2·n·(W−1)/W, in a reduce-scatter n·(W−1)/W, in an all-gather
(n bytes in all) n·(W−1)/W.

Symbols: P parameters, I items, d width of both modules, T width of text vectors, K queries, L positions, B rows of a
device, N = B·L positions with a target, J items of a step with sampled losses, D parts of a batch, S of the items.
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
PARTS = {"full": 8, "sampled": 2}
"""Parts of the items under each loss: within a machine, and as few as halve the table."""


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
        """Positions with a target."""
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
    def of_positions(self) -> float:
        """Operations for what has one row per position: blocks and attention's projections, forward and backward."""
        return 6.0 * (self.rest - self.projections) * self.positions

    @property
    def of_pairs(self) -> float:
        """Operations for the logits of both modules, and the gradients of both factors of each."""
        scored = self.negatives + 1 if self.sampled else self.num_items
        return (1 + self.queries) * 3 * 2.0 * self.width * self.positions * scored

    @property
    def of_texts(self) -> float:
        """Operations for three projections of the texts of all items that are needed."""
        items = self.items_of_step if self.sampled else self.num_items
        return 3 * 2 * 2.0 * self.text_width * self.width * items


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Devices in machines, and how fast they are: those of an H100 with NVLink and one 400 Gb/s port by default."""

    per_machine: int = 8
    nvlink: float = 450e9
    """Bytes per second that a device sends within its machine."""
    network: float = 50e9
    """Bytes per second that a device sends to other machines."""
    speed: float = 150e12
    """Floating-point operations per second that products of matrices reach; a guess to be replaced by your own."""
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
    seconds_useful: float
    """Seconds in which the devices would have computed the step, if none did what another does too."""
    held: float
    """Bytes of parameters, gradients, moments and texts."""

    @property
    def efficiency(self) -> float:
        """Part of the time that is useful, if nothing is sent while a device computes."""
        return self.seconds_useful / (self.seconds_computed + self.seconds_sent)


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
    """Parameters gathered for a step, gradients scattered: 2·P·(W−1)/W, as in DDP.

    It would be 3·P·(W−1)/W if parameters were let go of after the forward pass and gathered again.
    """
    num = problem.rest + problem.table
    yield "parameters", all_gather(num, data), data
    yield "gradients", all_gather(num, data), data


def in_items(problem: Problem, data: int, items: int) -> Iterator[tuple[str, float, int]]:
    """The catalogue in parts: rows that are looked up, sums of positions and their gradients; gradients over data."""
    d, spanned = problem.width, items
    if problem.sampled:
        rows = problem.items_of_step
        yield "rows looked up", all_reduce(rows * (d + problem.text_width), items), spanned
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
    """A step on this number of devices; the items are divided within a machine, batches among the rest.

    All layouts train on the same global batch: with the items divided, a device has the rows of its whole group.
    """
    items = PARTS["sampled" if problem.sampled else "full"] if layout == "items" else 1
    data = devices // items
    shared = replace(problem, rows=problem.rows * items)
    sent = list(LAYOUTS[layout](shared, data, items))
    per_row = PER_PARAMETER - (FLOAT if problem.sampled else 0)  # of the table: then its gradient has few rows
    texts = FLOAT * problem.num_items * problem.text_width
    held = (problem.table * per_row + texts) / items + problem.rest * PER_PARAMETER
    if layout == "fully_shard":  # what is gathered, and its gradients, are whole for a while
        num = problem.table + problem.rest
        held = 2 * FLOAT * num + num * PER_PARAMETER / data + texts
    return Cost(
        layout=layout,
        devices=devices,
        data=data,
        items=items,
        sent={name: num for name, num, _ in sent},
        seconds_sent=sum(num / machine.link(span) for _, num, span in sent),
        seconds_computed=_computed(shared, items) / machine.speed,
        seconds_useful=(problem.of_positions + problem.of_pairs + problem.of_texts / devices) / machine.speed,
        held=held,
    )


def _computed(problem: Problem, items: int) -> float:
    """Operations of a device: what has a row per item is divided; what has one per position is done by all of a group.

    With sampled losses all is: the few items of a step are the same in the whole group.
    """
    divided = 1 if problem.sampled else items
    return problem.of_positions + (problem.of_pairs + problem.of_texts) / divided


def saturation(layout: str, problem: Problem, machine: Machine, *, grows: bool) -> int | None:
    """The first number of devices (8, 16, ... 4096) at which less than half of the time is useful.

    Args:
        layout: Which.
        problem: The rows are those of a device at 8 devices.
        machine: The devices.
        grows: Whether the batch grows with the number of devices; if not, rows of a device become fewer.
    """
    for devices in (2**power for power in range(3, 13)):
        rows = problem.rows if grows else problem.rows * 8 // devices
        if rows == 0 or cost(layout, replace(problem, rows=rows), devices, machine).efficiency < 0.5:
            return devices
    return None


def table(problems: Iterable[Problem], devices: Iterable[int], machine: Machine) -> list[Cost]:
    """The costs of all layouts."""
    devices = list(devices)
    return [cost(layout, each, num, machine) for each in problems for layout in LAYOUTS for num in devices]


def report(problems: Iterable[Problem], devices: Iterable[int], machine: Machine) -> str:
    """The table in Markdown."""
    devices = list(devices)
    heads = [
        "loss",
        "items",
        "d",
        "layout",
        "GB held",
        *(f"on {num}: MB, ms, useful" for num in devices),
        "below 50% at",
        "with a fixed batch",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for problem in problems:
        for layout in LAYOUTS:
            if layout == "fully_shard" and problem.sampled:  # refused: it has no sparse gradients
                continue
            costs = [cost(layout, problem, num, machine) for num in devices]
            held = f"{costs[0].held / 1e9:.3g}{'' if costs[0].held <= machine.memory else ', too much'}"
            cells = [
                f"{sum(each.sent.values()) / 1e6:,.0f}, {1e3 * each.seconds_sent:.2g}, {each.efficiency:.0%}"
                for each in costs
            ]
            limits = [str(saturation(layout, problem, machine, grows=grows) or "over 4096") for grows in (True, False)]
            start = ["sampled" if problem.sampled else "full", f"{problem.num_items / 1e6:g}M", str(problem.width)]
            lines.append(f"| {' | '.join([*start, layout, held, *cells, *limits])} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table; with ``--json`` write the figures too."""
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

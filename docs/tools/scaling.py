"""The figures of docs/scaling.md: the tables and the plot of benchmarks/scaling.py, and what each layout moves.

`python -m docs.tools.scaling` writes them between their markers, and copies the plot to docs/images/scaling.png.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from docs.tools.recipes import ROOT, with_section

PAGE = ROOT / "docs" / "scaling.md"
PLOT = ROOT / "docs" / "images" / "scaling.png"
RESULTS = ROOT / "benchmarks" / "results"
SHOWN = ("processor seconds", "MB at most, beside what was there", "file MB", "MB of state.json")
"""The values of the results that the page has tables of."""
FLOPS, NVLINK, NETWORK = 150e12, 300e9, 40e9
"""What a GPU computes in a second, and the bytes that it sends within a node and between nodes."""
PER_NODE, NUM_GPUS = 8, (8, 16, 32, 64)
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and a batch."""

    num_items: int
    width: int = 256
    """Of SASRec and of the retriever."""
    text_width: int = 384
    num_queries: int = 4
    num_blocks: int = 2
    rows: int = 128
    """Of the batch, per GPU."""
    length: int = 100
    num_negatives: int = 512
    """Of a sampled loss."""

    @property
    def positions(self) -> int:
        """Of a batch, per GPU."""
        return self.rows * self.length


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a model and its batches lie on GPUs, and what a step of both modules costs each of them."""

    name: str
    sampled: bool
    spread: bool = False
    """Whether what is trained is spread over all GPUs, and gathered for a step."""
    items: int = 1
    """The parts of the catalogue, which are within a node."""

    def rows_of_step(self, case: Case, num_gpus: int) -> int:
        """The rows of the tables of items that a step of all GPUs uses; of a sampled one at most, if none repeats."""
        if not self.sampled:
            return case.num_items
        return min(case.num_items, num_gpus * case.positions + case.num_negatives)

    def memory(self, case: Case, num_gpus: int) -> float:
        """Bytes of what has a row per item: embeddings, their moments, texts; of a full loss gradients and keys too."""
        trained, texts = (_FLOAT * case.num_items * width for width in (case.width, case.text_width))
        gradients_and_keys = 0 if self.sampled else 2 * trained
        if self.spread:
            return trained + gradients_and_keys + texts + 3 * trained / num_gpus
        return (3 * trained + gradients_and_keys + texts) / self.items

    def flops(self, case: Case, num_gpus: int) -> float:
        """Of a step, forward and backward. The GPUs with parts of a catalogue have the same rows of a batch."""
        width, positions = case.width, case.positions * self.items
        blocks = positions * case.num_blocks * (24 * width**2 + 2 * case.length * width)
        retrieval = positions * case.num_queries * (case.length * width + 2 * width**2)
        scored = case.num_negatives if self.sampled else case.num_items / self.items
        scores = positions * scored * 2 * width * (1 + case.num_queries)
        encoded = self.rows_of_step(case, num_gpus) * 2 * 2 * case.text_width * width
        return 3 * (blocks + retrieval + scores + encoded / (1 if self.sampled else self.items))

    def sent(self, case: Case, num_gpus: int) -> tuple[float, float]:
        """Bytes that a GPU sends in a step: between replicas, and within its group of parts of the catalogue."""
        replicas, rows = num_gpus // self.items, self.rows_of_step(case, num_gpus)
        between = _reduced(replicas, _FLOAT * rows * case.width / self.items)
        if self.sampled:
            within = rows * (case.width + case.text_width)
        else:
            states = case.width * (1 + case.num_queries)
            within = case.positions * self.items * (2 * case.width + case.num_queries + states)
        return between, _reduced(self.items, _FLOAT * within)

    def seconds(self, case: Case, num_gpus: int) -> tuple[float, float]:
        """Of a step: of computing, and of sending if none of it is hidden behind computing."""
        between, within = self.sent(case, num_gpus)
        return self.flops(case, num_gpus) / FLOPS, between / (
            NVLINK if num_gpus <= PER_NODE else NETWORK
        ) + within / NVLINK


def _reduced(num: int, size: float) -> float:
    """Bytes that each of a ring sends to sum what each has of this size.

    Example:
        >>> _reduced(1, 100.0), _reduced(4, 100.0)
        (0.0, 150.0)
    """
    return 2 * (num - 1) / num * size


CASES = (Case(num_items=1_000_000), Case(num_items=10_000_000))
LAYOUTS = (
    Layout(name="`torchrun`, full", sampled=False),
    Layout(name="`torchrun --shard`, full", sampled=False, spread=True),
    Layout(name="`--mesh items=8`, full", sampled=False, items=8),
    Layout(name="`torchrun`, sampled", sampled=True),
    Layout(name="`--mesh items=8`, sampled", sampled=True, items=8),
)


def render_layouts() -> str:
    """A table per case: what items take of a GPU's memory, and a step's times by the number of GPUs."""
    lines = []
    for case in CASES:
        lines += [
            f"**{case.num_items:,} items**",
            "",
            f"| layout, loss | GB of items, at {NUM_GPUS[0]} and {NUM_GPUS[-1]} | "
            f"{' | '.join(f'{num} GPUs' for num in NUM_GPUS)} |",
            f"|---|---|{'---|' * len(NUM_GPUS)}",
        ]
        for layout in LAYOUTS:
            sizes = [f"{layout.memory(case, num) / 1e9:.1f}" for num in (NUM_GPUS[0], NUM_GPUS[-1])]
            cells = [_cell(layout, case, num) for num in NUM_GPUS]
            lines.append(f"| {layout.name} | {'; '.join(dict.fromkeys(sizes))} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _cell(layout: Layout, case: Case, num_gpus: int) -> str:
    computing, sending = layout.seconds(case, num_gpus)
    text = f"{1e3 * computing:.0f} + {1e3 * sending:.0f} ms, {sum(layout.sent(case, num_gpus)) / 1e6:.0f} MB"
    return f"**{text}**" if sending > computing else text


def newest_results() -> Path:
    """The tables that the benchmark wrote last."""
    return sorted(RESULTS.glob("scaling_cpu*.md"))[-1]


def render_results(text: str) -> str:
    r"""What the page shows of the benchmark's tables.

    Example:
        >>> print(render_results("# Q?\n\nHow.\n\n## users: file MB\n\n| |\n\n## users: other\n\n| |"))
        How.
        <BLANKLINE>
        **users: file MB**
        <BLANKLINE>
        | |
    """
    about, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    parts = [about.partition("\n\n")[2].strip()]
    for title, _, table in (section.partition("\n") for section in sections):
        if title.partition(": ")[2] in SHOWN:
            parts += [f"**{title}**", table.strip()]
    return "\n\n".join(parts)


def render_page(text: str) -> str:
    """The page as it should be."""
    text = with_section(text, "results", render_results(newest_results().read_text(encoding="utf-8")))
    return with_section(text, "layouts", render_layouts())


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copyfile(newest_results().with_suffix(".png"), PLOT)

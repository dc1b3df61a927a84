"""The table of what is kept to the bit: its cells are tests, and the guide has what they show.

Each backend has modules of rows; a row is something that users bring, a cell one way of using it.
``python -m tests.conformance.kept`` writes the tables into docs/freezing.md again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

PLACES = {
    "torch": ("tests.conformance.torch_optimizers", "tests.conformance.torch_modules"),
    "jax": ("tests.conformance.optax_transforms",),
}
"""Per backend the modules that have a ``TABLE``."""
KEPT, CLOSE, REFUSED, ELSEWHERE, NONE = "=", "≈", "refused", "GPU", "·"
GUIDE = Path(__file__).parents[2] / "docs" / "freezing.md"
BEGIN, END = "<!-- kept: begin, generated -->", "<!-- kept: end -->"


@dataclass(frozen=True)
class Cell:
    """A mark, and the test that shows it."""

    mark: str
    check: Callable[[], None]


@dataclass(frozen=True)
class Row:
    """Something that users bring, used in some of the ways that are columns, and a remark."""

    cells: Mapping[str, Cell]
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by name, in Markdown."""

    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Row]

    def render(self) -> list[str]:
        """Its lines in the guide."""
        lines = [f"| {self.title} | {' | '.join(self.columns)} | |", "|---|" + "---|" * (len(self.columns) + 1)]
        for name, row in self.rows.items():
            marks = [row.cells[column].mark if column in row.cells else NONE for column in self.columns]
            lines.append(f"| {name} | {' | '.join(marks)} | {row.remark} |")
        return lines

    def cells(self) -> Iterator[tuple[str, Cell]]:
        """Each cell with its place."""
        for name, row in self.rows.items():
            assert set(row.cells) <= set(self.columns), name
            for column, cell in row.cells.items():
                yield f"{name}, {column}", cell


def tables_of(backend: str) -> list[Table]:
    """The tables of a backend; that of a third party has none."""
    return [import_module(place).TABLE for place in PLACES.get(backend, ())]


def render() -> str:
    """All tables, in Markdown."""
    blocks = ["\n".join(table.render()) for backend in PLACES for table in tables_of(backend)]
    return "\n\n".join([BEGIN, *blocks, END])


def committed() -> str:
    """The tables as they stand in the guide."""
    text = GUIDE.read_text()
    return text[text.index(BEGIN) : text.index(END) + len(END)]


if __name__ == "__main__":
    GUIDE.write_text(GUIDE.read_text().replace(committed(), render()))

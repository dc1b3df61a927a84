"""The mutants of every backend, and the table of which case kills which."""

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from tests.conformance.cases import CASES, DECISIONS
from tests.conformance.harness import Build, Unsupported

PLACES = {
    "reference": "tests.conformance.reference_mutants",
    "torch": "tests.conformance.torch_mutants",
    "jax": "tests.conformance.optax_mutants",
}
KILLED, SURVIVED, UNASKED = "×", " ", "·"
GUIDE = Path(__file__).parents[2] / "docs" / "conformance.md"
BEGIN, END = "<!-- mutants: begin, generated -->", "<!-- mutants: end -->"


class Mutant(NamedTuple):
    """A flawed implementation."""

    backend: str
    build: Build
    name: str
    flaw: str
    killers: frozenset[str]

    def row(self) -> dict[str, str]:
        """What each case says. Only an assertion that fails kills: any other error is a fault of the mutant itself.

        Mutants of a framework freeze wrongly and decide by the core, so the cases about decisions alone are not asked.
        """
        asked = [name for name in CASES if self.backend == "reference" or name not in DECISIONS]
        return {name: verdict(self.build, name) if name in asked else UNASKED for name in CASES}


def verdict(build: Build, case: str) -> str:
    try:
        CASES[case](build)
    except Unsupported:
        return UNASKED
    except AssertionError:
        return KILLED
    return SURVIVED


def mutants_of(backend: str) -> list[Mutant]:
    """The mutants of a backend; one of a third party has none."""
    if backend not in PLACES:
        return []
    listed = import_module(PLACES[backend]).MUTANTS
    return [
        Mutant(backend, kind, kind.__name__, (kind.__doc__ or "").strip().splitlines()[0], frozenset(killers))
        for kind, killers in listed.items()
    ]


def render(rows: list[tuple[Mutant, dict[str, str]]]) -> str:
    """The legend of the cases and the table, in Markdown."""
    numbers = range(1, len(CASES) + 1)
    lines = ["| | case | what it holds |", "|---|---|---|"]
    for number, (name, function) in zip(numbers, CASES.items(), strict=True):
        lines.append(f"| {number} | `{name}` | {(function.__doc__ or '').strip().splitlines()[0]} |")
    lines += ["", f"| mutant | flaw | {' | '.join(map(str, numbers))} |", "|---|---|" + "---|" * len(CASES)]
    for mutant, row in rows:
        lines.append(f"| {mutant.backend}: `{mutant.name}` | {mutant.flaw} | {' | '.join(row.values())} |")
    return "\n".join([BEGIN, "", *lines, "", END])


def committed() -> str:
    """The table as it stands in the guide."""
    text = GUIDE.read_text()
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def main() -> None:
    """Run every case against every mutant and write the table: ``python -m tests.conformance.mutants``."""
    rows = [(mutant, mutant.row()) for backend in PLACES for mutant in mutants_of(backend)]
    text = GUIDE.read_text()
    GUIDE.write_text(text.replace(committed(), render(rows)))


if __name__ == "__main__":
    main()

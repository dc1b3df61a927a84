"""The pages of recipes: each shows the difference between two programs of examples/recipes, as it is now.

`python docs/tools/recipes.py` writes the differences, and the table of docs/recipes/index.md, between their markers. A
recipe is a directory of examples/recipes with ``before.py``, ``after.py`` and, where ``before`` trains with another
schedule, ``by_hand.py``; and a page of its name in docs/recipes.
"""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "examples" / "recipes"
PAGES = ROOT / "docs" / "recipes"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- {}: begin, generated -->", "<!-- {}: end -->"


@dataclass(frozen=True)
class Recipe:
    """A program without and with an adapter."""

    name: str

    @property
    def before(self) -> Path:
        """The program as people write it."""
        return PROGRAMS / self.name / "before.py"

    @property
    def after(self) -> Path:
        """The same program with an adapter."""
        return PROGRAMS / self.name / "after.py"

    @property
    def twin(self) -> Path:
        """The program that trains with the schedule of ``after``, written by hand."""
        by_hand = PROGRAMS / self.name / "by_hand.py"
        return by_hand if by_hand.exists() else self.before

    @property
    def page(self) -> Path:
        """Its page."""
        return PAGES / f"{self.name}.md"

    @property
    def title(self) -> str:
        """The heading of its page."""
        return self.page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")

    @property
    def is_callback(self) -> bool:
        """Whether a framework owns the loop, and a callback is all that is added."""
        return re.search(r"\bAlternatingCallback\b", self.after.read_text(encoding="utf-8")) is not None

    @property
    def is_jax(self) -> bool:
        """Whether it trains with JAX."""
        return re.search(r"^(import|from) jax\b", self.after.read_text(encoding="utf-8"), re.MULTILINE) is not None

    def diff(self) -> str:
        """The difference from ``before`` to ``after``."""
        before, after = (path.read_text(encoding="utf-8").splitlines() for path in (self.before, self.after))
        return "\n".join(difflib.unified_diff(before, after, "before.py", "after.py", n=2, lineterm=""))

    def num_added(self) -> int:
        """The number of lines that are added, blank ones aside."""
        added = [line[1:] for line in self.diff().splitlines()[2:] if line.startswith("+")]
        return sum(bool(line.strip()) for line in added)

    def render(self) -> str:
        """What its page shows of the programs."""
        programs = [path for path in (self.before, self.after, self.twin) if path.exists()]
        links = [f"[{path.name}](../../{path.relative_to(ROOT).as_posix()})" for path in dict.fromkeys(programs)]
        return f"{', '.join(links)}; {self.num_added()} lines added.\n\n```diff\n{self.diff()}\n```"


def find_recipes() -> list[Recipe]:
    """All, by name."""
    return [Recipe(name) for name in sorted({path.parent.name for path in PROGRAMS.glob("*/*.py")})]


def render_table(recipes: list[Recipe]) -> str:
    """A row per recipe: lines added, and the ratio of times if it has been measured."""
    measured = sorted(RESULTS.glob("recipes_*.json"))
    rows = json.loads(measured[-1].read_text(encoding="utf-8"))["rows"] if measured else []
    shown = {row["name"]: f"{row['value']:.2f} ({row['low']:.2f} – {row['high']:.2f})" for row in rows}
    learned = {row["name"]: row["detail"].partition("; ")[2] for row in rows}
    lines = ["| program | lines added | time of a step, against by hand | what it prints |", "|---|---|---|---|"]
    for each in recipes:
        figures = f"{each.num_added()} | {shown.get(each.name, '')} | {learned.get(each.name, '')}"
        lines.append(f"| [{each.title}]({each.name}.md) | {figures} |")
    return "\n".join(lines)


def with_section(text: str, name: str, content: str) -> str:
    """A page with new content between its markers.

    Raises:
        ValueError: There are no markers.
    """
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in text or end not in text:
        raise ValueError(f"a page must have the markers {begin!r} and {end!r}; add them")
    head, tail = text[: text.index(begin)], text[text.index(end) :]
    return f"{head}{begin}\n\n{content}\n\n{tail}"


def render_pages() -> dict[Path, str]:
    """Per page its text as it should be."""
    recipes = find_recipes()
    index = PAGES / "index.md"
    pages = {each.page: with_section(each.page.read_text(encoding="utf-8"), "diff", each.render()) for each in recipes}
    return {index: with_section(index.read_text(encoding="utf-8"), "table", render_table(recipes)), **pages}


if __name__ == "__main__":
    for path, text in render_pages().items():
        path.write_text(text, encoding="utf-8")

"""The figures of docs/scaling.md: the tables and the plot of benchmarks/scaling.py.

`python -m docs.tools.scaling` writes them between their markers, and copies the plot to docs/images/scaling.png.
"""

import re
import shutil
from pathlib import Path

from docs.tools.recipes import ROOT, with_section

PAGE = ROOT / "docs" / "scaling.md"
PLOT = ROOT / "docs" / "images" / "scaling.png"
RESULTS = ROOT / "benchmarks" / "results"
SHOWN = ("processor seconds", "MB at most, beside what was there", "file MB", "MB of state.json")
"""The values of the results that the page has tables of."""


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
    return with_section(text, "results", render_results(newest_results().read_text(encoding="utf-8")))


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copyfile(newest_results().with_suffix(".png"), PLOT)

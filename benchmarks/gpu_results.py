"""What the parts of `gpu.py` find, written after every figure, so that a part that is killed keeps what it has.

Standard library alone: the program that starts the parts must not fall with what they import.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class Skipped(Exception):  # noqa: N818 (it is no error)
    """A part has nothing to do here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure."""

    name: str
    """What it is of."""
    value: float
    """The median, or the figure."""
    unit: str = ""
    """Its unit."""
    low: float | None = None
    """10% quantile over rounds, if there were several."""
    high: float | None = None
    """90% quantile."""
    bar: float | None = None
    """What it must reach; None where it is for information only."""
    at_least: bool = False
    """Whether the bar is a minimum; else it is a maximum."""
    detail: str = ""
    """How it was measured, or what it is compared with."""

    @property
    def passes(self) -> bool:
        """Whether it keeps to its bar.

        Example:
            >>> Figure(name="waits", value=1, bar=0).passes, Figure(name="NDCG", value=1, bar=0, at_least=True).passes
            (False, True)
        """
        if self.bar is None:
            return True
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass(kw_only=True)
class PartResult:
    """What a part found, and how it ended."""

    name: str
    """The part."""
    status: str = "not run"
    """``done``, ``skipped``, ``failed``, ``killed`` or ``not run``."""
    seconds: float = 0.0
    """How long it took."""
    limit: float = 0.0
    """How long it was given."""
    message: str = ""
    """Why it was skipped or killed; of a failure, the traceback."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What is no figure."""
    figures: list[Figure] = field(default_factory=list)
    """In the order in which they were found."""

    @property
    def holds(self) -> bool:
        """Whether nothing failed and every bar is kept."""
        return self.status in ("done", "skipped") and all(figure.passes for figure in self.figures)


class Record:
    """The file of a part that runs.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts: dict[str, Any] = {}
        self._figures: list[Figure] = []
        self._write()

    def fact(self, name: str, value: Any) -> None:
        """Keep what is no figure: anything that JSON holds."""
        self._facts[name] = value
        self._write()

    def figure(self, name: str, value: float, **fields: Any) -> None:
        """Keep a figure; see `Figure`."""
        found = Figure(name=name, value=float(value), **fields)
        print(f"  {found.name}: {found.value:.4g} {found.unit} {found.detail}".rstrip(), flush=True)
        self._figures.append(found)
        self._write()

    def _write(self) -> None:
        content = {"facts": self._facts, "figures": [asdict(figure) for figure in self._figures]}
        scratch = self._path.with_suffix(".part")
        scratch.write_text(json.dumps(content))
        os.replace(scratch, self._path)


def read_record(path: Path) -> dict[str, Any]:
    """Facts and figures of a part, as far as it came."""
    if not path.exists():
        return {"facts": {}, "figures": []}
    content = json.loads(path.read_text())
    return {"facts": content["facts"], "figures": [Figure(**each) for each in content["figures"]]}


def save(parts: Sequence[PartResult], stem: Path, about: dict[str, Any]) -> None:
    """Write JSON and table."""
    content = {**about, "parts": [_as_json(part) for part in parts]}
    stem.parent.mkdir(parents=True, exist_ok=True)
    texts = {".json": json.dumps(content, indent=1, ensure_ascii=False) + "\n", ".md": table(parts, about)}
    for suffix, text in texts.items():
        scratch = stem.with_suffix(".part")
        scratch.write_text(text)
        os.replace(scratch, stem.with_suffix(suffix))


def _as_json(part: PartResult) -> dict[str, Any]:
    figures = [{**asdict(figure), "passes": figure.passes} for figure in part.figures]
    return {**asdict(part), "figures": figures, "holds": part.holds}


def table(parts: Sequence[PartResult], about: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["# Is an accelerator kept busy, and does the freeze contract hold there?", ""]
    lines += [f"`{about['command']}`, commit `{about['commit']}`, {about['date']}.", ""]
    lines += ["| part | how it ended | s | of at most | holds |", "|---|---|---|---|---|"]
    for part in parts:
        message = f": {part.message.strip().splitlines()[-1]}" if part.message else ""
        holds = "" if part.status == "not run" else "yes" if part.holds else "**no**"
        lines.append(f"| {part.name} | {part.status}{message} | {part.seconds:.0f} | {part.limit:.0f} | {holds} |")
    for part in parts:
        if part.status == "not run":
            continue
        lines += ["", f"## {part.name}", ""]
        lines += [f"- {name}: {value}" for name, value in part.facts.items()]
        lines += _figure_lines(part.figures)
        if part.status == "failed":
            lines += ["", "```", part.message.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _figure_lines(figures: Sequence[Figure]) -> list[str]:
    if not figures:
        return []
    lines = ["", "| what | figure | 10% – 90% | bar | kept | |", "|---|---|---|---|---|---|"]
    for figure in figures:
        spread = "" if figure.low is None else f"{figure.low:.4g} – {figure.high:.4g}"
        bar = "" if figure.bar is None else f"{'≥' if figure.at_least else '≤'} {figure.bar:g}"
        kept = "" if figure.bar is None else "yes" if figure.passes else "**no**"
        value = f"{figure.value:.4g} {figure.unit}".rstrip()
        lines.append(f"| {figure.name} | {value} | {spread} | {bar} | {kept} | {figure.detail} |")
    return lines

"""Layouts: which files of a directory hold what."""

import re
from dataclasses import dataclass
from pathlib import Path

from alternator.checks import listed
from ur4rec.data.reading.content import bare_name, kind_of
from ur4rec.data.reading.shapes import main_file
from ur4rec.errors import DataError

TEXTS = (".csv", ".tsv", ".txt", ".dat", ".data")
JSONS = (".json", ".jsonl", ".ndjson")
ATOMIC = (".inter", ".item")
SUFFIXES = (*TEXTS, *JSONS, *ATOMIC, ".parquet")
"""Suffixes of the files that are read; those of text files may be followed by .gz or .zst."""
_SPLIT = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2}
_SPLIT_NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Files:
    """The files of a dataset."""

    groups: tuple[tuple[Path, ...], ...]
    """The interactions: one group of files; or three, those of training, validation and testing."""
    items: Path | None
    """Titles and texts of items."""
    name: str
    """The name of the dataset."""

    @property
    def is_split(self) -> bool:
        """Whether the interactions came split."""
        return len(self.groups) > 1


def find_files(path: Path) -> Files:
    """The files of a dataset at a path: a file, or a directory of one dataset.

    Raises:
        DataError: What is in the directory is not one dataset.
    """
    if not path.is_dir():
        return Files(((path,),), _items_file(path, beside=False), _name(path))
    files = [file for file in sorted(path.iterdir()) if file.is_file() and file.name[0] not in "._"]
    if (split := _find_split(path, files)) is not None:
        return split
    atomic = [file for file in sorted(path.glob("*.inter")) if file.suffix == ".inter"]
    if len(atomic) == 1:
        return Files((tuple(atomic),), _items_file(atomic[0], beside=True), atomic[0].stem)
    if not atomic and (main := main_file(path)) is not None:
        return Files(((main,),), _items_file(main, beside=True), path.name)
    parts = [file for file in files if kind_of(file) in (*TEXTS, *JSONS, ".parquet") and not _is_items(file)]
    if atomic or not parts or len({kind_of(file) for file in parts}) > 1:
        names = listed((file.name for file in atomic or parts), 8) or "none"
        raise DataError(
            f"{path}: must hold one NAME.inter, one interactions.csv (.tsv, .parquet, .jsonl), the files of a known "
            f"dataset, or parts of one table with one suffix, got {names}; pass the file itself"
        )
    return Files((tuple(parts),), next(filter(_is_items, files), None), path.name)


def _find_split(directory: Path, files: list[Path]) -> Files | None:
    """The files of a dataset that is split already: ``NAME.train.inter`` or ``train.csv`` and the like."""
    found: dict[str, dict[int, list[Path]]] = {}
    for file in files:
        match = re.fullmatch(rf"(?:(.+)[.])?({'|'.join(_SPLIT)})([.]\w+)", bare_name(file))
        if match is not None and match[3] in SUFFIXES:
            found.setdefault(match[1] or "", {}).setdefault(_SPLIT[match[2]], []).append(file)
    found = {name: parts for name, parts in found.items() if 0 in parts and len(parts) > 1}
    if not found:
        return None
    if len(found) > 1 or any(len(each) > 1 for each in next(iter(found.values())).values()):
        raise DataError(f"{directory}: must hold one train, valid and test file, got several; pass a directory of one")
    ((name, parts),) = found.items()
    if missing := [_SPLIT_NAMES[part] for part in range(3) if part not in parts]:
        raise DataError(
            f"{directory}: a dataset that came split must have a train, a valid and a test file, {missing[0]} is "
            "missing; add it, or pass one file of all interactions"
        )
    items = next((file for file in files if file.name == f"{name}.item"), None) or next(filter(_is_items, files), None)
    return Files(tuple(tuple(parts[part]) for part in range(3)), items, name or directory.name)


def _items_file(interactions: Path, *, beside: bool) -> Path | None:
    """The items file that goes by its name."""
    if interactions.suffix == ".inter":
        candidate = interactions.with_suffix(".item")
        return candidate if candidate.exists() else None
    return next(filter(_is_items, sorted(interactions.parent.iterdir())), None) if beside else None


def _is_items(path: Path) -> bool:
    return re.fullmatch(r"items[.]\w+", bare_name(path)) is not None and kind_of(path) in SUFFIXES


def _name(path: Path) -> str:
    return Path(bare_name(path)).stem

"""Prepared data: a directory of Arrow files, sorted by user and time, that is mapped into memory rather than read.

`ur4rec.data.preparing` writes it. What it holds:

    interactions.arrow     user, item and timestamp of each interaction, and its part if the data came split
    offsets.arrow          where the interactions of each user start, and the end of the last one
    users.arrow            the id of each user
    items.arrow            id, title and text of each item
    train.arrow            where the training sequence of each user ends
    validation.arrow       a row for each target: its user, item and place, and whether the user had the item before
    test.arrow             the same
    manifest.json          what it is, its hashes, the size and checksum of each file

Shapes: N interactions, U users, T targets.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ur4rec.data.columns import map_columns, map_strings, write_columns
from ur4rec.data.interactions import Interactions, Sequences, check_items
from ur4rec.data.splits import Split, Targets, settle
from ur4rec.errors import DataError, refuse_malformed
from ur4rec.files import check_form, hash_bytes, parse_object

MANIFEST = "manifest.json"
FORMAT, VERSION = "ur4rec prepared data", 1
_FORM = {
    "format": str,
    "version": int,
    "name": str,
    "source": str,
    "options": {},
    "notes": [str],
    "num_users": int,
    "num_items": int,
    "num_interactions": int,
    "num_duplicates": int,
    "min_item_interactions": int,
    "interactions_hash": str,
    "split": {"method": str, "name": str, "repeats": str, "hash": str, "unfed": [int]},
    "files": {str: {"bytes": int, "sha256": str}},
    "sha256": str,
}
_I4, _I8, _F8, _U1 = (np.dtype(kind) for kind in ("<i4", "<i8", "<f8", "u1"))
_FILES = {f"{name}.arrow" for name in ("interactions", "offsets", "users", "items", "train", "validation", "test")}
_TARGETS = {"user": (_I4,), "item": (_I4,), "end": (_I8,), "repeated": (_U1,)}
_REMEDY = "prepare the data again, or restore the directory"
_READ = 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A prepared directory: what is known of its interactions without reading them."""

    path: Path
    """The directory."""
    manifest: Mapping[str, Any]
    """What its manifest says."""
    offsets_U: NDArray[np.int64]
    """Where the interactions of each user start, and the end of the last one."""

    @property
    def interactions_hash(self) -> str:
        """`Interactions.hash`."""
        return str(self.manifest["interactions_hash"])

    @cached_property
    def contents_hash(self) -> str:
        """SHA-256 of the checksums of all files."""
        return hash_bytes(json.dumps(self.manifest["files"], sort_keys=True).encode())

    def split(self, interactions: Interactions, method: str, repeats: str) -> Split:
        """The split that was prepared; see `ur4rec.data.make_split`.

        Raises:
            DataError: Another method is asked for.
        """
        known = self.manifest["split"]
        if method not in ("auto", known["method"]):
            raise DataError(
                f"{self.path}: must be split as it was prepared, by {known['method']}, got {method}; leave --split "
                f"out, or prepare the data again with --split {method}"
            )
        with refuse_malformed(f"the split in {self.path}", _REMEDY):
            (ends_U,) = map_columns(self.path / "train.arrow", {"end": (_I8,)}).values()
            if not ((self.offsets_U[:-1] <= ends_U) & (ends_U <= self.offsets_U[1:])).all():
                raise ValueError("a training sequence must end within those of its user")
            train = Sequences.slices(interactions.items_N, self.offsets_U[:-1], ends_U)
            validation, test = (
                replace(self._targets(interactions, part), num_unfed=num_unfed)
                for part, num_unfed in zip(("validation", "test"), known["unfed"], strict=True)
            )
        found = settle(known["name"], interactions, train, validation, test, repeats)
        return replace(found, known_hash=known["hash"]) if found.repeats == known["repeats"] else found

    def check(self, progress: Callable[[float], None] = lambda share: None) -> None:
        """Read all files, compare their checksums and look at every item.

        Args:
            progress: Called with the share that has been read.

        Raises:
            DataError: A file is damaged; names it.
        """
        sizes = {name: each["bytes"] for name, each in self.manifest["files"].items()}
        done = 0
        for name, each in self.manifest["files"].items():
            if hash_file(self.path / name) != each["sha256"]:
                raise DataError(f"{self.path / name}: must be as it was prepared, its checksum differs; {_REMEDY}")
            done += sizes[name]
            progress(done / sum(sizes.values()))
        interactions = read_prepared(self.path)
        interactions.sequences.count_items(interactions.num_items)
        self.split(interactions, "auto", "allow")

    def _targets(self, interactions: Interactions, part: str) -> Targets:
        columns = map_columns(self.path / f"{part}.arrow", _TARGETS)
        users_T, ends_T = columns["user"], columns["end"]
        if not (len(users_T) and users_T[0] >= 0 and (np.diff(users_T) >= 0).all()):
            raise ValueError("the users of targets must ascend")
        if not ((self.offsets_U[users_T] < ends_T) & (ends_T < self.offsets_U[users_T + np.int64(1)])).all():
            raise ValueError("a target must be among the interactions of its user, and not the first")
        check_items(columns["item"], interactions.num_items)
        return Targets(
            users_T=users_T,
            items_T=columns["item"],
            histories=Sequences.slices(interactions.items_N, self.offsets_U[users_T], ends_T),
            seen=Sequences(np.zeros(0, np.int32), np.zeros(len(users_T) + 1, np.int64)),
            known_repeated_T=columns["repeated"].view(bool),
        )


def is_prepared(path: Path) -> bool:
    """Whether there is a prepared directory."""
    return (path / MANIFEST).is_file() and (path / "interactions.arrow").is_file()


def read_prepared(path: Path) -> Interactions:
    """The interactions of a prepared directory, mapped: they are read when they are used.

    The manifest is checked by its checksum and the files by their sizes; `Prepared.check` reads them all.

    Raises:
        DataError: A file is missing or of another size, or the manifest is damaged or of another version.
    """
    manifest = _read_manifest(path)
    with refuse_malformed(f"the data in {path}", _REMEDY):
        if not manifest["files"].keys() >= _FILES or "/" in "".join(manifest["files"]):
            raise ValueError(f"its files must be {sorted(_FILES)}, got {sorted(manifest['files'])}")
        for name, each in manifest["files"].items():
            if not (path / name).is_file():
                raise ValueError(f"{name} is missing")
            if (size := (path / name).stat().st_size) != each["bytes"]:
                raise ValueError(f"{name} must have {each['bytes']} bytes, got {size}")
        columns = map_columns(path / "interactions.arrow", {"user": (_I4,), "item": (_I4,), "timestamp": (_I8, _F8)})
        (offsets_U,) = map_columns(path / "offsets.arrow", {"offset": (_I8,)}).values()
        (user_ids,) = map_strings(path / "users.arrow", ("id",))
        item_ids, titles, texts = map_strings(path / "items.arrow", ("id", "title", "text"))
        found = len(user_ids), len(item_ids), len(columns["user"]), len(offsets_U) - 1, int(offsets_U[-1])
        sizes = tuple(manifest[name] for name in ("num_users", "num_items", "num_interactions"))
        if found != (*sizes, sizes[0], sizes[2]):
            raise ValueError(f"users, items and interactions must be {sizes}, got {found}")
        if offsets_U[0] or (np.diff(offsets_U) < 0).any():
            raise ValueError("offsets must ascend from 0")
    return Interactions(
        users_N=columns["user"],
        items_N=columns["item"],
        timestamps_N=columns["timestamp"],
        user_ids=user_ids,
        item_ids=item_ids,
        titles=titles,
        texts=texts,
        name=manifest["name"],
        source=manifest["source"],
        parts_N=columns.get("part"),
        num_duplicates=manifest["num_duplicates"],
        notes=tuple(manifest["notes"]),
        prepared=Prepared(path=path.resolve(), manifest=manifest, offsets_U=offsets_U),
    )


def write_split(folder: Path, split: Split) -> None:
    """Write the files of a split of which nothing has been left out yet, into a directory that is being prepared."""
    write_columns(folder / "train.arrow", {"end": split.train.ends_U})
    for part, targets in (("validation", split.validation), ("test", split.test)):
        columns: dict[str, NDArray[Any]] = {
            "user": targets.users_T,
            "item": np.asarray(targets.items_T, np.int32),
            "end": targets.histories.ends_U,
            "repeated": targets.is_repeated.view(np.uint8),
        }
        write_columns(folder / f"{part}.arrow", columns)


def write_manifest(folder: Path, facts: Mapping[str, Any], progress: Callable[[float], None]) -> None:
    """Write the manifest of a directory in which all files are."""
    paths = sorted(folder.iterdir())
    files = {}
    for number, path in enumerate(paths, 1):
        files[path.name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        progress(number / len(paths))
    content = {"format": FORMAT, "version": VERSION, **facts, "files": files}
    whole = {**content, "sha256": _hash_manifest(content)}
    (folder / MANIFEST).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ):
            digest.update(piece)
    return digest.hexdigest()


def _read_manifest(path: Path) -> dict[str, Any]:
    with refuse_malformed(path / MANIFEST, _REMEDY):
        manifest = parse_object((path / MANIFEST).read_bytes())
        if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"it must be {FORMAT!r}, version {VERSION}, got {manifest.get('version')!r}")
        check_form(manifest, _FORM)
        content = {name: value for name, value in manifest.items() if name != "sha256"}
        if manifest["sha256"] != _hash_manifest(content):
            raise ValueError("its checksum does not match")
    return manifest


def _hash_manifest(content: Mapping[str, Any]) -> str:
    return hash_bytes(json.dumps(content, sort_keys=True).encode())

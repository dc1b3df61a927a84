"""Prepare: files of any size as a directory of mapped files, in a bounded amount of memory.

The rows are read piece by piece, users and items numbered, and everything else is done on the disk: rows are put in
buckets of a range of times, or of users, that are each sorted in memory. What is found equals what `load_dataset` and
`make_split` give of the same files, hashes included. Memory holds a piece or a bucket, and the ids and texts of users
and items.

Shapes: N rows of a bucket, U users, I items.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from alternator.checks import check_choice, check_integer
from ur4rec.data.columns import ColumnWriter, Strings, map_columns, write_columns, write_strings
from ur4rec.data.interactions import ArrayHash, Interactions, offsets_from_lengths
from ur4rec.data.prepared import Prepared, is_prepared, read_prepared, write_manifest, write_split
from ur4rec.data.preparing.order import InTime, first_appearances, mark_contexts
from ur4rec.data.preparing.read import Found, read_files
from ur4rec.data.preparing.spill import Buckets, Rows, even_edges
from ur4rec.data.reading.formats import describe_counts, no_core, said_of_core
from ur4rec.data.reading.layouts import Files, find_files
from ur4rec.data.splits import Split, as_given, check_trainable, cut_at, leave_one_out, settle
from ur4rec.errors import ConfigurationError, DataError
from ur4rec.files import scratch_directory
from ur4rec.options import REPEATS, SPLITS, DataOptions

DEFAULT_MEMORY, MIN_MEMORY = 2 * 10**9, 2**20
"""Bytes that pieces and buckets may take, where nothing else is said, and at least."""
_SORTED_ROW = 160
"""Bytes that a row takes while its bucket is sorted."""
_PIECE_SHARE = 24
"""What a piece takes while its names are numbered, as a multiple of its bytes."""
_DISK_ROW = 64
"""Bytes on the disk for each row, what waits there included."""
_Q = 0.9
Progress = Callable[[str, float], None]
"""What is told what is done, and which share of it."""


def prepare_files(
    paths: Sequence[Path],
    out: Path,
    *,
    options: DataOptions | None = None,
    split: str = "auto",
    repeats: str = "auto",
    min_item_interactions: int = 1,
    memory: int = DEFAULT_MEMORY,
    overwrite: bool = False,
    progress: Progress = lambda what, share: None,
) -> Interactions:
    """Write a prepared directory, which is whole or absent.

    Args:
        paths: A file or directory as for `load_dataset`, or several files that are parts of one table.
        out: The directory.
        options: How the files are read.
        split: As for `make_split`.
        repeats: As for `make_split`.
        min_item_interactions: Items with fewer interactions are dropped.
        memory: Bytes that pieces and buckets may take at once; ids and texts of users and items come on top.
        overwrite: Whether a prepared directory that is there is replaced.
        progress: Called with what is done, and which share of it.

    Returns:
        The interactions, mapped.

    Raises:
        DataError: A file is missing or malformed, or is one that cannot be read piece by piece, or nothing can be
            trained on the data; says where and why.
        ConfigurationError: Something else is at ``out``, or a setting is out of range.
        OSError: The disk is full or not writable.
    """
    check_choice("split", split, SPLITS)
    check_choice("repeats", repeats, REPEATS)
    check_integer("memory", memory, MIN_MEMORY)
    check_integer("min_item_interactions", min_item_interactions, 1)
    _refuse_existing(out, overwrite)
    options = options or DataOptions()
    files = _find(paths)
    method = _method(files, split, options, min_item_interactions)
    with scratch_directory(out.absolute().parent) as scratch:
        fresh = scratch / "fresh"
        fresh.mkdir()
        found = read_files(paths[0], files, options, scratch, memory // _PIECE_SHARE, partial(progress, "reading"))
        _need_disk(scratch, found.rows.num_rows * _DISK_ROW)
        work = _Preparation(scratch, fresh, files, found, memory // _SORTED_ROW, progress)
        work.drop_outside_core(options.k_core)
        work.order_by_time(deduplicate=options.deduplicate)
        work.number(min_item_interactions)
        facts = {
            "name": files.name,
            "source": ", ".join(map(str, paths)),
            "options": options.to_json(),
            "notes": found.notes,
            "num_duplicates": work.in_time.num_duplicates,
            "min_item_interactions": min_item_interactions,
            **work.write_interactions(),
        }
        facts["split"] = work.write_split(facts, method, repeats)
        write_manifest(fresh, facts, partial(progress, "checksums"))
        if out.exists():
            out.rename(scratch / "stale")
        fresh.rename(out)
    return read_prepared(out)


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if out.exists() and not (overwrite and is_prepared(out)):
        remedy = "give --overwrite to replace it" if is_prepared(out) else "choose another"
        raise ConfigurationError(f"--out must be a directory that does not exist, got {out}; {remedy}")


def _find(paths: Sequence[Path]) -> Files:
    """The files: of one dataset, or the parts of one table."""
    if len(paths) == 1:
        return find_files(paths[0])
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path}: must be a file where several are given, got a directory; give it alone")
    first = find_files(paths[0])
    return Files((tuple(paths),), first.items, first.name)


def _method(files: Files, split: str, options: DataOptions, min_item_interactions: int) -> str:
    """How the data is split; refuses what would need all of it in memory."""
    if not files.is_split:
        if split == "given":
            raise DataError(
                f"{files.groups[0][0]}: the split 'given' needs data that came split, into files for training, "
                "validation and test, got one without; choose leave-one-out or temporal"
            )
        return "leave-one-out" if split == "auto" else split
    if split not in ("auto", "given"):
        raise DataError(
            f"{files.name}: data that came split must keep its split, got {split}; choose given, or pass all of it as "
            "one file"
        )
    dropped = {"--k-core": options.k_core > 1, "--deduplicate": options.deduplicate}
    dropped["min_item_interactions"] = min_item_interactions > 1
    for name, is_given in dropped.items():
        if is_given:
            raise ConfigurationError(
                f"{name} must be left out while data that came split is prepared, got it; drop such rows from the "
                "files first"
            )
    return "given"


def _need_disk(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ConfigurationError(
            f"--out must be on a disk with {num_bytes / 1e9:.1f} GB free while data is prepared, got {free / 1e9:.1f}; "
            "free space, or choose another disk"
        )


@dataclass
class _Preparation:
    """Rows on their way into the files of a prepared directory."""

    scratch: Path
    fresh: Path
    files: Files
    found: Found
    bucket_rows: int
    progress: Progress

    def drop_outside_core(self, k: int) -> None:
        """Keep the rows of users and items that have k of them, again and again until all have."""
        if k < 2:
            return
        rows, total = self.found.rows, self.found.rows.num_rows
        is_left_U, is_left_I = (np.ones(len(names), bool) for names in (self.found.users, self.found.items))
        before = -1
        while (left := int(is_left_U.sum() + is_left_I.sum())) != before:
            before = left
            for name, is_left in (("user", is_left_U), ("item", is_left_I)):
                counts = np.zeros(len(is_left), np.int64)
                for rows_N in rows.pieces():
                    kept_N = is_left_U[rows_N["user"]] & is_left_I[rows_N["item"]]
                    counts += np.bincount(rows_N[name][kept_N], minlength=len(is_left))
                is_left &= counts >= k
        self.found.rows = Rows(self.scratch, "core")
        for rows_N in rows.pieces():
            kept_N = rows_N[is_left_U[rows_N["user"]] & is_left_I[rows_N["item"]]]
            self.found.rows.add(kept_N["user"], kept_N["item"], kept_N["time"], 0)
        rows.remove()
        if not self.found.rows.num_rows:
            raise no_core(self.files.groups[0][0], total, k)
        self.found.notes.append(said_of_core(self.found.rows.num_rows, total, k))

    def order_by_time(self, *, deduplicate: bool) -> None:
        """Put the rows in order of part, then of time."""
        found = self.found
        self.in_time = InTime(
            *(found.rows, len(found.items), self.scratch, self.bucket_rows),
            deduplicate=deduplicate,
            told=partial(self.progress, "ordering by time"),
        )
        if self.files.is_split:
            mark_contexts(self.in_time, len(found.users))
            counts = np.sum([np.bincount(rows_N["part"], minlength=4) for rows_N in self.in_time], axis=0)
            found.notes.append(describe_counts(counts.tolist()))

    def number(self, min_item_interactions: int) -> None:
        """Drop rare items, and find the canonical index of each user and item: -1 for one of which nothing is left."""
        found = self.found
        counts_I = np.zeros(len(found.items), np.int64)
        for rows_N in self.in_time:
            counts_I += np.bincount(rows_N["item"], minlength=len(counts_I))
        is_left_I = counts_I >= max(min_item_interactions, 1)
        if not is_left_I.any():
            raise DataError(
                f"{self.files.name}: no interaction is left of {counts_I.sum()} with "
                f"min_item_interactions={min_item_interactions}"
            )
        pieces: InTime | Rows = self.in_time if self.files.is_split else found.rows
        self.order_U, self.order_I = (
            first_appearances((rows_N[name][is_left_I[rows_N["item"]]] for rows_N in pieces), len(names))
            for name, names in (("user", found.users), ("item", found.items))
        )
        found.rows.remove()
        self.num_rows = int(counts_I[is_left_I].sum())
        self.new_U, self.new_I = (np.full(len(names), -1, np.int32) for names in (found.users, found.items))
        self.new_U[self.order_U] = np.arange(len(self.order_U))
        self.new_I[self.order_I] = np.arange(len(self.order_I))

    def pieces(self) -> Iterator[NDArray[Any]]:
        """The rows that are left in order of time, of canonical users and items."""
        for rows_N in self.in_time:
            items_N = self.new_I[rows_N["item"]]
            rows_N["user"], rows_N["item"] = self.new_U[rows_N["user"]], items_N
            yield rows_N if (items_N >= 0).all() else rows_N[items_N >= 0]

    def write_interactions(self) -> dict[str, Any]:
        """Write all but the split.

        Returns:
            What the manifest says of it.
        """
        num_users, num_items = len(self.order_U), len(self.order_I)
        facts = {
            "num_users": num_users,
            "num_items": num_items,
            "num_interactions": self.num_rows,
            "interactions_hash": self._hash(),
        }
        kind = self.found.rows.kind
        names = ["user", "item", "time", *(["part"] if self.files.is_split else [])]
        kinds = {"time": kind["time"], "part": np.dtype(np.int8)}
        layout = {_COLUMNS.get(name, name): kinds.get(name, np.dtype(np.int32)) for name in names}
        counts_U = np.zeros(num_users, np.int64)
        with ColumnWriter(self.fresh / "interactions.arrow", layout, self.num_rows) as writer:
            done = 0
            for rows_N in self._by_user():
                for name in names:
                    writer.write(_COLUMNS.get(name, name), done, rows_N[name])
                counts_U += np.bincount(rows_N["user"], minlength=num_users)
                done += len(rows_N)
                self.progress("writing", done / self.num_rows)
        write_columns(self.fresh / "offsets.arrow", {"offset": offsets_from_lengths(counts_U)})
        self._write_names()
        return facts

    def _hash(self) -> str:
        """`Interactions.hash`, of the columns one after the other."""
        digest = ArrayHash(f"interactions {len(self.order_U)} {len(self.order_I)}")
        names = ["user", "item", *(["part"] if self.files.is_split else [])]
        for number, name in enumerate(names, 1):
            digest.add_parts(self.num_rows, (rows_N[name] for rows_N in self.pieces()))
            self.progress("hashing", number / len(names))
        return digest.hexdigest()

    def _by_user(self) -> Iterator[NDArray[Any]]:
        """The rows in order of user, then of time."""
        counts_U = np.zeros(len(self.order_U), np.int64)
        for rows_N in self.pieces():
            counts_U += np.bincount(rows_N["user"], minlength=len(counts_U))
        edges = even_edges(counts_U, self.bucket_rows)
        buckets = Buckets(self.scratch, "users", edges, self.found.rows.kind)
        done = 0

        def told(num_rows: int) -> None:
            nonlocal done
            done += num_rows
            self.progress("ordering by user", done / self.num_rows)

        buckets.fill(self.pieces(), "user", told)
        for rows_N in buckets:
            yield rows_N[np.argsort(rows_N["user"], kind="stable")]

    def _write_names(self) -> None:
        found = self.found
        user_ids, item_ids = (
            names.values.take(pa.array(order))
            for names, order in ((found.users, self.order_U), (found.items, self.order_I))
        )
        titles = texts = item_ids
        if found.titles or found.texts:
            items = item_ids.to_pylist()
            titled = [found.titles.get(item, item) for item in items]
            titles = pa.array(titled, pa.large_string())
            texts = pa.array(
                [found.texts.get(item, title) for item, title in zip(items, titled, strict=True)], pa.large_string()
            )
        found.notes.append(found.describe_titles(Strings(item_ids)))
        write_strings(self.fresh / "users.arrow", {"id": user_ids})
        write_strings(self.fresh / "items.arrow", {"id": item_ids, "title": titles, "text": texts})

    def write_split(self, facts: dict[str, Any], method: str, repeats: str) -> dict[str, Any]:
        """Write the split.

        Returns:
            What the manifest says of it.
        """
        self.progress("splitting", 0)
        interactions = self._interactions(facts)
        split = self._split(interactions, method)
        check_trainable(split, interactions.name)
        self.progress("splitting", 0.3)
        write_split(self.fresh, split)
        settled = settle(split.name, interactions, split.train, split.validation, split.test, repeats)
        found = {
            "method": method,
            "name": split.name,
            "repeats": settled.repeats,
            "hash": settled.hash,
            "unfed": [split.validation.num_unfed, split.test.num_unfed],
        }
        self.progress("splitting", 1)
        return found

    def _split(self, interactions: Interactions, method: str) -> Split:
        """The split with all of its targets."""
        if method == "leave-one-out":
            return leave_one_out(interactions, repeats="allow")
        if method == "given":
            return as_given(interactions, repeats="allow")
        test_start, test_time = self._cut(_Q * self.num_rows)
        validation_time = self._cut(_Q * test_start)[1] if test_start else -np.inf
        before_validation_U, before_test_U = np.zeros((2, interactions.num_users), np.int64)
        for rows_N in self.pieces():
            for before_U, time in ((before_validation_U, validation_time), (before_test_U, test_time)):
                before_U += np.bincount(rows_N["user"][rows_N["time"] < time], minlength=len(before_U))
        return cut_at(interactions, before_validation_U, before_test_U, _Q, "allow")

    def _cut(self, place: float) -> tuple[int, Any]:
        """The time at a place in the order of time, and the number of rows before that time."""
        left, time = int(place), None
        for rows_N in self.pieces():
            if left < len(rows_N):
                time = rows_N["time"][left]
                break
            left -= len(rows_N)
        return sum(int((rows_N["time"] < time).sum()) for rows_N in self.pieces()), time

    def _interactions(self, facts: dict[str, Any]) -> Interactions:
        """What has been written so far."""
        columns = map_columns(self.fresh / "interactions.arrow", {})
        (offsets_U,) = map_columns(self.fresh / "offsets.arrow", {}).values()
        nothing = Strings(pa.nulls(facts["num_users"], pa.large_string()))
        return Interactions(
            users_N=columns["user"],
            items_N=columns["item"],
            timestamps_N=columns["timestamp"],
            user_ids=nothing,
            item_ids=Strings(pa.nulls(facts["num_items"], pa.large_string())),
            titles=(),
            texts=(),
            name=facts["name"],
            source=facts["source"],
            parts_N=columns.get("part"),
            prepared=Prepared(path=self.fresh, manifest=facts, offsets_U=offsets_U),
        )


_COLUMNS = {"time": "timestamp"}

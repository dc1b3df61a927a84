"""What every system of `peers.py` gets: one split, from one file, and one function that ranks its scores.

NumPy and `ur4rec` alone, since the environments of the peers import it too.

Shapes: T targets, B rows of a batch, I items of the catalogue, R rows of sequences, N items of all rows.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers_curves import SCORINGS

from ur4rec.data import Interactions, Sequences, Split, Targets
from ur4rec.data.batches import EvaluationBatch, EvaluationBatches
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import target_ranks
from ur4rec.files import write_file

PARTS = ("validation", "test")
Score = Callable[[EvaluationBatch], NDArray[Any]]
"""Maps a batch to its scores (B, I); rows from ``num_valid`` on do not count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The split, and where it lies."""

    split: Split
    """Leave-one-out."""
    folder: Path
    """Holds `task.npz`, and for the peers `items.json` and `peers/peers.inter`."""

    def batches(self, part: str, max_seq_len: int, batch_size: int = 256) -> EvaluationBatches:
        """Evaluation batches of ``validation`` or ``test``."""
        targets: Targets = getattr(self.split, part)
        return EvaluationBatches(targets, self.split.num_items, max_seq_len=max_seq_len, batch_size=batch_size)

    @property
    def names(self) -> list[str]:
        """What `peers.inter` calls the items, in canonical order."""
        return [f"i{item}" for item in range(self.split.num_items)]


def write_task(interactions: Interactions, split: Split, folder: Path) -> Task:
    """Write the split as arrays, and the interactions as RecBole's atomic file.

    The time of an interaction is its place in the user's sequence: RecBole holds times in 32 bits, where seconds of
    different interactions become one; places stay apart, and no library orders ties in its own way.
    """
    arrays: dict[str, Any] = {"num_items": split.num_items, **_flat("train", split.train)}
    for part in PARTS:
        targets: Targets = getattr(split, part)
        arrays |= {f"{part}_users_T": targets.users_T, f"{part}_items_T": targets.items_T}
        arrays |= _flat(f"{part}_histories", targets.histories) | _flat(f"{part}_seen", targets.seen)
    (folder / "peers").mkdir(parents=True, exist_ok=True)
    task = Task(split=split, folder=folder)
    write_file(folder / "peers" / "peers.inter", lambda scratch: _write_atomic(interactions.sequences, scratch))
    write_file(folder / "items.json", lambda scratch: scratch.write_text(json.dumps(task.names)))
    write_file(folder / "task.npz", lambda scratch: _write_arrays(arrays, scratch))
    return task


def _write_atomic(sequences: Sequences, path: Path) -> None:
    with path.open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in enumerate(sequences):
            file.writelines(f"u{user}\ti{item}\t{place}\n" for place, item in enumerate(items))


def _write_arrays(arrays: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _flat(name: str, sequences: Sequences) -> dict[str, NDArray[Any]]:
    return {f"{name}_N": sequences.flat, f"{name}_lengths_R": sequences.lengths}


def read_task(folder: Path) -> Task:
    """The task that `write_task` wrote."""
    with np.load(folder / "task.npz") as arrays:
        parts = {part: _targets(arrays, part) for part in PARTS}
        split = Split(
            name="leave-one-out",
            num_items=int(arrays["num_items"]),
            train=_sequences(arrays, "train"),
            repeats="exclude",
            **parts,
        )
    return Task(split=split, folder=folder)


def _targets(arrays: Any, part: str) -> Targets:
    return Targets(
        users_T=arrays[f"{part}_users_T"],
        items_T=arrays[f"{part}_items_T"],
        histories=_sequences(arrays, f"{part}_histories"),
        seen=_sequences(arrays, f"{part}_seen"),
    )


def _sequences(arrays: Any, name: str) -> Sequences:
    return Sequences(arrays[f"{name}_N"], np.concatenate([[0], np.cumsum(arrays[f"{name}_lengths_R"])]))


def rank_scores(score: Score, batches: EvaluationBatches) -> dict[str, NDArray[np.int64]]:
    """The rank of every target by each scoring, (T,), from one pass of scores: whoever scores, this function ranks.

    Example:
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> split = leave_one_out(synthetic(num_users=20, num_items=50))
        >>> batches = EvaluationBatches(split.test, split.num_items, max_seq_len=5, batch_size=8)
        >>> ranks = rank_scores(lambda batch: np.zeros((8, split.num_items)), batches)
        >>> ranks["unfiltered"].max(), bool((ranks["filtered"] < 50).all())  # ties count against the scorer
        (50, True)
    """
    found: dict[str, list[NDArray[np.int64]]] = {scoring: [] for scoring in SCORINGS}
    nothing = np.zeros(0, np.int32)
    for batch in batches:
        scores_BI = np.asarray(score(batch))[: batch.num_valid]
        targets_B = batch.targets_B[: batch.num_valid]
        found["filtered"].append(target_ranks(scores_BI, targets_B, *batch.seen))
        found["unfiltered"].append(target_ranks(scores_BI, targets_B, nothing, nothing))
    return {scoring: np.concatenate(ranks) for scoring, ranks in found.items()}


def check_tested(targets: Targets, max_seq_len: int, part: str, rows: dict[str, list[Any]]) -> None:
    """Refuse a peer that tests on anything but the same: users, targets or histories, in the same order.

    Args:
        targets: Ours.
        max_seq_len: The number of newest items that the peer reads.
        part: ``validation`` or ``test``, for the message.
        rows: What the peer has, by the names of the file: any of ``users``, ``targets`` and ``histories``.

    Raises:
        DataError: They differ.
    """
    expected = {
        "users": [f"u{user}" for user in targets.users_T],
        "targets": [f"i{item}" for item in targets.items_T],
        "histories": [[f"i{item}" for item in row[-max_seq_len:]] for row in targets.histories],
    }
    for name, values in rows.items():
        if values != expected[name]:
            raise DataError(f"the peer's {part} must have the same {name} as ours, but they differ")

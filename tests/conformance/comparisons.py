"""How close two backends must be, whatever the model: scores, rankings and loss curves."""

from collections.abc import Sequence

import numpy as np

SCORE_TOLERANCE = 1e-5
"""The maximum difference of two scores, relative to the largest score."""
CURVE_TOLERANCE = 1e-4
"""The maximum relative difference of two losses."""


def same_scores(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Scores of any shape differ by at most `SCORE_TOLERANCE` of the largest."""
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    difference, largest = np.abs(ours - theirs).max(), np.abs(theirs).max()
    assert difference <= SCORE_TOLERANCE * largest, f"scores differ by {difference / largest:.2g} of the largest"


def same_ranking(ours: np.ndarray, theirs: np.ndarray, *, top: int) -> None:
    """The best columns are the same in each row, in the same order, but for scores closer than the tolerance."""
    rows = np.atleast_2d(ours).shape[0]
    ours, theirs = ours.reshape(rows, -1), theirs.reshape(rows, -1)
    closest = 2 * SCORE_TOLERANCE * np.abs(theirs).max()
    for row, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        mine, other = (np.argsort(-scores, kind="stable")[:top] for scores in (left, right))
        for rank, (a, b) in enumerate(zip(mine, other, strict=True)):
            assert a == b or abs(right[a] - right[b]) <= closest, f"row {row}, rank {rank + 1}: {a} against {b}"


def same_curves(ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Two sequences of losses differ by at most `CURVE_TOLERANCE`, relatively, at every step."""
    left, right = np.array(ours), np.array(theirs)
    assert left.shape == right.shape
    worst = np.abs(left - right) / np.abs(right)
    assert worst.max() <= CURVE_TOLERANCE, f"step {worst.argmax()}: losses differ by {worst.max():.2g}, relatively"

"""Results: the best epoch by validation, and the test metrics of that epoch; never the other way round."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ur4rec.evaluation.metrics import summarise

K_LIST = (5, 10, 20)
CRITERION = "ndcg@10"
METRICS = {f"{metric}@{k}": float for k in K_LIST for metric in ("hit", "ndcg")} | {"mrr": float}
"""The metrics of a result, by name."""


@dataclass(kw_only=True)
class Result:
    """One row of the results table: a scorer at its best epoch by validation."""

    name: str
    """The name of what was ranked, for display."""
    epoch: int
    """The epoch (0-based) of the best validation; -1 for a scorer that needs no training."""
    validation: dict[str, float]
    """Validation metrics of that epoch."""
    test: dict[str, float]
    """Test metrics of that epoch."""
    test_ranks: NDArray[np.int64] = field(repr=False)
    """The rank of each test target, in the split's order, for paired tests."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the ranks."""
        return {"name": self.name, "epoch": self.epoch, "validation": self.validation, "test": self.test}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Result":
        """The result of what `to_json` wrote, with the ranks under ``test_ranks``."""
        return cls(**{**row, "test_ranks": np.array(row["test_ranks"], np.int64)})


def summarise_kinds(ranks_T: NDArray[Any], repeated_T: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """The metrics of targets that are ``new`` to their user and of ``repeated`` ones; empty where all are of a kind.

    Example:
        >>> kinds = summarise_kinds(np.array([1, 30, 1]), np.array([True, False, True]))
        >>> {kind: metrics["hit@10"] for kind, metrics in kinds.items()}
        {'new': 0.0, 'repeated': 1.0}
    """
    kinds = {"new": ~repeated_T, "repeated": repeated_T}
    if not all(chosen_T.any() for chosen_T in kinds.values()):
        return {}
    return {kind: summarise(ranks_T[chosen_T], K_LIST) for kind, chosen_T in kinds.items()}


def summarise_rows(ranks: Mapping[str, NDArray[Any]], repeated_T: NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """The rows of a table of metrics: those of each scorer over all targets, then over each kind, if there are both."""
    rows: dict[str, dict[str, float]] = {}
    for name, ranks_T in ranks.items():
        kinds = summarise_kinds(ranks_T, repeated_T)
        rows |= {name: summarise(ranks_T, K_LIST), **{f"{name}, {kind}": found for kind, found in kinds.items()}}
    return rows


def build_result(name: str, epoch: int, validation: dict[str, float], test_ranks: NDArray[Any]) -> Result:
    """The result of a scorer from its validation and the ranks of the test targets."""
    return Result(
        name=name,
        epoch=epoch,
        validation=validation,
        test=summarise(test_ranks, K_LIST),
        test_ranks=test_ranks,
    )

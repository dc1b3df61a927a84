"""Which epoch a run trains next and whether it is validated: a function of its configuration and the epochs before."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ur4rec.evaluation.results import CRITERION
from ur4rec.runs.config import RunConfig

_JOINT_ROWS = ("fused", {"sasrec": "SASRec in it", "retriever": "retriever in it", "fused": "fused"})
TABLE_ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "pretrain_sasrec": ("sasrec", {"sasrec": "SASRec alone"}),
    "pretrain_retriever": ("retriever", {"retriever": "retriever alone"}),
    "joint_finetune": _JOINT_ROWS,
    "end_to_end": _JOINT_ROWS,
}
"""Per stage: the scorer whose validation chooses the epoch, and the rows of the results table that it fills. These are
the scorers that the stage can change, and no others are ranked."""
FUSION_WEIGHTS = {
    "retriever": "retriever_fusion_weight",
    "popularity": "popularity_fusion_weight",
    "scale": "fusion_scale",
}
"""By field of `ur4rec.training.fusion_fit.FusionWeights`, where an epoch says what held-out targets chose."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The epoch that comes next.

    Args:
        config: Of the run.

    Example:
        >>> plan = Plan(config=RunConfig(epochs={"pretrain_sasrec": 9, "joint_finetune": 1}, early_stopping=2))
        >>> for quality in (0.3, 0.2, 0.2):
        ...     plan = plan.after({"sasrec": {"ndcg@10": quality}})
        >>> plan.stage, plan.stage_epoch, plan.remaining
        ('joint_finetune', 0, {'joint_finetune': 1})
    """

    config: RunConfig
    """The configuration of the run."""
    done: tuple[str, ...] = ()
    """Stages that have ended."""
    stage_epoch: int = 0
    """Epochs of the stage so far."""
    best: float = -math.inf
    """The best value of the stage's criterion so far."""
    without_better: int = 0
    """Validations of the stage since."""
    validates: bool = True
    """Whether any epoch is validated."""

    @property
    def stage(self) -> str | None:
        """The stage of the next epoch; None at the end of the run."""
        return next(iter(self.remaining), None)

    @property
    def remaining(self) -> dict[str, int]:
        """The epochs of each stage that are still to come, at most."""
        left = {stage: num for stage, num in self.config.epochs.items() if num and stage not in self.done}
        for stage in left:
            left[stage] -= self.stage_epoch
            break
        return left

    @property
    def is_validated(self) -> bool:
        """Whether the next epoch is validated: every ``eval_every``-th of a stage, and its last."""
        assert self.stage is not None
        is_due = (self.stage_epoch + 1) % self.config.eval_every == 0 or self.remaining[self.stage] == 1
        return self.validates and is_due

    def after(self, validation: Mapping[str, Mapping[str, Any]]) -> "Plan":
        """The plan after the next epoch.

        Args:
            validation: Its metrics by scorer; empty for an epoch that was not validated.
        """
        assert self.stage is not None
        best, without = self.best, self.without_better
        if validation:
            quality = validation[TABLE_ROWS[self.stage][0]][CRITERION]
            best, without = (quality, 0) if quality > best else (best, without + 1)
        if self.remaining[self.stage] == 1 or without == self.config.early_stopping:
            return Plan(config=self.config, done=(*self.done, self.stage), validates=self.validates)
        return replace(self, stage_epoch=self.stage_epoch + 1, best=best, without_better=without)


Validated: TypeAlias = tuple[int, str, Mapping[str, dict[str, float]]]
"""An epoch that was validated: its number, its stage, and its metrics by scorer."""


def quality(stage: str, validation: Mapping[str, Mapping[str, float]]) -> float:
    """What decides which epoch of a stage is the best."""
    return validation[TABLE_ROWS[stage][0]][CRITERION]


def best_epoch(epochs: Sequence[Mapping[str, Any]], stage: str) -> Validated | None:
    """The best of these epochs by validation among those that fill the same rows of the results table as a stage."""
    validated = [
        (row["epoch"], row["stage"], row["validation"])
        for row in epochs
        if row["validation"] and TABLE_ROWS[row["stage"]] == TABLE_ROWS[stage]
    ]
    return max(validated, key=lambda each: quality(*each[1:]), default=None)


def next_stage_begins_with(epochs: Sequence[Mapping[str, Any]]) -> int:
    """The epoch whose model the next stage begins with: of these, which end with a stage, that stage's best.

    It is the last one where none was validated, or where an earlier stage that fills the same rows had a better one.

    Example:
        >>> rows = [
        ...     {"epoch": epoch, "stage": "pretrain_sasrec", "validation": {"sasrec": {"ndcg@10": value}}}
        ...     for epoch, value in enumerate([0.1, 0.3, 0.2])
        ... ]
        >>> next_stage_begins_with(rows), next_stage_begins_with([*rows, {**rows[0], "epoch": 3, "validation": {}}])
        (1, 1)
        >>> joint = {"fused": {"ndcg@10": 0.3}}
        >>> next_stage_begins_with([*rows, {"epoch": 3, "stage": "joint_finetune", "validation": joint}])
        3
    """
    last = epochs[-1]
    best = best_epoch(epochs, last["stage"])
    return last["epoch"] if best is None or best[1] != last["stage"] else best[0]


def describe_number(epoch: int, epochs: Sequence[Mapping[str, Any]]) -> str:
    """An epoch as people count: from 1, and within its stage.

    Args:
        epoch: Its number in the run, 0-based.
        epochs: The rows of ``metrics.json``.

    Example:
        >>> describe_number(3, [{"stage": stage} for stage in ["pretrain_sasrec"] * 2 + ["joint_finetune"] * 2])
        'epoch 2 of joint_finetune'
    """
    stage = epochs[epoch]["stage"]
    return f"epoch {sum(row['stage'] == stage for row in epochs[: epoch + 1])} of {stage}"

"""The picture of a run: who trained when, the losses, the switches and the validation."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ur4rec.files import write_whole
from ur4rec.schedule.stages import BOTH, MODULES, TURNS
from ur4rec.training.records import StepRecord

COLOURS = {"sasrec": "#1f77b4", "retriever": "#d95f02", "fused": "#2a2a2a", BOTH: "#7570b3"}
NAMES = {"sasrec": "SASRec", "retriever": "retriever", "fused": "fused", BOTH: "both"}


def plot_schedule(path: Path, records: Sequence[StepRecord], epochs: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw who trained when, the losses, the switches and the validation of a run.

    Args:
        path: Where to write the picture (PNG).
        records: The decision log.
        epochs: The rows of ``metrics.json``: each with ``step``, ``stage`` and ``validation`` per scorer.
        title: What to write above it.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    losses, turns, validation = figure.subplots(3, 1, sharex=True, height_ratios=(4, 1.2, 4))
    figure.suptitle(title)
    _draw_losses(losses, records)
    _draw_turns(turns, records)
    _draw_validation(validation, epochs)
    for axes in (losses, turns, validation):
        _draw_stages(axes, records, named=axes is losses)
        axes.set_xlim(0, max(len(records), 1))
    validation.set_xlabel("training step")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(path, picture.getvalue())


def _draw_losses(axes: Axes, records: Sequence[StepRecord]) -> None:
    width = max(5, len(records) // 100)
    for module in MODULES:
        for number, part in enumerate(_stages_with(module, records)):
            steps, values = np.array([(record.step, record.losses[module]) for record in part]).T
            axes.plot(steps, values, color=COLOURS[module], alpha=0.25, linewidth=0.5)
            name = NAMES[module] if number == 0 else None
            axes.plot(steps, _smooth(values, width), color=COLOURS[module], linewidth=1.5, label=name)
    axes.set_ylabel("training loss")
    if axes.has_data():
        axes.legend(loc="upper right", title=f"smoothed over {width} losses")


def _stages_with(module: str, records: Sequence[StepRecord]) -> list[list[StepRecord]]:
    """The steps with a finite loss of a module, stage by stage."""
    parts = [list(part) for _, part in groupby(records, key=lambda record: record.stage)]
    found = [[record for record in part if math.isfinite(record.losses.get(module, math.nan))] for part in parts]
    return [part for part in found if part]


def _smooth(values: NDArray[Any], width: int) -> NDArray[Any]:
    """The mean of the last ``width`` values, of fewer at the start."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return np.asarray((totals[ends] - totals[starts]) / (ends - starts))


def _draw_turns(axes: Axes, records: Sequence[StepRecord]) -> None:
    active = [record.active for record in records]
    alternating = np.array([record.stage == "joint_finetune" for record in records], dtype=bool)
    switches = sum(record.next != record.active for record in records)
    for row, module in enumerate(MODULES):
        trained = np.array([module in TURNS[name] for name in active], dtype=int)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], trained, [0]])))
        spans = [(start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=True)]
        axes.broken_barh(spans, (row + 0.1, 0.8), facecolors=COLOURS[module])
        if alternating.any():
            share = f"{trained[alternating].mean():.0%} of\njoint steps"
            axes.text(1.005, (row + 0.5) / len(MODULES), share, transform=axes.transAxes, va="center", fontsize=8)
    axes.set_yticks([row + 0.5 for row in range(len(MODULES))], [NAMES[module] for module in MODULES])
    axes.set_ylim(0, len(MODULES))
    axes.set_ylabel(f"who trains\n({switches} switches)")


def _draw_validation(axes: Axes, epochs: Sequence[Mapping[str, Any]]) -> None:
    for scorer in ("sasrec", "retriever", "fused"):
        steps = [epoch["step"] for epoch in epochs]
        values = [epoch["validation"][scorer]["ndcg@10"] for epoch in epochs]
        axes.plot(steps, values, color=COLOURS[scorer], marker="o", markersize=3, label=NAMES[scorer])
    axes.set_ylabel("validation NDCG@10")
    if epochs:
        axes.legend(loc="lower right")


def _draw_stages(axes: Axes, records: Sequence[StepRecord], *, named: bool) -> None:
    stages = [record.stage for record in records]
    starts = [index for index, stage in enumerate(stages) if index == 0 or stage != stages[index - 1]]
    for start in starts:
        axes.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
        if named:
            axes.text(start, 1.01, f" {stages[start]}", transform=axes.get_xaxis_transform(), fontsize=8, va="bottom")

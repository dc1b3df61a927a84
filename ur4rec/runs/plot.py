"""The picture of a run: the losses, who trained when and why, and the validation."""

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

from alternator.recordings.log import StepRecord
from ur4rec.files import write_whole
from ur4rec.runs.measurements import Measurement
from ur4rec.runs.plot_reasons import COLOURS, NAMES, comparisons, draw_comparisons, draw_payoffs, spans
from ur4rec.schedule.stages import BOTH, MODULES, TURNS


def plot_schedule(
    path: Path,
    records: Sequence[StepRecord],
    measurements: Sequence[Measurement],
    epochs: Sequence[Mapping[str, Any]],
    title: str,
) -> None:
    """Draw the losses of a run, who trained when, why, and the validation.

    Args:
        path: Where to write the picture (PNG).
        records: The decision log.
        measurements: What a `Payoff` schedule has measured; empty for every other one.
        epochs: The rows of ``metrics.json``: each with ``step``, ``stage`` and ``validation`` per scorer.
        title: What to write above it.
    """
    compared = bool(measurements) or bool(comparisons(records))
    heights = {"losses": 3.2, "turns": 1.1, **({"reasons": 3.2} if compared else {}), "validation": 3.2}
    figure = Figure(figsize=(11, sum(heights.values())), layout="constrained")
    panels = dict(
        zip(heights, figure.subplots(len(heights), 1, sharex=True, height_ratios=[*heights.values()]), strict=True)
    )
    figure.suptitle(title)
    _draw_losses(panels["losses"], records)
    _draw_turns(panels["turns"], records)
    if measurements:
        draw_payoffs(panels["reasons"], measurements, records)
    elif compared:
        draw_comparisons(panels["reasons"], comparisons(records))
    _draw_validation(panels["validation"], epochs)
    for axes in panels.values():
        _draw_stages(axes, records, named=axes is panels["losses"])
        axes.set_xlim(0, max(len(records), 1))
        axes.spines[["top", "right"]].set_visible(False)
    panels["validation"].set_xlabel("training step")
    figure.align_ylabels()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(path, picture.getvalue())


def _draw_losses(axes: Axes, records: Sequence[StepRecord]) -> None:
    width = max(5, len(records) // 100)
    for turn in TURNS:
        for number, part in enumerate(_stages_with(turn, records)):
            steps, values = np.array(part).T
            axes.plot(steps, values, color=COLOURS[turn], alpha=0.25, linewidth=0.5)
            name = None if number else f"{NAMES[turn]} (one loss)" if turn == BOTH else NAMES[turn]
            axes.plot(steps, _smooth(values, width), color=COLOURS[turn], linewidth=1.5, label=name)
    axes.set_ylabel("training loss")
    if axes.has_data():
        axes.legend(loc="upper right", title=f"mean of {width} losses", fontsize=8, title_fontsize=8, framealpha=0.8)


def _stages_with(turn: str, records: Sequence[StepRecord]) -> list[list[tuple[int, float]]]:
    """Steps and finite losses of a module, stage by stage; those of both where they share one."""
    parts = [list(part) for _, part in groupby(records, key=lambda record: record.stage)]
    found = [[(record.step, loss) for record in part if math.isfinite(loss := _loss(turn, record))] for part in parts]
    return [part for part in found if part]


def _loss(turn: str, record: StepRecord) -> float:
    """The loss that a turn had in a step; NaN if it had none of its own."""
    losses = [record.losses.get(module, math.nan) for module in MODULES]
    if losses[0] == losses[1]:
        return losses[0] if turn == BOTH else math.nan
    return record.losses.get(turn, math.nan)


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
        trained = np.array([module in TURNS[name] for name in active], dtype=bool)
        axes.broken_barh(spans(trained), (row + 0.1, 0.8), facecolors=COLOURS[module])
        if alternating.any():
            share = f"{trained[alternating].mean():.0%} of\njoint steps"
            axes.text(1.005, (row + 0.5) / len(MODULES), share, transform=axes.transAxes, va="center", fontsize=8)
    axes.set_yticks([row + 0.5 for row in range(len(MODULES))], [NAMES[module] for module in MODULES])
    axes.set_ylim(0, len(MODULES))
    axes.set_ylabel(f"who trains\n({switches} switch{'' if switches == 1 else 'es'})")


def _draw_validation(axes: Axes, epochs: Sequence[Mapping[str, Any]]) -> None:
    for scorer in ("sasrec", "retriever", "fused"):
        steps = [epoch["step"] for epoch in epochs]
        values = [epoch["validation"][scorer]["ndcg@10"] for epoch in epochs]
        axes.plot(steps, values, color=COLOURS[scorer], marker="o", markersize=3, label=NAMES[scorer])
    axes.set_ylabel("validation NDCG@10")
    if epochs:
        axes.legend(loc="upper left", fontsize=8, framealpha=0.8)


def _draw_stages(axes: Axes, records: Sequence[StepRecord], *, named: bool) -> None:
    stages = [record.stage for record in records]
    starts = [index for index, stage in enumerate(stages) if index == 0 or stage != stages[index - 1]]
    for start in starts:
        axes.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
        if named:
            axes.text(start, 1.01, f" {stages[start]}", transform=axes.get_xaxis_transform(), fontsize=8, va="bottom")

"""The picture of a run: the losses, who trained when and why, and the validation."""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import ceil, isfinite, log10, nan
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from alternator import Reason
from alternator.checks import printable
from alternator.recordings.log import StepRecord
from alternator.recordings.plot import draw_line, literal_texts
from ur4rec.files import write_whole
from ur4rec.runs.measurements import Measurement
from ur4rec.schedule.stages import ALL, BOTH, DECIDING_STAGE, MODULES, TEXT_ENCODER, TURNS

_TITLE_WIDTH = 110
"""Characters of a line of the title: a schedule with measured costs is long."""
COLOURS = {
    "sasrec": "#1f77b4",
    "retriever": "#d95f02",
    "fused": "#2a2a2a",
    BOTH: "#7570b3",
    TEXT_ENCODER: "#1b9e77",
    f"sasrec+{TEXT_ENCODER}": "#66a61e",
    f"retriever+{TEXT_ENCODER}": "#e6ab02",
    ALL: "#a6761d",
}
NAMES = {
    "sasrec": "SASRec",
    "retriever": "retriever",
    "fused": "fused",
    BOTH: "both",
    TEXT_ENCODER: "text encoder",
    f"sasrec+{TEXT_ENCODER}": "SASRec and text encoder",
    f"retriever+{TEXT_ENCODER}": "retriever and text encoder",
    ALL: "all",
}
_LIMIT: dict[str, Any] = {"color": "0.25", "linewidth": 1.0, "linestyle": "--"}
MAX_RATIO = 5
"""Values that are larger than their limit by more than this factor are drawn on a logarithmic scale."""


class Kind(NamedTuple):
    """Numbers that can be compared with each other, and the reasons that have them."""

    value: str
    """What the value is."""
    limit: str
    """What its limit is."""
    reasons: frozenset[str]
    """The reasons."""


KINDS = (
    Kind("change rate\nof the loss", "threshold", frozenset({Reason.CHANGING, Reason.RISING_CHANGE, Reason.STEADY})),
    Kind(
        "expected gain",
        "min_gain",
        frozenset(
            {
                Reason.IMPROVING,
                Reason.UNSURE,
                Reason.PLATEAU,
                Reason.DIVERGING,
                Reason.RISING,
                Reason.RISING_UNCONFIRMED,
            }
        ),
    ),
    Kind("gain per cost", "the other module's", frozenset({Reason.BEST_GAIN, Reason.LESS_GAIN})),
    Kind(
        "bad losses\nin a row",
        "patience",
        frozenset({Reason.WAITING, Reason.OUT_OF_PATIENCE, Reason.RISING_OUT_OF_PATIENCE}),
    ),
    Kind(
        "better by\nstandard errors",
        "confidence",
        frozenset({Reason.HALVED, Reason.TRIED_BETTER, Reason.TRIED_NO_BETTER}),
    ),
)
"""`Payoff` has its measurements. Reasons that only count steps or losses (min_steps, few_losses, ...) say nothing."""


class Comparisons(NamedTuple):
    """The decisions of one kind."""

    kind: Kind
    """The kind."""
    records: list[StepRecord]
    """The steps after which such numbers were compared."""


def comparisons(records: Sequence[StepRecord]) -> Comparisons | None:
    """The decisions of the kind that a log has most of; None if no rule compared anything.

    Example:
        >>> record = StepRecord(9, "joint", "sasrec", "retriever", "steady", 0.005, 0.01, {})
        >>> comparisons([record]).kind.limit, comparisons([record._replace(reason="min_steps")])
        ('threshold', None)
    """
    kinds = {reason: kind for kind in KINDS for reason in kind.reasons}
    counts = Counter(kinds[record.reason] for record in records if record.reason in kinds)
    if not counts:
        return None
    kind = counts.most_common(1)[0][0]
    found = [each for each in records if each.reason in kind.reasons and isfinite(each.value) and isfinite(each.limit)]
    return Comparisons(kind, found)


def draw_comparisons(axes: Axes, compared: Comparisons | None) -> None:
    """Draw the value and the limit of each decision, in the colour of who had trained."""
    if compared is None:
        return
    kind, records = compared
    for turn in TURNS:
        own = [record for record in records if record.active == turn]
        if not own:
            continue
        axes.plot(*_points([each for each in own if each.next == turn]), ".", color=COLOURS[turn], markersize=3)
        switches = [each for each in own if each.next != turn]
        axes.plot(*_points(switches), "D", color=COLOURS[turn], markersize=5, markeredgecolor="white", mew=0.4)
        axes.plot([], [], "o", color=COLOURS[turn], markersize=5, label=NAMES[turn])
    steps, limits = _points([record._replace(value=record.limit) for record in records])
    if len(set(limits)) == 1:
        draw_line(axes, steps, limits, label=kind.limit, **_LIMIT)
    else:  # of each decision its own: a line would join what was not compared
        axes.plot(steps, limits, "_", color=_LIMIT["color"], markersize=7, label=kind.limit)
    if any(record.next != record.active for record in records):
        axes.plot([], [], "D", color="0.5", markersize=5, label="switch")
    axes.set_ylabel(kind.value)
    _scale(axes, [record.value for record in records], limits)
    axes.legend(loc="upper left", fontsize=8, framealpha=0.8)


def draw_payoffs(axes: Axes, measurements: Sequence[Measurement], records: Sequence[StepRecord]) -> None:
    """Draw what each module paid, the limit below which it is left out, and who was left out when."""
    joint = [each for each in measurements if each.active == BOTH]
    for module in MODULES:
        own = [each for each in joint if each.module == module]
        steps, values = [each.step for each in own], [each.payoff for each in own]
        bars = [each.z * each.stderr for each in own]
        axes.errorbar(
            steps,
            values,
            yerr=bars,
            color=COLOURS[module],
            fmt="o-",
            markersize=3,
            linewidth=1,
            elinewidth=2.5,
            ecolor=(COLOURS[module], 0.35),
            label=NAMES[module],
        )
        alone = [each for each in measurements if each.active == each.module == module]
        axes.plot([each.step for each in alone], [each.payoff for each in alone], "x", color=COLOURS[module])
        left_out = np.array([record.active in MODULES and record.active != module for record in records], dtype=bool)
        deciding = {each.stage for each in records if each.step in {one.step for one in measurements}}
        left_out &= np.array([record.stage in deciding for record in records], dtype=bool)
        for number, (start, length) in enumerate(spans(left_out)):
            label = f"{NAMES[module]} left out" if number == 0 else None
            axes.axvspan(start, start + length, color=COLOURS[module], alpha=0.15, linewidth=0, label=label)
    limits = {each.step: each.limit for each in joint}
    draw_line(axes, [*limits], [*limits.values()], label="limit", **_LIMIT)
    axes.set_ylabel("payoff per cost\n(log2 of held-out ranks)")
    _scale(axes, [each.payoff for each in joint], [*limits.values()])
    axes.legend(
        loc="upper left",
        fontsize=8,
        framealpha=0.8,
        title="left out when its whole bar is below the limit",
        title_fontsize=8,
    )


def spans(chosen: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and length of each row of True.

    Example:
        >>> spans(np.array([True, True, False, True]))
        [(0, 2), (3, 1)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(int), [0]]))).tolist()
    return [(start, end - start) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _points(records: Sequence[StepRecord]) -> tuple[list[int], list[float]]:
    return [record.step for record in records], [record.value for record in records]


def _scale(axes: Axes, values: Sequence[float], limits: Sequence[float]) -> None:
    """A scale on which values far above and near the limit can be told apart."""
    sizes = sorted(abs(limit) for limit in limits if limit)
    if sizes and max(map(abs, values)) > MAX_RATIO * (typical := sizes[len(sizes) // 2]):
        axes.set_yscale("symlog", linthresh=10.0 ** ceil(log10(typical)))  # a power of ten: no tick just above 0
        axes.yaxis.set_major_formatter("{x:g}")  # not 10 to a power in mathtext, which is off


@literal_texts()
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
        epochs: The rows of ``metrics.json``: each with ``step``, ``stage``, and ``validation`` of each scorer ranked.
        title: What to write above it.
    """
    compared = bool(measurements) or bool(comparisons(records))
    heights = {"losses": 3.2, "turns": 1.1, **({"reasons": 3.2} if compared else {}), "validation": 3.2}
    figure = Figure(figsize=(11, sum(heights.values())), layout="constrained")
    panels = dict(
        zip(heights, figure.subplots(len(heights), 1, sharex=True, height_ratios=[*heights.values()]), strict=True)
    )
    figure.suptitle(fill(printable(title), _TITLE_WIDTH))
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
            draw_line(axes, steps, _smooth(values, width), color=COLOURS[turn], linewidth=1.5, label=name)
    axes.set_ylabel("training loss")
    if axes.has_data():
        axes.legend(loc="upper right", title=f"mean of {width} losses", fontsize=8, title_fontsize=8, framealpha=0.8)


def _stages_with(turn: str, records: Sequence[StepRecord]) -> list[list[tuple[int, float]]]:
    """Steps and finite losses of a module, stage by stage; those of both where they share one."""
    parts = [list(part) for _, part in groupby(records, key=lambda record: record.stage)]
    found = [[(record.step, loss) for record in part if isfinite(loss := _loss(turn, record))] for part in parts]
    return [part for part in found if part]


def _loss(turn: str, record: StepRecord) -> float:
    """The loss that a turn had in a step; NaN if it had none of its own."""
    losses = [record.losses.get(module, nan) for module in MODULES]
    if losses[0] == losses[1]:
        return losses[0] if turn == BOTH else nan
    return record.losses.get(turn, nan)


def _smooth(values: NDArray[Any], width: int) -> NDArray[Any]:
    """The mean of the last ``width`` values, of fewer at the start."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return np.asarray((totals[ends] - totals[starts]) / (ends - starts))


def _draw_turns(axes: Axes, records: Sequence[StepRecord]) -> None:
    active = [record.active for record in records]
    alternating = np.array([record.stage == DECIDING_STAGE for record in records], dtype=bool)
    switches = sum(record.next != record.active for record in records)
    modules = [
        name for name in (*MODULES, TEXT_ENCODER) if name in MODULES or any(name in TURNS[each] for each in active)
    ]
    for row, module in enumerate(modules):
        trained = np.array([module in TURNS[name] for name in active], dtype=bool)
        axes.broken_barh(spans(trained), (row + 0.1, 0.8), facecolors=COLOURS[module])
        if alternating.any():
            share = f"{trained[alternating].mean():.0%} of\njoint steps"
            axes.text(1.005, (row + 0.5) / len(modules), share, transform=axes.transAxes, va="center", fontsize=8)
    axes.set_yticks([row + 0.5 for row in range(len(modules))], [NAMES[module] for module in modules])
    axes.set_ylim(0, len(modules))
    axes.set_ylabel(f"who trains\n({switches} switch{'' if switches == 1 else 'es'})")


def _draw_validation(axes: Axes, epochs: Sequence[Mapping[str, Any]]) -> None:
    validated = [epoch for epoch in epochs if epoch["validation"]]
    for scorer in ("sasrec", "retriever", "fused"):
        values = [epoch["validation"].get(scorer, {}).get("ndcg@10", math.nan) for epoch in validated]
        if not all(map(math.isnan, values)):  # a stage that does not rank a scorer leaves a gap
            steps = [epoch["step"] for epoch in validated]
            axes.plot(steps, values, color=COLOURS[scorer], marker="o", markersize=3, label=NAMES[scorer])
    axes.set_ylabel("validation NDCG@10")
    if axes.has_data():
        axes.legend(loc="upper left", fontsize=8, framealpha=0.8)


def _draw_stages(axes: Axes, records: Sequence[StepRecord], *, named: bool) -> None:
    stages = [record.stage for record in records]
    starts = [index for index, stage in enumerate(stages) if index == 0 or stage != stages[index - 1]]
    for start in starts:
        axes.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
        if named:
            axes.text(start, 1.01, f" {stages[start]}", transform=axes.get_xaxis_transform(), fontsize=8, va="bottom")

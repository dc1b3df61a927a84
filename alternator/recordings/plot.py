"""The picture of a replay, with matplotlib."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alternator.errors import LossError
from alternator.recordings.replay import Replay
from alternator.recordings.tables import LossTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3", "#a6761d", "#666666", "#e7298a", "#66a61e")


@contextmanager
def literal_texts() -> Iterator[None]:
    """Within it, also as a decorator, new figures show every string as it is: ``$`` is no mathtext, nothing is LaTeX.

    Raises:
        LossError: matplotlib is missing.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise LossError(f"a plot needs matplotlib ({error}); pip install 'adaptive-alternator[plot]'") from error
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
        yield


@literal_texts()
def plot_replay(path: Path, table: LossTable, result: Replay) -> None:
    """Draw the losses, who would have trained when, and the switches.

    Raises:
        LossError: matplotlib is missing, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    strips = {"replay": result.actives} | ({"recorded": table.recorded} if table.recorded else {})
    figure = Figure(figsize=(11, 5.5 + 0.3 * len(result.modules)), layout="constrained")
    losses, turns = figure.subplots(2, 1, sharex=True, height_ratios=(6, 0.6 * len(strips)))
    figure.suptitle(f"{result.rule}\n{len(result.switches)} switches in {len(result.steps)} steps", fontsize=10)
    _draw_losses(losses, table, result)
    _draw_turns(turns, strips, result)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise LossError(f"the plot {path} cannot be written: {error}") from error


def colour(modules: Sequence[str], name: str) -> str:
    """The colour of a module; modules beyond the palette share colours.

    Example:
        >>> colour(("a", "b"), "b")
        '#d95f02'
    """
    return COLOURS[modules.index(name) % len(COLOURS)] if name in modules else "#cccccc"


def draw_line(axes: "Axes", places: Any, values: Any, **style: Any) -> None:
    """Draw a line; a point alone is drawn as a dot, since nothing would be seen of its line.

    Args:
        axes: Where to draw.
        places: The coordinate of each point along the axis: a list of numbers, or an array.
        values: Its height, likewise.
        style: As `matplotlib.axes.Axes.plot` takes it.
    """
    axes.plot(places, values, marker="o" if len(values) == 1 else None, markersize=3, **style)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and its neighbours, ``width // 2`` on either side; fewer at the ends.

    Example:
        >>> smooth([1.0, 3.0, 5.0, 7.0], 3)
        [2.0, 3.0, 5.0, 6.0]
    """
    near = [values[max(0, k - width // 2) : k + width // 2 + 1] for k in range(len(values))]
    return [sum(part) / len(part) for part in near]


def _draw_losses(axes: "Axes", table: LossTable, result: Replay) -> None:
    width = max(5, len(result.steps) // 50)
    for name in result.modules:
        pairs = zip(result.steps, table.losses[name], strict=True)
        points = [(step, loss) for step, loss in pairs if loss is not None and math.isfinite(loss)]
        steps, values = [step for step, _ in points], [value for _, value in points]
        shade = colour(result.modules, name)
        axes.plot(steps, values, ".", color=shade, alpha=0.3, markersize=2 if len(steps) > 1000 else 4)
        share = f"{name}: {result.shares[name]:.0%} of the steps"
        draw_line(axes, steps, smooth(values, width), color=shade, linewidth=1.5, label=share)
    for switch in result.switches:
        axes.axvline(switch.step, color=colour(result.modules, switch.active), alpha=0.35, linewidth=0.8)
    axes.set_ylabel(f"loss and its mean over {width}")
    axes.axvline(math.nan, color="#666666", linewidth=0.8, label="switch, in the colour of who takes over")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(result.modules) + 1, frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_turns(axes: "Axes", strips: dict[str, tuple[str, ...]], result: Replay) -> None:
    for height, actives in enumerate(strips.values()):
        for name, start, length in _tenures(actives, result.steps):
            axes.broken_barh([(start, length)], (-height - 0.4, 0.8), color=colour(result.modules, name))
    axes.set_yticks([-height for height in range(len(strips))], list(strips))
    axes.tick_params(left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlim(result.steps[0] - 1, result.steps[-1])
    axes.set_xlabel("step (who trains)")


def _tenures(actives: Sequence[str], steps: Sequence[int]) -> list[tuple[str, float, float]]:
    """Name, start and length of each tenure on the axis of steps."""
    tenures: list[tuple[str, float, float]] = []
    for name, group in groupby(range(len(actives)), key=lambda row: actives[row]):
        rows = list(group)
        tenures.append((name, steps[rows[0]] - 1, steps[rows[-1]] - steps[rows[0]] + 1))
    return tenures

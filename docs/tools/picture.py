"""Draws docs/images/who-trains.png: the losses of the README's program, and which module trained in each step.

Run: python docs/tools/picture.py
"""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import adapters.torch
from alternator import Decision

ROOT = Path(__file__).parents[2]
COLOURS = {"head": "#d95f02", "encoder": "#1f77b4"}
SHORT = {"plateau": "on a plateau", "max_steps": "300 steps are over"}

losses: list[float] = []
trained: list[str] = []
switches: list[Decision] = []


class Recorder(adapters.torch.AlternatingOptimizer):
    """Keeps what each step of the program looked like."""

    def step(self, *arguments: Any, **options: Any) -> Decision:
        """A step, recorded."""
        losses.append(arguments[0].item())
        trained.append(self.active)
        decision = super().step(*arguments, **options)
        if decision.switched:
            switches.append(decision)
        return decision


def run_program() -> None:
    """The first program of the README, with `Recorder` in place of its optimizer."""
    program = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]
    adapters.torch.AlternatingOptimizer = Recorder  # type: ignore[misc]
    exec(compile(program, "README.md", "exec"), {})


def draw(path: Path) -> None:
    """The losses in the colour of who trains, with the reason for each switch."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    named = set()
    start = 0
    for name, group in groupby(trained):
        end = start + len(list(group))
        axes.axvspan(start, end, color=COLOURS[name], alpha=0.12, linewidth=0)
        label = None if name in named else f"{name} trains"
        axes.plot(range(start, end), losses[start:end], ".", color=COLOURS[name], markersize=2.5, label=label)
        named.add(name)
        start = end
    for decision in switches:
        axes.axvline(decision.step, color="#444444", linewidth=0.8)
        text = f"step {decision.step}: {SHORT[decision.reason]}"
        axes.annotate(text, (decision.step, 0.97), xycoords=("data", "axes fraction"), xytext=(4, 0),
                      textcoords="offset points", va="top", fontsize=8)  # fmt: skip
    axes.set(xlabel="step", ylabel="training loss", xlim=(0, len(losses)), ylim=(0.05, 0.5))
    axes.legend(loc="lower left", markerscale=4, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_program()
    draw(ROOT / "docs/images/who-trains.png")

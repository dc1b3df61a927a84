"""What a domain is: a problem, a budget that is equal for all arms, and the arms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

Kind = Literal["joint", "fixed", "random", "published", "ours"]
NUM_SEEDS = 10
"""Of domains whose runs take seconds."""
KINDS: tuple[Kind, ...] = ("joint", "fixed", "random", "published", "ours")


class Point(NamedTuple):
    """A look at a run: what it had cost by then, and what the model of then is worth."""

    cost: float
    """In the unit of the domain's budget, trials and probes included."""
    held_out: float
    """The metric on held-out data, which choose."""
    test: float
    """The metric on test data, which judge."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    test: float
    """The metric on test data at the point that held-out data choose."""
    held_out: float
    """The metric on held-out data there."""
    cost: float
    """All that was spent, to the end of the run."""
    curve: tuple[Point, ...]
    """All looks."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Per turn, its part of the training steps that were not undone."""

    @classmethod
    def at_best(
        cls, curve: Sequence[Point], *, higher_is_better: bool, shares: Mapping[str, float] | None = None
    ) -> "Outcome":
        """The outcome at the point that is best on held-out data, the earliest of equals; points must be in order.

        A point whose held-out value is not finite is never chosen, unless all are so: then the last one is.

        Example:
            >>> points = [Point(1, 0.5, 0.4), Point(2, 0.8, 0.7), Point(3, 0.6, 0.9)]
            >>> outcome = Outcome.at_best(points, higher_is_better=True)
            >>> outcome.test, outcome.cost
            (0.7, 3)
        """
        sign = 1 if higher_is_better else -1
        finite = [point for point in curve if isfinite(point.held_out)]
        best = max(finite, key=lambda point: sign * point.held_out) if finite else curve[-1]
        return cls(test=best.test, held_out=best.held_out, cost=curve[-1].cost, curve=tuple(curve), shares=shares or {})


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to decide who trains."""

    kind: Kind
    """``fixed`` is one of the grid of fixed schedules, ``ours`` a rule of `alternator` with its defaults."""
    setting: Any
    """What the domain's `run` needs to know. Its ``repr`` must tell all of it: a kept run is of this very setting."""
    note: str = ""
    """For the report: source of a published method, say."""
    in_grid: bool | None = None
    """Whether somebody who tunes fixed schedules would try it within the domain's rules; by default the fixed ones and
    joint training. False for joint training that the domain forbids, which is then shown for comparison."""

    @property
    def is_of_grid(self) -> bool:
        """Whether the best fixed schedule may be this one."""
        return self.kind in ("joint", "fixed") if self.in_grid is None else self.in_grid


class Domain(Protocol):
    """A problem with arms. A frozen dataclass, whose ``repr`` tells all sizes: a kept run is of these very sizes."""

    @property
    def name(self) -> str:
        """Of the domain: lower case with hyphens."""
        ...

    @property
    def question(self) -> str:
        """What is to be decided, in one sentence."""
        ...

    @property
    def metric(self) -> str:
        """What is reported: accuracy, loss, NDCG@10; positive."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """Of the metric."""
        ...

    @property
    def budget(self) -> float:
        """What each arm may spend, trials and probes included."""
        ...

    @property
    def unit(self) -> str:
        """Of the budget: steps, seconds, backward passes of the whole model."""
        ...

    @property
    def has_signal(self) -> bool:
        """Whether held-out data say what is better: where they do not, no rule is expected to find it."""
        ...

    @property
    def num_seeds(self) -> int:
        """The number of seeds, unless the command names another one."""
        ...

    def arms(self) -> Mapping[str, Arm]:
        """All arms by name. A rule has the same name in all domains: that of its class."""
        ...

    def run(self, arm: str, seed: int) -> Outcome:
        """Train within the budget. The same seed means the same data and initial weights for all arms."""
        ...


def all_domains() -> dict[str, Domain]:
    """The domains of all files beside this one, by name."""
    files = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
    modules = [import_module(f"{__package__}.{stem}") for stem in files]
    found = [domain for module in modules for domain in module.DOMAINS]
    names = [domain.name for domain in found]
    if len(set(names)) < len(names):
        raise ValueError(f"each domain must have a name of its own, got {names}")
    return dict(zip(names, found, strict=True))

"""The problem on which every backend is measured: linear towers with normalisation, small enough for bit comparisons.

A module m holds a weight, a bias and a running mean of its inputs. It predicts ``(x_m - mean) · weight + bias``: with
the batch's mean while it trains (and then the running mean moves a tenth of the way to it); while it is frozen with the
running mean, or, in a setup whose ``frozen_mode`` is "batch", with the batch's mean, and its running mean stays. In
inference mode, where nothing trains, every module takes its running mean. A module's own loss is the mean squared error
of its prediction alone. What is minimised is

- coupled: the mean squared error of the sum of all predictions, each times its entry of ``mix`` (the always group), or
- otherwise: the sum of the modules' own losses, so that no module's path depends on another.

Each module has AdamW with decoupled weight decay, a learning rate that falls by `DECAY` with each of the module's
updates, and, if the setup says so, clipping by the global norm of the gradients of what trains.

Legend: N modules, B rows, D inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from adapters.contract import FrozenMode, FrozenState
from alternator import Cycle, Rule

NUM_ROWS, NUM_INPUTS = 16, 4
LEARNING_RATE, WEIGHT_DECAY, DECAY = 0.05, 0.1, 0.99
BETAS, EPSILON = (0.9, 0.999), 1e-8
MOMENTUM = 0.1
ALWAYS = "always"
"""The name of the always group in snapshots."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a harness is built from."""

    modules: tuple[str, ...] = ("a", "b")
    """Names of the modules."""
    rule: Rule = field(default_factory=Cycle)
    """Decides among the turns, or among the modules where there are none."""
    turns: Mapping[str, tuple[str, ...]] | None = None
    """Active sets by name, in the alternator's order."""
    always: bool = False
    """Whether ``mix`` trains at every step; otherwise it is ones, and no parameter."""
    coupled: bool = True
    """What is minimised, see above."""
    clip_norm: float | None = None
    """Maximum norm of the gradients of what trains."""
    delay: int = 0
    """The number of steps after which losses are read."""
    frozen_mode: FrozenMode = "inference"
    """How modules run while they are frozen."""
    frozen_state: FrozenState = "keep"
    """Where the optimizer state of modules is while they are frozen."""
    compiled: bool = False
    """Whether to compile where that is a choice, and so count traces."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the alternator chooses among."""
        return self.modules if self.turns is None else tuple(self.turns)

    def trains(self, name: str) -> tuple[str, ...]:
        """The modules that a name trains, and the always group."""
        return (*((name,) if self.turns is None else self.turns[name]), *((ALWAYS,) if self.always else ()))

    def by_batch(self, trained: tuple[str, ...]) -> tuple[str, ...]:
        """The modules that normalise by the batch while some groups train; in inference mode, where none do, none."""
        return self.modules if trained and self.frozen_mode == "batch" else trained

    @property
    def groups(self) -> tuple[str, ...]:
        """Everything that a snapshot has an entry for."""
        return (*self.modules, *((ALWAYS,) if self.always else ()))


class Batch(NamedTuple):
    """One step's data."""

    inputs_NBD: np.ndarray
    targets_B: np.ndarray


def make_batch(setup: Setup, step: int) -> Batch:
    """The batch of a step, float32."""
    rng = np.random.default_rng(step)
    inputs_NBD = 0.5 + rng.standard_normal((len(setup.modules), NUM_ROWS, NUM_INPUTS)).astype(np.float32)
    targets_B = inputs_NBD.sum((0, 2)) + rng.standard_normal(NUM_ROWS).astype(np.float32)
    return Batch(inputs_NBD, targets_B.astype(np.float32))


def initial_weights(setup: Setup) -> dict[str, dict[str, np.ndarray]]:
    """Per module its weight, bias and mean, float32; equal in every backend."""
    rng = np.random.default_rng(100)
    return {
        name: {
            "weight": rng.standard_normal(NUM_INPUTS).astype(np.float32),
            "bias": rng.standard_normal(()).astype(np.float32),
            "mean": np.zeros(NUM_INPUTS, np.float32),
        }
        for name in setup.modules
    }

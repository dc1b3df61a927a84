"""What measures for a schedule that decides by held-out targets: `Payoff` or `Trial`."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alternator import Alternator, Payoff, Trial
from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import ConfigurationError
from ur4rec.schedule.alternators import what_payoffs_lack
from ur4rec.schedule.payoff_probe import HeldOut, PayoffProbe
from ur4rec.schedule.stages import MODULES
from ur4rec.schedule.trial_probe import Training, TrialProbe

SnapshotT = TypeVar("SnapshotT")
StateT = TypeVar("StateT")


class Probe(Protocol):
    """Measures, records, and undoes if the schedule says so."""

    num_forwards: int
    """How often the held-out histories have been scored by a module, which is what measuring costs."""

    def before_step(self) -> None:
        """Do what is due before a step."""

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """What a checkpoint keeps of it, by name."""

    def load_state_dict(self, arrays: Mapping[str, ArrayLike], weights: Mapping[str, NDArray[Any]]) -> None:
        """Continue exactly where `state_dict` was taken, with the arrays and the weights of the checkpoint."""


def build_probe(
    alternator: Alternator,
    probe: EvaluationBatch | None,
    fusion: str,
    held_out: HeldOut[SnapshotT] | None,
    training: Training[StateT],
) -> Probe | None:
    """What measures for a schedule; None for one that needs no held-out targets.

    Args:
        alternator: The schedule.
        probe: The held-out targets, if there are any.
        fusion: How the scores are fused.
        held_out: What is computed on them; None without them.
        training: What a `Trial` undoes.

    Raises:
        ConfigurationError: It cannot be measured: no targets, fewer than groups, or a fusion of whole rankings.
    """
    rule = alternator.rule
    if not isinstance(rule, Payoff | Trial):
        return None
    lack = what_payoffs_lack(rule, fusion, 0 if probe is None else probe.num_valid)
    if lack or held_out is None:
        raise ConfigurationError(f"a {type(rule).__name__} rule needs {lack}")
    if isinstance(rule, Payoff):
        return PayoffProbe(alternator, held_out)
    return TrialProbe(alternator, partial(_losses_now, held_out), training)


def _losses_now(held_out: HeldOut[SnapshotT]) -> NDArray[np.float64]:
    """The logarithm to base 2 of each target's smooth rank with the model as it is, (B,)."""
    return held_out.losses({module: held_out.take(module) for module in MODULES})

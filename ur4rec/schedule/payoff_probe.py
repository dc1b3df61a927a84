"""Measures for a `Payoff` schedule what each module's training was worth on held-out targets.

Shapes: B held-out targets, I items, G groups.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alternator import Alternator, Payoff, Payoffs
from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import ConfigurationError
from ur4rec.evaluation.metrics import negative_log_likelihood
from ur4rec.schedule.alternators import what_payoffs_lack
from ur4rec.schedule.stages import MODULES, TURNS

PREFIX = "payoff."
"""Names of its arrays in a checkpoint begin so."""
_POSITION = f"{PREFIX}position"


class PayoffProbe:
    """Measures payoffs in the course of a tenure, and records them.

    It measures after ``min_steps`` steps, and again when as many have passed since, or a quarter of the tenure if that
    is more: what has paid for long is measured less often, so that the cost of measuring fades.

    A module's snapshot is what it scores the held-out histories with, so a measurement costs one forward pass of what
    has trained; mixed snapshots are fused, and the loss is the targets' negative log-likelihood, the mean of each
    group of targets.

    Args:
        alternator: With a `Payoff` rule, over `TURNS`.
        score: Scores of one module alone for the held-out histories, (B, I).
        fuse: The fused scores, (B, I), of SASRec's and the retriever's.
        targets_B: The held-out targets.
    """

    def __init__(
        self,
        alternator: Alternator,
        score: Callable[[str], NDArray[np.float32]],
        fuse: Callable[[ArrayLike, ArrayLike], ArrayLike],
        targets_B: NDArray[np.int32],
    ) -> None:
        assert isinstance(alternator.rule, Payoff)
        self._alternator = alternator
        self._rule = alternator.rule
        self._score = score
        self._fuse = fuse
        self._targets_B = targets_B
        self._payoffs: Payoffs[NDArray[np.float32]] | None = None
        self._position = (-1, 0)
        self.num_forwards = 0
        """How often the held-out histories have been scored by a module, which is what measuring costs."""

    def before_step(self) -> None:
        """Measure and record, if it is time; at the beginning of a tenure, start from scratch."""
        stats = self._alternator.stats()
        tenure, (number, measured) = stats.steps_since_switch, self._position
        if self._payoffs is None:
            self._payoffs = Payoffs(TURNS, self._snapshot, self._losses)
            self._position = (stats.switch_count, tenure)
        elif number != stats.switch_count:
            self._payoffs.restart()
            self._position = (stats.switch_count, tenure)
        elif tenure - measured >= max(self._rule.min_steps, tenure // 4):
            for turn, values in self._payoffs.measure(self._alternator.active, tenure - measured).items():
                for value in values:
                    self._alternator.record(turn, value)
            self._position = (number, tenure)

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """Snapshots and position, by name; empty before the first step."""
        if self._payoffs is None:
            return {}
        snapshots = {f"{PREFIX}{name}": scores for name, scores in self._payoffs.before.items()}
        return {_POSITION: np.array(self._position, np.int32), **snapshots}

    def load_state_dict(self, arrays: Mapping[str, ArrayLike]) -> None:
        """Continue exactly where `state_dict` was taken; other arrays are left alone."""
        if _POSITION not in arrays:
            return
        before = {name: np.asarray(arrays[f"{PREFIX}{name}"]) for name in MODULES}
        self._payoffs = Payoffs(TURNS, self._snapshot, self._losses, before)
        number, measured = np.asarray(arrays[_POSITION]).tolist()
        self._position = (number, measured)

    def _snapshot(self, name: str) -> NDArray[np.float32]:
        self.num_forwards += 1
        return self._score(name)

    def _losses(self, scores: Mapping[str, NDArray[np.float32]]) -> list[float]:
        nll_B = negative_log_likelihood(self._fuse(*(scores[name] for name in MODULES)), self._targets_B)
        return [float(group.mean()) for group in np.array_split(nll_B, self._rule.groups)]


def build_probe(
    alternator: Alternator,
    probe: EvaluationBatch | None,
    fusion: str,
    score: Callable[[ArrayLike, str, ArrayLike | None], NDArray[np.float32]],
    fuse: Callable[[ArrayLike, ArrayLike], ArrayLike],
) -> PayoffProbe | None:
    """What measures the payoffs of a `Payoff` schedule; None for every other schedule.

    Args:
        alternator: The schedule.
        probe: The held-out targets, if there are any.
        fusion: How the scores are fused.
        score: A trainer's `score`: histories, the name of a scorer, users.
        fuse: The fused scores of SASRec's and the retriever's.

    Raises:
        ConfigurationError: It cannot be measured: no targets, fewer than groups, or a fusion without likelihoods.
    """
    if not isinstance(alternator.rule, Payoff):
        return None
    lack = what_payoffs_lack(alternator.rule, fusion, 0 if probe is None else probe.num_valid)
    if lack or probe is None:
        raise ConfigurationError(f"a Payoff rule needs {lack}")
    items_BL, targets_B = probe.items_BL[: probe.num_valid], probe.targets_B[: probe.num_valid]
    users_B = None if probe.users_B is None else probe.users_B[: probe.num_valid]
    return PayoffProbe(alternator, lambda name: score(items_BL, name, users_B), fuse, targets_B)

"""Flawed copies of the reference backend: each departs from the contract in the one respect that its docstring says."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np

from alternator import Alternator, Cycle, Decision, Plateau, StateError
from tests.conformance.problem import ALWAYS, LEARNING_RATE, WEIGHT_DECAY, Batch, Setup
from tests.conformance.reference import Gradients, ReferenceHarness


class DecaysFrozen(ReferenceHarness):
    """Weight decay continues for frozen parameters."""

    def update(self, gradients: Gradients, trained: tuple[str, ...]) -> None:
        super().update(gradients, trained)
        for name in set(self.setup.modules) - set(trained):
            for key in ("weight", "bias"):
                self.add(name, key, -LEARNING_RATE * WEIGHT_DECAY * self.value(name, key))


class DriftingMoments(ReferenceHarness):
    """The moments of frozen modules decay, as with gradients of zero."""

    def update(self, gradients: Gradients, trained: tuple[str, ...]) -> None:
        super().update(gradients, trained)
        for name in set(self.setup.modules) - set(trained):
            for key in (key for key in self.optimizer[name] if key.startswith("optimizer/m/")):
                self.optimizer[name][key] = 0.9 * self.optimizer[name][key]


class CountsFrozenSteps(ReferenceHarness):
    """The step counts of frozen modules continue, and with them their bias correction."""

    def update(self, gradients: Gradients, trained: tuple[str, ...]) -> None:
        super().update(gradients, trained)
        for name in set(self.setup.modules) - set(trained):
            self.optimizer[name]["optimizer/count"] += 1


class AnnealsFrozen(ReferenceHarness):
    """One learning-rate schedule for all: that of frozen modules continues."""

    def update(self, gradients: Gradients, trained: tuple[str, ...]) -> None:
        super().update(gradients, trained)
        for name in set(self.setup.modules) - set(trained):
            self.optimizer[name]["schedule/count"] += 1


class MovesFrozenMeans(ReferenceHarness):
    """Frozen modules stay in training mode: their statistics move."""

    def move_means(self, batch: Batch, trained: tuple[str, ...]) -> None:
        super().move_means(batch, self.setup.modules)


class MovesBatchMeans(ReferenceHarness):
    """Frozen modules that normalise by the batch move their statistics."""

    def move_means(self, batch: Batch, trained: tuple[str, ...]) -> None:
        super().move_means(batch, self.setup.by_batch(trained))


class RunningStatistics(ReferenceHarness):
    """Frozen modules run in inference mode, whatever was chosen."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, frozen_mode="inference"))


class ComputesEverything(ReferenceHarness):
    """Gradients of frozen modules are computed, and thrown away."""

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        every = self.gradients(batch, self.setup.groups)
        decision = super().step(batch, losses, updated=updated)
        self.last_gradients = every
        return decision


class ClipsEverything(ReferenceHarness):
    """Gradients are clipped by the norm of all, those of frozen modules included."""

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        self.every = self.gradients(batch, self.setup.groups)
        return super().step(batch, losses, updated=updated)

    def clip(self, gradients: Gradients) -> Gradients:
        clipped = super().clip(self.every)
        return {name: clipped[name] for name in gradients}


class RoundsOffloaded(ReferenceHarness):
    """Moments come back from the host in half precision."""

    def enter_states(self) -> None:
        super().enter_states()
        for name in self.away if self.setup.frozen_state == "offload" else ():
            for key in (key for key in self.optimizer[name] if key.startswith("optimizer/m/")):
                self.optimizer[name][key] = self.optimizer[name][key].astype(np.float16).astype(np.float64)


class ForgetsOffloadedCount(ReferenceHarness):
    """Counts of steps do not come back from the host."""

    def enter_states(self) -> None:
        super().enter_states()
        for name in self.away if self.setup.frozen_state == "offload" else ():
            self.optimizer[name]["optimizer/count"] = np.int64(0)


class CopiesToHost(ReferenceHarness):
    """What is offloaded is on the device too."""

    def held(self) -> set[str]:
        return set(self.setup.groups)


class KeepsDropped(ReferenceHarness):
    """What is to be dropped stays."""

    def drop(self, name: str) -> None:
        pass


class DropsActive(ReferenceHarness):
    """A switch drops every state, also that of a module that trains in both turns."""

    def enter_states(self) -> None:
        super().enter_states()
        if self.setup.frozen_state == "drop":
            for name in self.setup.modules:
                self.drop(name)


class DropsSchedule(ReferenceHarness):
    """With its moments a module loses its learning-rate schedule."""

    def drop(self, name: str) -> None:
        self.optimizer[name] = self.fresh_optimizer(name)


class ForgetsMoments(ReferenceHarness):
    """A module that is entered starts with a new optimizer."""

    def enter(self) -> None:
        for name in self.setup.trains(self.active):
            self.optimizer[name] = self.fresh_optimizer(name)


class ForgetsSchedule(ReferenceHarness):
    """The alternator's state is not saved: a resumed run starts a new tenure of the first module."""

    def load(self, saved: Any) -> None:
        super().load(saved)
        self.alternator.reset()


class ForgetsOptimizer(ReferenceHarness):
    """The optimizer's state is not saved."""

    def load(self, saved: Any) -> None:
        super().load(saved)
        self.optimizer = {name: self.fresh_optimizer(name) for name in self.setup.groups}


class ForgetsPending(ReferenceHarness):
    """Losses that are still to be read are not saved."""

    def load(self, saved: Any) -> None:
        super().load(saved)
        self.pending.clear()


class KeepsReferences(ReferenceHarness):
    """A snapshot shares its arrays' containers with what trains on."""

    def take(self) -> Any:
        return self.weights, self.mix_N, self.optimizer


class KeepsWeightsAlone(ReferenceHarness):
    """A snapshot is of weights alone: the optimizer's state stays as the trial left it."""

    def rollback(self, kept: Any) -> None:
        super().rollback((*kept[:2], self.optimizer))


class KeepsNoMeans(ReferenceHarness):
    """A snapshot leaves out normalisation statistics."""

    def rollback(self, kept: Any) -> None:
        means = {name: module["mean"] for name, module in self.weights.items()}
        super().rollback(kept)
        for name, module in self.weights.items():
            module["mean"] = means[name]


class RollsBackOnce(ReferenceHarness):
    """A rollback hands over the snapshot itself, on which training writes: it can be used once."""

    def rollback(self, kept: Any) -> None:
        self.weights, self.mix_N, self.optimizer = kept


class OffByOne(ReferenceHarness):
    """Tenures are one step too long."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        rule: Any = setup.rule
        if isinstance(rule, Cycle):
            steps = rule.steps if isinstance(rule.steps, tuple) else (rule.steps,) * len(setup.names)
            rule = Cycle(tuple(count + 1 for count in steps))
        elif hasattr(rule, "min_steps"):
            rule = replace(rule, min_steps=rule.min_steps + 1)
        self.alternator = Alternator(setup.names, rule=rule)


class LagOffByOne(ReferenceHarness):
    """The newest loss is compared with the one a step further back than it should be."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if isinstance(setup.rule, Plateau):
            rule = replace(setup.rule, window=setup.rule.window + 2)
            self.alternator = Alternator(setup.names, rule=rule)


class SwitchesAtThreshold(ReferenceHarness):
    """A change rate equal to the threshold switches already."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if isinstance(setup.rule, Plateau):
            rule = replace(setup.rule, threshold=float(np.nextafter(setup.rule.threshold, np.inf)))
            self.alternator = Alternator(setup.names, rule=rule)


class CreditsTheActive(ReferenceHarness):
    """A loss that arrives late is credited to whichever module is active by then."""

    def decide(self, reported: dict[str, float], *, updated: bool) -> Decision:
        if self.setup.delay and len(self.pending) == self.setup.delay:
            self.pending[0] = {self.active: next(iter(self.pending[0].values()))}
        return super().decide(reported, updated=updated)


class IgnoresDelay(ReferenceHarness):
    """Losses are read at once, whatever the delay: decisions depend on the device."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, delay=0))


class ReadsInfinityAsZero(ReferenceHarness):
    """A loss that is not finite is read as 0."""

    def decide(self, reported: dict[str, float], *, updated: bool) -> Decision:
        return super().decide(
            {name: value if isfinite(value) else 0.0 for name, value in reported.items()}, updated=updated
        )


class ForgetsToForce(ReferenceHarness):
    """A forced switch goes to the next module, whichever was named."""

    def force(self, name: str) -> None:
        self.alternator.loss_history(name)
        names = self.setup.names
        super().force(names[(names.index(self.active) + 1) % len(names)])


class AlwaysTakesTurns(ReferenceHarness):
    """What should always train trains only with the first turn."""

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        kept = copy.deepcopy((self.mix_N, self.optimizer.get(ALWAYS)))
        first = self.active == self.setup.names[0]
        decision = super().step(batch, losses, updated=updated)
        if self.setup.always and not first:
            self.mix_N, self.optimizer[ALWAYS] = kept[0], kept[1] or {}
        return decision


class TrainsFirstOfTurn(ReferenceHarness):
    """A turn of several modules trains only the first."""

    def update(self, gradients: Gradients, trained: tuple[str, ...]) -> None:
        super().update(gradients, (trained[0], *(name for name in trained if name == ALWAYS)))


class AcceptsAnyName(ReferenceHarness):
    """Losses of unknown names are dropped silently."""

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        if losses is not None:
            losses = {name: value for name, value in losses.items() if name in self.setup.names}
        return super().step(batch, losses, updated=updated)


class OtherError(ReferenceHarness):
    """An unknown name raises an error of another kind."""

    def check_names(self, reported: Mapping[str, float]) -> None:
        if not set(reported) <= set(self.setup.names):
            raise StateError(f"unknown names in {tuple(reported)}")


class UpdatesSkipped(ReferenceHarness):
    """A skipped update is carried out anyway."""

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        if not updated:
            trained = self.setup.trains(self.active)
            self.update(self.clip(self.gradients(batch, trained)), trained)
        return super().step(batch, losses, updated=updated)


class CountsSkipped(ReferenceHarness):
    """A skipped update is reported as one that was made."""

    def decide(self, reported: dict[str, float], *, updated: bool) -> Decision:
        return super().decide(reported, updated=True)


class TracesEveryStep(ReferenceHarness):
    """Every step is traced again."""

    traces = 0

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        self.traces += 1
        return super().step(batch, losses, updated=updated)

    def num_traces(self) -> int | None:
        return self.traces


class ScoresInTrainingMode(ReferenceHarness):
    """Scores are computed in training mode."""

    def scores(self, batch: Batch) -> np.ndarray:
        return np.asarray(self.mix_N @ self.predictions(batch, self.setup.modules))


class CoupledDecay(ReferenceHarness):
    """Weight decay goes through the moments, as in Adam with an L2 penalty."""

    def adamw(self, name: str, gradients: dict[str, np.ndarray], rate: float = LEARNING_RATE) -> None:
        penalised = {key: value + WEIGHT_DECAY * self.value(name, key) for key, value in gradients.items()}
        before = {key: self.value(name, key) for key in gradients}
        super().adamw(name, penalised, rate)
        decayed = rate * 0.99 ** float(self.optimizer[name]["schedule/count"] - 1) * WEIGHT_DECAY
        for key, value in before.items():
            self.add(name, key, decayed * value)


MUTANTS: dict[type[ReferenceHarness], set[str]] = {
    DecaysFrozen: {"frozen_parameters", "continuation", "turns", "always"},
    DriftingMoments: {"frozen_optimizer_state", "continuation"},
    CountsFrozenSteps: {"frozen_optimizer_state", "continuation"},
    AnnealsFrozen: {"frozen_schedule", "continuation"},
    MovesFrozenMeans: {"frozen_buffers", "continuation"},
    MovesBatchMeans: {"frozen_batch_mode"},
    RunningStatistics: {"frozen_batch_mode"},
    ComputesEverything: {"frozen_gradients"},
    ClipsEverything: {"clipping", "continuation"},
    RoundsOffloaded: {"offloaded_state"},
    ForgetsOffloadedCount: {"offloaded_state"},
    CopiesToHost: {"offloaded_state"},
    KeepsDropped: {"dropped_state"},
    DropsActive: {"dropped_state"},
    DropsSchedule: {"dropped_state"},
    ForgetsMoments: {"continuation", "equal_curves"},
    ForgetsSchedule: {"resume"},
    ForgetsOptimizer: {"resume"},
    ForgetsPending: {"resume"},
    KeepsReferences: {"rollback"},
    KeepsWeightsAlone: {"rollback"},
    KeepsNoMeans: {"rollback"},
    RollsBackOnce: {"rollback"},
    OffByOne: {"golden_decisions", "every_rule", "parity", "turns"},
    LagOffByOne: {"golden_decisions", "golden_events", "every_rule"},
    SwitchesAtThreshold: {"golden_decisions"},
    CreditsTheActive: {"late_losses"},
    IgnoresDelay: {"late_losses"},
    ReadsInfinityAsZero: {"golden_events"},
    ForgetsToForce: {"golden_events"},
    AlwaysTakesTurns: {"always"},
    TrainsFirstOfTurn: {"turns"},
    AcceptsAnyName: {"unknown_names"},
    OtherError: {"unknown_names"},
    UpdatesSkipped: {"skipped_updates"},
    CountsSkipped: {"skipped_updates", "golden_events"},
    TracesEveryStep: {"traced_once_per_module"},
    ScoresInTrainingMode: {"equal_scores", "equal_curves"},
    CoupledDecay: {"equal_curves"},
}
"""Per mutant the cases that are there to kill it; others may as well."""

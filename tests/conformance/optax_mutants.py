"""The naive ways to freeze with optax, each of which breaks the contract as its docstring says."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alternator import Decision
from tests.conformance.harness import Unsupported
from tests.conformance.optax_backend import Program, PyTree, StaticHarness
from tests.conformance.problem import ALWAYS, Batch, Setup

Update = tuple[PyTree, PyTree]


class OneAtATime(Program):
    """What the naive ways have in common: they know no turns of several modules, and nothing that always trains."""

    def build(self) -> PyTree:
        if self.setup.turns is not None or self.setup.always or self.setup.frozen_state != "keep":
            raise Unsupported
        return super().build()


class NaiveProgram(OneAtATime):
    """A program whose optimizer is written by hand."""

    def make_optimizer(self) -> optax.GradientTransformationExtraArgs:
        def own(tree: PyTree) -> PyTree:
            return {name: tree[name] for name in self.setup.modules}

        def init(params: PyTree) -> PyTree:
            return self.begin(own(params))

        def update(gradients: PyTree, state: PyTree, params: PyTree, *, active: str) -> Update:
            updates, state = self.update(own(gradients), state, own(params), active)
            return {**updates, ALWAYS: jnp.zeros_like(params[ALWAYS])}, state

        return optax.GradientTransformationExtraArgs(init, update)

    def begin(self, params: PyTree) -> PyTree:
        return self.transform().init(params)

    def update(self, gradients: PyTree, state: PyTree, params: PyTree, active: str) -> Update:
        updates, state = self.transform().update(gradients, state, params)
        return updates, state


class AllGradients(NaiveProgram):
    """Computes the gradients of everything, as a plain `jax.grad` does."""

    def make_gradients(self) -> Any:
        def evaluate(params: PyTree, means: PyTree, batch: Batch, *, active: str) -> Any:
            loss = partial(self.loss, self.setup.trains(active))
            return jax.value_and_grad(loss, has_aux=True)(params, means, batch)

        return evaluate


def only(active: str, tree: PyTree) -> PyTree:
    """The tree with zeros for all but one module."""
    return {name: part if name == active else jax.tree.map(jnp.zeros_like, part) for name, part in tree.items()}


class GatedGradients(NaiveProgram):
    """Gradients of zero for what is frozen, and one AdamW over all: moments, counts and weight decay continue."""


class FreezeThenAdamw(AllGradients):
    """chain(freeze, adamw): gradients are computed, then masked to zero, and AdamW steps and decays anyway."""

    def update(self, gradients: PyTree, state: PyTree, params: PyTree, active: str) -> Update:
        return super().update(only(active, gradients), state, params, active)


class AdamwThenFreeze(AllGradients):
    """chain(adamw, freeze): updates are masked to zero last, so moments and counts continue."""

    def update(self, gradients: PyTree, state: PyTree, params: PyTree, active: str) -> Update:
        updates, state = super().update(gradients, state, params, active)
        return only(active, updates), state


class MaskedPassesThrough(AllGradients):
    """optax.masked(adamw, active): what is masked out is passed on, and raw gradients are added to frozen weights."""

    def masked(self, name: str, params: PyTree) -> optax.GradientTransformation:
        mask = {part: jax.tree.map(lambda _, m=part == name: m, tree) for part, tree in params.items()}
        return optax.masked(self.transform(), mask)

    def begin(self, params: PyTree) -> PyTree:
        return {name: self.masked(name, params).init(params) for name in params}

    def update(self, gradients: PyTree, state: PyTree, params: PyTree, active: str) -> Update:
        updates, own = self.masked(active, params).update(gradients, state[active], params)
        return updates, {**state, active: own}


class ZeroLearningRate(AllGradients):
    """A learning rate of 0 for what is frozen: every AdamW is stepped, so moments and counts continue."""

    def begin(self, params: PyTree) -> PyTree:
        return {name: self.transform().init({name: part}) for name, part in params.items()}

    def update(self, gradients: PyTree, state: PyTree, params: PyTree, active: str) -> Update:
        updates, states = {}, {}
        for name in params:
            moved, states[name] = self.transform().update({name: gradients[name]}, state[name], {name: params[name]})
            updates[name] = jax.tree.map(lambda u, rate=float(name == active): rate * u, moved[name])
        return updates, states


class ClipsEverything(OneAtATime):
    """chain(clip_by_global_norm, alternating) on the gradients of everything: frozen ones count in the norm."""

    make_gradients = AllGradients.make_gradients

    def clip(self) -> optax.GradientTransformation:
        return optax.identity()

    def train(self, training: PyTree, batch: Batch, active: Any) -> Any:
        compute, limit = self.gradients, self.setup.clip_norm

        def clipped(*args: Any, **kwargs: Any) -> Any:
            value, gradients = compute(*args, **kwargs)
            norm = optax.tree.norm({name: gradients[name] for name in self.setup.modules})
            scale = 1.0 if limit is None else jnp.minimum(1.0, limit / norm)
            return value, jax.tree.map(lambda g: scale * g, gradients)

        self.gradients = clipped
        result = super().train(training, batch, active)
        self.gradients = compute
        return result


class TrainingMode(OneAtATime):
    """Freezes parameters and optimizer state alone: frozen modules stay in training mode, and their statistics move."""

    def loss(self, trained: tuple[str, ...], params: PyTree, means: PyTree, batch: Batch) -> Any:
        return super().loss((*self.setup.modules, *trained) if trained else (), params, means, batch)


class RunningStatistics(OneAtATime):
    """Frozen modules run in inference mode, whatever was chosen."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, frozen_mode="inference"))


class SetToZero(StaticHarness):
    """partition({active: adamw, frozen: set_to_zero}) built again at each switch: moments and counts are forgotten."""

    program_type = OneAtATime

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        decision = super().step(batch, losses, updated=updated)
        if decision.switched:
            params, _, means = self.training
            self.training = (params, self.program.optimizer.init(params), means)
        return decision


class NothingLeaves(StaticHarness):
    """What is to be offloaded, or dropped, stays on the device."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(replace(setup, frozen_state="keep"))


class DropsActive(StaticHarness):
    """A switch drops every state, also that of a module that trains in both turns."""

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        decision = super().step(batch, losses, updated=updated)
        if decision.switched and self.setup.frozen_state == "drop" and self.program.states is not None:
            params, _, means = self.training
            self.training = (params, self.program.states.init(params, self.active), means)
        return decision


class KeepsParametersAlone(StaticHarness):
    """A snapshot of the parameters alone: moments, counts and statistics stay as the trial left them."""

    def rollback(self, kept: Any) -> None:
        self.training = (jax.tree.map(jnp.copy, kept[0]), *self.training[1:])


def harness_of(kind: type[Program]) -> type[StaticHarness]:
    return type(kind.__name__, (StaticHarness,), {"program_type": kind, "__doc__": kind.__doc__})


_FROZEN = {"frozen_optimizer_state", "frozen_schedule", "continuation"}

MUTANTS: dict[type[StaticHarness], set[str]] = {
    harness_of(GatedGradients): {"frozen_parameters", *_FROZEN},
    harness_of(FreezeThenAdamw): {"frozen_parameters", "frozen_gradients", *_FROZEN},
    harness_of(AdamwThenFreeze): {"frozen_gradients", *_FROZEN},
    harness_of(MaskedPassesThrough): {"frozen_parameters", "frozen_gradients", "continuation"},
    harness_of(ZeroLearningRate): {"frozen_gradients", *_FROZEN},
    harness_of(ClipsEverything): {"frozen_gradients", "clipping", "continuation"},
    harness_of(TrainingMode): {"frozen_buffers", "frozen_batch_mode", "continuation"},
    harness_of(RunningStatistics): {"frozen_batch_mode"},
    SetToZero: {"continuation", "equal_curves"},
    NothingLeaves: {"offloaded_state", "dropped_state"},
    DropsActive: {"dropped_state"},
    KeepsParametersAlone: {"rollback"},
}
"""Per mutant the cases that are there to kill it; others may as well."""

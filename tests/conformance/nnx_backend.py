"""The JAX backend with Flax: the problem under `adapters.nnx`, as pure functions of the split state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from adapters.nnx import AlternatingOptimizer
from adapters.optax import Away
from tests.conformance.harness import Snapshot
from tests.conformance.optax_backend import Program, PyTree, StaticHarness, any_nonzero, holders, optimizer_arrays
from tests.conformance.problem import ALWAYS, MOMENTUM, Batch, Setup, initial_weights


class Tower(nnx.Module):
    """One module of the problem."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weight = nnx.Param(jnp.asarray(weights["weight"]))
        self.bias = nnx.Param(jnp.asarray(weights["bias"]))
        self.mean = nnx.BatchStat(jnp.asarray(weights["mean"]))
        self.use_running_average = False

    def __call__(self, inputs_BD: jax.Array) -> jax.Array:
        mean_D = self.mean[...]
        if not self.use_running_average:
            self.mean[...] = (1 - MOMENTUM) * mean_D + MOMENTUM * inputs_BD.mean(0)
            mean_D = inputs_BD.mean(0)
        return (inputs_BD - mean_D) @ self.weight[...] + self.bias[...]


class Model(nnx.Module):
    """All towers and the mix."""

    def __init__(self, setup: Setup) -> None:
        for name, weights in initial_weights(setup).items():
            setattr(self, name, Tower(weights))
        self.mix = (nnx.Param if setup.always else nnx.BatchStat)(jnp.ones(len(setup.modules)))

    def evaluate(self, setup: Setup, batch: Batch) -> tuple[jax.Array, Any]:
        """What is minimised; each module's own loss, and the scores."""
        predictions_NB = jnp.stack(
            [getattr(self, name)(x_BD) for name, x_BD in zip(setup.modules, batch.inputs_NBD, strict=True)]
        )
        own_N = jnp.mean((predictions_NB - batch.targets_B) ** 2, 1)
        scores_B = self.mix[...] @ predictions_NB
        total = jnp.mean((scores_B - batch.targets_B) ** 2) if setup.coupled else own_N.sum()
        return total, (own_N, scores_B)


class NnxProgram(Program):
    """What is compiled for a setup: functions of the split state of the model and its optimizer."""

    def build(self) -> PyTree:
        model = Model(self.setup)
        transforms = {name: self.transform() for name in self.setup.modules}
        always = ("mix", self.transform()) if self.setup.always else None
        options = {"turns": self.setup.turns, "frozen_mode": self.setup.frozen_mode}
        optimizer = AlternatingOptimizer(
            model, transforms, always=always, frozen_state=self.setup.frozen_state, **options
        )
        self.states = optimizer.frozen_states
        self.optimizer = optimizer.tx
        self.params = nnx.state(model, nnx.Param)
        self.graphdef, initial = nnx.split((model, optimizer))
        return initial

    def enter(self, training: PyTree, active: str) -> PyTree:
        if self.states is None:
            return training
        model, optimizer = nnx.merge(self.graphdef, training)
        optimizer.enter(model, active)
        self.graphdef, entered = nnx.split((model, optimizer))
        return entered

    def held(self, training: PyTree) -> set[str]:
        _, optimizer = nnx.merge(self.graphdef, training)
        return holders(optimizer.opt_state)

    def first_arrays(self, name: str) -> dict[str, Any]:
        first = jax.tree.map(value_of, self.optimizer.init(self.params).inner_states[name], is_leaf=is_variable)
        return optimizer_arrays(first, self.attribute(name))

    def train(self, training: PyTree, batch: Batch, active: Any) -> tuple[PyTree, jax.Array, dict[str, jax.Array]]:
        model, optimizer = nnx.merge(self.graphdef, training)
        gradients = optimizer.value_and_grad(Model.evaluate, has_aux=True)
        (_, (own_N, _)), grads = gradients(model, self.setup, batch, active=active)
        optimizer.update(model, grads, active=active)
        computed = {name: any_nonzero(grads[self.attribute(name)]) for name in self.setup.groups}
        return nnx.state((model, optimizer)), own_N, computed

    def evaluate(self, training: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        model, _ = nnx.merge(self.graphdef, training)
        model.eval()
        own_N, scores_B = model.evaluate(self.setup, batch)[1]
        return own_N, scores_B

    def snapshot(self, training: PyTree) -> Snapshot:
        model, optimizer = nnx.merge(self.graphdef, training)
        whole = optimizer.opt_state if self.states is None else self.states.whole(optimizer.opt_state)
        state = jax.tree.map(value_of, whole, is_leaf=is_variable)
        found: Snapshot = {}
        for name in self.setup.groups:
            part = getattr(model, self.attribute(name))
            own = {"mix": part[...]} if name == ALWAYS else {key: getattr(part, key)[...] for key in ("weight", "bias")}
            taken = self.arrays_of(state.inner_states[name], name)
            taken |= {f"parameters/{key}": value for key, value in own.items()}
            if name != ALWAYS:
                taken["buffers/mean"] = part.mean[...]
            found[name] = {key: np.array(value) for key, value in taken.items()}
        return found

    def arrays_of(self, own: PyTree, name: str) -> dict[str, Any]:
        if not isinstance(own, Away):
            return optimizer_arrays(own, self.attribute(name))
        return self.first_arrays(name) | optimizer_arrays(own.schedules, self.attribute(name))

    @staticmethod
    def attribute(name: str) -> str:
        return "mix" if name == ALWAYS else name


def is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def value_of(node: Any) -> Any:
    return next(iter(jax.tree.leaves(node)), None) if is_variable(node) else node


class NnxHarness(StaticHarness):
    """`active` static, one compilation per turn; the core decides on the host. See `harness.Harness`."""

    program_type = NnxProgram
    program: NnxProgram

    def take(self) -> Any:
        model, optimizer = nnx.merge(self.program.graphdef, self.training)
        return optimizer.snapshot(model)

    def rollback(self, kept: Any) -> None:
        model, optimizer = nnx.merge(self.program.graphdef, self.training)
        optimizer.rollback(model, kept)
        self.training = nnx.state((model, optimizer))

"""The JAX backend without Flax: the problem under `adapters.optax` and `adapters.jax`, `active` static or traced."""

import re
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adapters.jax import DeviceAlternator, HostAlternator
from adapters.optax import (
    FROZEN,
    AlternatingState,
    Away,
    FrozenStates,
    active_value_and_grad,
    alternating,
    apply_updates,
)
from alternator import Alternator, Decision, Rule
from tests.conformance.harness import Snapshot
from tests.conformance.problem import (
    ALWAYS,
    BETAS,
    DECAY,
    EPSILON,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Batch,
    Setup,
    initial_weights,
)

PyTree = Any


class Program:
    """What is compiled for a setup, apart from the rule; runs of the same setup share it.

    Legend: `training` is the pytree of all that training changes.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.traces: list[Any] = []
        self.states: FrozenStates | None = None
        self.initial = self.build()
        self.train_static = jax.jit(self.count, static_argnames="active")
        self.train_traced = jax.jit(self.count)
        self.infer = jax.jit(self.evaluate)

    def build(self) -> PyTree:
        """Make what the functions need; the initial `training`."""
        self.labels = {**{name: name for name in self.setup.modules}, ALWAYS: ALWAYS if self.setup.always else FROZEN}
        self.optimizer = self.make_optimizer()
        self.gradients = self.make_gradients()
        weights = initial_weights(self.setup)
        params: PyTree = {
            name: {key: jnp.asarray(module[key]) for key in ("weight", "bias")} for name, module in weights.items()
        }
        params[ALWAYS] = jnp.ones(len(self.setup.modules))
        means = {name: jnp.asarray(module["mean"]) for name, module in weights.items()}
        if self.states is not None:
            return params, self.states.init(params, self.setup.names[0]), means
        return params, self.optimizer.init(params), means

    def enter(self, training: PyTree, active: str) -> PyTree:
        """After a switch: the states of what is frozen leave."""
        if self.states is None:
            return training
        params, state, means = training
        return params, self.states.enter(state, params, active), means

    def make_optimizer(self) -> optax.GradientTransformationExtraArgs:
        transforms = {name: self.transform() for name in self.setup.modules}
        always = self.transform() if self.setup.always else None
        options = {"turns": self.setup.turns, "always": always}
        if self.setup.frozen_state == "keep":
            return alternating(transforms, self.labels, **options)
        choice = self.setup.frozen_state
        self.states = FrozenStates(transforms, self.labels, frozen_state=choice, donate=False, **options)
        return self.states.optimizer

    def make_gradients(self) -> Any:
        losses = {name: partial(self.loss, self.setup.trains(name)) for name in self.setup.names}
        return active_value_and_grad(losses, self.labels, self.setup.modules, turns=self.setup.turns, has_aux=True)

    def transform(self) -> optax.GradientTransformation:
        adamw = optax.adamw(self.rate(), *BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
        return adamw if self.setup.clip_norm is None else optax.chain(self.clip(), adamw)

    def rate(self) -> Any:
        return optax.exponential_decay(LEARNING_RATE, 1, DECAY)

    def clip(self) -> optax.GradientTransformation:
        return optax.clip_by_global_norm(self.setup.clip_norm)

    def loss(self, trained: tuple[str, ...], params: PyTree, means: PyTree, batch: Batch) -> tuple[jax.Array, Any]:
        """What is minimised; each module's own loss, the new means, and the scores."""
        predictions, new_means = [], {}
        for name, inputs_BD in zip(self.setup.modules, batch.inputs_NBD, strict=True):
            mean_D = jnp.mean(inputs_BD, 0) if name in self.setup.by_batch(trained) else means[name]
            predictions.append((inputs_BD - mean_D) @ params[name]["weight"] + params[name]["bias"])
            moved_D = (1 - MOMENTUM) * means[name] + MOMENTUM * mean_D
            new_means[name] = moved_D if name in trained else means[name]
        predictions_NB = jnp.stack(predictions)
        own_N = jnp.mean((predictions_NB - batch.targets_B) ** 2, 1)
        scores_B = params[ALWAYS] @ predictions_NB
        total = jnp.mean((scores_B - batch.targets_B) ** 2) if self.setup.coupled else own_N.sum()
        return total, (own_N, new_means, scores_B)

    def count(self, training: PyTree, batch: Batch, active: Any) -> Any:
        """Training as it is traced: once for each call of this function."""
        self.traces.append(active)
        return self.train(training, batch, active)

    def train(self, training: PyTree, batch: Batch, active: Any) -> tuple[PyTree, jax.Array, dict[str, jax.Array]]:
        """One step: `training` after it, each module's own loss, and whether it had gradients."""
        params, state, means = training
        (_, (own_N, means, _)), gradients = self.gradients(params, means, batch, active=active)
        updates, state = self.optimizer.update(gradients, state, params, active=active)
        computed = {name: any_nonzero(gradients[name]) for name in params}
        return (apply_updates(params, updates), state, means), own_N, computed

    def evaluate(self, training: PyTree, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Each module's own loss, and the scores, in inference mode."""
        params, _, means = training
        _, (own_N, _, scores_B) = self.loss((), params, means, batch)
        return own_N, scores_B

    def snapshot(self, training: PyTree) -> Snapshot:
        """See `harness.Harness`."""
        params, state, means = training
        state = state if self.states is None else self.states.whole(state)
        found: Snapshot = {}
        for name in self.setup.groups:
            own = state.inner_states[name] if isinstance(state, AlternatingState) else state
            taken = self.arrays_of(own, name) | {
                f"parameters/{index}": leaf for index, leaf in enumerate(jax.tree.leaves(params[name]))
            }
            if name != ALWAYS:
                taken["buffers/mean"] = means[name]
            found[name] = {key: np.array(value) for key, value in taken.items()}
        return found

    def arrays_of(self, own: PyTree, name: str) -> dict[str, Any]:
        """What is known of one group's state; a dropped one is as at first, but for its schedule."""
        if not isinstance(own, Away):
            return optimizer_arrays(own, name)
        return self.first_arrays(name) | optimizer_arrays(own.schedules, name)

    def first_arrays(self, name: str) -> dict[str, Any]:
        params = self.initial[0]
        return optimizer_arrays(self.optimizer.init(params).inner_states[name], name)

    def held(self, training: PyTree) -> set[str]:
        """See `harness.Harness`."""
        return holders(training[1])


def holders(state: PyTree) -> set[str]:
    return {
        name
        for name, own in state.inner_states.items()
        if any(leaf.ndim and leaf.sharding.memory_kind == "device" for leaf in jax.tree.leaves(own))
    }


def any_nonzero(tree: PyTree) -> jax.Array:
    return jnp.stack([(leaf != 0).any() for leaf in jax.tree.leaves(tree)]).any()


def optimizer_arrays(state: PyTree, name: str) -> dict[str, Any]:
    """What an optimizer's state holds for one group: moments and counts."""
    kinds = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    taken: dict[str, Any] = {}
    for number, node in enumerate(jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))):
        if isinstance(node, optax.ScaleByScheduleState):
            taken[f"schedule/{number}/count"] = node.count
        elif isinstance(node, optax.ScaleByAdamState):
            leaves = {
                f"optimizer/{number}/{moment}/{jax.tree_util.keystr(path)}": leaf
                for moment in ("mu", "nu")
                for path, leaf in jax.tree_util.tree_flatten_with_path(getattr(node, moment))[0]
                if re.search(rf"'{name}['.]", jax.tree_util.keystr(path))
            }
            taken |= leaves | ({f"optimizer/{number}/count": node.count} if leaves else {})
    return taken


@cache
def program_of(kind: type[Program], key: tuple[Any, ...]) -> Program:
    modules, turns, always, coupled, clip_norm, frozen_mode, frozen_state = key
    named = None if turns is None else dict(turns)
    options = {"always": always, "coupled": coupled, "clip_norm": clip_norm, "frozen_mode": frozen_mode}
    options["frozen_state"] = frozen_state
    return kind(Setup(modules=modules, turns=named, **options))


class JaxHarness:
    """What the harnesses of JAX share."""

    program_type: type[Program] = Program

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        turns = None if setup.turns is None else tuple(setup.turns.items())
        key = (setup.modules, turns, setup.always, setup.coupled, setup.clip_norm, setup.frozen_mode)
        make = program_of if setup.frozen_state == "keep" else program_of.__wrapped__  # states are those of one run
        self.program = make(self.program_type, (*key, setup.frozen_state))
        self.training = self.program.initial
        self.seen: set[str] = set()

    def losses_to_report(self, own_N: jax.Array) -> dict[str, jax.Array]:
        own = dict(zip(self.setup.modules, own_N, strict=True))
        return {
            name: sum((own[module] for module in self.setup.trains(name) if module != ALWAYS), jnp.zeros(()))
            for name in self.setup.names
        }

    def keep(self, training: PyTree, computed: Mapping[str, jax.Array]) -> None:
        self.training = training
        self.seen = {name for name, seen in computed.items() if seen}

    def snapshot(self) -> Snapshot:
        return self.program.snapshot(self.training)

    def held(self) -> set[str]:
        return self.program.held(self.training)

    def computed(self) -> set[str]:
        return set(self.seen)

    def take(self) -> Any:
        return jax.tree.map(jnp.copy, self.training)

    def rollback(self, kept: Any) -> None:
        self.training = jax.tree.map(jnp.copy, kept)

    def own_losses(self, batch: Batch) -> dict[str, float]:
        own_N, _ = self.program.infer(self.training, batch)
        return dict(zip(self.setup.modules, own_N.tolist(), strict=True))

    def scores(self, batch: Batch) -> np.ndarray:
        return np.array(self.program.infer(self.training, batch)[1])

    def num_traces(self) -> int | None:
        return len(self.program.traces)


class StaticHarness(JaxHarness):
    """`active` static, one compilation per turn; the core decides on the host. See `harness.Harness`."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.schedule = HostAlternator(Alternator(setup.names, rule=setup.rule), delay=setup.delay)

    @property
    def active(self) -> str:
        return self.schedule.active

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        training, own_N, computed = self.training, None, dict[str, jax.Array]()
        if updated:
            training, own_N, computed = self.program.train_static(self.training, batch, active=self.active)
        elif losses is None:
            own_N, _ = self.program.infer(self.training, batch)
        decision = self.schedule.observe(self.losses_to_report(own_N) if losses is None else losses, updated=updated)
        self.keep(self.program.enter(training, self.active), computed)
        return decision

    def force(self, name: str) -> None:
        self.schedule.alternator.force(name)
        self.training = self.program.enter(self.training, self.active)

    def save(self) -> Any:
        return self.training, self.schedule.state_dict()

    def load(self, saved: Any) -> None:
        self.training, schedule = saved
        self.schedule.load_state_dict(schedule)


@cache
def machine_of(names: tuple[str, ...], rule: Rule, delay: int) -> tuple[DeviceAlternator, Any]:
    machine = DeviceAlternator(names, rule, delay=delay)
    return machine, jax.jit(machine.step)


class TracedProgram(Program):
    """A program of its own, so that its traces are counted apart."""


class TracedHarness(JaxHarness):
    """`active` traced, one compilation in all; the machine on the device decides. See `harness.Harness`.

    Where states leave, `active` must be static: such a setup has a `StaticHarness`.
    """

    program_type = TracedProgram

    def __new__(cls, setup: Setup) -> Any:
        return super().__new__(cls) if setup.frozen_state == "keep" else StaticHarness(setup)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.machine, self.machine_step = machine_of(setup.names, setup.rule, setup.delay)
        self.schedule = self.machine.init()

    @property
    def active(self) -> str:
        return self.setup.names[int(self.schedule.active)]

    def step(self, batch: Batch, losses: Mapping[str, float] | None = None, *, updated: bool = True) -> Decision:
        training, own_N, computed = self.training, None, dict[str, jax.Array]()
        if updated:
            training, own_N, computed = self.program.train_traced(self.training, batch, active=self.schedule.active)
        elif losses is None:
            own_N, _ = self.program.infer(self.training, batch)
        reported = self.losses_to_report(own_N) if losses is None else losses
        self.schedule, decision = self.machine_step(self.schedule, reported, updated)
        self.keep(training, computed)
        return self.machine.decisions(decision)[0]

    def force(self, name: str) -> None:
        self.schedule = self.machine.force(self.schedule, name)

    def save(self) -> Any:
        return self.training, self.machine.state_dict(self.schedule)

    def load(self, saved: Any) -> None:
        self.training, schedule = saved
        self.schedule = self.machine.load_state_dict(schedule)

"""The parts of `gpu.py` in JAX."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gpu_measures import KINDS, Context, add_times, count_changed, times_of
from gpu_results import Record, Skipped
from random_data import STEPS, RandomData, Step
from rates import jax_rates

from adapters.contract import FrozenState
from adapters.optax import FrozenStates
from alternator import Cycle
from ur4rec.schedule.stages import MODULES

JOINT = {turn: Step(stage="joint_finetune", turn=turn) for turn in MODULES}


def device_of(context: Context) -> str:
    """The name of the device in JAX.

    Raises:
        Skipped: JAX sees none.
    """
    if context.is_accelerator and all(device.platform == "cpu" for device in jax.devices()):
        raise Skipped(f"JAX sees no accelerator, only {jax.devices()}")
    return "gpu" if context.is_accelerator else "cpu"


# --- the freeze contract ----------------------------------------------------------------------------------------------


def contract(context: Context, record: Record) -> None:
    """What is frozen keeps its bits; states that are offloaded come back to the bit; scores are those of the CPU."""
    data = RandomData(next(iter(context.shapes.values())), device_of(context))
    kinds = {"": {}} if context.quick else KINDS  # a look compiles less
    pairs = (MODULES,) if context.quick else (MODULES, MODULES[::-1])
    for kind, settings in kinds.items():
        for frozen, active in pairs:
            trainer = data.trainer("jax", JOINT[frozen], **settings)
            for batch in data.batches(3):  # so that it has moments
                trainer.train_step(batch)
            trainer.flush()
            trainer.alternator.force(active)
            before = module_bits(trainer, frozen)
            for batch in data.batches(context.steps):
                trainer.train_step(batch)
            changed = count_changed(before, module_bits(trainer, frozen))
            name = f"arrays of the frozen {frozen} and its moments that changed{kind}"
            record.figure(name, changed, bar=0, detail=f"of {len(before)}, in {context.steps} steps of the {active}")
    blocks(context, record)
    scores = [data.trainer("jax", STEPS[-1], device=device).score(data.histories_BL) for device in (data.device, "cpu")]
    distance = float(np.abs(scores[0] - scores[1]).max() / np.abs(scores[1]).max())
    record.figure("scores, largest difference from the CPU's by the largest", distance, bar=1e-4, detail="float32")


def module_bits(trainer: Any, name: str) -> list[bytes]:
    """Weights and moments of a module."""
    trainer.flush()
    return bits((trainer._state.params[name], trainer._state.optimizers.inner_states[name]))


def bits(tree: Any) -> list[bytes]:
    """The bytes of all arrays."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


class Blocks:
    """Blocks in a row that train in turns, with one choice of what becomes of frozen states.

    Args:
        context: Where.
        choice: ``keep``, ``offload`` or ``drop``.
    """

    def __init__(self, context: Context, choice: FrozenState) -> None:
        width, count = (16, 3) if context.quick else (2048, 6)
        self.names = [f"block{number}" for number in range(count)]
        keys = jax.random.split(jax.random.key(0), count)
        self.params = {
            name: jax.random.normal(key, (width, width)) / width**0.5
            for name, key in zip(self.names, keys, strict=True)
        }
        self.x_BD = jax.random.normal(jax.random.key(1), (64, width))
        labels = {name: name for name in self.names}
        self.states = FrozenStates({name: optax.adam(1e-2) for name in self.names}, labels, frozen_state=choice)
        self.state = self.states.init(self.params, self.names[0])
        self._step = jax.jit(self._pure, static_argnames="active")
        self.most = 0

    def _pure(self, params: Any, state: Any, x_BD: jax.Array, active: str) -> tuple[Any, Any]:
        def loss(params: Any) -> jax.Array:
            hidden_BD = x_BD
            for name in self.names:
                hidden_BD = jnp.tanh(hidden_BD @ params[name])
            return ((hidden_BD - 1) ** 2).mean()

        updates, state = self.states.optimizer.update(jax.grad(loss)(params), state, params, active=active)
        return optax.apply_updates(params, updates), state

    def train(self, num_steps: int) -> None:
        """Steps, with a switch after every second."""
        for index in range(num_steps):
            active = self.names[index // 2 % len(self.names)]
            self.state = self.states.enter(self.state, self.params, active)
            self.params, self.state = self._step(self.params, self.state, self.x_BD, active=active)
            held = jax.tree.leaves(self.state.inner_states)
            self.most = max(self.most, sum(leaf.nbytes for leaf in held))


def blocks(context: Context, record: Record) -> None:
    """Offloaded states against kept ones, to the bit and in bytes, and where they are."""
    runs = {choice: Blocks(context, choice) for choice in ("keep", "offload", "drop")}
    steps = 2 * 2 * len(runs["keep"].names) + 1
    for run in runs.values():
        run.train(steps)
    kept, moved = ((run.params, run.states.whole(run.state).inner_states) for run in (runs["keep"], runs["offload"]))
    differ = count_changed(bits(kept), bits(moved))
    record.figure(f"arrays that offloading changed in {steps} steps", differ, bar=0, detail=f"of {len(bits(kept))}")
    away = [leaf for leaf in jax.tree.leaves(runs["offload"].states._on_host) if leaf.ndim]  # counts stay
    record.figure("arrays that are away while frozen", len(away), bar=1, at_least=True)
    elsewhere = sum(leaf.sharding.memory_kind != "pinned_host" for leaf in away)
    record.figure("arrays away that are not in pinned memory", elsewhere, bar=0, detail=f"of {len(away)}")
    for choice in ("offload", "drop"):
        part = runs[choice].most / runs["keep"].most
        record.figure(f"moments on the device at most, {choice} by keep", part, bar=0.75, detail="by bytes")


# --- waits of the host ------------------------------------------------------------------------------------------------


def waits(context: Context, record: Record) -> None:
    """No step transfers what nobody asked for, which would make the host wait; any turn, and across switches.

    Raises:
        Skipped: There is no accelerator, nor a second CPU device: the first takes NumPy's arrays as they are.
    """
    device = device_of(context)
    if device == "cpu":
        device = "cpu:1"
        if len(jax.devices()) == 1:
            raise Skipped("a look needs two devices: XLA_FLAGS=--xla_force_host_platform_device_count=2")
    data = RandomData(next(iter(context.shapes.values())), device)
    kinds = {"": {}} if context.quick else KINDS
    for kind, settings in kinds.items():
        for step in () if context.quick else (STEPS[0], STEPS[-1]):
            add_wait(record, f"{step.name}{kind}", data.trainer("jax", step, **settings), data)
        trainer = data.trainer("jax", STEPS[-1], rule=Cycle(2), **settings)
        trainer.set_training_stage("joint_finetune")
        add_wait(record, f"joint_finetune by a rule that switches{kind}", trainer, data)


def add_wait(record: Record, name: str, trainer: Any, data: RandomData) -> None:
    """Whether a step transfers, after some to compile."""
    trainer._loss_at_hand = False
    batches = data.batches(6)
    for batch in batches:
        trainer.train_step(batch)
    found = ""
    try:
        with jax.transfer_guard("disallow"):
            for batch in batches:
                trainer.train_step(batch)
    except jax.errors.JaxRuntimeError as error:
        if "Disallowed" not in str(error):
            raise
        found = str(error).splitlines()[0]
    record.figure(f"transfers that nobody asked for, {name}", bool(found), bar=0, detail=found or "in 6 steps")


# --- time against the roofline ----------------------------------------------------------------------------------------


def roofline(context: Context, record: Record) -> None:
    """Steps against what the device can do, in float32 and bfloat16."""
    from gpu_torch import add_part, add_rates

    device = device_of(context)
    rates = jax_rates(context.kind, rounds=context.rounds)
    add_rates(record, rates, jax_rates(context.kind, rounds=context.rounds, dtype="bfloat16"))
    steps = STEPS[:1] if context.quick else STEPS
    for name, shape in context.shapes.items():
        data = RandomData(shape, device)
        batches = data.batches(context.steps)
        for step in steps:
            for kind, settings in (("", {}), (", bf16", {"bf16": True})):
                started = time.perf_counter()
                trainer = data.trainer("jax", step, **settings)
                trainer.train_step(batches[0])
                trainer.flush()
                first = time.perf_counter() - started
                times = times_of(context, data, trainer, partial(finish, trainer))
                full = f"{name}, {step.name}{kind}"
                median = add_times(record, full, times, f"compiled in {first:.1f} s")
                if not kind:
                    add_part(record, full, median, data, step, batches, trainer.model.config, rates)
                if context.left < 10:
                    record.fact("left out", "what comes after, for lack of time")
                    return
        statistics = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            record.figure(f"{name}: peak so far", statistics["peak_bytes_in_use"] / 2**20, unit="MiB")


def finish(trainer: Any) -> None:
    """Wait for all that a trainer has begun."""
    trainer.flush()
    jax.block_until_ready(trainer._state)

"""Many steps in one `jax.lax.scan`: the schedule runs on the device, and the host reads its log afterwards.

Shapes: S steps of the epoch, M modules.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adapters.jax import DeviceAlternator, DeviceDecision, DeviceState
from alternator import Decision
from ur4rec.data.batches import Batch
from ur4rec.schedule.stages import MODULES, TURNS, CurriculumWeights
from ur4rec.training.arrays import StepReport
from ur4rec.training.components import COMPONENTS, UNCERTAINTY, loss_name, weight_name
from ur4rec.training.length_groups import LengthGroups
from ur4rec.training.sampling import Sampler
from ur4rec_jax.device import to_inputs
from ur4rec_jax.losses import StepInputs
from ur4rec_jax.precision import compiled
from ur4rec_jax.retriever import Catalogue
from ur4rec_jax.state import TrainState
from ur4rec_jax.step import Step, write
from ur4rec_jax.strategies import BankEntries, MemoryBank

_METRICS = (*map(loss_name, (*COMPONENTS, UNCERTAINTY)), *map(weight_name, COMPONENTS))
"""All that a step may report beside its losses."""


class EpochState(NamedTuple):
    """What a step hands to the next one."""

    train: TrainState
    """Parameters and optimizer state."""
    machine: DeviceState | None
    """The schedule; None where one turn trains throughout."""
    catalogue: Catalogue | None
    """The retriever's, kept while it is frozen; None where no step needs it."""
    is_stale: Array
    """Whether the retriever has trained since."""


class StepInput(NamedTuple):
    """What a step takes from the host; in an epoch each array has a leading axis of S steps."""

    inputs: StepInputs
    """The batch."""
    step: Array
    """The training step of the run."""
    learning_rates: dict[str, Array]
    """Of each part."""
    curriculum: CurriculumWeights | None
    """The curriculum's weights; None if it is off."""


class EpochLog(NamedTuple):
    """What a step hands to the host; from an epoch each array has a leading axis of S steps."""

    total: Array
    """The loss that was minimised."""
    losses_M: Array
    """The raw primary loss of each module; NaN where it was not computed."""
    metrics: dict[str, Array]
    """All that a step may report; NaN where it was not computed."""
    decision: DeviceDecision | None
    """What the schedule decided after the step; None where one turn trains throughout."""


class EpochStep(NamedTuple):
    """A step of a finished epoch, on the host."""

    report: StepReport[Any]
    """Its losses, as numbers."""
    decision: Decision | None
    """What the schedule decided after it; None where one turn trains throughout."""


class EpochResult(NamedTuple):
    """What an epoch leaves."""

    train: TrainState
    """Parameters and optimizer state."""
    catalogue: Catalogue | None
    """The retriever's, if it is still good."""
    steps: list[EpochStep]
    """What the steps did."""
    schedule: dict[str, Any] | None
    """The state of the schedule, for `adapters.jax.HostAlternator.load_state_dict`."""


def stack_inputs(
    batches: Sequence[Batch],
    num_items: int,
    usual_targets: int | None,
    first_step: int,
    rates: Sequence[Mapping[str, float]],
    curricula: Sequence[CurriculumWeights | None],
    *,
    with_users: bool = False,
    sampler: Sampler | None = None,
    num_parts: int = 1,
    groups: LengthGroups | None = None,
) -> StepInput:
    """The inputs of all steps of an epoch; the arguments of one step's are those of `to_inputs`.

    They have one shape: rows are divided by their lengths in all batches or in none.
    """
    options: dict[str, Any] = {"with_users": with_users, "sampler": sampler, "num_parts": num_parts}

    def all_inputs(length: int | None, groups: LengthGroups | None) -> list[StepInputs]:
        return [
            to_inputs(batch, num_items, length, step=step, groups=groups, **options)
            for step, batch in enumerate(batches, start=first_step)
        ]

    inputs = all_inputs(usual_targets, groups)
    if len({len(each.groups) for each in inputs}) > 1:
        inputs = all_inputs(usual_targets, None)
    if len({len(each.targets_N) for each in inputs}) > 1:
        inputs = all_inputs(None, None)
    steps_S: Any = np.arange(first_step, first_step + len(batches), dtype=np.int32)
    rates_S: dict[str, Any] = {name: np.array([each[name] for each in rates], np.float32) for name in rates[0]}
    return StepInput(
        jax.tree.map(lambda *arrays: np.stack(arrays), *inputs),
        steps_S,
        rates_S,
        None if None in curricula else CurriculumWeights(*np.array(curricula, np.float32).T),
    )


class Epoch:
    """An epoch of training steps without the host.

    Args:
        step: The training step.
        schedule: Decides who trains; or the turn that trains throughout.
        project: Gives the retriever's catalogue from parameters and buffers.
        distils: Whether the modules learn from each other.
    """

    def __init__(
        self,
        step: Step,
        schedule: DeviceAlternator | str,
        project: Callable[[Any, Any], Catalogue],
        *,
        distils: bool = False,
    ) -> None:
        self._step = step
        self._distils = distils
        self._machine = None if isinstance(schedule, str) else schedule
        self._turns = (schedule,) if isinstance(schedule, str) else schedule.modules
        self._project = project
        self._run = compiled(self._scan, donate_argnames="state")

    @property
    def keeps_catalogue(self) -> bool:
        """Whether the state needs a catalogue: a turn without the retriever minimises a loss with it."""
        return (
            not self._step.sampled
            and (self._step.fused or self._distils)
            and any("retriever" not in TURNS[turn] for turn in self._turns)
        )

    def run(
        self,
        train: TrainState,
        saved: Mapping[str, Any],
        catalogue: Catalogue | None,
        buffers: Any,
        key: Array,
        inputs_S: StepInput,
    ) -> EpochResult:
        """Train on all steps' inputs, in one call of the device.

        Args:
            train: Parameters and optimizer state; consumed.
            saved: The schedule, from `adapters.jax.HostAlternator.state_dict`.
            catalogue: The retriever's as it is now, if `keeps_catalogue`; consumed.
            buffers: The rest of the model.
            key: The run's; random numbers are a function of it and the step.
            inputs_S: What the steps take.
        """
        machine = self._machine
        begin = (
            None
            if machine is None
            else machine.load_state_dict({**saved["alternator"], "pending_losses": saved["pending_losses"]})
        )
        layout, whole = self._step.layout, (begin, np.bool_(False))
        on_devices = jax.device_put(whole, key.sharding) if layout.mesh is None else layout.place_whole(whole)
        state = EpochState(train, on_devices[0], catalogue, on_devices[1])
        state, log = self._run(state, buffers, key, inputs_S)
        kept = None if state.is_stale else state.catalogue
        if machine is None:
            return EpochResult(state.train, kept, self._steps(log, [None] * len(log.total)), None)
        steps = self._steps(log, machine.decisions(log.decision))
        end = machine.state_dict(state.machine)
        schedule = {**saved, "pending_losses": end.pop("pending_losses"), "alternator": end}
        return EpochResult(state.train, kept, steps, schedule)

    def _steps(self, log: EpochLog, decisions: Sequence[Decision | None]) -> list[EpochStep]:
        steps = []
        metrics = {name: np.asarray(values) for name, values in log.metrics.items()}
        for step, (total, losses_M, decision) in enumerate(
            zip(np.asarray(log.total), np.asarray(log.losses_M), decisions, strict=True)
        ):
            active = self._turns[0] if decision is None else decision.previous
            computed = MODULES if self._step.fused else TURNS[active]
            modules = {name: loss for name, loss in zip(MODULES, losses_M, strict=True) if name in computed}
            of_step = {name: values[step] for name, values in metrics.items() if not np.isnan(values[step])}
            steps.append(EpochStep(StepReport(total, modules, of_step), decision))
        return steps

    def _scan(self, state: EpochState, buffers: Any, key: Array, inputs_S: StepInput) -> tuple[EpochState, EpochLog]:
        return jax.lax.scan(partial(self._one, buffers, key), state, inputs_S)

    def _one(self, buffers: Any, key: Array, state: EpochState, given: StepInput) -> tuple[EpochState, EpochLog]:
        state, log = self._decide(buffers, key, state, given)
        return self._keep(state), self._step.layout.keep(log)

    def _keep(self, state: EpochState) -> EpochState:
        """The state with its arrays where they were."""
        layout, catalogue = self._step.layout, state.catalogue
        if catalogue is not None:
            catalogue = layout.keep(catalogue, layout.catalogue_specs(catalogue))
        kept: EpochState = layout.keep(state._replace(catalogue=None))
        return kept._replace(catalogue=catalogue)

    def _decide(self, buffers: Any, key: Array, state: EpochState, given: StepInput) -> tuple[EpochState, EpochLog]:
        """A step of what the schedule says, and what it says then."""
        before = state.machine
        if self._machine is None or before is None:
            return self._switch(None, buffers, key, state, given)
        active = before.active
        state, log = self._switch(active, buffers, key, state, given)
        observed = log.losses_M if self._step.fused else log.losses_M[active]
        machine, decision = self._machine.step(before, observed, jnp.isfinite(log.total))
        return state._replace(machine=machine), log._replace(decision=decision)

    def _switch(
        self, active: Array | None, buffers: Any, key: Array, state: EpochState, given: StepInput
    ) -> tuple[EpochState, EpochLog]:
        """One step of the active turn; None is the only one.

        The memory bank is no part of what the branches give back: they would copy it.
        """
        train, bank = _part(state.train)
        branches = [partial(self._train, turn, buffers, key, bank) for turn in self._turns]
        given_all = (state._replace(train=train), given)
        state, log, entries = (
            branches[0](*given_all) if active is None else jax.lax.switch(active, branches, *given_all)
        )
        return state._replace(train=write(_join(state.train, bank), entries)), log

    def _train(
        self, turn: str, buffers: Any, key: Array, bank: MemoryBank | None, state: EpochState, given: StepInput
    ) -> tuple[EpochState, EpochLog, BankEntries | None]:
        """One step of a turn; what it reports, without a decision; and what it writes into the memory bank."""
        if self.keeps_catalogue and "retriever" not in TURNS[turn]:
            catalogue = jax.lax.cond(
                state.is_stale, lambda: self._project(state.train.params, buffers), lambda: state.catalogue
            )
            state = state._replace(catalogue=catalogue, is_stale=jnp.array(False))
        frozen = state.catalogue if "retriever" not in TURNS[turn] else None
        train, losses, entries = self._step(
            *(
                _join(state.train, bank),
                buffers,
                frozen,
                given.inputs,
                key,
                given.step,
                given.learning_rates,
                given.curriculum,
            ),
            turn=turn,
            distils=self._distils,
        )
        is_stale = jnp.array(True) if "retriever" in TURNS[turn] else state.is_stale
        losses_M = jnp.stack([losses.modules.get(name, jnp.nan) for name in MODULES])
        metrics = {name: jnp.asarray(losses.metrics.get(name, jnp.nan), jnp.float32) for name in _METRICS}
        written = entries.bank
        if bank is not None and written is None:
            written = BankEntries.none(len(given.inputs.items_BL), bank.keys_Md.shape[1])
        train, _ = _part(train)
        return state._replace(train=train, is_stale=is_stale), EpochLog(losses.total, losses_M, metrics, None), written


def _part(train: TrainState) -> tuple[TrainState, MemoryBank | None]:
    """The state without its memory bank, and the bank."""
    return train._replace(strategies=train.strategies._replace(bank=None)), train.strategies.bank


def _join(train: TrainState, bank: MemoryBank | None) -> TrainState:
    return train._replace(strategies=train.strategies._replace(bank=bank))

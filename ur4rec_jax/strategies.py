"""The strategies: further loss components, and what they keep between steps; see `ur4rec.training.components`.

Shapes: B rows, L positions, N positions with a target (padded), I items, K preference vectors, d width, C components,
M entries of the memory bank.
"""

from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array

from ur4rec.config import TrainerConfig
from ur4rec.schedule.stages import CurriculumWeights
from ur4rec.training import arrays
from ur4rec.training.components import COMPONENTS, DIVERSITY_RIDGE, UNCERTAINTY, loss_name, weight_name
from ur4rec_jax.layers import normalize
from ur4rec_jax.layout import ONE_DEVICE, Layout
from ur4rec_jax.losses import Component, StepInputs, StepLosses, both_scores, mean_over_targets, run_rows
from ur4rec_jax.retriever import Catalogue
from ur4rec_jax.sampled_loss import corrections
from ur4rec_jax.ur4rec import UR4Rec

_EMPTY = -1


LastTargets: TypeAlias = arrays.LastTargets[Array]


def find_last_targets(inputs: StepInputs, num_items: int, layout: Layout = ONE_DEVICE) -> LastTargets:
    """The last target of each row."""

    def find(items_BL: Array, positions_N: Array, targets_N: Array) -> LastTargets:
        num_rows, length = items_BL.shape
        rows_N, is_target_N = positions_N // length, targets_N < num_items
        count_B = jnp.zeros(num_rows, jnp.int32).at[rows_N].add(is_target_N)
        index_B = jnp.maximum(jnp.cumsum(count_B) - 1, 0)
        return LastTargets(index_B, targets_N[index_B], count_B > 0)

    found: LastTargets = layout.per_part(find, inputs.items_BL, inputs.positions_N, inputs.targets_N)
    return found


class MemoryBank(NamedTuple):
    """A FIFO of (item, key) pairs: the projected, normalised text of past targets, as it was when they were targets.

    It belongs to the trainer, starts empty, and is neither read nor written while the retriever is frozen.
    """

    items_M: Array
    """The items; -1 where there is no entry yet."""
    keys_Md: Array
    """Their keys; 0 where there is none."""
    cursor: Array
    """Where the next entry goes."""

    @classmethod
    def empty(cls, size: int, dim: int) -> "MemoryBank":
        """A bank without entries.

        Args:
            size: The number of entries it can hold; then the oldest are overwritten.
            dim: Width of a key.
        """
        return cls(jnp.full(size, _EMPTY, jnp.int32), jnp.zeros((size, dim)), jnp.zeros((), jnp.int32))

    def loss(
        self,
        preferences_NKd: Array,
        keys_Bd: Array,
        last: LastTargets,
        temperature: float,
        layout: Layout = ONE_DEVICE,
    ) -> Array:
        """InfoNCE: what each row wants next, against its target's key and the bank's of other items; a mean over rows.

        Args:
            preferences_NKd: Preference vectors where a target is.
            keys_Bd: Keys of the last targets now.
            last: Of the batch.
            temperature: Cosines are divided by it.
            layout: Where the batch is.
        """
        last_BKd = layout.per_part(lambda values_NKd, index_B: values_NKd[index_B], preferences_NKd, last.index_B)
        queries_Bd = normalize(last_BKd.mean(1))
        positive_B = (queries_Bd * keys_Bd).sum(1).astype(jnp.float32) / temperature
        negative_BM = (queries_Bd @ self.keys_Md.astype(queries_Bd.dtype).T).astype(jnp.float32) / temperature
        is_negative_BM = (self.items_M != last.items_B[:, None]) & (self.items_M != _EMPTY)
        negative_BM = jnp.where(is_negative_BM, negative_BM, -jnp.inf)
        largest_B = jax.lax.stop_gradient(jnp.maximum(positive_B, negative_BM.max(1)))
        total_B = jnp.exp(positive_B - largest_B) + jnp.exp(negative_BM - largest_B[:, None]).sum(1)
        loss_B = jnp.log(total_B) + largest_B - positive_B
        return jnp.where(last.is_real_B, loss_B, 0).sum() / last.is_real_B.sum()

    def write(self, items_B: Array, keys_Bd: Array, is_kept_B: Array) -> "MemoryBank":
        """The bank with the rows that are to be kept, in their order; of more than it holds, the newest.

        Example:
            >>> bank = MemoryBank.empty(3, 1)
            >>> bank = bank.write(jnp.array([5, 6, 7]), jnp.ones((3, 1)), jnp.array([True, False, True]))
            >>> bank.items_M.tolist(), int(bank.cursor)
            ([5, 7, -1], 2)
        """
        size, count_B = len(self.items_M), jnp.cumsum(is_kept_B)
        is_kept_B = is_kept_B & (count_B > count_B[-1] - size)
        places_B = jnp.where(is_kept_B, (self.cursor + count_B - 1) % size, size)  # out of range, so that it is dropped
        return MemoryBank(
            self.items_M.at[places_B].set(items_B, mode="drop"),
            self.keys_Md.at[places_B].set(keys_Bd.astype(self.keys_Md.dtype), mode="drop"),
            ((self.cursor + count_B[-1]) % size).astype(jnp.int32),
        )


def initial_log_variances() -> Array:
    """One log-variance per component, each 0 at first. They belong to the trainer and train in every step."""
    return jnp.zeros(len(COMPONENTS))


def uncertain_total(components: Mapping[str, Component], log_variances_C: Array) -> Array:
    """What is minimised: the sum of exp(−s) · weight · loss + s / 2."""
    present = _present(components, log_variances_C)
    terms = (jnp.exp(-present[name]) * weight * loss + present[name] / 2 for name, (loss, weight) in components.items())
    return reduce(jnp.add, terms)


def uncertainty_metrics(components: Mapping[str, Component], log_variances_C: Array) -> dict[str, Array]:
    """What the epoch reports: the log-variances' own part of the total, and each component's weight."""
    present = _present(components, log_variances_C)
    weights = {
        weight_name(name): jnp.where(weight == 0, jnp.nan, jnp.exp(-present[name]))
        for name, (_, weight) in components.items()
    }
    return {loss_name(UNCERTAINTY): reduce(jnp.add, present.values()) / 2, **weights}


def update_log_variances(
    components: Mapping[str, Component], log_variances_C: Array, is_finite: Array, learning_rate: Array
) -> Array:
    """The log-variances after a step of gradient descent on those of the components present, if the loss is finite."""
    moved_C = log_variances_C
    for name, (loss, weight) in components.items():
        place = COMPONENTS.index(name)
        before = log_variances_C[place]
        gradient = 0.5 - jnp.exp(-before) * weight * loss
        after = jnp.where(is_finite & (weight != 0), before - learning_rate * gradient, before)
        moved_C = moved_C.at[place].set(after)
    return moved_C


def _present(components: Mapping[str, Component], log_variances_C: Array) -> dict[str, Array]:
    """The log-variances of the components; 0 for one that is absent."""
    return {
        name: jnp.where(weight == 0, 0, log_variances_C[COMPONENTS.index(name)])
        for name, (_, weight) in components.items()
    }


def consistency_loss(preferences_NKd: Array, inputs: StepInputs, keys_Id: Array, layout: Layout = ONE_DEVICE) -> Array:
    """Squared distance of what is wanted from what the history is about, a mean over positions.

    Both are means of unit vectors, normalised: of the preference vectors, and of the history's text vectors up to
    there, which are detached.
    """
    keys_Id = jax.lax.stop_gradient(keys_Id).astype(jnp.float32)

    def so_far(items_BL: Array, _: Array | None) -> Array:
        return jnp.cumsum(layout.take(keys_Id, items_BL, mode="clip"), axis=1)

    history_Nd = normalize(run_rows(inputs, so_far, layout))
    wanted_Nd = normalize(preferences_NKd.astype(jnp.float32).mean(1))
    return mean_over_targets(
        jnp.square(wanted_Nd - history_Nd).sum(1), inputs.targets_N < layout.count_items(len(keys_Id))
    )


def diversity_loss(preferences_NKd: Array, is_target_N: Array, layout: Layout = ONE_DEVICE) -> Array:
    """−log det(P Pᵀ + 0.1 I) of the preference vectors, a mean over positions: large where they are alike."""
    vectors_NKd = preferences_NKd.astype(jnp.float32)
    ridge_KK = DIVERSITY_RIDGE * jnp.eye(vectors_NKd.shape[1])
    factor_NKK = layout.per_part(jnp.linalg.cholesky, vectors_NKd @ vectors_NKd.mT + ridge_KK)
    return mean_over_targets(-2 * jnp.log(jnp.diagonal(factor_NKK, axis1=1, axis2=2)).sum(1), is_target_N)


def distillation_loss(
    student_NI: Array, teacher_NI: Array, is_target_N: Array, temperature: float, layout: Layout = ONE_DEVICE
) -> Array:
    """T² · KL(softmax(teacher / T) || softmax(student / T)), a mean over positions; the teacher is detached."""
    student_NI, teacher_NI = layout.without_padding(student_NI), layout.without_padding(teacher_NI)
    student_NI = jax.nn.log_softmax(student_NI / temperature, axis=1)
    teacher_NI = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_NI) / temperature, axis=1)
    divergence_N = (jnp.exp(teacher_NI) * (teacher_NI - student_NI)).sum(1)
    return temperature**2 * mean_over_targets(divergence_N, is_target_N)


class Context(NamedTuple):
    """What a step's components are computed from."""

    model: UR4Rec
    """The model."""
    inputs: StepInputs
    """The batch."""
    modules: tuple[str, ...]
    """What trains."""
    catalogue: Catalogue | None
    """The retriever's, where it is needed."""
    distils: bool
    """Whether the modules learn from each other."""
    weights: CurriculumWeights
    """The weights of the retriever's components."""


class StrategyState(NamedTuple):
    """What the strategies keep between steps."""

    bank: MemoryBank | None
    """The memory bank; None if it is off."""
    log_variances_C: Array | None
    """Of the components; None without uncertainty weighting."""


class BankEntries(NamedTuple):
    """What a step writes into the memory bank: the last target of each row, if it trained the retriever."""

    items_B: Array
    """The targets."""
    keys_Bd: Array
    """Their keys, detached."""
    is_kept_B: Array
    """Which rows are written."""

    @classmethod
    def none(cls, num_rows: int, dim: int) -> "BankEntries":
        """Those of a step that writes nothing."""
        return cls(jnp.zeros(num_rows, jnp.int32), jnp.zeros((num_rows, dim)), jnp.zeros(num_rows, bool))


class Strategies:
    """The strategies as pure functions: `apply` adds to the losses of a step, `finish` follows its update.

    With all of them off, losses pass through untouched.

    Args:
        config: Says which are on.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self._config = config

    def init(self, dim: int) -> StrategyState:
        """What they keep at first.

        Args:
            dim: Width of the preference space.
        """
        config = self._config
        return StrategyState(
            MemoryBank.empty(config.memory_bank_size, dim) if config.use_memory_bank else None,
            initial_log_variances() if config.use_uncertainty_weighting else None,
        )

    def apply(
        self, state: StrategyState, losses: StepLosses, context: Context
    ) -> tuple[StepLosses, BankEntries | None]:
        """Add the components that are on; and what is to be written into the bank after the update, if anything is."""
        last = keys_Bd = entries = None
        if state.bank is not None and "retriever" in context.modules:
            assert context.catalogue is not None
            keys_Id, layout = context.catalogue.keys_Id, context.model.layout
            last = find_last_targets(context.inputs, layout.count_items(len(keys_Id)), layout)
            keys_Bd = layout.take(keys_Id, last.items_B, mode="clip")
            if context.inputs.sample is not None:  # the bank outlives the numbers of a sample
                last = last._replace(items_B=context.inputs.sample.items_J[last.items_B])
            entries = BankEntries(last.items_B, jax.lax.stop_gradient(keys_Bd).astype(jnp.float32), last.is_real_B)
        added = self._components(state, losses, context, last, keys_Bd)
        components = {**losses.components, **added}
        if state.log_variances_C is not None:
            losses = losses._replace(total=uncertain_total(components, state.log_variances_C))
        elif added:
            further = reduce(jnp.add, (weight * loss for loss, weight in added.values()))
            losses = losses._replace(total=losses.total + further)
        return losses._replace(components=components), entries

    def finish(
        self, log_variances_C: Array | None, losses: StepLosses, learning_rate: Array | None
    ) -> tuple[Array | None, dict[str, Array]]:
        """After the update: move the log-variances. They stay if the loss is not finite.

        Args:
            log_variances_C: Before the step; None without uncertainty weighting.
            losses: What `apply` returned.
            learning_rate: Of the log-variances; given if they are.

        Returns:
            The log-variances after the step; and what the epoch reports beside the total and the primary losses, by
            name: NaN of a component that is absent.
        """
        metrics = {
            loss_name(name): jnp.where(weight == 0, jnp.nan, loss)
            for name, (loss, weight) in losses.components.items()
            if name not in losses.modules
        }
        if log_variances_C is not None:
            assert learning_rate is not None
            is_finite = jnp.isfinite(losses.total)
            metrics |= uncertainty_metrics(losses.components, log_variances_C)
            log_variances_C = update_log_variances(losses.components, log_variances_C, is_finite, learning_rate)
        return log_variances_C, metrics

    def _components(
        self,
        state: StrategyState,
        losses: StepLosses,
        context: Context,
        last: LastTargets | None,
        keys_Bd: Array | None,
    ) -> dict[str, Component]:
        """The further components, in their order; one of weight 0 is not computed."""
        found: dict[str, Component | None] = {}
        inputs, weights, preferences_NKd = context.inputs, context.weights, losses.outputs.preferences_NKd
        if "retriever" in context.modules:
            assert preferences_NKd is not None
            assert context.catalogue is not None
            keys_Id = context.catalogue.keys_Id
            layout, temperature = context.model.layout, self._config.memory_bank_temperature
            is_target_N = inputs.targets_N < layout.count_items(len(keys_Id))
            consistency = partial(consistency_loss, preferences_NKd, inputs, keys_Id, layout)
            found["consistency"] = _component(consistency, weights.consistency)
            if last is not None and keys_Bd is not None and state.bank is not None:
                contrastive = partial(state.bank.loss, preferences_NKd, keys_Bd, last, temperature, layout)
                found["contrastive"] = _component(contrastive, weights.contrastive)
            diversity = partial(diversity_loss, preferences_NKd, is_target_N, layout)
            found["diversity"] = _component(diversity, weights.diversity)
        if context.distils:
            found["distillation"] = Component(self._distillation(losses, context), self._config.kd_weight)
        return {name: part for name, part in found.items() if part is not None}

    def _distillation(self, losses: StepLosses, context: Context) -> Array:
        """Each module that trains learns from the other one's scores; a text encoder as the retriever does."""
        assert context.catalogue is not None
        sasrec_NI, retriever_NI = both_scores(context.model, context.inputs, context.catalogue, losses.outputs)
        pairs = {"sasrec": (sasrec_NI, retriever_NI), "retriever": (retriever_NI, sasrec_NI)}
        targets_N, temperature = context.inputs.targets_N, self._config.kd_temperature
        layout = context.model.layout
        is_target_N = targets_N < layout.count_items(len(context.catalogue.keys_Id))
        if (sample := context.inputs.sample) is not None:  # added to the logits over T, so that it counts once
            shift_NS = temperature * corrections(targets_N, sample)
            pairs = {name: (student + shift_NS, teacher + shift_NS) for name, (student, teacher) in pairs.items()}
        students = dict.fromkeys("sasrec" if module == "sasrec" else "retriever" for module in context.modules)
        terms = (distillation_loss(*pairs[student], is_target_N, temperature, layout) for student in students)
        return reduce(jnp.add, terms)


def _component(loss: Callable[[], Array], weight: float | Array) -> Component | None:
    """A component, computed only if its weight is not 0: one that is known when the step is traced, or in the step."""
    if isinstance(weight, float):
        return Component(loss(), weight) if weight else None
    return Component(jax.lax.cond(weight != 0, loss, lambda: jnp.zeros(())), weight)

"""The ideal training step in JAX: one compiled function that runs what the loss needs and trains what is active.

It knows no trainer, adapter, schedule or log. Each loss is the library's own function of arrays.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from overhead_jax import count_flops

import ur4rec_jax
from ur4rec.config import TrainerConfig
from ur4rec.schedule.stages import FULL, WITHOUT_CURRICULUM
from ur4rec_jax.device import to_inputs
from ur4rec_jax.losses import SEQUENCE_LOSSES, StepInputs, softmax_cross_entropy
from ur4rec_jax.precision import compiled
from ur4rec_jax.strategies import MemoryBank, consistency_loss, distillation_loss, diversity_loss, find_last_targets

LEARNING_RATES = {"sasrec": 1e-3, "retriever": 1e-4, "fusion": 1e-2}
"""The trainer's."""
Components = dict[str, tuple[Array, float]]
"""Losses and their weights, by name."""


class JaxByHand:
    """A training step of one kind, by hand.

    Args:
        setting: Model and data, as `overhead_jax.Setting` has them.
        case: Which kind of step.
    """

    def __init__(self, setting: Any, case: Any) -> None:
        model = ur4rec_jax.UR4Rec(setting.split.num_items, setting.texts_IT, **setting.model)
        self._num_items = setting.split.num_items
        self._case = case
        self._config = TrainerConfig(**case.settings)
        self._weights = FULL if self._config.use_curriculum_learning else WITHOUT_CURRICULUM
        self._graphdef, params, buffers = nnx.split(model, nnx.Param, ...)
        params, self._buffers = nnx.to_pure_dict(params), nnx.to_pure_dict(buffers)
        parts = (*case.modules, *(("fusion",) if case.is_fused or len(case.modules) == 2 else ()))
        self.trained = {name: params[name] for name in parts}
        self._frozen = {name: part for name, part in params.items() if name not in parts}
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.multi_transform({name: _adamw(name) for name in parts}, {name: name for name in parts}),
        )
        self._moments = self._optimizer.init(self.trained)
        width = model.config.retriever_output_dim
        self._bank = MemoryBank.empty(self._config.memory_bank_size, width) if self._config.use_memory_bank else None
        self._log_variances: dict[str, Array] = {}
        self._catalogue = None if "retriever" in case.modules else model.retriever.catalogue()
        self._key = jax.random.key(0)
        self._step = compiled(self._pure_step, donate_argnums=(0, 1, 2))
        self._count = 0

    def step(self, batch: Any) -> float:
        """One step; its loss."""
        arguments = self._arguments(batch)
        self.trained, self._moments, self._bank, self._log_variances, total = self._step(*arguments)
        self._count += 1
        return float(total)

    def count(self, batch: Any) -> float:
        """Floating-point operations of a step, by XLA's count."""
        return count_flops(self._step, *self._arguments(batch))

    def _arguments(self, batch: Any) -> tuple[Any, ...]:
        inputs, count = to_inputs(batch, self._num_items), np.int32(self._count)
        state = (self.trained, self._moments, self._bank, self._log_variances)
        return (*state, self._frozen, self._buffers, self._catalogue, inputs, self._key, count)

    def _pure_step(
        self,
        trained: Any,
        moments: Any,
        bank: MemoryBank | None,
        log_variances: dict[str, Array],
        frozen: Any,
        buffers: Any,
        catalogue: Any,
        inputs: StepInputs,
        key: Array,
        count: Array,
    ) -> tuple[Any, Any, MemoryBank | None, dict[str, Array], Array]:
        dropout, negatives = jax.random.split(jax.random.fold_in(key, count))

        def loss(trained: Any) -> tuple[Array, tuple[Components, Any]]:
            rngs = nnx.Rngs(dropout=dropout, negatives=negatives)
            model = nnx.merge(self._graphdef, {**frozen, **trained}, buffers)
            components, entries = self._components(model, inputs, catalogue, bank, rngs)
            return self._total(components, log_variances), (components, entries)

        (total, (components, entries)), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, moments = self._optimizer.update(gradients, moments, trained)
        if entries is not None:
            bank = bank.write(*entries)
        return optax.apply_updates(trained, updates), moments, bank, self._descend(components, log_variances), total

    def _components(
        self, model: Any, inputs: StepInputs, catalogue: Any, bank: MemoryBank | None, rngs: nnx.Rngs
    ) -> tuple[Components, Any]:
        """The losses with their weights, and what the bank is to be given."""
        case, config, found, entries = self._case, self._config, {}, None
        distils = case.is_joint and config.use_knowledge_distillation
        trains_sasrec, trains_retriever = ("sasrec" in case.modules), ("retriever" in case.modules)
        needs_both = case.is_fused or distils
        if trains_sasrec or needs_both:
            hidden_Nd = _at(model.sasrec(inputs.items_BL, rngs if trains_sasrec else None), inputs)
            if needs_both or len(case.modules) == 2 or config.sasrec_loss == "ce":
                sasrec_NI = hidden_Nd @ model.sasrec.item_table().T
        if trains_retriever or needs_both:
            catalogue = model.retriever.catalogue() if trains_retriever else catalogue
            retriever_rngs = rngs if trains_retriever else None
            preferences_NKd = _at(model.retriever(inputs.items_BL, catalogue, retriever_rngs), inputs)
            retriever_NI = model.retriever.score(preferences_NKd, catalogue.keys_Id)
        if case.is_fused:
            found["fused"] = softmax_cross_entropy(model.fusion(sasrec_NI, retriever_NI), inputs.targets_N), 1.0
        else:
            if trains_sasrec and config.sasrec_loss == "ce":
                found["sasrec"] = softmax_cross_entropy(sasrec_NI, inputs.targets_N), 1.0
            elif trains_sasrec:
                rows_NL = inputs.items_BL[inputs.positions_N // inputs.items_BL.shape[1]]
                arguments = (hidden_Nd, model.sasrec.item_table(), inputs.targets_N, rows_NL, config, rngs)
                found["sasrec"] = SEQUENCE_LOSSES[config.sasrec_loss](*arguments), 1.0
            if trains_retriever:
                found["retriever"] = softmax_cross_entropy(retriever_NI, inputs.targets_N), 1.0
            if len(case.modules) == 2:
                scores_NI = model.fusion(*jax.lax.stop_gradient((sasrec_NI, retriever_NI)))
                found["fused"] = softmax_cross_entropy(scores_NI, inputs.targets_N), 1.0
        if trains_retriever:
            added, entries = self._retriever_components(inputs, preferences_NKd, catalogue.keys_Id, bank)
            found |= added
        if distils:
            is_target_N, temperature = inputs.targets_N < self._num_items, config.kd_temperature
            pairs = {"sasrec": (sasrec_NI, retriever_NI), "retriever": (retriever_NI, sasrec_NI)}
            losses = [distillation_loss(*pairs[name], is_target_N, temperature) for name in case.modules]
            found["distillation"] = sum(losses), config.kd_weight
        return found, entries

    def _retriever_components(
        self, inputs: StepInputs, preferences_NKd: Array, keys_Id: Array, bank: MemoryBank | None
    ) -> tuple[Components, Any]:
        """Those of the curriculum and of the memory bank, and what it is to be given."""
        found, entries, weights = {}, None, self._weights
        if weights.consistency:
            found["consistency"] = consistency_loss(preferences_NKd, inputs, keys_Id), weights.consistency
        if bank is not None:
            last = find_last_targets(inputs, self._num_items)
            keys_Bd = keys_Id.at[last.items_B].get(mode="clip")
            loss = bank.loss(preferences_NKd, keys_Bd, last, self._config.memory_bank_temperature)
            found["contrastive"] = loss, weights.contrastive
            entries = last.items_B, jax.lax.stop_gradient(keys_Bd), last.is_real_B
        if weights.diversity:
            is_target_N = inputs.targets_N < self._num_items
            found["diversity"] = diversity_loss(preferences_NKd, is_target_N), weights.diversity
        return found, entries

    def _total(self, components: Components, log_variances: dict[str, Array]) -> Array:
        if not self._config.use_uncertainty_weighting:
            return sum(weight * loss for loss, weight in components.values())
        values = {name: log_variances.get(name, jnp.zeros(())) for name in components}
        return sum(
            jnp.exp(-values[name]) * weight * loss + values[name] / 2 for name, (loss, weight) in components.items()
        )

    def _descend(self, components: Components, log_variances: dict[str, Array]) -> dict[str, Array]:
        """The log-variances after their step, if there are any."""
        if not self._config.use_uncertainty_weighting:
            return {}
        moved = {}
        for name, (loss, weight) in components.items():
            before = log_variances.get(name, jnp.zeros(()))
            moved[name] = before - self._config.uncertainty_lr * (0.5 - jnp.exp(-before) * weight * loss)
        return moved


def _adamw(name: str) -> optax.GradientTransformation:
    return optax.adamw(LEARNING_RATES[name], weight_decay=0.0 if name == "fusion" else 0.01)


def _at(states_BLx: Array, inputs: StepInputs) -> Array:
    """What is said where a target is."""
    return states_BLx.reshape(-1, *states_BLx.shape[2:])[inputs.positions_N]


def count_jax(stepper: Any, batch: Any) -> float:
    """Floating-point operations of a step of a trainer, or of a step by hand, by XLA's count."""
    if isinstance(stepper, JaxByHand):
        return stepper.count(batch)
    steps, is_fused = stepper._functions.compiled_steps, stepper._is_fused
    step, counted = steps[is_fused], []

    def counting(*arguments: Any, **options: Any) -> Any:
        counted.append(count_flops(step, *arguments, **options))
        return step(*arguments, **options)

    steps[is_fused] = counting
    try:
        stepper.train_step(batch)
    finally:
        steps[is_fused] = step
    return counted[0]

"""The JAX backend; see `tests.backends.harness`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.test_util import check_grads
from numpy.typing import ArrayLike, NDArray

import ur4rec_jax
from tests.backends.harness import Arrays, Inputs, Losses
from ur4rec.config import TrainerConfig
from ur4rec.data.batches import Batch
from ur4rec.training.components import COMPONENTS
from ur4rec_jax import catalogue_loss, losses, strategies, uncertainty
from ur4rec_jax.device import to_inputs
from ur4rec_jax.losses import Component, StepInputs
from ur4rec_jax.memory_bank import MemoryBank, find_last_targets
from ur4rec_jax.weights import export_weights, import_weights


class JaxBackend:
    """See `harness.Backend`."""

    name = "jax"
    package = ur4rec_jax
    tolerance = {"rtol": 2e-4, "atol": 5e-6}  # noqa: RUF012
    same_scores = {"rtol": 1e-5, "atol": 1e-5}  # noqa: RUF012

    def part(self, file: str) -> Any:
        return import_module(f"ur4rec_jax.{file}")

    def array(self, values: ArrayLike) -> jax.Array:
        return jnp.asarray(values)

    def call(self, function: Callable[..., Any], *arrays: ArrayLike) -> Any:
        return jax.tree.map(np.asarray, jax.jit(function)(*map(jnp.asarray, arrays)))

    def value_and_gradients(
        self, function: Callable[..., Any], *arrays: NDArray[Any], wide: bool = False
    ) -> tuple[float, list[NDArray[Any]]]:
        by_all = jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(arrays)))))
        value, gradients = by_all(*(jnp.asarray(array, jnp.float32) for array in arrays))
        return float(value), [np.asarray(gradient) for gradient in gradients]

    def check_gradients(self, function: Callable[..., Any], *arrays: NDArray[Any]) -> None:
        check_grads(
            function, tuple(jnp.asarray(a, jnp.float32) for a in arrays), order=1, modes=["rev"], rtol=0.02, atol=0.02
        )

    def inference(self, model: Any) -> Any:
        return model

    def weights(self, module: Any) -> Arrays:
        return export_weights(nnx.to_pure_dict(nnx.state(module)))

    def set_weights(self, module: Any, weights: Mapping[str, ArrayLike]) -> None:
        tree = nnx.to_pure_dict(nnx.state(module))
        nnx.update(module, _replaced(tree, weights))

    def gradients(self, model: Any, function: Callable[[Any], Any]) -> Arrays:
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        compute = jax.jit(jax.grad(lambda params: function(nnx.merge(graphdef, params, rest))))
        gradients = export_weights(nnx.to_pure_dict(compute(params)))
        return {name: gradient for name, gradient in gradients.items() if gradient.any()}

    def set_slices(self, monkeypatch: Any, num_rows: int, num_items: int) -> None:
        monkeypatch.setattr(catalogue_loss, "LEAST_ROWS", 1)
        monkeypatch.setattr(catalogue_loss, "CPU_SLICE", num_rows * num_items)
        monkeypatch.setattr(catalogue_loss, "ACCELERATOR_SLICE", num_rows * num_items)

    def draw_items(self, seed: int, num: int, num_items: int) -> NDArray[np.int64]:
        return np.asarray(jax.random.randint(nnx.Rngs(negatives=seed).negatives(), (num,), 0, num_items))

    def sequence_loss(self, name: str, arrays: Sequence[NDArray[Any]], config: TrainerConfig, seed: int = 0) -> float:
        rngs = nnx.Rngs(negatives=seed)
        return float(losses.SEQUENCE_LOSSES[name](*map(jnp.asarray, arrays), config, rngs))

    def step_losses(self, model: Any, config: TrainerConfig, batch: Batch, modules: tuple[str, ...]) -> Losses:
        found = jax.jit(lambda: _step_losses(model, config, batch, modules)[:2])()
        return Losses(float(found[0]), {name: float(loss) for name, loss in found[1].items()})

    def step_gradients(self, model: Any, config: TrainerConfig, batch: Batch, modules: tuple[str, ...]) -> Arrays:
        return self.gradients(model, lambda model: _step_losses(model, config, batch, modules).total)

    def consistency(
        self, inputs: Inputs, preferences_NKd: NDArray[Any], keys_Id: NDArray[Any]
    ) -> tuple[float, list[NDArray[Any]]]:
        given, preferences = filled_up(inputs, len(keys_Id), preferences_NKd)
        return self.value_and_gradients(
            lambda preferences, keys: strategies.consistency_loss(preferences, given, keys), preferences, keys_Id
        )

    def diversity(self, inputs: Inputs, preferences_NKd: NDArray[Any]) -> float:
        num_items = int(inputs.targets_N.max()) + 1
        given, preferences = filled_up(inputs, num_items, preferences_NKd)
        return float(jax.jit(strategies.diversity_loss)(preferences, given.targets_N < num_items))

    def distillation(
        self, student_NI: NDArray[Any], teacher_NI: NDArray[Any], temperature: float
    ) -> tuple[float, list[NDArray[Any]]]:
        """With one row more, which only fills up."""
        is_target_N = np.arange(len(student_NI) + 1) < len(student_NI)
        value, gradients = self.value_and_gradients(
            lambda student, teacher: strategies.distillation_loss(student, teacher, is_target_N, temperature),
            np.concatenate([student_NI, student_NI[:1]]),
            np.concatenate([teacher_NI, teacher_NI[1:2]]),
        )
        assert not any(gradient[-1].any() for gradient in gradients)
        return value, [gradient[:-1] for gradient in gradients]

    def memory_bank(self, size: int, dim: int, temperature: float) -> "JaxBank":
        return JaxBank(MemoryBank.empty(size, dim), temperature)

    def uncertainty(self) -> "JaxUncertainty":
        return JaxUncertainty()

    def to_inference_mode(self, trainer: Any) -> None:
        """There are no modes."""

    def act_like_an_accelerator(self, trainer: Any) -> None:
        trainer._loss_at_hand = False

    def spoil(self, trainer: Any, monkeypatch: Any, steps: Iterable[int]) -> None:
        train_step, spoiled = trainer.train_step, set(steps)

        def step(batch: Batch) -> Any:
            return train_step(without_targets(batch) if trainer.step in spoiled else batch)

        monkeypatch.setattr(trainer, "train_step", step)

    def forget_catalogue(self, trainer: Any) -> None:
        trainer._kept_catalogue = None

    def watch_catalogue(self, trainer: Any) -> list[int]:
        steps, project = [], trainer._functions.project

        def watched(*arrays: Any) -> Any:
            steps.append(trainer.step)
            return project(*arrays)

        trainer._functions = trainer._functions._replace(project=watched)
        return steps

    def num_scorings(self, targets: Iterable[Any]) -> int:
        return len({batch.items_BL.shape for batch in targets})


class JaxBank:
    """See `harness.Bank`."""

    def __init__(self, bank: MemoryBank, temperature: float) -> None:
        self.bank = bank
        self.temperature = temperature
        self.compiled = jax.jit(self.loss_and_bank)

    @property
    def num_compilations(self) -> int:
        return self.compiled._cache_size()

    def step(self, inputs: Inputs, preferences_NKd: NDArray[Any], keys_Id: NDArray[Any]) -> float:
        loss, self.bank = self.compiled(self.bank, *filled_up(inputs, len(keys_Id), preferences_NKd), keys_Id)
        return float(loss)

    def gradients(
        self, inputs: Inputs, preferences_NKd: NDArray[Any], keys_Id: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        given, preferences = filled_up(inputs, len(keys_Id), preferences_NKd)
        last = find_last_targets(given, len(keys_Id))
        by_preferences, by_keys = jax.jit(jax.grad(self.bank.loss, argnums=(0, 1)))(
            preferences, jnp.asarray(keys_Id), last, self.temperature
        )
        return np.asarray(by_preferences), np.asarray(by_keys)

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any], int]:
        return np.asarray(self.bank.items_M), np.asarray(self.bank.keys_Md), int(self.bank.cursor)

    def loss_and_bank(
        self, bank: MemoryBank, inputs: StepInputs, preferences_NKd: jax.Array, keys_Id: jax.Array
    ) -> tuple[jax.Array, MemoryBank]:
        last = find_last_targets(inputs, len(keys_Id))
        loss = bank.loss(preferences_NKd, keys_Id, last, self.temperature)
        return loss, bank.write(last.items_B, keys_Id.at[last.items_B].get(mode="clip"), last.is_real_B)


class JaxUncertainty:
    """See `harness.Uncertainty`."""

    def __init__(self) -> None:
        self.log_variances_C = uncertainty.initial_log_variances()

    def total(self, components: Mapping[str, tuple[float, float]]) -> float:
        return float(uncertainty.uncertain_total(_components(components), self.log_variances_C))

    def metrics(self, components: Mapping[str, tuple[float, float]]) -> dict[str, float]:
        found = uncertainty.uncertainty_metrics(_components(components), self.log_variances_C)
        return {name: float(value) for name, value in found.items()}

    def update(self, components: Mapping[str, tuple[float, float]], *, is_finite: bool, learning_rate: float) -> None:
        self.log_variances_C = uncertainty.update_log_variances(
            _components(components), self.log_variances_C, jnp.array(is_finite), jnp.float32(learning_rate)
        )

    def log_variances(self) -> dict[str, float]:
        return dict(zip(COMPONENTS, self.log_variances_C.tolist(), strict=True))


def leaves(trainer: Any) -> list[NDArray[Any]]:
    """What training changes, also where a checkpoint is refused because losses were not finite."""
    return [np.copy(leaf) for leaf in jax.tree.leaves(trainer._state)]


def without_targets(batch: Batch) -> Batch:
    """A batch whose loss is 0/0: not a number."""
    padding = batch.targets_BL.max()
    return Batch(np.full_like(batch.items_BL, padding), np.full_like(batch.targets_BL, padding), batch.users_B)


def filled_up(inputs: Inputs, num_items: int, *arrays_N: NDArray[Any]) -> tuple[Any, ...]:
    """The inputs and arrays of a batch filled up to a constant length, as a step takes them; that must not count."""
    missing = inputs.items_BL.size - len(inputs.positions_N)
    positions, targets = (np.pad(array, (0, missing)) for array in inputs[1:3])
    targets[len(inputs.targets_N) :] = num_items
    filled = [np.concatenate([array, np.repeat(array[:1], missing, axis=0)]) for array in arrays_N]
    return StepInputs(*map(jnp.asarray, (inputs.items_BL, positions, targets))), *map(jnp.asarray, filled)


def _components(components: Mapping[str, tuple[float, float]]) -> dict[str, Component]:
    return {name: Component(jnp.float32(loss), weight) for name, (loss, weight) in components.items()}


def _replaced(tree: Any, weights: Mapping[str, ArrayLike]) -> Any:
    """A tree of arrays with some of them replaced."""
    given = {name: np.asarray(values, np.float32) for name, values in weights.items()}
    return import_weights(tree, export_weights(tree) | given)


def _step_losses(model: Any, config: TrainerConfig, batch: Batch, modules: tuple[str, ...]) -> Any:
    inputs, catalogue, rngs = to_inputs(batch, model.config.num_items), model.retriever.catalogue(), nnx.Rngs(0)
    if config.joint_loss == "fused":
        return losses.fused_loss(model, inputs, modules, catalogue, rngs)
    return losses.separate_loss(model, config, inputs, modules, catalogue if "retriever" in modules else None, rngs)

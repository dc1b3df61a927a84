"""The JAX backend; see `tests.backends.harness`."""

from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.test_util import check_grads

import ur4rec_jax
from tests.backends.harness import Losses
from ur4rec.data.batches import Batch
from ur4rec.training.components import COMPONENTS
from ur4rec_jax import catalogue_loss, losses, strategies
from ur4rec_jax.device import to_inputs
from ur4rec_jax.losses import Component, StepInputs
from ur4rec_jax.strategies import MemoryBank, find_last_targets
from ur4rec_jax.weights import export_weights, import_weights


class JaxBackend:
    """See `harness.Backend`."""

    name = "jax"
    package = ur4rec_jax
    tolerance = {"rtol": 2e-4, "atol": 5e-6}  # noqa: RUF012
    same_scores = {"rtol": 1e-5, "atol": 1e-5}  # noqa: RUF012

    def part(self, file):
        return import_module(f"ur4rec_jax.{file}")

    def array(self, values):
        return jnp.asarray(values)

    def call(self, function, *arrays):
        return jax.tree.map(np.asarray, jax.jit(function)(*map(jnp.asarray, arrays)))

    def value_and_gradients(self, function, *arrays, wide=False):
        by_all = jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(arrays)))))
        value, gradients = by_all(*(jnp.asarray(array, jnp.float32) for array in arrays))
        return float(value), [np.asarray(gradient) for gradient in gradients]

    def check_gradients(self, function, *arrays):
        check_grads(
            function, tuple(jnp.asarray(a, jnp.float32) for a in arrays), order=1, modes=["rev"], rtol=0.02, atol=0.02
        )

    def inference(self, model):
        return model

    def weights(self, module):
        return export_weights(nnx.to_pure_dict(nnx.state(module)))

    def set_weights(self, module, weights):
        tree = nnx.to_pure_dict(nnx.state(module))
        nnx.update(module, _replaced(tree, weights))

    def gradients(self, model, function):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        compute = jax.jit(jax.grad(lambda params: function(nnx.merge(graphdef, params, rest))))
        gradients = export_weights(nnx.to_pure_dict(compute(params)))
        return {name: gradient for name, gradient in gradients.items() if gradient.any()}

    def set_slices(self, monkeypatch, num_rows, num_items):
        monkeypatch.setattr(catalogue_loss, "MINIMUM_ROWS", 1)
        monkeypatch.setattr(catalogue_loss, "CPU_SLICE", num_rows * num_items)
        monkeypatch.setattr(catalogue_loss, "ACCELERATOR_SLICE", num_rows * num_items)

    def draw_items(self, seed, num, num_items):
        return np.asarray(jax.random.randint(nnx.Rngs(negatives=seed).negatives(), (num,), 0, num_items))

    def sequence_loss(self, name, arrays, config, seed=0):
        rngs = nnx.Rngs(negatives=seed)
        return float(losses.SEQUENCE_LOSSES[name](*map(jnp.asarray, arrays), config, rngs))

    def step_losses(self, model, config, batch, modules):
        found = jax.jit(lambda: _step_losses(model, config, batch, modules)[:2])()
        return Losses(float(found[0]), {name: float(loss) for name, loss in found[1].items()})

    def step_gradients(self, model, config, batch, modules):
        return self.gradients(model, lambda model: _step_losses(model, config, batch, modules).total)

    def consistency(self, inputs, preferences_NKd, keys_Id):
        given, preferences = filled_up(inputs, len(keys_Id), preferences_NKd)
        return self.value_and_gradients(
            lambda preferences, keys: strategies.consistency_loss(preferences, given, keys), preferences, keys_Id
        )

    def diversity(self, inputs, preferences_NKd):
        num_items = int(inputs.targets_N.max()) + 1
        given, preferences = filled_up(inputs, num_items, preferences_NKd)
        return float(jax.jit(strategies.diversity_loss)(preferences, given.targets_N < num_items))

    def distillation(self, student_NI, teacher_NI, temperature):
        """With one row more, which only fills up."""
        is_target_N = np.arange(len(student_NI) + 1) < len(student_NI)
        value, gradients = self.value_and_gradients(
            lambda student, teacher: strategies.distillation_loss(student, teacher, is_target_N, temperature),
            np.concatenate([student_NI, student_NI[:1]]),
            np.concatenate([teacher_NI, teacher_NI[1:2]]),
        )
        assert not any(gradient[-1].any() for gradient in gradients)
        return value, [gradient[:-1] for gradient in gradients]

    def memory_bank(self, size, dim, temperature):
        return JaxBank(MemoryBank.empty(size, dim), temperature)

    def uncertainty(self):
        return JaxUncertainty()

    def to_inference_mode(self, trainer):
        """There are no modes."""

    def act_like_an_accelerator(self, trainer):
        trainer._loss_at_hand = False

    def spoil(self, trainer, monkeypatch, steps):
        train_step, spoiled = trainer.train_step, set(steps)

        def step(batch):
            return train_step(without_targets(batch) if trainer.step in spoiled else batch)

        monkeypatch.setattr(trainer, "train_step", step)

    def average_all(self, monkeypatch):
        step = import_module("ur4rec_jax.step")
        follow = step.follow
        monkeypatch.setattr(step, "follow", lambda state, active, *rest: follow(state, (*state.params,), *rest))

    def forget_catalogue(self, trainer):
        trainer._kept_catalogue = None

    def watch_catalogue(self, trainer):
        steps, project = [], trainer._functions.project

        def watched(*arrays):
            steps.append(trainer.step)
            return project(*arrays)

        trainer._functions = trainer._functions._replace(project=watched)
        return steps

    def num_scorings(self, targets):
        return len({batch.items_BL.shape for batch in targets})


class JaxBank:
    """See `harness.Bank`."""

    def __init__(self, bank, temperature):
        self.bank = bank
        self.temperature = temperature
        self.compiled = jax.jit(self.loss_and_bank)

    @property
    def num_compilations(self):
        return self.compiled._cache_size()

    def step(self, inputs, preferences_NKd, keys_Id):
        loss, self.bank = self.compiled(self.bank, *filled_up(inputs, len(keys_Id), preferences_NKd), keys_Id)
        return float(loss)

    def gradients(self, inputs, preferences_NKd, keys_Id):
        given, preferences = filled_up(inputs, len(keys_Id), preferences_NKd)
        last = find_last_targets(given, len(keys_Id))

        def loss(preferences_NKd, keys_Id):
            keys_Bd = keys_Id.at[last.items_B].get(mode="clip")
            return self.bank.loss(preferences_NKd, keys_Bd, last, self.temperature)

        by_preferences, by_keys = jax.jit(jax.grad(loss, argnums=(0, 1)))(preferences, jnp.asarray(keys_Id))
        return np.asarray(by_preferences), np.asarray(by_keys)

    def arrays(self):
        return np.asarray(self.bank.items_M), np.asarray(self.bank.keys_Md), int(self.bank.cursor)

    def loss_and_bank(self, bank, inputs, preferences_NKd, keys_Id):
        last = find_last_targets(inputs, len(keys_Id))
        keys_Bd = keys_Id.at[last.items_B].get(mode="clip")
        loss = bank.loss(preferences_NKd, keys_Bd, last, self.temperature)
        return loss, bank.write(last.items_B, keys_Bd, last.is_real_B)


class JaxUncertainty:
    """See `harness.Uncertainty`."""

    def __init__(self):
        self.log_variances_C = strategies.initial_log_variances()

    def total(self, components):
        return float(strategies.uncertain_total(_components(components), self.log_variances_C))

    def metrics(self, components):
        found = strategies.uncertainty_metrics(_components(components), self.log_variances_C)
        return {name: float(value) for name, value in found.items()}

    def update(self, components, *, is_finite, learning_rate):
        self.log_variances_C = strategies.update_log_variances(
            _components(components), self.log_variances_C, jnp.array(is_finite), jnp.float32(learning_rate)
        )

    def log_variances(self):
        return dict(zip(COMPONENTS, self.log_variances_C.tolist(), strict=True))


def leaves(trainer):
    """What training changes, also where a checkpoint is refused because losses were not finite."""
    return [np.copy(leaf) for leaf in jax.tree.leaves(trainer._state)]


def without_targets(batch):
    """A batch whose loss is 0/0: not a number."""
    padding = batch.targets_BL.max()
    return Batch(np.full_like(batch.items_BL, padding), np.full_like(batch.targets_BL, padding), batch.users_B)


def filled_up(inputs, num_items, *arrays_N):
    """The inputs and arrays of a batch filled up to a constant length, as a step takes them; that must not count."""
    missing = inputs.items_BL.size - len(inputs.positions_N)
    positions, targets = (np.pad(array, (0, missing)) for array in inputs[1:3])
    targets[len(inputs.targets_N) :] = num_items
    filled = [np.concatenate([array, np.repeat(array[:1], missing, axis=0)]) for array in arrays_N]
    return StepInputs(*map(jnp.asarray, (inputs.items_BL, positions, targets))), *map(jnp.asarray, filled)


def _components(components):
    return {name: Component(jnp.float32(loss), weight) for name, (loss, weight) in components.items()}


def _replaced(tree, weights):
    """A tree of arrays with some of them replaced."""
    given = {name: np.asarray(values, np.float32) for name, values in weights.items()}
    return import_weights(tree, export_weights(tree) | given)


def _step_losses(model, config, batch, modules):
    inputs, catalogue, rngs = to_inputs(batch, model.config.num_items), model.retriever.catalogue(), nnx.Rngs(0)
    if config.joint_loss == "fused":
        return losses.fused_loss(model, inputs, modules, catalogue, rngs, label_smoothing=config.label_smoothing)
    return losses.separate_loss(model, config, inputs, modules, catalogue if "retriever" in modules else None, rngs)

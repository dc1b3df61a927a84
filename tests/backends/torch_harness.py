"""The PyTorch backend; see `tests.backends.harness`."""

import math
from importlib import import_module

import numpy as np
import torch

import ur4rec_torch
from tests.backends.harness import Losses
from ur4rec.training.components import BANK_CURSOR, BANK_ITEMS, BANK_KEYS
from ur4rec_torch import catalogue_loss, losses, strategies
from ur4rec_torch.averages import Averages
from ur4rec_torch.device import seeded, to_device
from ur4rec_torch.losses import Component, StepInputs
from ur4rec_torch.strategies import MemoryBank, UncertaintyWeights, find_last_targets

CPU = torch.device("cpu")


class TorchBackend:
    """See `harness.Backend`."""

    name = "torch"
    package = ur4rec_torch
    tolerance = {"rtol": 1e-7, "atol": 1e-7}  # noqa: RUF012
    same_scores = {"rtol": 0.0, "atol": 0.0}  # noqa: RUF012

    def part(self, file):
        return import_module(f"ur4rec_torch.{file}")

    def array(self, values):
        return torch.as_tensor(np.asarray(values))

    def call(self, function, *arrays):
        with torch.no_grad():
            return _numpy(function(*map(self.array, arrays)))

    def value_and_gradients(self, function, *arrays, wide=False):
        dtype = torch.float64 if wide else torch.float32
        tensors = [torch.tensor(array, dtype=dtype, requires_grad=True) for array in arrays]
        value = function(*tensors)
        value.backward()
        return value.item(), [_numpy(torch.zeros_like(t) if t.grad is None else t.grad) for t in tensors]

    def check_gradients(self, function, *arrays):
        tensors = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
        assert torch.autograd.gradcheck(function, tensors)

    def inference(self, model):
        return model.eval()

    def weights(self, module):
        return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}

    def set_weights(self, module, weights):
        tensors = {name: torch.tensor(np.asarray(values, np.float32)) for name, values in weights.items()}
        module.load_state_dict(module.state_dict() | tensors)

    def gradients(self, model, function):
        model.zero_grad()
        function(model).backward()
        return {name: _numpy(value.grad) for name, value in model.named_parameters() if value.grad is not None}

    def set_slices(self, monkeypatch, num_rows, num_items):
        monkeypatch.setattr(catalogue_loss, "CPU_SLICE", 1)
        monkeypatch.setattr(catalogue_loss, "MINIMUM_ROWS", num_rows)

    def draw_items(self, seed, num, num_items):
        with seeded(0, seed, CPU):
            return torch.randint(num_items, (num,)).numpy()

    def sequence_loss(self, name, arrays, config, seed=0):
        with seeded(0, seed, CPU):
            return losses.SEQUENCE_LOSSES[name](*map(torch.from_numpy, arrays), config).item()

    def step_losses(self, model, config, batch, modules):
        found = _step_losses(model, config, batch, modules)
        assert not any(loss.requires_grad for loss in found.modules.values())
        return Losses(found.total.item(), {name: loss.item() for name, loss in found.modules.items()})

    def step_gradients(self, model, config, batch, modules):
        return self.gradients(model, lambda model: _step_losses(model, config, batch, modules).total)

    def consistency(self, inputs, preferences_NKd, keys_Id):
        given = _inputs(inputs)
        return self.value_and_gradients(
            lambda preferences, keys: strategies.consistency_loss(preferences, given, keys), preferences_NKd, keys_Id
        )

    def diversity(self, inputs, preferences_NKd):
        return strategies.diversity_loss(torch.from_numpy(preferences_NKd)).item()

    def distillation(self, student_NI, teacher_NI, temperature):
        return self.value_and_gradients(
            lambda student, teacher: strategies.distillation_loss(student, teacher, temperature), student_NI, teacher_NI
        )

    def memory_bank(self, size, dim, temperature):
        return TorchBank(MemoryBank(size, dim, temperature, CPU))

    def uncertainty(self):
        return TorchUncertainty()

    def to_inference_mode(self, trainer):
        trainer.model.eval()

    def act_like_an_accelerator(self, trainer):
        trainer._loss_at_hand = False

    def spoil(self, trainer, monkeypatch, steps):
        module, compute, spoiled = import_module("ur4rec_torch.trainer"), losses.fused_loss, set(steps)

        def fused_loss(*arguments, **options):
            found = compute(*arguments, **options)
            if trainer.step not in spoiled:
                return found
            name, (loss, weight) = next(iter(found.components.items()))
            components = {name: Component(loss * math.nan, weight)}
            return found._replace(total=found.total * math.nan, components=components)

        monkeypatch.setattr(module, "fused_loss", fused_loss)

    def average_all(self, monkeypatch):
        follow = Averages.follow
        monkeypatch.setattr(Averages, "follow", lambda self, parts, is_finite: follow(self, [*self._names], is_finite))

    def forget_catalogue(self, trainer):
        trainer._kept_catalogue = None

    def watch_catalogue(self, trainer):
        steps, compute = [], trainer.model.retriever.catalogue

        def watched(**options):
            if not torch.is_grad_enabled():
                steps.append(trainer.step)
            return compute(**options)

        trainer.model.retriever.catalogue = watched
        return steps

    def num_scorings(self, targets):
        return len(list(targets))


class TorchBank:
    """See `harness.Bank`."""

    num_compilations = None

    def __init__(self, bank):
        self.bank = bank

    def step(self, inputs, preferences_NKd, keys_Id):
        last, keys = find_last_targets(_inputs(inputs)), torch.from_numpy(keys_Id)
        loss = self.bank.loss(torch.from_numpy(preferences_NKd), keys[last.items_B], last)
        self.bank.write(last.items_B, keys[last.items_B], last.is_real_B)
        return loss.item()

    def gradients(self, inputs, preferences_NKd, keys_Id):
        last = find_last_targets(_inputs(inputs))
        preferences, keys = (torch.tensor(array, requires_grad=True) for array in (preferences_NKd, keys_Id))
        self.bank.loss(preferences, keys[last.items_B], last).backward()
        assert not self.bank.state_dict()[BANK_KEYS].requires_grad
        return _numpy(preferences.grad), _numpy(keys.grad)

    def arrays(self):
        state = self.bank.state_dict()
        return state[BANK_ITEMS].numpy(), state[BANK_KEYS].numpy(), state[BANK_CURSOR].item()


class TorchUncertainty:
    """See `harness.Uncertainty`."""

    def __init__(self):
        self.weights = UncertaintyWeights(CPU)

    def total(self, components):
        return self.weights.total(_components(components)).item()

    def metrics(self, components):
        return {name: value.item() for name, value in self.weights.metrics(_components(components)).items()}

    def update(self, components, *, is_finite, learning_rate):
        self.weights.update(_components(components), torch.tensor(is_finite), learning_rate)

    def log_variances(self):
        return {name: value.item() for name, value in self.weights.log_variances.items()}


def _numpy(found):
    if isinstance(found, dict):
        return {name: _numpy(value) for name, value in found.items()}
    if isinstance(found, tuple):
        return tuple(map(_numpy, found))
    return found.detach().numpy().copy()


def _inputs(inputs):
    items_BL, positions_N, targets_N = map(torch.from_numpy, inputs)
    return StepInputs(items_BL, positions_N, targets_N)


def _components(components):
    return {name: Component(torch.tensor(loss), weight) for name, (loss, weight) in components.items()}


def _step_losses(model, config, batch, modules):
    inputs, catalogue = to_device(batch, model.config.num_items, CPU), model.retriever.catalogue()
    if config.joint_loss == "fused":
        return losses.fused_loss(model, inputs, catalogue, label_smoothing=config.label_smoothing)
    return losses.separate_loss(model, config, inputs, modules, catalogue if "retriever" in modules else None)


def applied_rates(trainer):
    """The learning rates of the optimizers."""
    return {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer._optimizers.items()}

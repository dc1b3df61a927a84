"""Writes to what is frozen, whatever the mode: noticed by version counters, refused before the update."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from adapters.torch import AlternatingOptimizer, FreezeError
from alternator import Alternator, ConfigurationError
from tests.conformance.freeze_contract_torch import same_bits


class Base(nn.Module):
    """A layer, and something that each forward pass writes in any mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x_B3):
        self.write(x_B3)
        return self.layer(x_B3)


class Counter(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def write(self, x_B3):
        self.calls += 1


class ReplacedCounter(Counter):
    def write(self, x_B3):
        self.calls = self.calls + 1


class NoGradWeights(Base):
    def write(self, x_B3):
        with torch.no_grad():
            self.layer.weight.mul_(0.9)


class MaxNorm(Base):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 3, max_norm=0.1)

    def write(self, x_B3):
        self.table(torch.arange(4))


class MaxNormBag(MaxNorm):
    def __init__(self):
        super().__init__()
        self.table = nn.EmbeddingBag(4, 3, max_norm=0.1)

    def write(self, x_B3):
        self.table(torch.arange(4)[None])


class Observer(Base):
    def __init__(self):
        super().__init__()
        self.observe = torch.ao.quantization.MovingAverageMinMaxObserver()

    def write(self, x_B3):
        self.observe(x_B3)


class FakeQuantized(Observer):
    def __init__(self):
        super().__init__()
        self.observe = torch.ao.quantization.FakeQuantize()


class SpectralNorm(Base):
    """Its power iteration writes in training mode only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.utils.parametrizations.spectral_norm(self.layer)

    def write(self, x_B3):
        pass


class Cache(Base):
    """What is not saved is a cache: it may be filled at any time."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cached", torch.zeros(1), persistent=False)

    def write(self, x_B3):
        self.cached = self.cached + 1


WRITERS = {
    Counter: "calls",
    ReplacedCounter: "calls",
    NoGradWeights: "layer.weight",
    MaxNorm: "table.weight",
    MaxNormBag: "table.weight",
    Observer: "observe.min_val",
    FakeQuantized: "observe.scale",
}


def build(first=None, **options):
    modules = {"a": nn.Linear(3, 3), "b": first or nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))}
    optimizers = {name: AdamW(module.parameters()) for name, module in modules.items()}
    options = {"frozen_mode": "inference", **options}
    return modules, AlternatingOptimizer(Alternator(tuple(modules)), modules, optimizers, **options)


def loss(modules):
    return modules["b"](modules["a"](torch.ones(4, 3))).square().mean()


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_a_forward_pass_that_writes_what_is_frozen_is_refused(kind):
    modules, alternating = build(kind())
    before = copy.deepcopy(modules["a"].state_dict())
    with pytest.raises(FreezeError, match=rf"must not be written, but 'b.{WRITERS[kind]}'.* only if self.training"):
        alternating.step(loss(modules))
    assert same_bits(modules["a"].state_dict(), before)  # nothing was stepped


@pytest.mark.parametrize("kind", WRITERS)
def test_an_active_module_may_write(kind):
    modules, alternating = build(kind())
    alternating.force("b")
    for _ in range(2):
        alternating.step(loss(modules))


@pytest.mark.parametrize("kind", [SpectralNorm, Cache])
def test_what_writes_nothing_that_is_saved_is_accepted(kind):
    modules, alternating = build(kind())
    before = copy.deepcopy(modules["b"].state_dict())
    for _ in range(2):
        alternating.step(loss(modules))
    assert same_bits(modules["b"].state_dict(), before)


def test_a_write_in_a_step_that_is_skipped_is_refused():
    modules, alternating = build(Counter())
    loss(modules)
    with pytest.raises(FreezeError, match=r"'b.calls'"):
        alternating.skip()


def test_a_write_before_a_switch_is_refused():
    modules, alternating = build(Counter())
    loss(modules)
    with pytest.raises(FreezeError, match=r"'b.calls'"):
        alternating.force("b")


def test_an_optimizer_that_moves_what_is_frozen_is_refused():
    class Decaying(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data = parameter.data  # no write
            with torch.no_grad():
                modules["b"][0].weight.mul_(0.9)
            return super().step(closure)

    modules = {"a": nn.Linear(3, 3), "b": nn.Sequential(nn.Linear(3, 3))}
    optimizer = Decaying([p for module in modules.values() for p in module.parameters()], lr=0.1)
    alternating = AlternatingOptimizer(Alternator(tuple(modules)), modules, optimizer)
    with pytest.raises(FreezeError, match=r"'b.0.weight' has been since 'a' was applied"):
        alternating.step(loss(modules))


def test_values_that_the_user_writes_are_accepted_with_apply():
    modules, alternating = build()
    with torch.no_grad():
        modules["b"][0].weight.zero_()
    with pytest.raises(FreezeError, match=r"if you wrote it between steps, call apply\(\)"):
        alternating.step(loss(modules))
    alternating.apply()
    alternating.step(loss(modules))


@pytest.mark.parametrize("whole", [True, False])
def test_values_that_load_state_dict_writes_are_accepted(whole):
    modules, alternating = build()
    model = nn.ModuleDict(modules)
    loaded = model if whole else modules["b"]
    alternating.step(loss(modules))
    loaded.load_state_dict({key: value + 1 for key, value in loaded.state_dict().items()})
    alternating.step(loss(modules))
    modules["b"].train()
    expected = copy.deepcopy(modules["b"].state_dict())
    with pytest.raises(FreezeError, match="in training mode"):
        alternating.step(loss(modules))
    assert same_bits(modules["b"].state_dict(), expected)  # those loaded, not those of the switch


def test_loading_a_model_of_parameters_alone_is_accepted_with_model():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    modules = {name: list(module.parameters()) for name, module in model.items()}
    optimizer = AdamW(model.parameters())
    alternating = AlternatingOptimizer(Alternator(tuple(modules)), modules, optimizer, model=model)
    model.load_state_dict(model.state_dict())
    alternating.step(loss(model))


def test_a_model_moved_after_it_was_built_is_accepted():
    modules, alternating = build()
    nn.ModuleDict(modules).double()
    alternating.step(modules["b"](modules["a"](torch.ones(4, 3, dtype=torch.double))).square().mean())


def test_copies_and_pickles_of_a_watched_module_do_not_hold_the_adapter():
    modules, alternating = build()
    for copied in (copy.deepcopy(modules["b"]), pickle.loads(pickle.dumps(modules["b"]))):  # noqa: S301
        copied.load_state_dict(modules["b"].state_dict())
    alternating.step(loss(modules))


def test_statistics_moved_by_training_mode_are_put_back():
    modules, alternating = build()
    before = copy.deepcopy(modules["b"].state_dict())
    modules["b"].train()
    with pytest.raises(FreezeError, match=r"in training mode: .* small buffers are as they were$"):
        alternating.step(loss(modules))
    assert same_bits(modules["b"].state_dict(), before)
    alternating.train()
    alternating.step(loss(modules))
    assert same_bits(modules["b"].state_dict(), before)


def test_what_training_mode_has_written_and_cannot_be_put_back_is_named():
    modules, alternating = build(NoGradWeights())
    modules["b"].train()
    with pytest.raises(FreezeError, match=r"are as they were; 'b.layer.weight' has been written$"):
        alternating.step(loss(modules))


def test_fake_quantization_that_writes_unnoticed_is_refused():
    class Fused(FakeQuantized):
        def __init__(self):
            super().__init__()
            self.observe = torch.ao.quantization.FusedMovingAvgObsFakeQuantize()

    with pytest.raises(ConfigurationError, match=r"'b.observe' \(FusedMoving.*use FakeQuantize, and disable_observer"):
        build(Fused())


def test_the_remedy_for_fake_quantization():
    modules, alternating = build(FakeQuantized())
    modules["b"].apply(torch.ao.quantization.disable_observer)
    alternating.apply()
    before = copy.deepcopy(modules["b"].state_dict())
    for _ in range(2):
        alternating.step(loss(modules))
    assert same_bits(modules["b"].state_dict(), before)


def test_tensors_made_in_inference_mode_have_no_counter_and_are_accepted():
    with torch.inference_mode():
        scale = torch.ones(3)
    module = nn.Sequential(nn.Linear(3, 3))
    module.register_buffer("scale", scale)
    modules, alternating = build(module)
    alternating.step(loss(modules))

"""Optimizers that evaluate the loss themselves: refused in one line that says what to use."""

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError

NAMES = ("a", "b")


class LineSearch(SGD):
    """Cannot be called without."""

    def step(self, closure):
        return super().step(closure)


class Options(SGD):
    """Wants it among other things."""

    def step(self, options, *more, scale=1.0, **rest):
        return super().step(options["closure"])


class SharpnessAware(SGD):
    """Looks for it in the step only."""

    def step(self, closure=None):
        assert closure is not None, "SAM requires closure,\nbut it was not provided"
        return super().step(closure)


class Calls(SGD):
    """Calls what it has not got."""

    def step(self, closure=None):
        loss = closure()
        super().step()
        return loss


class Broken(SGD):
    """Fails for a reason of its own."""

    def step(self, closure=None):
        raise RuntimeError("out of memory")


def build(kind, **options):
    modules = {name: nn.Linear(2, 1) for name in NAMES}
    optimizers = {name: kind(module.parameters(), lr=0.1) for name, module in modules.items()}
    return modules, AlternatingOptimizer(Alternator(NAMES), modules, optimizers, **options)


@pytest.mark.parametrize("kind", [LineSearch, Options])
def test_one_that_must_have_a_closure_is_refused_when_built(kind):
    with pytest.raises(ConfigurationError, match=f"without a closure, got one that needs it: '{kind.__name__}'; use a"):
        build(kind)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", [SharpnessAware, Calls])
def test_one_that_asks_for_a_closure_in_its_step_is_refused_there(kind, scaled):
    modules, alternating = build(kind, scaler=torch.amp.GradScaler("cpu") if scaled else None)
    before = modules["a"].weight.detach().clone()
    with pytest.raises(ConfigurationError, match=rf"but one asks for it \(.*\): '{kind.__name__}'; use a") as error:
        alternating.step(modules["a"](torch.ones(3, 2)).sum())
    assert "\n" not in str(error.value)
    assert torch.equal(modules["a"].weight, before)
    assert not alternating.skip().switched


def test_another_error_of_a_step_is_left_as_it_is():
    modules, alternating = build(Broken)
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        alternating.step(modules["a"](torch.ones(3, 2)).sum())


def test_an_optimizer_whose_step_a_scheduler_has_replaced_needs_no_closure():
    modules = {name: nn.Linear(2, 1) for name in NAMES}
    optimizers = {name: SGD(module.parameters(), lr=0.1) for name, module in modules.items()}
    schedulers = {name: ExponentialLR(optimizer, 0.5) for name, optimizer in optimizers.items()}
    alternating = AlternatingOptimizer(Alternator(NAMES), modules, optimizers, schedulers=schedulers)
    alternating.step(modules["a"](torch.ones(3, 2)).sum())
    assert [optimizers[name].param_groups[0]["lr"] for name in NAMES] == [0.05, 0.1]

"""Optimizers that wrap others."""

import warnings

import pytest
import pytorch_optimizer
import schedulefree
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.fabric import Fabric
from lightning.pytorch.core.optimizer import LightningOptimizer

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import adamw, same_bits, tower, tower_loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own
    from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer, _NamedOptimizer

NAMES = ("a", "b")


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(True)


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def towers():
    return {name: tower(seed) for seed, name in enumerate(NAMES)}


def refused(wrapper, inside, *, over_all=False):
    modules = towers()
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    if over_all:
        optimizers = wrapper(adamw(parameters))
    else:
        optimizers = {"a": wrapper(adamw(modules["a"].parameters())), "b": adamw(modules["b"].parameters())}
    with pytest.raises(ConfigurationError, match=rf"wraps another: give that one \(its {inside}\)") as error:
        AlternatingOptimizer(Alternator(NAMES), modules, optimizers)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("over_all", [False, True])
def test_that_of_accelerate(accelerator, over_all):
    refused(accelerator.prepare_optimizer, r"\.optimizer", over_all=over_all)


def test_that_of_fabric():
    refused(Fabric(accelerator="cpu", devices=1).setup_optimizers, r"\.optimizer")


class Averages:
    """What PostLocalSGDOptimizer asks for."""

    step = 0


class Delegating:
    """Not an optimizer by its class, as DeepSpeed's are not."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self):
        self.optimizer.step()


@pytest.mark.parametrize("over_all", [False, True])
@pytest.mark.parametrize(
    ("wrapper", "inside"),
    [
        (LightningOptimizer, r"\.optimizer"),
        (lambda optimizer: PostLocalSGDOptimizer(optimizer, Averages()), r"\.optim"),
        (pytorch_optimizer.Lookahead, r"\.optimizer"),
        (schedulefree.ScheduleFreeWrapper, r"\.base"),
        (Delegating, r"\.optimizer"),
    ],
)
def test_others(wrapper, inside, over_all):
    refused(wrapper, inside, over_all=over_all)


def test_one_that_takes_names():
    named = lambda optimizer: _NamedOptimizer(  # noqa: E731
        {str(index): parameter for index, parameter in enumerate(optimizer.param_groups[0]["params"])},
        torch.optim.AdamW,
    )
    refused(named, r"\._optimizer")


def test_one_that_shards_its_state_over_processes(process_group):
    sharding = lambda optimizer: ZeroRedundancyOptimizer(  # noqa: E731
        optimizer.param_groups[0]["params"], torch.optim.AdamW
    )
    refused(sharding, r"\.optim")


def test_the_optimizers_inside_those_of_accelerate_equal_its_own_loop(accelerator):
    """With accumulate= in place of accumulate(): the remedy that the error names."""
    turns = ["a", "a", "b", "b", "b", "a", "a", "b", "b"]
    ours, theirs = towers(), towers()
    prepared = {name: accelerator.prepare(adamw(module.parameters())) for name, module in ours.items()}
    optimizers = {name: optimizer.optimizer for name, optimizer in prepared.items()}
    alternating = AlternatingOptimizer(Alternator(NAMES, rule=Cycle((2, 3))), ours, optimizers, accumulate=2)
    for step in range(2 * len(turns)):
        assert alternating.active == turns[step // 2]
        alternating.step(sum(tower_loss(module, name, step) for name, module in ours.items()))
    wrapped = {name: accelerator.prepare(adamw(module.parameters())) for name, module in theirs.items()}
    for step in range(2 * len(turns)):
        name = turns[step // 2]
        with accelerator.accumulate(theirs[name]):
            accelerator.backward(tower_loss(theirs[name], name, step))
            wrapped[name].step()
            wrapped[name].zero_grad()
    assert same_bits([module.state_dict() for module in ours.values()], [m.state_dict() for m in theirs.values()])

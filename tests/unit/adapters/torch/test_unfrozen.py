"""PyTorch's distributed checkpoint, which leaves out what does not require gradients."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from adapters.torch import AlternatingOptimizer, FreezeError
from alternator import Alternator, Cycle
from tests.conformance.freeze_contract_torch import same_bits, tower, tower_loss
from tests.guide_blocks import blocks_of, run_blocks

NAMES = ("a", "b")
NUM_STEPS = 12


class Counting(torch.optim.SGD):
    """Decays weights before it looks for a gradient, and counts per group."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"])
                moment = self.state[parameter].setdefault("moment", torch.zeros_like(parameter))
                parameter.sub_(moment.mul_(0.9).add_(parameter.grad), alpha=group["lr"])


KINDS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
    "counts per group": lambda parameters: Counting(parameters, lr=0.01),
}


class Run:
    def __init__(self, kind="adamw", *, one=False):
        self.model = nn.ModuleDict({name: tower(seed) for seed, name in enumerate(NAMES)})
        self.model["b"][4].bias.requires_grad_(False)
        if one:
            given = KINDS[kind]([{"params": list(module.parameters())} for module in self.model.values()])
            self.optimizers = [given]
        else:
            given = {name: KINDS[kind](module.parameters()) for name, module in self.model.items()}
            self.optimizers = list(given.values())
        alternator = Alternator(NAMES, rule=Cycle((3, 4)))
        self.alternating = AlternatingOptimizer(alternator, dict(self.model.items()), given)

    def train(self, start, stop):
        for step in range(start, stop):
            self.alternating.step(sum(tower_loss(module, name, step) for name, module in self.model.items()))
        return self

    def states(self):
        return [
            self.model.state_dict(),
            [[optimizer.state.get(p) for p in self.model.parameters()] for optimizer in self.optimizers],
            [optimizer.state_dict()["param_groups"] for optimizer in self.optimizers],
        ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize("stop", [0, 2, 5, 8], ids=lambda stop: f"after{stop}")
def test_a_run_loaded_with_its_functions_equals_one_never_stopped(kind, one, stop):
    """After 2 steps b has never trained."""
    whole, first, second = [Run(kind, one=one) for _ in range(3)]
    whole.train(0, NUM_STEPS)
    first.train(0, stop)
    before = copy.deepcopy(first.states())
    with first.alternating.unfrozen():
        model, optimizers = copy.deepcopy(get_state_dict(first.model, first.optimizers))
    assert same_bits(before, first.states())
    with second.alternating.unfrozen():
        set_state_dict(second.model, second.optimizers, model_state_dict=model, optim_state_dict=optimizers)
    second.alternating.load_state_dict(first.alternating.state_dict())
    for run in (first, second):
        assert same_bits(run.train(stop, NUM_STEPS).states(), whole.states())


@pytest.mark.parametrize("flat", [False, True])
def test_all_moments_are_saved_and_loaded(flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    first, second = Run().train(0, 8), Run()
    with first.alternating.unfrozen():
        saved = get_optimizer_state_dict(first.model, first.optimizers, options=options)
    with second.alternating.unfrozen():
        set_optimizer_state_dict(second.model, second.optimizers, saved, options=options)
    assert same_bits(first.states()[1], second.states()[1])
    without = Run()
    set_optimizer_state_dict(without.model, without.optimizers, saved, options=options)
    assert not any(without.states()[1][1]), "what this helps against"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_checkpoint_on_disk_with_the_functions_of_the_guide(tmp_path):
    guide = run_blocks("docs/distributed.md", blocks_of("docs/distributed.md")[1:], {})
    whole, first, second = Run().train(0, NUM_STEPS), Run().train(0, 2), Run()
    before = copy.deepcopy(first.states())
    guide["save"](tmp_path, first.model, dict(enumerate(first.optimizers)), first.alternating)
    assert same_bits(before, first.states())
    guide["load"](tmp_path, second.model, dict(enumerate(second.optimizers)), second.alternating)
    assert same_bits(second.train(2, NUM_STEPS).states(), whole.states())


def test_flags_are_as_before_also_after_an_error():
    run = Run().train(0, 4)
    before = [parameter.requires_grad for parameter in run.model.parameters()]
    assert before.count(True) < len(before) - 1
    flags = {}

    def fails():
        with run.alternating.unfrozen():
            flags.update({name: parameter.requires_grad for name, parameter in run.model.named_parameters()})
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert [name for name, required in flags.items() if not required] == ["b.4.bias"]
    assert [parameter.requires_grad for parameter in run.model.parameters()] == before
    assert all(parameter.grad is None for parameter in run.model.parameters())
    run.train(4, 6)


def test_what_was_written_before_is_not_accepted():
    run = Run().train(0, 1)
    with torch.no_grad():
        run.model["b"][0].weight.add_(1)
    with pytest.raises(FreezeError, match=r"'b\.0\.weight' has been"), run.alternating.unfrozen():
        pass


def test_not_within_an_accumulation():
    model = nn.ModuleDict({name: tower(seed) for seed, name in enumerate(NAMES)})
    optimizer = KINDS["adamw"](model.parameters())
    alternating = AlternatingOptimizer(Alternator(NAMES), dict(model.items()), optimizer, accumulate=2)
    alternating.step(tower_loss(model["a"], "a", 0))
    with pytest.raises(FreezeError, match=r"unfrozen\(\) must be called between updates"):
        alternating.unfrozen()

"""What the adapter refuses when built, each with rule, value and remedy."""

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError, LossError, Payoff, UnknownModuleError


def modules():
    return {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}


def sgd(module):
    return SGD(module.parameters() if isinstance(module, nn.Module) else module, lr=0.1)


def build(given, optimizers=None, names=None, **options):
    if optimizers is None:
        optimizers = {name: sgd(module) for name, module in given.items()}
    return AlternatingOptimizer(Alternator(names or tuple(given)), given, optimizers, **options)


def refused(message, *args, kind=ConfigurationError, **options):
    with pytest.raises(kind, match=message) as error:
        build(*args, **options)
    assert "\n" not in str(error.value)


def test_a_parameter_shared_by_two_modules():
    given = modules()
    given["b"].weight = given["a"].weight
    refused(r"must belong to one module, but 'a.weight' of 'a' is 'b.weight' of 'b'; .*always=", given)


def test_the_optimizer_of_a_module_that_has_the_part_within_it_too():
    whole = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    refused(r"one of shape \(2, 2\) is in two", {"whole": whole, "part": whole[0]})


def test_a_submodule_without_parameters_shared_by_two_modules():
    dropout = nn.Dropout()
    given = {name: nn.Sequential(nn.Linear(2, 2), dropout) for name in "ab"}
    refused(r"a submodule must belong to one module, but 'a.1' of 'a' is 'b.1' of 'b'", given)


def test_a_shared_parameter_declared_always_is_accepted():
    given = modules()
    given["b"].weight = given["a"].weight
    shared = given["a"].weight
    optimizers = {"a": sgd(given["a"]), "b": sgd([given["b"].bias])}
    alternating = build(given, optimizers, always=shared)
    alternating.force("b")
    assert shared.requires_grad
    assert not given["a"].bias.requires_grad


def test_a_parameter_of_the_model_owned_by_none():
    model = nn.ModuleDict({**modules(), "fusion": nn.Linear(1, 1)})
    given = {name: model[name] for name in "ab"}
    refused(r"'fusion.weight', 'fusion.bias' belongs to none; .*always=", given, model=model)
    assert build(given, model=model, always=(model["fusion"], sgd(model["fusion"]))).active == "a"


def test_a_parameter_owned_by_none_that_the_user_froze_is_accepted():
    model = nn.ModuleDict({**modules(), "encoder": nn.Linear(1, 1).requires_grad_(False)})
    assert build({name: model[name] for name in "ab"}, model=model).active == "a"
    assert not model["encoder"].weight.requires_grad


def test_an_optimizer_built_while_its_module_was_frozen():
    """The optimizer then holds nothing, and the module would never train (LMFlow 726, luxonis-train 358)."""
    given = modules()
    given["b"].weight.requires_grad_(False)
    optimizers = {name: sgd([p for p in module.parameters() if p.requires_grad]) for name, module in given.items()}
    given["b"].weight.requires_grad_(True)
    refused(
        r"the optimizer of 'b' must cover it, but 'b.weight' is not in it .*while they were frozen", given, optimizers
    )


def test_one_optimizer_that_covers_a_part_only():
    given = modules()
    refused(r"must cover it, but 'b.weight', 'b.bias' is not in it", given, sgd(given["a"]))


def test_optimizers_given_under_each_others_names():
    given = modules()
    refused(r"the optimizer of 'a' must cover it", given, {"a": sgd(given["b"]), "b": sgd(given["a"])})


def test_a_module_without_an_optimizer():
    given = modules()
    refused(r"every module must have an optimizer, but 'b' has none", given, {"a": sgd(given["a"])})


def test_an_optimizer_for_an_unknown_module():
    given = modules()
    optimizers = {**{name: sgd(module) for name, module in given.items()}, "c": sgd(nn.Linear(1, 1))}
    refused(r"optimizers must be named after the modules \('a', 'b'\), got \['c'\]", given, optimizers)


def test_something_that_is_no_optimizer():
    given = modules()
    refused(r"must be a torch.optim.Optimizer, got 0.1", given, {"a": sgd(given["a"]), "b": 0.1})


def test_an_optimizer_that_needs_a_closure():
    given = modules()
    refused(
        r"must step without a closure, got one that needs it: .LBFGS.; use a first-order",
        given,
        {"a": sgd(given["a"]), "b": LBFGS(given["b"].parameters())},
    )


def test_a_parameter_in_two_optimizers():
    given = modules()
    both = sgd([*given["a"].parameters(), *given["b"].parameters()])
    refused(r"one of shape \(2, 2\) is in two", given, {"a": both, "b": sgd(given["b"])})


def test_a_parameter_in_an_optimizer_that_no_module_owns():
    given = modules()
    stray = nn.Parameter(torch.zeros(3))
    optimizers = {"a": sgd([*given["a"].parameters(), stray]), "b": sgd(given["b"])}
    refused(r"one of shape \(3,\) belongs to no module", given, optimizers)


def test_the_always_group_without_an_optimizer():
    refused(r"the optimizer of 'always' must cover it", modules(), always=nn.Parameter(torch.zeros(3)))


def test_a_module_whose_parameters_are_all_frozen():
    given = modules()
    given["b"].requires_grad_(False)
    refused(r"must have something to train, but every parameter of 'b' is frozen", given)


@pytest.mark.parametrize("empty", [nn.Dropout(), []], ids=["module", "parameters"])
def test_a_module_without_parameters(empty):
    refused(r"a module must have parameters, but 'b' has none", {"a": nn.Linear(1, 1), "b": empty}, {})


def test_parameters_that_are_tensors():
    refused(r"an iterable of nn.Parameter, .*; 'b\[0\]' is not", {"a": nn.Linear(1, 1), "b": [torch.zeros(2)]}, {})


def test_names_of_the_alternator_that_are_no_modules():
    refused(
        r"alternator's names \('a', 'c'\) must be the names of the modules \('a', 'b'\)", modules(), names=("a", "c")
    )


def test_turns_that_do_not_fit():
    refused(r"turns must have the alternator's names", modules(), turns={"a": "a"})
    refused(r"unknown module 'c'", modules(), turns={"a": "a", "b": ("b", "c")}, kind=UnknownModuleError)
    refused(r"one or more different modules, got \(\) for 'a'", modules(), turns={"a": (), "b": ("a", "b")})
    refused(r"one or more different modules", modules(), turns={"a": ("a", "a"), "b": "b"})
    refused(
        r"every module must train in some turn, but \['b'\]", modules(), names=("x", "y"), turns={"x": "a", "y": "a"}
    )


def test_a_module_named_always():
    refused(r"the name 'always' is reserved", {"a": nn.Linear(1, 1), "always": nn.Linear(1, 1)})


def test_schedulers_that_do_not_fit():
    given = modules()
    optimizers = {name: sgd(module) for name, module in given.items()}
    scheduler = ExponentialLR(optimizers["a"], 0.9)
    refused(r"schedulers must be named after the modules \('a', 'b'\), got \['c'\]", given, schedulers={"c": scheduler})
    refused(r"of 'a' must drive one of the optimizers given", given, schedulers={"a": scheduler})
    refused(r"that of 'b' also moves 'a'", given, optimizers, schedulers={"b": scheduler})
    plateau = ReduceLROnPlateau(optimizers["a"])
    refused(r"must step without a metric, but 'a' has ReduceLROnPlateau", given, optimizers, schedulers={"a": plateau})


def test_one_optimizer_over_all_with_a_scheduler_per_module():
    given = modules()
    optimizer = sgd([*given["a"].parameters(), *given["b"].parameters()])
    refused(r"that of 'a' also moves 'b'; give each", given, optimizer, schedulers={"a": ExponentialLR(optimizer, 0.9)})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"accumulate": 0}, "accumulate must be an integer of at least 1, got 0"),
        ({"accumulate": True}, "accumulate must be an integer of at least 1, got True"),
        ({"delay": -1}, "delay must be an integer of at least 0, got -1"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0 or None, got 0.0"),
        ({"clip_norm": float("nan")}, "clip_norm must be above 0 or None, got nan"),
    ],
)
def test_numbers_out_of_range(option, message):
    refused(message, modules(), **option)


def test_a_wrapper_other_than_ddp():
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    given = {"a": FullyShardedDataParallel(nn.Linear(1, 1)), "b": nn.Linear(1, 1)}
    refused(r"must be plain, .* or under fully_shard, got a FullyShardedDataParallel, .*use one", given)
    model = nn.DataParallel(nn.ModuleDict(modules()))
    refused(r"got a DataParallel", {name: model.module[name] for name in "ab"}, model=model)


def test_payoff_over_turns_of_which_the_first_does_not_train_all():
    given = modules()
    optimizers = {name: sgd(module) for name, module in given.items()}
    turns = {"a": ("a",), "both": ("a", "b"), "b": ("b",)}
    with pytest.raises(ConfigurationError, match="Payoff must have a first turn that trains all modules"):
        AlternatingOptimizer(Alternator(turns, Payoff(costs=(3, 2, 2))), given, optimizers, turns=turns)
    with pytest.raises(ConfigurationError, match="Payoff must have a first turn that trains all modules"):
        AlternatingOptimizer(Alternator(given, Payoff(costs=(3, 2))), given, optimizers)


def test_payoff_that_is_given_losses():
    given = modules()
    turns = {"both": ("a", "b"), "a": ("a",)}
    optimizers = {name: sgd(module) for name, module in given.items()}
    alternating = AlternatingOptimizer(Alternator(turns, Payoff(costs=(3, 2))), given, optimizers, turns=turns)
    for losses in (None, {}):
        loss = given["b"](given["a"](torch.ones(1, 2))).sum()
        if losses is None:
            with pytest.raises(LossError, match="Payoff must be given payoffs, got the loss of a step"):
                alternating.step(loss)
            assert alternating.alternator.step == 0
        else:
            assert alternating.step(loss, losses).step == 1

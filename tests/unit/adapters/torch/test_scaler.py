"""GradScaler, clipping and schedulers: only what trains is unscaled, clipped, stepped and annealed."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle
from tests.conformance.freeze_contract_torch import adamw, broken_clauses, same_bits, tower, tower_loss

NAMES = ("a", "b")


def fused_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1, fused=True)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


def scaler(**options):
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, **options)


def build(make=adamw, cycle=1000, **options):
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: make(module.parameters()) for name, module in modules.items()}
    return (
        AlternatingOptimizer(Alternator(NAMES, rule=Cycle(cycle)), modules, optimizers, **options),
        modules,
        optimizers,
    )


def loss_of(modules, step):
    return sum(tower_loss(module, name, step) for name, module in modules.items())


@pytest.mark.parametrize("make", [adamw, fused_adamw])
def test_the_contract_holds_with_a_scaler(make):
    """The scale is a power of two, so that the weights equal those of training without it to the bit."""

    def build_scaled(*args, **options):
        return AlternatingOptimizer(*args, scaler=scaler(), **options)

    assert broken_clauses(build_scaled, make) == set()


@pytest.mark.parametrize("make", [adamw, fused_adamw], ids=["foreach", "fused"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_step_that_the_scaler_skips_is_reported_and_changes_nothing(make, clip_norm):
    grad_scaler = scaler()
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: make(module.parameters()) for name, module in modules.items()}
    schedules = LambdaLR(optimizers["a"], lambda step: 1 / (1 + step))
    alternating = AlternatingOptimizer(
        *(Alternator(NAMES, rule=Cycle(1000)), modules, optimizers),
        scaler=grad_scaler,
        clip_norm=clip_norm,
        schedulers={"a": schedules},
    )
    alternating.step(loss_of(modules, 0))
    before = [parameter.detach().clone() for parameter in modules["a"].parameters()]
    alternating.step(modules["a"][0].weight.sum() * float("inf"))
    assert same_bits(before, list(modules["a"].parameters()))
    stats = alternating.alternator.stats().modules["a"]
    assert (stats.training_steps, stats.skipped_steps) == (1, 1)
    assert schedules.last_epoch == 1
    assert grad_scaler.get_scale() == 2.0**9
    alternating.step(loss_of(modules, 2))
    assert not same_bits(before, list(modules["a"].parameters()))
    assert alternating.alternator.stats().modules["a"].training_steps == 2


def test_infinite_gradients_of_a_frozen_module_skip_nothing():
    grad_scaler = scaler()
    alternating, modules, _ = build(scaler=grad_scaler)
    alternating.step(tower_loss(modules["a"], "a", 0) + modules["b"][0].weight.sum() * 1e30)
    assert alternating.alternator.stats().modules["a"].training_steps == 1
    assert grad_scaler.get_scale() == 2.0**10


@pytest.mark.filterwarnings("ignore:the loss must reach every module")
def test_an_active_optimizer_without_gradients_is_left_alone():
    """GradScaler itself fails there: "No inf checks were recorded" (Lightning 7975, nerfstudio 1919)."""
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    turns = {"both": NAMES, "a": "a"}
    alternating = AlternatingOptimizer(
        *(Alternator(turns, rule=Cycle(1000)), modules, optimizers), turns=turns, scaler=scaler(), clip_norm=1.0
    )
    before = [parameter.detach().clone() for parameter in modules["b"].parameters()]
    decision = alternating.step(tower_loss(modules["a"], "a", 0))
    assert decision.step == alternating.alternator.stats().modules["both"].training_steps == 1
    assert same_bits(before, list(modules["b"].parameters()))
    assert not optimizers["b"].state


def test_a_step_in_which_one_of_two_optimizers_is_skipped_counts_as_skipped():
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    turns = {"both": NAMES, "a": "a"}
    schedulers = {name: LambdaLR(optimizer, lambda step: 0.5**step) for name, optimizer in optimizers.items()}
    alternating = AlternatingOptimizer(
        *(Alternator(turns, rule=Cycle(1000)), modules, optimizers),
        turns=turns,
        scaler=scaler(),
        schedulers=schedulers,
    )
    alternating.step(tower_loss(modules["a"], "a", 0) + modules["b"][0].weight.sum() * float("inf"))
    assert alternating.alternator.stats().modules["both"].skipped_steps == 1
    assert [schedulers[name].last_epoch for name in NAMES] == [1, 0]
    assert not optimizers["b"].state


DROPPING = {
    "skip": lambda alternating: alternating.skip(),
    "zero_grad": lambda alternating: alternating.zero_grad(),
    "force": lambda alternating: alternating.force("a"),
    "apply": lambda alternating: alternating.apply(),
    "load_state_dict": lambda alternating: alternating.load_state_dict(alternating.state_dict()),
    "release": lambda alternating: (alternating.release(), alternating.apply()),
}


@pytest.mark.parametrize("unscaled", ["a", "b"])
@pytest.mark.parametrize("drop", DROPPING)
def test_gradients_dropped_after_unscale_leave_no_mark(drop, unscaled):
    """The next step would take its gradients for unscaled, and be 1024 times too large."""
    runs = {}
    for unscales in (True, False):
        grad_scaler = scaler()
        alternating, modules, optimizers = build(sgd, cycle=2, scaler=grad_scaler)
        alternating.backward(loss_of(modules, 0))
        if unscales:
            grad_scaler.unscale_(optimizers[unscaled])
        DROPPING[drop](alternating)
        for step in range(1, 4):
            alternating.step(loss_of(modules, step))
        runs[unscales] = [modules[name].state_dict() for name in NAMES], alternating.active
    assert same_bits(*runs.values())


def test_a_skip_after_unscale_lowers_the_scale_if_it_found_an_overflow():
    grad_scaler = scaler(growth_interval=2)
    alternating, modules, optimizers = build(scaler=grad_scaler)
    for overflows, scale in ((True, 2.0**9), (False, 2.0**9), (False, 2.0**10)):
        alternating.backward(loss_of(modules, 0) * (float("inf") if overflows else 1))
        grad_scaler.unscale_(optimizers["a"])
        alternating.skip()
        assert grad_scaler.get_scale() == scale
    alternating.backward(loss_of(modules, 0))
    alternating.skip()
    assert grad_scaler.get_scale() == 2.0**10


@pytest.mark.parametrize("make", [adamw, fused_adamw], ids=["foreach", "fused"])
@pytest.mark.parametrize("clip_norm", [None, 0.01])
@pytest.mark.parametrize("unscaled", ["b", "ab"])
def test_a_step_after_unscale_equals_one_without(unscaled, clip_norm, make):
    turns = {"both": NAMES, "a": "a"}
    trained = []
    for given in (unscaled, ""):
        grad_scaler, modules = scaler(), {name: tower(seed) for seed, name in enumerate(NAMES)}
        optimizers = {name: make(module.parameters()) for name, module in modules.items()}
        alternator = Alternator(turns, rule=Cycle((2, 1)))
        alternating = AlternatingOptimizer(
            alternator, modules, optimizers, turns=turns, scaler=grad_scaler, clip_norm=clip_norm
        )
        for step in range(4):
            alternating.backward(loss_of(modules, step))
            for name in given:
                grad_scaler.unscale_(optimizers[name])
            alternating.step(losses={})
        trained.append([modules[name].state_dict() for name in NAMES])
    assert same_bits(*trained)


def test_an_overflow_that_unscale_finds_is_skipped_with_clipping():
    grad_scaler = scaler()
    alternating, modules, optimizers = build(scaler=grad_scaler, clip_norm=1.0)
    before = [parameter.detach().clone() for parameter in modules["a"].parameters()]
    alternating.backward(modules["a"][0].weight.sum() * float("inf"))
    grad_scaler.unscale_(optimizers["a"])
    alternating.step(losses={})
    assert same_bits(before, list(modules["a"].parameters()))
    assert alternating.alternator.stats().modules["a"].skipped_steps == 1
    assert grad_scaler.get_scale() == 2.0**9


def test_a_disabled_scaler_is_no_scaler():
    (plain, one, _), (scaled, other, _) = (
        build(cycle=2),
        build(cycle=2, scaler=torch.amp.GradScaler("cpu", enabled=False)),
    )
    for step in range(5):
        assert plain.step(loss_of(one, step)) == scaled.step(loss_of(other, step))
    assert same_bits(one["a"].state_dict(), other["a"].state_dict())


def test_a_scaler_with_accumulation():
    (plain, one, _), (scaled, other, _) = build(accumulate=2), build(accumulate=2, scaler=scaler())
    for step in range(4):
        assert plain.step(loss_of(one, step)) == scaled.step(loss_of(other, step))
    assert same_bits(one["a"].state_dict(), other["a"].state_dict())


def test_only_active_gradients_count_in_clipping():
    """Frozen gradients would shrink the step of the active module (maxtext 5285)."""
    modules = {"a": nn.Linear(1, 1, bias=False), "b": nn.Linear(1, 1, bias=False)}
    optimizers = {name: torch.optim.SGD(module.parameters(), lr=1.0) for name, module in modules.items()}
    weights = nn.Parameter(torch.zeros(1))
    alternating = AlternatingOptimizer(
        *(Alternator(NAMES, rule=Cycle(1)), modules, optimizers),
        always=(weights, torch.optim.SGD([weights], lr=1.0)),
        clip_norm=1.0,
    )
    assert alternating.grad_norm is None
    before = modules["a"].weight.item()
    alternating.step(modules["a"].weight.sum() * 3 + modules["b"].weight.sum() * 1000 + weights.sum() * 4)
    assert float(alternating.grad_norm) == 5.0
    assert modules["a"].weight.item() == pytest.approx(before - 3 / 5)
    assert weights.item() == pytest.approx(-4 / 5)


def test_schedulers_advance_only_when_their_module_trains():
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    weights = nn.Parameter(torch.ones(1))
    optimizers_all = {**optimizers, "always": torch.optim.SGD([weights], lr=0.1)}
    schedulers = {name: LambdaLR(each, lambda step: 0.9**step) for name, each in optimizers_all.items()}
    alternating = AlternatingOptimizer(
        *(Alternator(NAMES, rule=Cycle((3, 1))), modules, optimizers),
        always=(weights, optimizers_all["always"]),
        schedulers=schedulers,
    )
    for step in range(8):
        alternating.step(loss_of(modules, step) * weights.sum())
    alternating.skip()
    assert {name: scheduler.last_epoch for name, scheduler in schedulers.items()} == {"a": 6, "b": 2, "always": 8}

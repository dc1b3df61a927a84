"""Optimizers, schedulers and scaler are saved by name, and loaded whole or not at all."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError, Cycle, StateError
from tests.conformance.freeze_contract_torch import optimizer_state, same_bits

NAMES = ("a", "b")


def towers():
    torch.manual_seed(0)
    return {name: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for name in NAMES}


def scaler(**options):
    return torch.amp.GradScaler("cpu", init_scale=8.0, **options)


class Run:
    """Two equal towers."""

    def __init__(self, optimizers, *, order=NAMES, rule=None, **options):
        self.modules = towers()
        given = optimizers(self.modules)
        self.optimizers = list(given.values()) if isinstance(given, dict) else [given]
        if "schedulers" in options:
            options["schedulers"] = options["schedulers"](given)
        ordered = {name: self.modules[name] for name in order}
        alternator = Alternator(NAMES, rule=rule or Cycle((2, 1)))
        self.alternating = AlternatingOptimizer(alternator, ordered, given, **options)

    def train(self, num_steps):
        for step in range(num_steps):
            x_BD = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            losses = {name: (module(x_BD) - x_BD[0, 0]).square().mean() for name, module in self.modules.items()}
            self.alternating.step(sum(losses.values()), losses)
        return self

    def moments(self):
        """Per module, whichever optimizer holds them."""
        found = {
            name: [optimizer_state(optimizer, module) for optimizer in self.optimizers]
            for name, module in self.modules.items()
        }
        return {name: [states for states in each if any(states)] for name, each in found.items()}

    def save(self):
        return copy.deepcopy(self.alternating.state_dict(include_optimizers=True))

    def everything(self):
        groups = [{**group, "params": None} for optimizer in self.optimizers for group in optimizer.param_groups]
        return copy.deepcopy([self.save(), self.alternating.active, groups, self.moments()])


def per_module(modules, order=NAMES):
    return {name: AdamW(modules[name].parameters(), lr=0.01) for name in order}


def over_all(modules, order=NAMES):
    return AdamW([p for name in order for p in modules[name].parameters()], lr=0.01)


def groups(modules, order=NAMES, kind=AdamW):
    """One group per module, each with a learning rate of its own."""
    return kind([{"params": list(modules[name].parameters())[::-1], "lr": 0.1 * (name == "a")} for name in order])


def named(modules, order=NAMES):
    return AdamW([(f"{name}.{key}", p) for name in order for key, p in modules[name].named_parameters()], lr=0.01)


def reverse(build):
    return lambda modules: build(modules, order=NAMES[::-1])


@pytest.mark.parametrize("build", [per_module, over_all, groups, named])
def test_equal_towers_built_in_another_order_get_their_own_moments(build):
    first = Run(build).train(5)
    second = Run(reverse(build), order=NAMES[::-1])
    second.alternating.load_state_dict(first.save())
    for name in NAMES:
        second.modules[name].load_state_dict(first.modules[name].state_dict())
    assert same_bits(first.moments(), second.moments())
    assert not same_bits(first.moments()["a"], first.moments()["b"])
    first.train(5), second.train(5)
    assert all(same_bits(first.modules[name].state_dict(), second.modules[name].state_dict()) for name in NAMES)


def test_names_of_an_optimizer_stay_its_own():
    first, second = Run(named).train(2), Run(reverse(named))
    second.alternating.load_state_dict(first.save())
    (group,) = second.optimizers[0].param_groups
    assert group["param_names"][0] == "b.0.weight"
    unnamed = Run(over_all)
    unnamed.alternating.load_state_dict(first.save())
    assert "param_names" not in unnamed.optimizers[0].param_groups[0]


def test_what_is_saved_is_found_by_name():
    state = Run(per_module, schedulers=decays).train(3).save()
    assert list(state["optimizers"]) == list(state["schedulers"]) == ["a", "b"]
    assert list(state["optimizers"]["a"]["state"]) == ["a.0.weight", "a.0.bias", "a.1.weight", "a.1.bias"]
    assert state["scaler"] is None
    assert list(Run(over_all).save()["optimizers"]) == ["a+b"]


def test_state_that_belongs_to_no_parameter_is_kept():
    first, second = Run(over_all).train(2), Run(over_all)
    first.optimizers[0].state["calls"] = 7
    second.alternating.load_state_dict(first.save())
    assert second.optimizers[0].state["calls"] == 7


def test_what_has_been_added_since_is_saved():
    run = Run(per_module)
    run.modules["a"].append(nn.Linear(3, 3))
    run.optimizers[0].add_param_group({"params": run.modules["a"][2].parameters()})
    assert run.save()["optimizers"]["a"]["param_groups"][1]["params"] == ["a.2.weight", "a.2.bias"]


def decays(optimizers):
    return {name: ExponentialLR(optimizer, 0.9) for name, optimizer in optimizers.items()}


def one_decay(optimizers):
    return {"a": ExponentialLR(optimizers["a"], 0.9)}


FULL = {"optimizers": per_module, "schedulers": decays, "scaler": scaler}
CASES = {
    "a scaler that was not there": (FULL | {"scaler": None}, FULL, "scaler as are here, but 'GradScaler' is here"),
    "a scaler that was disabled": (
        FULL | {"scaler": lambda: scaler(enabled=False)},
        FULL,
        "'GradScaler' is here, not in the state",
    ),
    "a scaler that is missing": (FULL, FULL | {"scaler": None}, "'GradScaler' is in the state, not here"),
    "a scaler that is disabled": (FULL, FULL | {"scaler": lambda: scaler(enabled=False)}, "is in the state, not here"),
    "a scheduler that was not there": (FULL | {"schedulers": one_decay}, FULL, "schedulers .*'b' is here, not in"),
    "a scheduler that is missing": (FULL, FULL | {"schedulers": one_decay}, "schedulers .*'b' is in the state, not"),
    "another optimizer": ({"optimizers": over_all}, {"optimizers": per_module}, "optimizers .*'a', 'b' is here, not"),
    "other groups": ({"optimizers": groups}, {"optimizers": over_all}, "the same parameters in each parameter group"),
    "fewer groups": ({"optimizers": over_all}, {"optimizers": groups}, "the same parameters in each parameter group"),
}


def run_of(options):
    options = dict(options)
    if options.get("scaler") is not None:
        options["scaler"] = options["scaler"]()
    return Run(**options)


@pytest.mark.parametrize("case", CASES)
def test_a_state_that_does_not_fit_changes_nothing(case):
    saved, here, message = CASES[case]
    state, run = run_of(saved).train(5).save(), run_of(here).train(2)
    before = run.everything()
    with pytest.raises(StateError, match=message) as error:
        run.alternating.load_state_dict(state)
    assert "\n" not in str(error.value)
    assert same_bits(before, run.everything())
    run.train(2)


def test_a_disabled_scaler_is_none():
    off, none = FULL | {"scaler": lambda: scaler(enabled=False)}, FULL | {"scaler": None}
    for saved, here in ((off, none), (none, off)):
        run_of(here).alternating.load_state_dict(run_of(saved).train(2).save())


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state["optimizers"]["b"]["state"].update({"b.0.weight": 3, "b.0.bias": {"step": object()}}),
        lambda state: state["optimizers"]["b"]["param_groups"][0].pop("params"),
        lambda state: state["schedulers"].update(b=None),
        lambda state: state.update(scaler={"scale": 2.0}),
        lambda state: state["alternator"].pop("counts"),
        lambda state: state["alternator"]["configuration"].update(nonfinite_limit=3),
        lambda state: state.update(user_frozen=3),
    ],
)
def test_an_error_in_the_middle_changes_nothing(damage):
    state, run = run_of(FULL).train(5).save(), run_of(FULL).train(2)
    damage(state)
    before = run.everything()
    with pytest.raises(StateError):
        run.alternating.load_state_dict(state)
    assert same_bits(before, run.everything())
    run.train(2)


def test_a_hook_of_the_users_that_fails_changes_nothing():
    state, run = run_of(FULL).train(5).save(), run_of(FULL).train(2)
    before = run.everything()

    def fail(optimizer):
        raise RuntimeError("no")

    run.optimizers[1].register_load_state_dict_post_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        run.alternating.load_state_dict(state)
    assert same_bits(before, run.everything())


def test_a_model_that_has_grown_past_its_optimizers_changes_nothing():
    state, run = run_of(FULL).train(5).save(), run_of(FULL).train(3)
    before = run.everything()
    run.modules["b"].append(nn.Linear(3, 3))
    with pytest.raises(ConfigurationError, match=r"'b.2.weight', 'b.2.bias' is not in it"):
        run.alternating.load_state_dict(state)
    del run.modules["b"][2]
    assert same_bits(before, run.everything())


def test_two_modules_that_give_a_parameter_one_name_are_refused():
    modules = {"net": nn.ModuleDict({"head": nn.Linear(1, 1)}), "net.head": nn.Linear(1, 1)}
    optimizers = {name: SGD(module.parameters(), lr=0.1) for name, module in modules.items()}
    with pytest.raises(ConfigurationError, match=r"different names, but two modules have 'net.head', 'net.head.bias'"):
        AlternatingOptimizer(Alternator(modules), modules, optimizers)


def test_a_scheduler_that_is_undone_goes_on_as_before():
    def warm(optimizers):
        return {name: LambdaLR(each, lambda step: 1 / (1 + step)) for name, each in optimizers.items()}

    one, two = (Run(per_module, schedulers=warm, rule=Cycle(3)).train(4) for _ in range(2))
    state = one.save()
    state["alternator"]["configuration"]["nonfinite_limit"] = 3
    with pytest.raises(StateError):
        one.alternating.load_state_dict(state)
    assert same_bits(one.train(6).everything(), two.train(6).everything())

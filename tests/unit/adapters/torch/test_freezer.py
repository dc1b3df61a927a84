"""Freezer by itself: what `apply`, `remember`, `release` and the state do, without an alternator or a step."""

import json
import re

import pytest
import torch
import torch.distributed as dist
from torch import nn

from adapters.contract import FreezeError
from adapters.torch.freezer import Freezer
from adapters.torch.parallel import group, ranks
from alternator import ConfigurationError, LossError, StateError

TURNS = {"a": "a", "b": "b", "both": ("a", "b")}


class Model(nn.Module):
    """Two modules with dropout, and a weight that always trains."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
        self.b = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5))
        self.mix = nn.Parameter(torch.ones(1))
        self.between = nn.Dropout(0.5)

    def forward(self, x_BD):
        return self.mix * self.b(self.between(self.a(x_BD)))


def build(**options):
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    arguments = {"model": model, "turns": TURNS, "always": [model.mix], **options}
    return model, Freezer(tuple(TURNS), {"a": model.a, "b": model.b}, optimizer, **arguments)


def trains(module):
    return {parameter.requires_grad for parameter in module.parameters()}


def modes(module):
    return {submodule.training for submodule in module.modules()}


def test_nothing_is_switched_before_the_first_apply():
    model, freezer = build()
    assert trains(model) == modes(model) == {True}
    assert freezer.applied == "a"


@pytest.mark.parametrize(("name", "active"), [("a", {"a"}), ("b", {"b"}), ("both", {"a", "b"})])
def test_apply_freezes_what_the_name_does_not_train(name, active):
    model, freezer = build()
    model(torch.ones(2, 3)).sum().backward()
    freezer.apply(name)
    for module in ("a", "b"):
        assert trains(getattr(model, module)) == modes(getattr(model, module)) == {module in active}
    assert model.mix.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert freezer.applied == name
    assert set(freezer.turn.modules) == active
    assert freezer.turn.trains("always")
    assert {each for each in ("a", "b") if freezer.turn.trains(each)} == active


def test_what_the_user_froze_is_remembered_over_turns():
    model, freezer = build()
    freezer.apply("a")
    model.a[0].bias.requires_grad_(False)
    model.a[1].eval()
    freezer.remember()
    freezer.apply("b")
    freezer.apply("a")
    assert model.a[0].weight.requires_grad
    assert not model.a[0].bias.requires_grad
    assert [submodule.training for submodule in model.a] == [True, False]


def test_what_the_user_unfroze_while_it_was_frozen_trains_in_its_next_turn():
    model, freezer = build()
    model.b[0].bias.requires_grad_(False)
    freezer.apply("b")
    freezer.remember()
    freezer.apply("a")
    model.b[0].bias.requires_grad_(True)
    freezer.remember()
    freezer.apply("b")
    assert trains(model.b) == {True}


def test_release_unfreezes_what_the_user_had_not_frozen():
    model, freezer = build()
    freezer.apply("a")
    model.a[0].bias.requires_grad_(False)
    freezer.release()
    assert trains(model.b) == modes(model) == {True}
    assert [parameter.requires_grad for parameter in model.a.parameters()] == [True, False]


def test_modes():
    model, freezer = build()
    freezer.apply("a")
    freezer.eval()
    assert modes(model) == {False}
    freezer.train()
    assert model.training
    assert model.between.training
    assert (modes(model.a), modes(model.b)) == ({True}, {False})
    model.b.train()
    with pytest.raises(FreezeError, match=re.escape("'b', 'b.0', 'b.1' is in training mode")):
        freezer.check_modes()
    freezer.set_frozen_modes()
    freezer.check_modes()
    assert modes(model.b) == {False}


def test_an_update_has_gradients_of_what_trains_only():
    model, freezer = build()
    freezer.apply("a")
    model(torch.ones(2, 3)).sum().backward()
    model.b[0].weight.grad = torch.ones_like(model.b[0].weight)
    freezer.prepare_update()
    assert {name for name, each in model.named_parameters() if each.grad is not None} == {
        "a.0.weight",
        "a.0.bias",
        "mix",
    }
    freezer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(LossError, match="the loss reaches no parameter of 'a'"):
        freezer.prepare_update()


def test_the_users_choices_are_its_state():
    model, freezer = build()
    freezer.apply("a")
    model.a[0].bias.requires_grad_(False)
    model.a[1].eval()
    state = json.loads(json.dumps(freezer.state_dict()))
    assert state == {"user_frozen": ["a.0.bias"], "inference": ["a.1"]}
    other, second = build()
    second.load_state_dict(state)
    second.apply("a")
    assert second.state_dict() == state
    assert not other.a[0].bias.requires_grad
    assert not other.a[1].training


def test_the_state_of_another_model_is_refused_and_changes_nothing():
    _, freezer = build()
    freezer.apply("a")
    for damage in ({"user_frozen": ["c.weight"], "inference": []}, {"user_frozen": ["a.0.bias"], "inference": ["c"]}):
        with pytest.raises(StateError, match=r"names 'c.*which this one does not have"):
            freezer.load_state_dict(damage)
    assert freezer.state_dict() == {"user_frozen": [], "inference": []}


def test_without_a_process_group_the_parallel_code_is_not_entered(monkeypatch):
    def entered(*_):
        raise AssertionError

    def walk():
        model, freezer = build()
        freezer.apply("a")
        freezer.check_modes()
        model(torch.ones(2, 3)).sum().backward()
        freezer.prepare_update()
        freezer.release()
        return freezer.ranks

    for module, names in ((group, ("find_wrappers", "find_sharded", "check_single")), (ranks, ("reshard",))):
        for name in names:
            monkeypatch.setattr(module, name, entered)
    assert walk() is None
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    with pytest.raises(AssertionError):
        walk()


def test_several_processes_must_say_who_trains_together(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(ConfigurationError, match="3 processes must decide the same"):
        build()

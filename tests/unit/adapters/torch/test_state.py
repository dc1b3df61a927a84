"""Saving and loading: resumed mid-tenure a run continues as if never stopped."""

import copy
import io
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle, Plateau, StateError
from tests.conformance.freeze_contract_torch import adamw, same_bits, tower_loss

NAMES = ("a", "b")
NUM_STEPS = 16


class Run:
    """A run whose data and dropout depend on the step alone."""

    def __init__(self, rule=None, delay=1, names=NAMES, **options):
        torch.manual_seed(0)
        self.model = nn.ModuleDict({name: nn.Sequential(nn.Linear(6, 1), nn.Dropout(0.3)) for name in names})
        optimizers = {name: adamw(module.parameters()) for name, module in self.model.items()}
        self.alternating = AlternatingOptimizer(
            Alternator(names, rule=rule or Plateau(threshold=0.1, min_steps=2, window=3)),
            dict(self.model.items()),
            optimizers,
            schedulers={name: ExponentialLR(optimizer, 0.9) for name, optimizer in optimizers.items()},
            scaler=torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3),
            delay=delay,
            **options,
        )
        self.decisions = []

    def train(self, start, stop):
        for step in range(start, stop):
            losses = {name: tower_loss(module, name, step) for name, module in self.model.items()}
            self.decisions.append(self.alternating.step(sum(losses.values()), losses))
        return self

    def save(self):
        state = {"model": self.model.state_dict(), "alternating": self.alternating.state_dict(include_optimizers=True)}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=True)

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.alternating.load_state_dict(state["alternating"])
        return self


@settings(max_examples=8, derandomize=True)
@given(st.integers(0, NUM_STEPS), st.integers(0, 2))
def test_a_resumed_run_equals_one_never_stopped(stop, delay):
    whole = Run(delay=delay).train(0, NUM_STEPS)
    first = Run(delay=delay).train(0, stop)
    second = Run(delay=delay).load(first.save()).train(stop, NUM_STEPS)
    assert first.decisions + second.decisions == whole.decisions
    assert any(decision.switched for decision in whole.decisions)
    assert same_bits(second.save(), whole.save())


def test_the_state_of_the_schedule_is_json():
    run = Run().train(0, 3)
    run.alternating.skip({"a": float("nan"), "b": float("inf")})
    state = run.alternating.state_dict()
    saved = json.dumps(state, allow_nan=False)
    assert json.loads(saved) == state
    other = Run().train(0, 3)
    other.alternating.load_state_dict(json.loads(saved))
    assert other.alternating.state_dict() == state


def test_what_the_user_froze_is_part_of_the_state():
    run = Run()
    run.model["a"][0].weight.requires_grad_(False)
    run.model["a"][1].eval()
    state = run.alternating.state_dict()
    assert state["user_frozen"] == ["a.0.weight"]
    assert state["inference"] == ["a.1"]
    other = Run()
    other.alternating.load_state_dict(state)
    assert [parameter.requires_grad for parameter in other.model["a"].parameters()] == [False, True]
    assert not other.model["a"][1].training
    assert other.model["a"].training


def test_a_state_of_another_adapter_has_nothing_that_the_user_froze():
    state = Run().train(0, 5).alternating.state_dict()
    other = Run()
    other.model["a"][0].weight.requires_grad_(False)
    other.alternating.load_state_dict({key: state[key] for key in ("version", "alternator", "pending_losses")})
    assert other.alternating.state_dict() == state
    assert state["user_frozen"] == state["inference"] == []


def test_loading_applies_the_saved_turn():
    run = Run(Cycle(3)).train(0, 4)
    assert run.alternating.active == "b"
    other = Run(Cycle(3))
    other.alternating.load_state_dict(run.alternating.state_dict())
    assert other.alternating.active_modules == ("b",)
    assert other.model["b"].training
    assert not other.model["a"].training
    assert not other.model["a"][0].weight.requires_grad


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.update(version=0), "state version must be 1, got 0"),
        (lambda state: state.pop("pending_losses"), "the state is damaged"),
        (lambda state: state.update(pending_losses=[{"a": "many"}]), "the state is damaged"),
        (lambda state: state.update(pending_losses=[{"c": "1.0"}]), "belongs to another model: it names 'c'"),
        (lambda state: state.update(user_frozen=["a.9.weight"]), "it names 'a.9.weight', which this one does not have"),
        (lambda state: state["alternator"].pop("counts"), "the state is damaged"),
        (lambda state: state.update(optimizers=[{}]), "must hold the optimizers by name, not by position"),
        (lambda state: state["optimizers"]["b"].pop("state"), "the state is damaged"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage, message):
    run = Run().train(0, 5)
    state = copy.deepcopy(run.alternating.state_dict(include_optimizers=True))
    damage(state)
    before = copy.deepcopy(run.alternating.state_dict(include_optimizers=True))
    with pytest.raises(StateError, match=message):
        run.alternating.load_state_dict(state)
    assert same_bits(before, run.alternating.state_dict(include_optimizers=True))


def test_the_state_of_another_configuration_is_refused():
    state = Run(Cycle(3)).train(0, 2).alternating.state_dict()
    with pytest.raises(StateError, match=r"rule\.steps was 3, is 4"):
        Run(Cycle(4)).alternating.load_state_dict(state)

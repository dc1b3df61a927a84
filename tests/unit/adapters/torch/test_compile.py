"""torch.compile: one graph per set of active modules, the same weights as eager, a warning beyond the limit."""

import warnings

import pytest
import torch
from torch import nn

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Cycle
from tests.conformance.freeze_contract_torch import CLIP_NORM, adamw, batch, same_bits, tower

NAMES = ("a", "b")


class Model(nn.Module):
    """Two towers in a row, so that gradients of the first flow through the second."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.b = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.0), nn.Linear(6, 1))

    def forward(self, x_BD):
        return self.b(self.a(x_BD)).square().mean()


def build(model, root=None, frozen_mode="inference"):
    modules = {name: getattr(model, name) for name in NAMES}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    options = {"clip_norm": CLIP_NORM, "model": root, "frozen_mode": frozen_mode}
    return AlternatingOptimizer(Alternator(NAMES, rule=Cycle(2)), modules, optimizers, **options)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("frozen_mode", ["inference", "batch"])
@pytest.mark.parametrize("how", ["wrapper", "in place"])
def test_compiled_training_equals_eager_with_one_graph_per_active_set(how, frozen_mode):
    eager, compiled = Model(), Model()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    if how == "wrapper":
        forward = torch.compile(compiled, backend=backend)
        alternating = build(compiled, forward, frozen_mode)
    else:
        forward = compiled
        compiled.compile(backend=backend)
        alternating = build(compiled, compiled, frozen_mode)
    reference = build(eager, frozen_mode=frozen_mode)
    for step in range(12):
        assert alternating.step(forward(batch(step))) == reference.step(eager(batch(step)))
    assert reference.alternator.stats().switch_count == 6
    assert same_bits(compiled.state_dict(), eager.state_dict())
    assert len(graphs) == len(NAMES)


def test_compiled_gradients_are_those_of_the_active_module():
    """With ahead-of-time autograd, whose backward graph is fixed when it is compiled."""
    eager, compiled = Model(), Model()
    forward = torch.compile(compiled, backend="aot_eager")
    alternating, reference = build(compiled), build(eager)
    for step in range(8):
        alternating.step(forward(batch(step)))
        reference.step(eager(batch(step)))
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict())


def test_a_compiled_module_has_the_names_of_the_plain_one():
    plain = {"a": tower(0), "b": tower(1)}
    compiled = {"a": torch.compile(tower(0), backend="eager"), "b": nn.Sequential(tower(1))}
    compiled["b"][0] = torch.compile(compiled["b"][0], backend="eager")
    states = []
    for modules in (plain, compiled):
        optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
        alternating = AlternatingOptimizer(Alternator(NAMES, rule=Cycle(1)), modules, optimizers)
        modules["a"].get_parameter("0.weight" if modules is plain else "_orig_mod.0.weight").requires_grad_(False)
        states.append(alternating.state_dict())
        alternating.force("b")
        assert not any(submodule.training for submodule in modules["a"].modules())
        assert all(submodule.training for submodule in modules["b"].modules())
    assert states[0] == states[1]


def many(num, compiled):
    modules = {f"m{index}": nn.Linear(1, 1) for index in range(num)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    model = nn.ModuleDict(modules)
    if compiled:
        model.compile(backend="eager")
    return AlternatingOptimizer(Alternator(modules, rule=Cycle(1)), modules, optimizers, model=model)


def test_more_turns_than_the_recompile_limit_are_warned_of():
    limit = torch._dynamo.config.recompile_limit
    message = rf"{limit + 1} turns exceed torch._dynamo.config.recompile_limit = {limit}.*raise it to {limit + 2}"
    with pytest.warns(UserWarning, match=message):
        many(limit + 1, compiled=True)


def test_no_warning_without_need():
    limit = torch._dynamo.config.recompile_limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert many(limit, compiled=True).active == "m0"
        assert many(limit + 1, compiled=False).active == "m0"

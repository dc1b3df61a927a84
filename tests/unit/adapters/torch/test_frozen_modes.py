"""``frozen_mode``: a frozen module runs as in training and keeps every bit; and the warning where none is chosen."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm

from adapters.torch import AlternatingOptimizer, FreezeError
from adapters.torch.frozen_modes import Tracking
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import adamw, same_bits


class NormAct(nn.BatchNorm1d):
    """BatchNorm and its activation in one, with a forward pass of its own, as in timm."""

    def forward(self, x_BD):
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        statistics = (
            (None, None) if self.training and not self.track_running_stats else (self.running_mean, self.running_var)
        )
        return F.relu(F.batch_norm(x_BD, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps))


NORMS = {
    "plain": lambda: nn.BatchNorm1d(6),
    "cumulative": lambda: nn.BatchNorm1d(6, momentum=None),
    "without parameters": lambda: nn.BatchNorm1d(6, affine=False),
    "without statistics": lambda: nn.BatchNorm1d(6, track_running_stats=False),
    "synchronised": lambda: nn.SyncBatchNorm(6),
    "subclass": lambda: NormAct(6),
}


def network(norm=NORMS["plain"]):
    return nn.Sequential(nn.Linear(6, 6), norm(), nn.Dropout(0.3), nn.Linear(6, 6))


def build(frozen_mode="batch", cycle=100, rest=network, **options):
    torch.manual_seed(0)
    modules = {"a": network(), "b": rest()}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    alternator = Alternator(modules, rule=Cycle(cycle))
    return modules, AlternatingOptimizer(alternator, modules, optimizers, frozen_mode=frozen_mode, **options)


def loss(modules, step=0):
    torch.manual_seed(step)
    return modules["b"](modules["a"](torch.randn(8, 6))).square().mean()


def flags(module):
    return [(each.training, getattr(each, "track_running_stats", None)) for each in module.modules()]


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_frozen_module_runs_as_in_training_and_keeps_every_bit(norm):
    modules, alternating = build(rest=lambda: network(norm))
    twin = copy.deepcopy(modules["b"].train())
    for each in twin.modules():
        if hasattr(each, "running_mean") and each.running_mean is not None:
            each.track_running_stats = True
    before = copy.deepcopy(modules["b"].state_dict())
    for step in range(3):
        expected, given = loss({**modules, "b": twin}, step), loss(modules, step)
        assert torch.equal(given, expected)
        alternating.step(given)
    assert same_bits(modules["b"].state_dict(), before)
    moved = [key for key, value in twin.state_dict().items() if not torch.equal(value, before[key])]
    assert moved == [key for key in before if "running" in key or "num_batches" in key]


def test_weights_equal_those_of_a_loop_written_by_hand():
    """Which also moves the statistics of what it scores with, and nothing else."""
    modules, alternating = build(cycle=1)
    torch.manual_seed(0)
    twins = {"a": network(), "b": network()}
    optimizers = {name: adamw(module.parameters()) for name, module in twins.items()}
    for step in range(8):
        alternating.step(loss(modules, step))
        for module in twins.values():
            module.zero_grad()
        loss(twins, step).backward()
        optimizers["ab"[step % 2]].step()
    for name, module in modules.items():
        assert same_bits(list(module.parameters()), list(twins[name].parameters()))
        assert not torch.equal(module[1].running_mean, twins[name][1].running_mean)
        assert int(module[1].num_batches_tracked) == 4


@pytest.mark.parametrize("back", ["force", "release"])
def test_flags_come_back(back):
    modules, alternating = build()
    assert flags(modules["b"])[:3] == [(True, None), (True, None), (True, False)]
    alternating.force("b") if back == "force" else alternating.release()
    assert flags(modules["b"])[:3] == [(True, None), (True, None), (True, True)]


def test_flags_come_back_after_an_error_an_evaluation_and_a_load():
    modules, alternating = build(cycle=2)
    saved = copy.deepcopy((nn.ModuleDict(modules).state_dict(), alternating.state_dict()))
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        modules["b"][1](torch.ones(6))
    alternating.eval()
    modules["b"](torch.ones(2, 6))
    assert {each.training for each in nn.ModuleDict(modules).modules()} - {True} == {False}
    alternating.train()
    nn.ModuleDict(modules).eval()
    nn.ModuleDict(modules).train()
    alternating.step(loss(modules))
    nn.ModuleDict(modules).load_state_dict(saved[0])
    alternating.load_state_dict(saved[1])
    alternating.apply()
    alternating.step(loss(modules))
    alternating.step(loss(modules))
    assert alternating.active == "b"
    assert [flags(modules[name])[2] for name in "ab"] == [(True, False), (True, True)]
    alternating.release()
    assert set(flags(modules["a"])) == {(True, None), (True, True)}


def test_an_evaluation_uses_running_statistics():
    modules, alternating = build()
    twin = copy.deepcopy(modules["b"]).eval()
    twin[1].track_running_stats = True
    alternating.eval()
    assert torch.equal(modules["b"](torch.ones(2, 6)), twin(torch.ones(2, 6)))


def test_a_run_resumed_from_its_state_equals_one_never_stopped():
    modules, alternating = build(cycle=2)
    others, resumed = build(cycle=2)
    for step in range(9):
        if step == 5:
            nn.ModuleDict(others).load_state_dict(nn.ModuleDict(modules).state_dict())
            resumed.load_state_dict(copy.deepcopy(alternating.state_dict(include_optimizers=True)))
        alternating.step(loss(modules, step))
        if step >= 5:
            resumed.step(loss(others, step))
    assert same_bits(nn.ModuleDict(others).state_dict(), nn.ModuleDict(modules).state_dict())


@pytest.mark.parametrize("normed", [parametrizations.spectral_norm, spectral_norm])
def test_what_would_write_its_buffers_stays_in_inference_mode(normed):
    modules, alternating = build(rest=lambda: nn.Sequential(normed(nn.Linear(6, 6)), nn.Dropout(0.5)))
    before = copy.deepcopy(modules["b"].state_dict())
    assert modules["b"].training
    assert modules["b"][1].training
    for step in range(3):
        alternating.step(loss(modules, step))
    assert same_bits(modules["b"].state_dict(), before)
    modules["b"].train()
    with pytest.raises(FreezeError, match=r"a frozen module must be in its frozen mode, but 'b.0.*' is in training"):
        alternating.step(loss(modules))
    assert same_bits(modules["b"].state_dict(), before)


def test_training_mode_set_from_outside_is_right_where_nothing_would_be_written():
    modules, alternating = build()
    before = copy.deepcopy(modules["b"].state_dict())
    nn.ModuleDict(modules).train()
    alternating.step(loss(modules))
    assert same_bits(modules["b"].state_dict(), before)
    modules["b"][1].track_running_stats = True
    with pytest.raises(FreezeError, match=r"'b.1' is in training mode: .* small buffers are as they were$"):
        alternating.step(loss(modules))
    assert same_bits(modules["b"].state_dict(), before)
    alternating.train()
    alternating.step(loss(modules))
    assert same_bits(modules["b"].state_dict(), before)


def test_what_the_user_chose_stays():
    torch.manual_seed(0)
    modules = {"a": network(), "b": nn.Sequential(network(), network(), nn.Dropout(0.5))}
    modules["b"][0][1].eval()
    modules["b"][1][1].track_running_stats = False
    modules["b"][2].eval()
    modules["b"][0][0].requires_grad_(False)
    before = flags(modules["b"])
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    alternating = AlternatingOptimizer(Alternator(modules), modules, optimizers, frozen_mode={"b": "batch"})
    assert flags(modules["b"]) == before
    alternating.step(loss(modules))
    alternating.force("b")
    assert flags(modules["b"]) == before
    assert not modules["b"][0][0].weight.requires_grad


def test_a_layer_added_to_a_frozen_module_runs_in_its_mode():
    modules, alternating = build()
    modules["b"].append(nn.BatchNorm1d(6, affine=False))
    alternating.apply()
    assert flags(modules["b"])[-1] == (True, False)
    alternating.step(loss(modules))
    assert int(modules["b"][-1].num_batches_tracked) == 0


def test_statistics_of_instances_are_refused():
    with pytest.raises(
        ConfigurationError, match=r"'b.0' is an InstanceNorm with track_running_stats=True, which cannot"
    ):
        build(rest=lambda: nn.Sequential(nn.InstanceNorm1d(6, affine=True, track_running_stats=True)))
    build(rest=lambda: nn.Sequential(nn.InstanceNorm1d(6, affine=True)))
    build("inference", rest=lambda: nn.Sequential(nn.InstanceNorm1d(6, affine=True, track_running_stats=True)))


@pytest.mark.parametrize(
    ("frozen_mode", "message"),
    [
        ("train", r"frozen_mode must be one of \('inference', 'batch'\), got 'train' for 'a'"),
        ({"b": None}, r"frozen_mode must be one of .*, got None for 'b'"),
        ({"c": "batch"}, r"frozen_mode must be named after the modules \('a', 'b'\), got \['c'\]"),
    ],
)
def test_a_mistaken_mode_is_an_error(frozen_mode, message):
    with pytest.raises(ConfigurationError, match=message):
        build(frozen_mode)


def test_a_mode_that_nobody_chose_warns_once_of_gradients_through_batchnorm():
    modules, alternating = build(None)
    with pytest.warns(UserWarning, match=r"'b' has BatchNorm .* frozen_mode=\{'b': 'batch'\}.*'inference' to keep"):
        alternating.step(loss(modules))
    alternating.step(loss(modules))
    alternating.force("b")
    alternating.force("a")
    alternating.step(loss(modules))


@pytest.mark.parametrize("frozen_mode", ["inference", "batch", {"b": "inference"}, {"b": "batch"}])
def test_a_mode_that_was_chosen_does_not_warn(frozen_mode):
    modules, alternating = build(frozen_mode)
    alternating.step(loss(modules))
    assert not any(each._forward_pre_hooks for each in modules["b"].modules())


def test_no_warning_without_gradients_through_it_without_batchnorm_or_where_the_user_put_it_in_inference_mode():
    modules, alternating = build(None)
    with torch.no_grad():
        loss(modules)
    modules["b"](torch.ones(4, 6))
    alternating.force("b")
    alternating.step(loss(modules))  # the encoder's input requires no gradient
    modules, alternating = build(None, rest=lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6).eval()))
    alternating.step(loss(modules))
    modules, alternating = build(None, rest=lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)))
    alternating.step(loss(modules))
    assert not any(each._forward_pre_hooks for each in modules["b"].modules())
    modules, _ = build(None)
    modules["b"][0].requires_grad_(True)  # gradients of its own, and none through it
    modules["b"](torch.ones(4, 6))


def test_hooks_are_there_only_while_a_module_with_batchnorm_is_frozen():
    modules, alternating = build(None)
    assert [len(each._forward_pre_hooks) for each in modules["b"]] == [0, 1, 0, 0]
    alternating.apply()
    assert [len(each._forward_pre_hooks) for each in modules["b"]] == [0, 1, 0, 0]
    alternating.force("b")
    assert [len(each._forward_pre_hooks) for each in modules["b"]] == [0, 0, 0, 0]
    alternating.release()
    assert not any(each._forward_pre_hooks for module in modules.values() for each in module)


def test_copies_and_pickles_do_not_warn():
    modules, _ = build(None)
    for copied in (copy.deepcopy(modules["b"]), pickle.loads(pickle.dumps(modules["b"]))):  # noqa: S301
        loss({**modules, "b": copied}).backward()


def test_a_compiled_model_does_not_warn_and_is_compiled_once_per_turn():
    torch._dynamo.reset()
    modules, alternating = build(None, cycle=2)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    forward = torch.compile(lambda x_BD: modules["b"](modules["a"](x_BD)).square().mean(), backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(8):
            torch.manual_seed(step)
            alternating.step(forward(torch.randn(8, 6)))
    assert len(graphs) == 2
    torch._dynamo.reset()


def test_a_flaw_that_lets_statistics_move_is_found(monkeypatch):
    monkeypatch.setattr(Tracking, "stop", lambda self, norms: None)
    modules, alternating = build()
    before = copy.deepcopy(modules["b"].state_dict())
    given = loss(modules)
    assert not same_bits(modules["b"].state_dict(), before)
    with pytest.raises(FreezeError, match=r"'b.1' is in training mode"):
        alternating.step(given)
    assert same_bits(modules["b"].state_dict(), before)

"""Losses: read late, credited to whom they belong, averaged over micro-steps; skipped steps."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.torch import AlternatingOptimizer, FreezeError, LateScalar
from adapters.torch.losses import PendingLosses
from alternator import Alternator, Cycle, LossError, Plateau, UnknownModuleError
from tests.conformance.freeze_contract_torch import adamw, same_bits, tower, tower_loss

NAMES = ("a", "b")


def build(rule=None, **options):
    torch.manual_seed(0)
    modules = {name: nn.Sequential(nn.Linear(6, 1), nn.Dropout(0.3)) for name in NAMES}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    return AlternatingOptimizer(Alternator(NAMES, rule=rule or Cycle(1000)), modules, optimizers, **options), modules


def losses_of(modules, step):
    return {name: tower_loss(module, name, step) for name, module in modules.items()}


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_losses_are_recorded_delay_steps_later(delay):
    alternating, modules = build(Plateau(window=10), delay=delay)
    given = []
    for step in range(8):
        loss = losses_of(modules, step)["a"]
        given.append(loss.item())
        alternating.step(loss)
        assert alternating.alternator.loss_history("a") == given[: max(step + 1 - delay, 0)]
    alternating.flush()
    assert alternating.alternator.loss_history("a") == given


def test_delay_0_decides_as_observe_does():
    rule = Plateau(threshold=0.1, min_steps=2, window=3)
    alternating, modules = build(rule, delay=0)
    reference = Alternator(NAMES, rule=rule)
    switches = 0
    for step in range(60):
        losses = losses_of(modules, step)
        values = {name: loss.item() for name, loss in losses.items()}
        decision = alternating.step(sum(losses.values()), losses)
        assert decision == reference.observe(values)
        switches += decision.switched
    assert switches > 2


def test_delay_1_decides_as_record_one_step_late_and_advance():
    rule = Plateau(threshold=0.1, min_steps=2, window=3)
    alternating, modules = build(rule)
    reference = Alternator(NAMES, rule=rule)
    late = {}
    for step in range(60):
        losses = losses_of(modules, step)
        values = {name: loss.item() for name, loss in losses.items()}
        decision = alternating.step(sum(losses.values()), losses)
        for name, value in late.items():
            reference.record(name, value, step=step)
        assert decision == reference.advance()
        late = values
    assert reference.stats().switch_count > 2


def test_the_loss_of_the_step_of_a_switch_is_credited_to_the_module_that_trained():
    alternating, modules = build(Plateau(threshold=1e9, min_steps=3, window=3), delay=1)
    alternator = alternating.alternator
    given = []
    for step in range(5):
        loss = losses_of(modules, step)[alternating.active]
        given.append((alternating.active, loss.item()))
        alternating.step(loss)
    alternating.flush()
    assert [name for name, _ in given] == ["a", "a", "a", "a", "b"]
    assert alternator.loss_history("a") == [value for _, value in given[1:4]]
    assert alternator.loss_history("b") == [given[4][1]]


def test_a_loss_computed_before_a_tenure_is_not_heard_by_it():
    alternating, modules = build(Cycle(2), delay=1)
    for step in range(3):
        losses = losses_of(modules, step)
        alternating.step(sum(losses.values()), losses)
    alternator = alternating.alternator
    assert (alternator.active, alternator._facts.tenure, alternator._facts.observed) == ("b", 1, 0)
    alternating.step(sum(losses_of(modules, 3).values()), losses_of(modules, 3))
    alternating.force("b")
    alternating.flush()
    assert alternator._facts.observed == 0


def test_the_recorded_loss_is_a_copy():
    alternating, modules = build(Plateau())
    given = torch.tensor(2.0)
    alternating.step(losses_of(modules, 0)["a"], {"a": given})
    given.fill_(7.0)
    alternating.flush()
    assert alternating.alternator.loss_history("a") == [2.0]


def test_losses_may_be_numbers_and_low_precision_tensors():
    alternating, modules = build(Plateau(), delay=0)
    alternating.step(losses_of(modules, 0)["a"], {"a": 0.1, "b": torch.tensor([0.5], dtype=torch.bfloat16)})
    assert alternating.alternator.loss_history("a") == [0.1]
    assert alternating.alternator.loss_history("b") == [0.5]


def test_nothing_moves_when_the_losses_are_wrong():
    alternating, modules = build(Plateau(), delay=0)
    losses = losses_of(modules, 0)
    for wrong, error, message in [
        ({"a": losses["a"], "c": losses["b"]}, UnknownModuleError, "unknown module 'c'; expected one of"),
        ({"b": losses["b"]}, LossError, "the loss of the active module 'a' is missing"),
        (
            {"a": torch.zeros(2)},
            LossError,
            r"real scalar, got a torch.float32 tensor of shape \(2,\) for 'a'; reduce it",
        ),
        ({"a": torch.tensor(1j)}, LossError, "real scalar, got a torch.complex64.*; take its .real"),
        ({"a": torch.tensor(1 + 0j)}, LossError, "real scalar, got a torch.complex64"),
        ({"a": np.complex128(1)}, LossError, r"real scalar, got np\.complex128\(1\+0j\) for 'a'; give a number"),
        ({"a": np.array(1 + 0j)}, LossError, r"real scalar, got array\(1\.\+0\.j\) for 'a'; give a number"),
        ({"a": 10**400}, LossError, r"real scalar, got 1000+\.\.\. for 'a'; give a number"),
        ({"a": "high"}, LossError, "real scalar, got 'high'"),
        ({"a": "0.5"}, LossError, "real scalar, got '0.5'"),
    ]:
        with pytest.raises(error, match=message):
            alternating.step(losses["a"], wrong)
    with pytest.raises(LossError, match=r"step\(\) needs a loss"):
        alternating.step()
    assert modules["a"][0].weight.grad is None
    assert alternating.alternator.stats().total_steps == 0
    assert alternating.step(losses["a"]).step == 1


def test_a_loss_that_does_not_reach_the_active_module_is_an_error_and_can_be_skipped():
    alternating, modules = build(delay=0)
    stray = nn.Parameter(torch.ones(()))
    with pytest.raises(LossError, match=r"reaches no parameter of 'a', which is active: .*skip\(\)"):
        alternating.step(losses_of(modules, 0)["b"] * stray)
    decision = alternating.skip()
    assert decision.step == 1
    assert alternating.alternator.stats().modules["a"].skipped_steps == 1


def test_a_skipped_step_changes_nothing_and_counts_as_skipped():
    alternating, modules = build(Plateau(), delay=0)
    alternating.step(losses_of(modules, 0)["a"])
    before = {name: [value.clone() for value in module.state_dict().values()] for name, module in modules.items()}
    alternating.backward(tower_loss(modules["b"], "b", 1) + (modules["a"][0].weight * 3).sum())
    alternating.skip(float("nan"))
    assert same_bits(before, {name: list(module.state_dict().values()) for name, module in modules.items()})
    assert all(parameter.grad is None for module in modules.values() for parameter in module.parameters())
    stats = alternating.alternator.stats().modules["a"]
    assert (stats.training_steps, stats.skipped_steps, stats.nonfinite_losses) == (1, 1, 1)


def test_non_finite_losses_in_a_row_force_a_switch():
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    alternating = AlternatingOptimizer(Alternator(NAMES, nonfinite_limit=3), modules, optimizers)
    decisions = [alternating.skip({"a": math.nan}) for _ in range(4)]
    assert [decision.switched for decision in decisions] == [False, False, False, True]
    assert alternating.active_modules == ("b",)
    assert modules["b"][0].weight.requires_grad
    assert not modules["a"][0].weight.requires_grad


def test_accumulation_equals_one_large_step():
    whole, one = build(accumulate=1, clip_norm=0.1)
    micro, other = build(accumulate=4, clip_norm=0.1)
    other["a"].load_state_dict(one["a"].state_dict())
    for module in [*one.values(), *other.values()]:
        module[1].eval()
    x_BD = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        whole.step(one["a"](x_BD).square().mean())
        decisions = [micro.step(other["a"](part_BD).square().mean()) for part_BD in x_BD.chunk(4)]
        assert [decision is None for decision in decisions] == [True, True, True, False]
        assert decisions[-1].step == whole.alternator.stats().total_steps
    for left, right in zip(one["a"].parameters(), other["a"].parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_accumulation_records_the_mean_and_switches_at_the_boundary_only():
    alternating, modules = build(Plateau(threshold=1e9, min_steps=1, window=3), accumulate=3, delay=0)
    alternator = alternating.alternator
    active = []
    for step in range(12):
        active.append(alternating.active)
        value = torch.tensor(float(step), dtype=torch.bfloat16)
        alternating.step(losses_of(modules, step)[alternating.active], {alternating.active: value})
    assert active == ["a"] * 9 + ["b"] * 3
    assert alternator.loss_history("a") == [1.0, 4.0, 7.0]
    assert alternator.loss_history("b") == [10.0]
    assert alternator.stats().total_steps == 4


def test_within_an_accumulation_nothing_else_is_allowed():
    alternating, modules = build(accumulate=2)
    alternating.step(losses_of(modules, 0)["a"])
    for call in (lambda: alternating.force("b"), alternating.apply, alternating.state_dict):
        with pytest.raises(FreezeError, match=r"must be called between updates, got micro-step 1 of 2"):
            call()
    assert alternating.skip().step == 1
    assert alternating.force("b").active == "b"


def test_spelled_out_equals_one_call():
    (short, one), (long, other) = build(clip_norm=0.1), build(clip_norm=0.1)
    for name in NAMES:
        other[name].load_state_dict(one[name].state_dict())
    for step in range(3):
        losses = losses_of(one, step)
        first = short.step(sum(losses.values()), losses)
        losses = losses_of(other, step)
        long.zero_grad()
        long.backward(sum(losses.values()))
        assert other["a"][0].weight.grad is not None
        assert long.step(losses=losses) == first
    assert same_bits(one["a"].state_dict(), other["a"].state_dict())


def test_switching_the_alternator_directly_is_an_error_until_applied():
    alternating, modules = build()
    alternating.alternator.force("b")
    with pytest.raises(FreezeError, match=r"says 'b', but 'a' is applied: switch with force\(\)"):
        alternating.step(losses_of(modules, 0)["b"])
    alternating.apply()
    assert alternating.step(losses_of(modules, 0)["b"]).active == "b"


def test_pending_losses_hold_a_constant_number_of_steps():
    pending = PendingLosses(2)
    for step in range(50):
        pending.add({"a": float(step)})
        read = list(pending.close_step(step))
        assert read == ([(step - 2, "a", step - 2.0)] if step >= 2 else [])
    assert pending.state() == [{"a": "48.0"}, {"a": "49.0"}]
    loaded = PendingLosses(2)
    loaded.load([{"a": 48.0}, {"a": 49.0}], step=49)
    assert list(loaded.flush()) == list(pending.flush()) == [(48, "a", 48.0), (49, "a", 49.0)]


class HostReads(TorchDispatchMode):
    """Counts how often a tensor is read by the host, which on an accelerator waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("delay", "expected"), [(0, [1, 1, 1]), (1, [0, 1, 1]), (2, [0, 0, 1])])
def test_a_step_reads_nothing_newer_than_the_delay_allows(delay, expected):
    """One read a step, of a loss that is due; torchtune 522 is about a read of the loss just computed."""
    modules = {name: nn.Linear(6, 1) for name in NAMES}
    optimizers = {name: torch.optim.SGD(module.parameters(), lr=0.1) for name, module in modules.items()}
    alternating = AlternatingOptimizer(Alternator(NAMES), modules, optimizers, clip_norm=1.0, delay=delay)
    counts = []
    for _ in expected:
        loss = modules["a"](torch.ones(4, 6)).square().mean()
        with HostReads() as reads:
            alternating.step(loss)
        counts.append(reads.count)
    assert counts == expected


def test_a_step_of_several_optimizers_counts_once():
    """Counters that count each optimizer's step run ahead (Lightning 17958)."""
    modules = {name: nn.Linear(6, 1) for name in NAMES}
    optimizers = {name: torch.optim.SGD(module.parameters(), lr=0.1) for name, module in modules.items()}
    turns = {"both": NAMES, "a": "a"}
    alternating = AlternatingOptimizer(Alternator(turns, rule=Cycle(2)), modules, optimizers, turns=turns)
    active = []
    for step in range(4):
        active.append(alternating.active_modules)
        decision = alternating.step(sum(module(torch.ones(4, 6)).square().mean() for module in modules.values()))
        assert decision.step == step + 1
    assert active == [NAMES, NAMES, ("a",), ("a",)]
    assert alternating.alternator.stats().total_steps == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_device():
    modules = {name: tower(seed).cuda() for seed, name in enumerate(NAMES)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    alternating = AlternatingOptimizer(Alternator(NAMES, rule=Cycle(2)), modules, optimizers, clip_norm=1.0)
    x_BD = torch.ones(16, 6, device="cuda")
    alternating.step(sum(module(x_BD).mean() for module in modules.values()))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(6):
            alternating.step(sum(module(x_BD).mean() for module in modules.values()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert alternating.alternator.stats().switch_count == 3


def test_late_scalars_keep_every_bit():
    for value in (0.1, math.inf, torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64), torch.tensor([3])):
        assert LateScalar(value).read() == float(value)


def test_an_empty_mapping_tells_nothing_and_the_step_is_made():
    alternating, modules = build(Plateau(), delay=0)
    before = modules["a"][0].weight.detach().clone()
    assert alternating.step(losses_of(modules, 0)["a"], {}).step == 1
    assert alternating.alternator.loss_history("a") == []
    assert not torch.equal(modules["a"][0].weight, before)

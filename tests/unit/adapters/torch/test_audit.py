"""The audit finds every naive way to freeze, and what no count of writes tells; loops that keep the contract pass."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from adapters.contract import FreezeError
from adapters.torch import AlternatingOptimizer
from adapters.torch.audit import Audit, audited
from adapters.torch.digests import Digester
from alternator import Alternator, ConfigurationError, Cycle, UnknownModuleError
from tests.conformance.freeze_contract_torch import CLIP_NORM, Measured, tower_loss
from tests.conformance.naive_torch import BREAKS, BuiltWhileFrozen, HandWritten

NUM_STEPS = 12


def run(build, *, audited_by="step", measured=None, **options):
    """Two towers that take turns, under an audit; the audit."""
    measured = measured or Measured()
    modules = measured.make_towers()
    optimizers, schedulers = measured.make_optimizers(modules)
    if measured.one_optimizer and build is not HandWritten:
        optimizers = optimizers["a"]
    audit = Audit(modules, optimizers, schedulers, **options)
    alternator = Alternator(modules, rule=Cycle((3, 4)))
    alternating = build(alternator, modules, optimizers, clip_norm=CLIP_NORM, schedulers=schedulers)

    def one_step(step):
        losses = {name: tower_loss(module, name, step) for name, module in modules.items()}
        alternating.step(losses["a"] + losses["b"], losses)

    if audited_by == "step":
        for step in range(NUM_STEPS):
            with audit.step(alternating.active):
                one_step(step)
        return audit
    with Audit.of(alternating) as audit:
        for step in range(NUM_STEPS):
            one_step(step)
    return audit


@pytest.mark.parametrize("build", [HandWritten, AlternatingOptimizer])
def test_a_loop_that_keeps_the_contract_passes(build):
    audit = run(build)
    assert audit.num_checks == NUM_STEPS
    assert audit.num_bytes > NUM_STEPS * 1000


@pytest.mark.parametrize("one_optimizer", [False, True])
def test_the_adapter_passes_from_switch_to_switch(one_optimizer):
    measured = Measured(one_optimizer=one_optimizer, grouped=one_optimizer)
    assert run(AlternatingOptimizer, audited_by="of", measured=measured).num_checks == NUM_STEPS


@pytest.mark.parametrize("naive", [naive for naive in BREAKS if naive is not BuiltWhileFrozen])
def test_every_naive_way_is_found(naive):
    with pytest.raises(FreezeError, match="a frozen module must"):
        run(naive)


@pytest.mark.parametrize("naive", [naive for naive, broken in BREAKS.items() if broken - {"gradients", "continuation"}])
def test_what_moves_is_found_without_looking_at_gradients(naive):
    with pytest.raises(FreezeError, match="must keep every bit"):
        run(naive, gradients=False)


def test_a_module_that_would_never_train_is_found():
    with pytest.raises(ConfigurationError, match="no parameter of 'b' is, and it would never train"):
        run(BuiltWhileFrozen)


def two():
    """A module that is frozen and one that trains."""
    torch.manual_seed(0)
    modules = {"frozen": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "head": nn.Linear(2, 1)}
    modules["frozen"].register_buffer("cache", torch.zeros(2), persistent=False)
    optimizers = {name: torch.optim.Adam(module.parameters(), lr=0.1) for name, module in modules.items()}
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizers["frozen"], factor=1.0)
    return modules, optimizers, scheduler


def write_through_data(modules, optimizers, scheduler):
    modules["frozen"][0].weight.data += 1e-7


def write_a_negative_zero(modules, optimizers, scheduler):
    modules["frozen"][1].bias.data.fill_(-0.0)


def run_batch_norm(modules, optimizers, scheduler):
    norm = modules["frozen"][1]
    torch.nn.functional.batch_norm(torch.randn(4, 2), norm.running_mean, norm.running_var, training=True)


def replace_a_buffer(modules, optimizers, scheduler):
    modules["frozen"][1].running_mean = torch.ones(2)


def start_an_optimizer(modules, optimizers, scheduler):
    optimizers["frozen"].state[modules["frozen"][0].weight]["step"] = torch.tensor(1.0)


def move_the_learning_rate(modules, optimizers, scheduler):
    optimizers["frozen"].param_groups[0]["lr"] = 0.05


def count_in_the_group(modules, optimizers, scheduler):
    optimizers["frozen"].param_groups[0]["k"] = 1


def advance_a_constant_schedule(modules, optimizers, scheduler):
    optimizers["frozen"].step()
    scheduler.step()


WRITES = {
    write_through_data: "'frozen.0.weight'",
    write_a_negative_zero: "'frozen.1.bias'",
    run_batch_norm: "'frozen.1.running_mean', 'frozen.1.running_var'",
    replace_a_buffer: "'frozen.1.running_mean'",
    start_an_optimizer: "'step of frozen.0.weight'",
    move_the_learning_rate: "'lr of the group of frozen.0.weight'",
    count_in_the_group: "'k of the group of frozen.0.weight'",
    advance_a_constant_schedule: "of scheduler 0'",
}


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_what_changes_is_named(write):
    modules, optimizers, scheduler = two()
    audit = Audit(modules, optimizers, {"frozen": scheduler})
    with audit.step("head"):
        pass
    with pytest.raises(FreezeError, match="in step 2") as raised, audit.step("head"):
        write(modules, optimizers, scheduler)
    assert WRITES[write] in str(raised.value)
    with audit.step("frozen"):
        write(modules, optimizers, scheduler)
    assert audit.num_checks == 2


def test_what_a_schedule_of_the_whole_run_moves_may_be_left_out():
    modules, optimizers, scheduler = two()
    audit = Audit(modules, optimizers, learning_rates=False)
    with audit.step("head"):
        move_the_learning_rate(modules, optimizers, scheduler)
    with pytest.raises(FreezeError, match="'k of the group"), audit.step("head"):
        count_in_the_group(modules, optimizers, scheduler)


def test_caches_may_change_and_new_layers_be_added():
    modules, optimizers, _ = two()
    audit = Audit(modules, optimizers)
    with audit.step("head"):
        modules["frozen"].cache.fill_(1.0)
        modules["frozen"].append(nn.Linear(2, 2))
    assert audit.num_checks == 1
    with pytest.raises(FreezeError, match=r"'frozen.2.weight'"), audit.step("head"):
        modules["frozen"][2].weight.data.zero_()


def test_a_group_of_two_modules_has_no_owner():
    modules, _, _ = two()
    optimizer = torch.optim.Adam([p for module in modules.values() for p in module.parameters()])
    with Audit(modules, optimizer).step("head"):
        optimizer.param_groups[0]["lr"] = 0.5
    optimizers = [torch.optim.Adam(module.parameters()) for module in modules.values()]
    with pytest.raises(FreezeError, match="'lr of"), Audit(modules, optimizers).step("head"):
        optimizers[0].param_groups[0]["lr"] = 0.5


def test_a_gradient_that_is_dropped_again_is_found():
    modules, optimizers, _ = two()
    audit = Audit(modules, optimizers)
    modules["frozen"].eval()

    def backward():
        modules["head"](modules["frozen"](torch.ones(4, 2))).sum().backward()
        optimizers["frozen"].zero_grad()

    with pytest.raises(FreezeError, match=r"'frozen.1.weight', .* got one in step 1"), audit.step("head"):
        backward()
    with audit.step():  # nothing is left behind
        pass
    backward()
    assert audit.num_checks == 1


def test_an_error_within_a_step_is_the_one_that_is_seen():
    modules, optimizers, scheduler = two()
    audit = Audit(modules, optimizers)

    def write_and_fail():
        write_through_data(modules, optimizers, scheduler)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), audit.step("head"):
        write_and_fail()
    assert audit.num_checks == 0


def test_unknown_names_are_refused():
    modules, optimizers, _ = two()
    with pytest.raises(UnknownModuleError, match="unknown module 'haed'"), Audit(modules, optimizers).step("haed"):
        pass


def alternating_of_two():
    modules, optimizers, _ = two()
    return modules, AlternatingOptimizer(Alternator(modules, rule=Cycle(2)), modules, optimizers)


def one_step(modules, alternating):
    return alternating.step(modules["head"](modules["frozen"](torch.randn(4, 2))).square().mean())


def test_writes_that_the_adapter_does_not_notice_are_found_unless_accepted():
    modules, alternating = alternating_of_two()
    with Audit.of(alternating) as audit:
        for _ in range(2):
            one_step(modules, alternating)
        assert alternating.active == "head"
        write_through_data(modules, None, None)
        alternating.apply()
        one_step(modules, alternating)
        write_through_data(modules, None, None)
        with pytest.raises(FreezeError, match=r"'frozen.0.weight' of 'frozen' changed in step 4"):
            one_step(modules, alternating)
    assert audit.num_checks == 3


def test_requires_grad_is_as_it_was_and_no_hook_stays():
    modules, alternating = alternating_of_two()
    one_step(modules, alternating)
    with Audit.of(alternating):
        assert [p.requires_grad for p in modules["head"].parameters()] == [False, False]
        one_step(modules, alternating)
        assert [p.requires_grad for p in modules["frozen"].parameters()] == [False] * 4
    parameters = [p for module in modules.values() for p in module.parameters()]
    assert not any(p._post_accumulate_grad_hooks for p in parameters)
    assert alternating._decisions.listeners == []


def test_every_adapter_built_within_is_audited_and_none_outside():
    with audited() as audits:
        first, second = alternating_of_two(), alternating_of_two()
        for pair in (first, second, second):
            one_step(*pair)
    one_step(*first)
    one_step(*alternating_of_two())
    assert [audit.num_checks for audit in audits] == [1, 2]
    with audited():
        modules, alternating = alternating_of_two()
        modules["head"].weight.data.zero_()
        with pytest.raises(FreezeError, match="in step 1"):
            one_step(modules, alternating)


def made_of(first, second):
    """A tensor of tensors, as those of several processes and quantised ones are."""
    return TwoTensor(torch.tensor(first), torch.tensor(second))


PAIRS = {
    "bfloat16": (torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.0, dtype=torch.float16)),
    "transposed": (torch.arange(4).view(2, 2).t(), torch.arange(4).view(2, 2)),
    "empty": (torch.zeros(0), torch.zeros(0, 1)),
    "sparse": (torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse()),
    "conjugate": (torch.tensor([1j]).conj(), torch.tensor([1j])),
    "not a number": (torch.tensor(float("nan")), torch.tensor(-float("nan"))),
    "inside": (made_of([1.0], [2.0]), made_of([1.0], [3.0])),
    "containers": ({"a": [1, (2.5, None)]}, {"a": [1, (2.5, 0)]}),
    "nesting": ([[1], 2], [[1, 2]]),
    "an array": (np.arange(2000), np.arange(2000) + (np.arange(2000) == 1000)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_equal_values_have_equal_digests_and_others_do_not(name):
    one, other = PAIRS[name]
    digester = Digester()
    assert digester.of(one) == digester.of(copy.deepcopy(one))
    assert digester.of(one) != digester.of(other)
    assert digester.num_bytes > 0

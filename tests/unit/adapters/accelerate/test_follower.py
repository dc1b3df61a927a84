"""The follower in a plain Accelerate loop in one process."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from adapters.accelerate import Follower
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import adamw, optimizer_state, same_bits
from tests.conformance.torch_host import MarkedHost
from tests.unit.adapters.accelerate.accelerated_runs import NAMES, Model, Run, forget, rows
from tests.unit.adapters.torch.frozen_state_runs import bytes_on_device


@pytest.mark.parametrize("several", [False, True])
def test_what_is_frozen_keeps_every_bit(several):
    run = Run(several=several).train()
    assert run.alternator.step == len(run.decisions) == 30
    assert sum(decision.switched for decision in run.decisions) >= 4
    assert run.num_moved == 0


@pytest.mark.parametrize(("num_micro", "num_steps"), [(1, 30), (2, 15), (4, 9)])
def test_one_step_per_window_of_the_optimizer(num_micro, num_steps):
    """Ten batches an epoch: of four micro-steps the last window has two."""
    run = Run(num_micro=num_micro).train()
    counted = [int(state["step"]) for state in run.outcome()[1][0].values()]
    assert run.alternator.step == num_steps
    assert {min(counted), max(counted)} == {module.training_steps for module in run.alternator.stats().modules.values()}


def by_hand(cycle):
    """The same schedule without Accelerate, with an optimizer for each and the other frozen."""
    model = Model()
    modules = {name: getattr(model, name) for name in NAMES}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    step = 0
    for number in range(3):
        torch.manual_seed(100 + number)
        torch.empty((), dtype=torch.int64).random_()  # the loader draws a seed
        for x_BD, y_B1 in zip(*(tensor.split(8) for tensor in rows().tensors), strict=True):
            name = NAMES[step // cycle % 2]
            for other, module in modules.items():
                module.requires_grad_(other == name).train(other == name)
            nn.functional.mse_loss(model(x_BD), y_B1).backward()
            nn.utils.clip_grad_norm_(modules[name].parameters(), 0.5)
            optimizers[name].param_groups[0]["lr"] = 0.01 * 0.99**step
            optimizers[name].step()
            optimizers[name].zero_grad()
            step += 1
    return copy.deepcopy([model.state_dict(), [optimizer_state(optimizers[name], modules[name]) for name in NAMES]])


def test_it_trains_as_a_loop_by_hand():
    run = Run(rule=Cycle(3)).train()
    inside = run.optimizers[0].optimizer
    trained = [run.plain.state_dict(), [optimizer_state(inside, run.modules[name]) for name in NAMES]]
    assert same_bits(trained, by_hand(3))


@pytest.mark.parametrize("num_micro", [1, 4])
def test_a_resumed_run_equals_one_that_never_stopped(num_micro, tmp_path):
    whole = Run(num_micro=num_micro).train()
    forget()
    first = Run(num_micro=num_micro).train(stop=1)
    first.accelerator.save_state(str(tmp_path / "state"))
    forget()
    second = Run(num_micro=num_micro)
    second.accelerator.load_state(str(tmp_path / "state"))
    second.train(1)
    assert first.decisions + second.decisions == whole.decisions
    assert any(decision.switched for decision in second.decisions)
    assert same_bits(second.outcome(), whole.outcome())


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("frozen_state", ["offload", "drop"])
def test_a_resumed_run_with_the_state_of_what_is_frozen_elsewhere(frozen_state, several, tmp_path, monkeypatch):
    kept = Run(several=several).train()
    forget()
    monkeypatch.setattr("adapters.torch.parked.Host", MarkedHost)
    whole = Run(several=several, frozen_state=frozen_state).train()
    forget()
    first = Run(several=several, frozen_state=frozen_state).train(stop=1)
    first.accelerator.save_state(str(tmp_path / "state"))
    forget()
    second = Run(several=several, frozen_state=frozen_state)
    second.accelerator.load_state(str(tmp_path / "state"))
    second.train(1)
    assert same_bits(second.outcome(), whole.outcome())
    assert same_bits(whole.outcome(), kept.outcome()) == (frozen_state == "offload")
    sizes = [bytes_on_device(each.optimizer for each in run.optimizers) for run in (whole, kept)]
    assert 0 < sizes[0] < sizes[1]


@pytest.mark.parametrize("several", [False, True])
def test_a_step_that_the_scaler_skips_is_counted_apart(several):
    run = Run(rule=Cycle(2), several=several, scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    batches = [tuple(tensor[:8] for tensor in rows().tensors)] * 5
    optimizer = run.optimizers[0]
    skipped = []
    for number, (x_BD, y_B1) in enumerate(batches):
        with run.accelerator.accumulate(run.model):
            loss = nn.functional.mse_loss(run.model(x_BD), y_B1) * (float("inf") if number == 1 else 1)
            run.accelerator.backward(loss)
            active = run.optimizers[NAMES.index(run.follower.active)] if several else optimizer
            active.step()
            active.zero_grad()
            skipped.append(active.step_was_skipped)
            run.decisions.append(run.follower.after_step(loss))
    assert skipped == [False, True, False, False, False]
    stats = run.alternator.stats().modules
    assert [(stats[name].training_steps, stats[name].skipped_steps) for name in NAMES] == [(2, 1), (2, 0)]
    assert run.accelerator.scaler.get_scale() == 2.0


def test_bfloat16():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    plain = Model()
    model, optimizer = accelerator.prepare(plain, adamw(plain.parameters()))
    modules = {name: getattr(plain, name) for name in NAMES}
    follower = Follower(
        accelerator, Alternator(NAMES, rule=Cycle(2)), modules, optimizer, model=model, frozen_mode="inference"
    )
    before = copy.deepcopy(plain.b.state_dict())
    for _ in range(2):
        model.train()
        loss = model(rows().tensors[0]).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        assert same_bits(before, plain.b.state_dict())
        follower.after_step(loss)
    assert follower.active == "b"


def test_an_optimizer_of_what_always_trains_is_unwrapped_too():
    accelerator = Accelerator(cpu=True)
    plain, scale = Model(), nn.Parameter(torch.ones(()))
    model, optimizer, extra = accelerator.prepare(plain, adamw(plain.parameters()), adamw([scale]))
    modules = {name: getattr(plain, name) for name in NAMES}
    alternator = Alternator(NAMES, rule=Cycle(2))
    follower = Follower(accelerator, alternator, modules, optimizer, always=([scale], extra), frozen_mode="inference")
    accelerator.backward(model(rows().tensors[0]).square().mean() * scale)
    optimizer.step()
    extra.step()
    assert follower.after_step().step == 1
    assert scale.item() != 1


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM])
def test_what_shards_the_model_is_refused(kind):
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = kind
    with pytest.raises(ConfigurationError, match="every process must hold the whole model for now"):
        Follower(accelerator, Alternator(NAMES), {}, {})


def test_what_was_tried_leaves_no_trace():
    run = Run(rule=Cycle((5, 5)), several=True)

    def everything():
        rates = [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers]
        return run.outcome(), rates, torch.get_rng_state()

    run.epoch(0)
    before, saved = everything(), run.follower.snapshot(*run.schedulers)
    for number in (1, 2):
        run.epoch(number)
        assert not same_bits(everything(), before)
        run.follower.rollback(saved)
        assert same_bits(everything(), before)
    run.epoch(3)
    assert run.num_moved == 0

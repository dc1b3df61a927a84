"""The optimizer state of what is frozen: on the host and back to the bit, or dropped; what it takes on the device."""

import copy
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from adapters.torch import AlternatingOptimizer, Follower
from adapters.torch.audit import Audit
from adapters.torch.host import Host
from alternator import Alternator, ConfigurationError, Cycle
from tests.unit.adapters.torch.frozen_state_runs import CHOICES, Blocks, assert_same, is_there, values_of
from tests.unit.adapters.torch.other_device import DEVICE, OtherDevice

NESTED = "nested"


class Nested(torch.optim.Optimizer):
    """Momentum in a list within the state, with a number and a string beside it."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(kind="nested", count=0, moments={"all": [torch.zeros_like(p), torch.zeros_like(p)]})
                state["count"] += 1
                first, second = state["moments"]["all"]
                first.mul_(0.9).add_(p.grad)
                second.mul_(0.5).add_(first)
                p.sub_(second, alpha=group["lr"])


OPTIMIZERS = {
    "AdamW": torch.optim.AdamW,
    "AdamW, capturable": partial(torch.optim.AdamW, capturable=True),
    "Adam, amsgrad": partial(torch.optim.Adam, amsgrad=True),
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "SGD without state": partial(torch.optim.SGD, lr=0.1),
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
    "NAdam": torch.optim.NAdam,
    "Adadelta": torch.optim.Adadelta,
    "Rprop": torch.optim.Rprop,
    NESTED: Nested,
}
CASES = [*((kind, False) for kind in OPTIMIZERS), ("AdamW", True), ("Adagrad", True), (NESTED, True)]
"""An optimizer, and whether each block has its own."""


@pytest.fixture
def device():
    with OtherDevice() as other:
        yield other


def in_turn(run):
    return [run.blocks[name] for name in run.alternating.active_modules]


@pytest.mark.parametrize(("kind", "apart"), CASES)
def test_on_the_host_and_back_to_the_bit(device, kind, apart):
    choices = ("keep", "offload")
    kept, moved = (Blocks(device, each, OPTIMIZERS[kind], apart=apart, num_blocks=3) for each in choices)
    for step in range(14):
        for run in (kept, moved):
            run.train(step, step + 1)
        assert_same(moved.everything(), kept.everything())
        types = [{key: type(value) for key, value in run.state_of("b0").items()} for run in (kept, moved)]
        if moved.alternating.alternator.stats().steps_since_switch:
            for name in moved.blocks:
                there = [key for key, each in moved.state_of(name).items() if is_there(each)]
                expected = [key for key, each in kept.state_of(name).items() if is_there(each)]
                assert there == (expected if name == moved.alternating.active else []), (step, name)
            if moved.alternating.active == "b0":
                assert types[0] == types[1]


@pytest.mark.parametrize(("kind", "apart"), CASES)
def test_dropped_it_starts_again_as_in_a_new_optimizer(device, kind, apart):
    run, by_hand = (Blocks(device, each, OPTIMIZERS[kind], apart=apart, num_blocks=3) for each in ("drop", "keep"))
    by_hand.alternating.release()
    active = ""
    for step in range(14):
        if active != run.alternating.active:
            active = run.alternating.active
            optimizer = OPTIMIZERS[kind](list(by_hand.blocks[active].parameters()))
        by_hand.model.zero_grad()
        by_hand.loss(step).backward()
        optimizer.step()
        run.train(step, step + 1)
        assert all(map(torch.equal, run.weights(), by_hand.weights())), step
        frozen = [name for name in run.blocks if name != run.alternating.active]
        assert [name for name in frozen if run.state_of(name)] == []


@pytest.mark.parametrize("apart", [False, True], ids=["one over all", "one each"])
@pytest.mark.parametrize("num_blocks", [4, 10])
def test_the_device_holds_the_state_of_one_block_at_most(device, num_blocks, apart):
    """Also where they switch: what is made or comes back does so after the other has gone. Adam's is two per weight."""
    peaks = {}
    for choice in CHOICES:
        run = Blocks(device, choice, apart=apart, num_blocks=num_blocks).train(0, 3 * num_blocks + 4)
        peaks[choice] = device.peak(run.numbers)
        frozen = (p for block in run.blocks.values() if block not in in_turn(run) for p in block.parameters())
        assert all(parameter.grad is None for parameter in frozen)
    assert peaks["keep"] == num_blocks * 2 * 8 * 8 * 4
    assert peaks["drop"] <= (1 / num_blocks + 0.1) * peaks["keep"]
    assert peaks["offload"] <= (1 / num_blocks + 0.1) * peaks["keep"]


def test_each_by_its_name_and_what_always_trains_stays(device):
    choices = {"b0": "offload", "b1": "drop", "b2": "keep"}
    mix = nn.Parameter(torch.ones(8).to(DEVICE))
    run = Blocks(device, choices, num_blocks=3, always=([mix], torch.optim.AdamW([mix])))
    for step in range(9):
        loss = run.loss(step) + (mix * run.blocks["b2"].weight).square().mean()
        run.alternating.step(loss)
    assert run.alternating.active == "b0"
    assert run.state_of("b0")  # still on the host, until its update
    assert not is_there(run.state_of("b0")["exp_avg"])
    assert run.state_of("b1") == {}
    assert is_there(run.state_of("b2")["exp_avg"])
    every = run.alternating._freezer.optimizers
    assert next(each for each in every if mix in each.state).state[mix]["step"] == 9


def test_turns_of_several_blocks(device):
    turns = {"low": ("b0", "b1"), "mid": ("b1", "b2"), "all": ("b0", "b1", "b2", "b3")}
    runs = {choice: Blocks(device, choice, turns=turns).train(0, 20) for choice in CHOICES}
    assert_same(runs["offload"].everything(), runs["keep"].everything())
    assert runs["drop"].state_of("b1")["step"] == 20  # never frozen
    assert runs["drop"].state_of("b0")["step"] == 5  # frozen in two turns
    with pytest.raises(AssertionError):
        assert_same(runs["drop"].everything(), runs["keep"].everything())


@pytest.mark.parametrize("stop", [1, 4, 6, 13])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_resumed_run_equals_one_never_stopped(device, choice, stop):
    whole = Blocks(device, choice).train(0, 26)
    first = Blocks(device, choice).train(0, stop)
    weights, saved = first.model.state_dict(), first.alternating.state_dict(include_optimizers=True)
    second = Blocks(device, choice)
    second.model.load_state_dict(weights)
    second.alternating.load_state_dict(copy.deepcopy(saved))
    second.train(stop, 26)
    assert_same(second.everything(), whole.everything())
    named = saved["optimizers"]["b0+b1+b2+b3"]["state"]
    assert set(named) == {f"{name}.weight" for name in first.blocks if first.state_of(name)}
    if choice == "drop":
        assert len(named) == (stop % 3 != 0)


def test_a_state_saved_with_one_choice_is_loaded_with_another(device):
    saved = Blocks(device, "keep").train(0, 13)
    for choice in ("offload", "drop"):
        run = Blocks(device, choice)
        run.model.load_state_dict(saved.model.state_dict())
        run.alternating.load_state_dict(copy.deepcopy(saved.alternating.state_dict(include_optimizers=True)))
        run.train(13, 14)
        active = run.alternating.active
        assert run.state_of(active)["step"] == saved.state_of(active)["step"] + 1
        frozen = [name for name in run.blocks if name != active]
        assert not any(is_there(each) for name in frozen for each in run.state_of(name).values())
        assert [bool(run.state_of(name)) for name in frozen] == [choice == "offload"] * 3


@pytest.mark.parametrize("options", [{}, {"capturable": True}])
def test_a_loaded_state_never_is_on_the_device_whole(device, options):
    make = partial(torch.optim.AdamW, **options)
    kept, saved = (Blocks(device, each, make).train(0, 13) for each in ("keep", "offload"))
    weights, state = copy.deepcopy([saved.model.state_dict(), saved.alternating.state_dict(include_optimizers=True)])
    state = tree_map(lambda each: values_of(each) if isinstance(each, torch.Tensor) else each, state)  # as from a file
    run = Blocks(device, "offload", make)
    run.model.load_state_dict(weights)
    before = device.num_made
    run.alternating.load_state_dict(state)
    assert device.peak(range(before, device.num_made)) <= (1 / 4 + 0.1) * 4 * 2 * 8 * 8 * 4
    assert_same(run.everything(), saved.everything())
    for each in (kept, run):
        each.train(13, 26)
    assert_same(run.everything(), kept.everything())
    assert is_there(run.state_of("b0")["step"]) == bool(options)


def follower_of(run):
    return Follower(Alternator(tuple(run.blocks), rule=Cycle(3)), run.blocks, run.optimizers, frozen_state="drop")


@pytest.mark.parametrize("built_first", [False, True])
def test_an_optimizer_that_the_loop_loads_before_the_schedule_keeps_what_trains_next(device, built_first):
    """Until the schedule is loaded too another block is active: nothing is dropped before the next update."""
    saved = Blocks(device, "drop").train(0, 5)
    state, schedule = saved.optimizers.state_dict(), saved.alternating.state_dict()
    run = Blocks(device)
    run.alternating.release()
    follower = follower_of(run) if built_first else None
    run.optimizers.load_state_dict(copy.deepcopy(state))
    follower = follower or follower_of(run)
    run.model.load_state_dict(saved.model.state_dict())
    follower.load_state_dict(schedule)
    loss = run.loss(5)
    loss.backward()
    run.optimizers.step()
    follower.after_step(loss)
    saved.train(5, 6)
    assert_same(run.everything(), saved.everything())


def test_what_a_loop_loads_of_frozen_blocks_is_dropped_with_the_next_update(device):
    kept, run = Blocks(device).train(0, 13), Blocks(device, "drop").train(0, 13)
    run.optimizers.load_state_dict(kept.optimizers.state_dict())
    assert all(run.state_of(name) for name in run.blocks)
    run.train(13, 14)
    assert [name for name in run.blocks if run.state_of(name)] == ["b0"]


@pytest.mark.parametrize("warm_up", [0, 2, 4, 6])
@pytest.mark.parametrize("choice", CHOICES)
def test_what_was_tried_leaves_no_trace(device, choice, warm_up):
    untried, run = Blocks(device, choice).train(0, warm_up), Blocks(device, choice).train(0, warm_up)
    before, saved, active = run.everything(), run.alternating.snapshot(), run.alternating.active
    for candidate in ("b3", "b0", "b2"):
        run.alternating.force(candidate)
        run.train(100, 104)
        run.alternating.rollback(saved)
        assert_same(run.everything(), before)
    for each in (run, untried):
        each.alternating.force(active)
        each.train(warm_up, warm_up + 7)
    assert_same(run.everything(), untried.everything())


@pytest.mark.parametrize("choice", CHOICES)
def test_a_scaler_skips_the_first_step_of_a_block(choice):
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    optimizer = torch.optim.AdamW(model.parameters())
    alternating = AlternatingOptimizer(
        Alternator(("a", "b"), rule=Cycle(2)),
        *(dict(model.items()), optimizer),
        scaler=torch.amp.GradScaler("cpu", init_scale=8.0),
        frozen_state=choice,
        delay=0,
    )
    for step in range(8):
        loss = model["b"](model["a"](torch.ones(2, 4))).square().mean()
        alternating.backward(loss)
        if step == 4:
            model["a"].weight.grad.fill_(torch.inf)
        assert alternating.step(losses={alternating.active: loss}).step == step + 1
    steps = {name: optimizer.state[model[name].weight].get("step", 0) for name in model}
    assert steps == {"keep": {"a": 4, "b": 3}, "offload": {"a": 4, "b": 3}, "drop": {"a": 0, "b": 1}}[choice]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_block_that_grows_and_a_part_that_is_unfrozen_in_mid_run(device, choice):
    torch.manual_seed(0)
    a = device.module(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    b = device.module(nn.Linear(8, 8))
    a[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([*a.parameters(), *b.parameters()])
    alternating = AlternatingOptimizer(
        Alternator(("a", "b"), rule=Cycle(2)), {"a": a, "b": b}, optimizer, frozen_state=choice
    )

    def train(count):
        for _ in range(count):
            alternating.step(b(a(torch.ones(2, 8).to(DEVICE))).square().mean())

    train(3)  # b trains
    a[0].requires_grad_(True)
    a.append(device.module(nn.Linear(8, 8)))
    optimizer.add_param_group({"params": list(a[2].parameters())})
    train(1)
    for name, count in (("a", 2), ("b", 2), ("a", 1)):
        assert alternating.active == name
        train(count)
    assert [is_there(optimizer.state[layer.weight]["exp_avg"]) for layer in a] == [True] * 3
    steps = [int(optimizer.state[layer.weight]["step"]) for layer in a]
    assert steps == ([1, 1, 1] if choice == "drop" else [3, 5, 3])
    assert is_there(optimizer.state[b.weight].get("exp_avg")) == (choice == "keep")


@pytest.mark.parametrize("choice", CHOICES)
def test_learning_rates_are_the_same(device, choice):
    rates = []
    for each in ("keep", choice):
        run = Blocks(device, each, partial(torch.optim.AdamW, lr=0.1), apart=True)
        run.alternating.release()
        schedulers = {
            name: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for name, optimizer in run.optimizers.items()
        }
        run.alternating = AlternatingOptimizer(
            Alternator(tuple(run.blocks), rule=Cycle(2)),
            *(run.blocks, run.optimizers),
            schedulers=schedulers,
            frozen_state=each,
        )
        run.train(0, 15)
        rates.append({name: optimizer.param_groups[0]["lr"] for name, optimizer in run.optimizers.items()})
    assert rates[0] == rates[1]
    assert len(set(rates[0].values())) == 2


@pytest.mark.parametrize("choice", ["offload", "drop"])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_step_of_the_optimizer(choice):
    """Of PyTorch's compiler the part that could be wrong here: which state it takes for constant."""
    ran = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"})
        optimizer = torch.optim.AdamW(model.parameters())
        if is_compiled:
            torch._dynamo.reset()
            optimizer.step = torch.compile(optimizer.step, backend="eager")
        alternating = AlternatingOptimizer(
            Alternator(tuple(model), rule=Cycle(2)), dict(model.items()), optimizer, frozen_state=choice
        )
        for step in range(13):
            x = torch.full((2, 4), 1.0 + step)
            for layer in model.values():
                x = torch.tanh(layer(x))
            alternating.step(x.square().mean())
        ran.append(list(model.parameters()))
    for one, two in zip(*ran, strict=True):
        torch.testing.assert_close(one, two)


def test_after_release_a_loop_by_hand_goes_on_with_all_of_it(device):
    kept, run = (Blocks(device, each).train(0, 8) for each in ("keep", "offload"))
    for each in (kept, run):
        each.alternating.release()
        each.loss(8).backward()
        each.optimizers.step()
    assert_same(run.everything(), kept.everything())
    assert all(is_there(run.state_of(name)["exp_avg"]) for name in ("b0", "b1", "b2"))


def test_another_adapter_takes_over_what_is_on_the_host(device):
    kept, run = (Blocks(device, each).train(0, 13) for each in ("keep", "offload"))
    for each, choice in ((kept, "keep"), (run, "offload")):
        each.alternating.release()
        each.alternating = AlternatingOptimizer(
            Alternator(tuple(each.blocks), rule=Cycle(2)), each.blocks, each.optimizers, frozen_state=choice
        )
        each.train(13, 26)
    assert_same(run.everything(), kept.everything())
    assert device.peak(run.numbers) <= (1 / 4 + 0.1) * device.peak(kept.numbers)


@pytest.mark.parametrize("choice", ["offload", "drop"])
def test_an_audit_finds_nothing_wrong(device, choice):
    run = Blocks(device, "keep").train(0, 13)  # so that all have a state when the next is built
    run.alternating.release()
    run.alternating = AlternatingOptimizer(
        Alternator(tuple(run.blocks), rule=Cycle(2)), run.blocks, run.optimizers, frozen_state=choice
    )
    with Audit.of(run.alternating) as audit:
        run.train(13, 22)
    assert audit.num_checks == 9


def test_blocks_that_are_selected_later_update(device):
    """The first complaint of those who train layers in turns: the optimizer has been built while they were frozen."""
    run = Blocks(device, "drop")
    before = run.weights()
    run.alternating.release()
    for block in list(run.blocks.values())[1:]:
        block.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="every parameter of 'b1' is frozen"):
        AlternatingOptimizer(Alternator(tuple(run.blocks)), run.blocks, run.optimizers, frozen_state="drop")
    run.model.requires_grad_(True)
    some = torch.optim.AdamW(run.blocks["b0"].parameters())
    with pytest.raises(ConfigurationError, match="is not in it and would never train"):
        AlternatingOptimizer(Alternator(tuple(run.blocks)), run.blocks, some, frozen_state="drop")
    run.alternating = AlternatingOptimizer(
        Alternator(tuple(run.blocks), rule=Cycle(2)), run.blocks, run.optimizers, frozen_state="drop"
    )
    for step in range(0, 8, 2):
        moved = [not torch.equal(*pair) for pair in zip(before, run.weights(), strict=True)]
        assert moved == [position < step // 2 for position in range(4)]
        run.train(step, step + 2)
    assert not any(map(torch.equal, before, run.weights()))


def test_state_and_gradients_are_freed(device):
    """The second one. Counted are the bytes of all there is on the device, whoever holds it: a loss is, to be read."""
    left = {}
    for choice in CHOICES:
        before = device.num_bytes
        run = Blocks(device, choice).train(0, 13)
        weights = sum(values_of(parameter).nbytes for parameter in run.model.parameters())
        left[choice] = device.num_bytes - before - weights - 4
        del run
    assert left == {"keep": 4 * 512, "offload": 512, "drop": 512}


class Log:
    """Streams of a device that runs what it is given in order, as far as the calls to them tell."""

    def __init__(self, is_done):
        self.calls = []
        self.is_done = is_done

    def stream(self, name):
        return SimpleNamespace(
            wait_stream=lambda other: self.calls.append(f"{name} waits for {other.name}"),
            synchronize=lambda: self.calls.append(f"the host waits for {name}"),
            query=lambda: self.is_done,
            name=name,
        )


@pytest.mark.parametrize("is_done", [False, True])
def test_on_cuda_devices_wait_for_copies_and_the_host_does_not(device, monkeypatch, is_done):
    """Copies back run beside the backward pass if what was to leave has left by then, else after it."""
    log = Log(is_done)
    computing, copying = log.stream("computing"), log.stream("copying")
    monkeypatch.setattr("adapters.torch.host._is_cuda", lambda where: where == DEVICE)
    monkeypatch.setattr(torch.cuda, "Stream", lambda where: copying)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: computing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    for name, said in (("_fetch", "copies"), ("_send", "brings back")):
        made = getattr(Host, name)
        monkeypatch.setattr(Host, name, lambda *args, made=made, said=said: (made(*args), log.calls.append(said))[0])
    leave, back = (["copying waits for computing", said] * 2 for said in ("copies", "brings back"))  # two moments
    gone = ["computing waits for copying"]
    run = Blocks(device, "offload", num_blocks=2, rule=Cycle(2)).train(0, 1)
    assert log.calls == []
    run.train(1, 2)
    assert log.calls == leave
    assert is_there(run.state_of("b0")["exp_avg"])
    run.train(2, 3)
    assert log.calls == [*leave, *gone]
    assert not is_there(run.state_of("b0")["exp_avg"])
    run.train(3, 4)
    log.calls.clear()
    loss = run.loss(4)
    run.alternating.backward(loss)
    assert log.calls == ([*gone, *back] if is_done else [])
    run.alternating.step(losses={"b0": loss})
    assert log.calls == [*gone, *back, *gone]
    log.calls.clear()
    run.alternating.state_dict(include_optimizers=True)
    assert set(log.calls) == {"the host waits for copying"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}])
def test_on_a_gpu(options):
    weights, states, peaks = {}, {}, {}
    for choice in ("keep", "offload"):
        torch.manual_seed(0)
        model = nn.ModuleDict({f"b{i}": nn.Linear(512, 512) for i in range(4)}).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), **options)
        alternating = AlternatingOptimizer(
            Alternator(tuple(model), rule=Cycle(2)), dict(model.items()), optimizer, frozen_state=choice
        )
        for step in range(17):
            x = torch.full((4, 512), 0.01 * step, device="cuda")
            for block in model.values():
                x = torch.tanh(block(x))
            alternating.step(x.square().mean())
        states[choice] = {key: value.cpu() for s in optimizer.state.values() for key, value in s.items()}
        weights[choice] = [parameter.detach().cpu() for parameter in model.parameters()]
        moments = [each for state in optimizer.state.values() for each in state.values()]
        peaks[choice] = sum(each.nbytes for each in moments if each.is_cuda)
    assert all(map(torch.equal, weights["keep"], weights["offload"]))
    assert_same(states["offload"], states["keep"])
    assert peaks["offload"] < 0.35 * peaks["keep"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("host", r"frozen_state must be one of \('keep', 'offload', 'drop'\), got 'host' for 'b0'"),
        ({"b0": None}, "got None for 'b0'"),
        ({"b9": "drop"}, r"frozen_state must be named after the modules .* got \['b9'\]"),
    ],
)
def test_refused_choices(device, choice, message):
    with pytest.raises(ConfigurationError, match=message):
        Blocks(device, choice)

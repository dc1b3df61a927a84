"""`Follower` in loops that call backward and step the optimizer themselves, and put everything in training mode."""

import copy
import json

import pytest
import torch
from torch import nn

from adapters.torch import AlternatingOptimizer, Follower, FreezeError, follower
from alternator import Alternator, ConfigurationError, Cycle, LossError, Payoff, Plateau, Trend
from tests.conformance.freeze_contract_torch import (
    adamw,
    batch,
    broken_clauses,
    optimizer_state,
    same_bits,
    tower,
    tower_loss,
)
from tests.conformance.naive_torch_optimizers import NAIVE, DecayFirst

NAMES = ("a", "b")
RULE = Plateau(threshold=0.4, min_steps=2, window=3)
NUM_STEPS = 24


class OwnLoop:
    """A loop that steps every optimizer in every step, and calls ``train()`` on every module before the next one."""

    def __init__(self, alternator, modules, optimizers, *, clip_norm=None, schedulers=None):
        self.modules, self.clip_norm, self.schedulers = modules, clip_norm, schedulers or {}
        self.optimizers = [*optimizers.values()] if isinstance(optimizers, dict) else [optimizers]
        self.follower = Follower(alternator, modules, optimizers)

    @property
    def active(self):
        return self.follower.active

    def step(self, loss, losses):
        trained = self.active
        loss.backward()
        parameters = [p for module in self.modules.values() for p in module.parameters() if p.grad is not None]
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if trained in self.schedulers:
            self.schedulers[trained].step()
        for module in self.modules.values():
            module.train()
        return self.follower.after_step(losses)


@pytest.mark.parametrize("one_optimizer", [False, True])
@pytest.mark.parametrize("make", [adamw, DecayFirst], ids=["adamw", "decay first"])
def test_it_keeps_the_contract(make, one_optimizer):
    assert broken_clauses(OwnLoop, make, one_optimizer=one_optimizer) == set()


@pytest.mark.parametrize("name", sorted(set(NAIVE) - {"decay first"}))
def test_with_optimizers_that_move_what_has_no_gradient(name):
    assert broken_clauses(OwnLoop, NAIVE[name]) == set()


def test_without_its_hooks_the_frozen_module_would_be_in_training_mode(monkeypatch):
    monkeypatch.setattr(follower, "_watch_forward", lambda *_: iter(()))
    with pytest.raises(FreezeError, match="must be in its frozen mode"):
        broken_clauses(OwnLoop)


class Run:
    """Two towers in a plain loop, with micro-steps."""

    def __init__(self, rule=RULE, num_micro=1, **options):
        self.model = nn.ModuleDict({name: tower(seed) for seed, name in enumerate(NAMES)})
        self.optimizer = adamw(self.model.parameters())
        self.num_micro = num_micro
        modules = dict(self.model.items())
        self.follower = Follower(Alternator(NAMES, rule=rule), modules, self.optimizer, model=self.model, **options)
        self.decisions = []

    def losses(self, step):
        self.model.train()
        return {name: tower_loss(self.model[name], name, step) for name in NAMES}

    def train(self, start=0, stop=NUM_STEPS):
        for step in range(start, stop):
            losses = self.losses(step)
            (sum(losses.values()) / self.num_micro).backward()
            if (step + 1) % self.num_micro == 0 or step + 1 == stop:
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.decisions.append(self.follower.after_step(losses))
        return self

    def outcome(self):
        return copy.deepcopy([self.model.state_dict(), optimizer_state(self.optimizer, self.model)])


def by_alternating_optimizer(num_micro=1, rule=RULE):
    """The same, to the bit: what `AlternatingOptimizer` makes of it."""
    run = Run.__new__(Run)
    run.model = nn.ModuleDict({name: tower(seed) for seed, name in enumerate(NAMES)})
    run.optimizer = adamw(run.model.parameters())
    alternator = Alternator(NAMES, rule=rule)
    alternating = AlternatingOptimizer(alternator, dict(run.model.items()), run.optimizer, accumulate=num_micro)
    run.decisions = []
    for step in range(NUM_STEPS):
        losses = {name: tower_loss(run.model[name], name, step) for name in NAMES}
        run.decisions.append(alternating.step(sum(losses.values()), losses))
    return run


class Through(nn.ModuleDict):
    """``b`` sees what ``a`` makes of the input: gradients of ``a`` flow through ``b``, which has BatchNorm."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__({"a": nn.Linear(6, 6), "b": tower(1)})

    def loss(self, step):
        x_BD = batch(step)
        torch.manual_seed(step)
        return (self["b"](self["a"](x_BD)) - x_BD.sum(1, keepdim=True)).square().mean()


def train_through(frozen_mode=None, by_hand=False):
    """The model after 12 steps, of which ``a`` trains every third, and the state of ``b`` before and after those."""
    model = Through()
    optimizers = {name: adamw(module.parameters()) for name, module in model.items()}
    alternator = Alternator(NAMES, rule=Cycle((1, 2)))
    made = None if by_hand else Follower(alternator, dict(model.items()), optimizers, frozen_mode=frozen_mode)
    pairs = []
    for step in range(12):
        active = "b" if step % 3 else "a"
        model.train()
        before = state_of(model["b"], optimizers["b"])
        loss = model.loss(step)
        loss.backward()
        for name in [active] if by_hand else NAMES:
            optimizers[name].step()
        model.zero_grad()
        if active == "a":
            pairs.append((before, state_of(model["b"], optimizers["b"])))
        if not by_hand:
            assert made.active == active
            made.after_step(loss)
    return model, pairs


def state_of(module, optimizer):
    return copy.deepcopy([module.state_dict(), optimizer_state(optimizer, module)])


@pytest.mark.parametrize("chosen", ["batch", {"a": "inference", "b": "batch"}])
def test_a_frozen_module_normalises_by_the_batch_where_that_was_chosen(chosen):
    model, pairs = train_through(chosen)
    assert len(pairs) == 4
    assert all(same_bits(before, after) for before, after in pairs)
    assert model["b"][1].num_batches_tracked == 8
    by_hand, moved = train_through(by_hand=True)
    assert same_bits(list(model.parameters()), list(by_hand.parameters()))
    assert not any(same_bits(before, after) for before, after in moved)  # a loop by hand moves the statistics


def test_in_inference_mode_it_does_not():
    model, pairs = train_through("inference")
    assert all(same_bits(before, after) for before, after in pairs)
    assert not same_bits(list(model.parameters()), list(train_through(by_hand=True)[0].parameters()))


def test_without_a_choice_gradients_through_it_warn_once():
    with pytest.warns(UserWarning, match=r"'b' has BatchNorm .* frozen_mode=\{'b': 'batch'\}") as caught:
        train_through()
    assert len(caught) == 1


@pytest.mark.parametrize("num_micro", [1, 2, 3])
def test_it_does_what_the_alternating_optimizer_does(num_micro):
    run, expected = Run(num_micro=num_micro).train(), by_alternating_optimizer(num_micro)
    assert run.decisions == expected.decisions
    assert sum(decision is not None and decision.switched for decision in run.decisions) >= 2
    assert same_bits(run.outcome(), expected.outcome())


def test_a_model_that_was_in_inference_mode_at_first_trains_as_the_loop_says():
    run = Run(rule=Cycle(2))
    run.follower.close()
    run.model.eval()  # as pretrained models are
    run.follower = Follower(Alternator(NAMES, rule=Cycle(2)), dict(run.model.items()), run.optimizer, model=run.model)
    run.model.train()  # once, before the first epoch
    for step in range(6):
        active = run.follower.active
        loss = sum(tower_loss(run.model[name], name, step) for name in NAMES)
        training = {name: {submodule.training for submodule in run.model[name].modules()} for name in NAMES}
        assert training == {name: {name == active} for name in NAMES}
        loss.backward()
        run.optimizer.step()
        run.follower.after_step(loss)


def test_what_the_loop_leaves_in_inference_mode_stays_in_it():
    model = nn.ModuleDict({name: tower(seed) for seed, name in enumerate(NAMES)}).eval()
    optimizer = adamw(model.parameters())
    followed = Follower(Alternator(NAMES, rule=Cycle(1)), dict(model.items()), optimizer, model=model)
    model["a"].train()
    for step in range(3):
        loss = sum(tower_loss(model[name], name, step) for name in NAMES)
        assert not model["b"].training
        loss.backward()
        optimizer.step()
        followed.after_step(loss)
    assert model["b"][0].weight.requires_grad


def test_a_partial_window_counts_as_one_step():
    run = Run(rule=Cycle(2), num_micro=4).train(stop=10)
    assert [step for step, decision in enumerate(run.decisions) if decision is not None] == [3, 7, 9]
    assert run.follower.alternator.step == 3


class Kept(Alternator):
    """Keeps what is recorded."""

    def __init__(self, **options):
        self.kept = []
        super().__init__(NAMES, **options)

    def record(self, module, value, *, step=None):
        self.kept.append((module, float(value)))
        super().record(module, value, step=step)


@pytest.mark.parametrize(("summed", "value"), [(False, 2.0), (True, 6.0)])
def test_losses_of_a_window_are_averaged_or_summed(summed, value):
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    made = Follower(alternator := Kept(rule=RULE), modules, optimizers, delay=0)
    for micro, loss in enumerate((1.0, torch.tensor(2.0), 3.0)):
        tower_loss(modules["a"], "a", 0).backward()
        if micro == 2:
            optimizers["a"].step()
        made.after_step(loss, summed=summed)
    assert alternator.kept == [("a", value)]


@pytest.mark.parametrize("make", [adamw, lambda p: torch.optim.AdamW(p, lr=0.01, fused=True)], ids=["", "fused"])
@pytest.mark.parametrize("says", ["before_update", "ended"])
def test_a_step_that_the_scaler_skips_is_counted_apart(make, says):
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizer = make([p for module in modules.values() for p in module.parameters()])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    alternator = Alternator(NAMES, rule=Cycle(2))
    made = Follower(alternator, modules, optimizer, scaler=scaler)
    before = copy.deepcopy([module.state_dict() for module in modules.values()])
    for step in range(6):
        loss = tower_loss(modules[made.active], made.active, step) * (float("inf") if step in (0, 3) else 1)
        scaler.scale(loss).backward()
        if says == "before_update":
            scaler.unscale_(optimizer)
            made.before_update()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        decision = made.after_step(loss, ended=True if says == "ended" else None)
        if step == 0:
            names = [name for name, _ in modules["a"].named_parameters()]
            assert same_bits([before[0][n] for n in names], [modules["a"].state_dict()[n] for n in names])
        assert decision is not None
    stats = alternator.stats().modules
    assert [(stats[name].training_steps, stats[name].skipped_steps) for name in NAMES] == [(2, 1), (2, 1)]
    assert scaler.get_scale() == 1.0


def test_a_loss_that_is_not_finite_can_be_skipped_by_hand():
    run = Run(rule=Cycle(2))
    assert not run.follower.after_step(ended=True, updated=False).switched
    assert run.follower.alternator.stats().modules["a"].skipped_steps == 1


@pytest.mark.parametrize("rule", [Plateau(), Trend()])
def test_a_rule_that_watches_losses_must_be_given_some(rule):
    run = Run(rule=rule)
    run.losses(0)["a"].backward()
    run.optimizer.step()
    with pytest.raises(LossError, match=rf"{type(rule).__name__} must see the loss of 'a', got none in this window"):
        run.follower.after_step()


@pytest.mark.parametrize(("rule", "losses"), [(Cycle(2), None), (Plateau(), {}), (Plateau(), {"a": 1.0})])
def test_what_needs_no_losses_need_not_be_given_any(rule, losses):
    run = Run(rule=rule)
    run.losses(0)["a"].backward()
    run.optimizer.step()
    assert run.follower.after_step(losses).step == 1


def test_payoffs_are_no_losses():
    turns = {"both": NAMES, "a": "a", "b": "b"}
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizer = adamw([p for module in modules.values() for p in module.parameters()])
    made = Follower(Alternator(turns, rule=Payoff(costs=(1.0, 0.5, 0.5))), modules, optimizer, turns=turns)
    sum(tower_loss(modules[name], name, 0) for name in NAMES).backward()
    optimizer.step()
    with pytest.raises(LossError, match="Payoff must be given payoffs"):
        made.after_step(1.0)
    assert made.after_step({}).active == "both"


def test_a_loss_that_reaches_nothing_active_is_refused_as_the_optimizer_steps():
    run = Run(rule=Cycle(2))
    run.model["b"].requires_grad_(True)
    tower_loss(run.model["b"], "b", 0).backward()
    with pytest.raises(
        LossError,
        match=r"nothing of 'a', which is active, has a gradient as the optimizer steps: .*after_step\(\) after",
    ):
        run.optimizer.step()


def test_after_step_before_the_optimizers_step_is_answered_with_the_order():
    run = Run(rule=Cycle(2))
    loss = tower_loss(run.model["a"], "a", 0)
    loss.backward()
    assert run.follower.after_step(loss) is None  # taken for a micro-step
    run.optimizer.step()
    loss = tower_loss(run.model["a"], "a", 1)
    loss.backward()
    run.follower.after_step(loss)
    with pytest.raises(LossError, match=r"call after_step\(\) after optimizer.step\(\), not before"):
        run.optimizer.step()


def test_a_gradient_that_something_computes_for_what_is_frozen_moves_nothing():
    run = Run(rule=Cycle(1000))
    before = copy.deepcopy(run.model["b"].state_dict())
    run.losses(0)["a"].backward()
    for parameter in run.model["b"].parameters():
        parameter.grad = torch.ones_like(parameter)
    run.optimizer.step()
    run.follower.after_step(1.0)
    assert same_bits(before, run.model["b"].state_dict())


def test_evaluation_is_left_alone():
    run = Run(rule=Cycle(2)).train(stop=3)
    run.model.eval()
    before = copy.deepcopy(run.model.state_dict())
    run.model["a"](batch(0))
    assert not any(module.training for module in run.model.modules())
    assert same_bits(before, run.model.state_dict())
    run.train(3, 6)
    assert same_bits(run.outcome(), Run(rule=Cycle(2)).train(stop=6).outcome())


@pytest.mark.parametrize("cut", [7, 12])
def test_a_resumed_run_equals_one_that_never_stopped(cut):
    whole = Run().train()
    first = Run().train(stop=cut)
    saved = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.optimizer.state_dict())
    state = json.loads(json.dumps(first.follower.state_dict()))
    second = Run()
    second.model.load_state_dict(saved[0])
    second.optimizer.load_state_dict(saved[1])
    second.follower.load_state_dict(state)
    second.train(cut)
    assert first.decisions + second.decisions == whole.decisions
    assert same_bits(second.outcome(), whole.outcome())


def test_in_the_middle_of_a_window():
    run = Run(num_micro=2)
    sum(run.losses(0).values()).backward()
    assert run.follower.after_step({}) is None
    assert run.follower.is_accumulating
    for refused in (run.follower.apply, lambda: run.follower.force("b")):
        with pytest.raises(FreezeError, match=r"must be called between updates"):
            refused()
    with pytest.warns(UserWarning, match="in the middle of an accumulation"):
        run.follower.state_dict()


def test_a_switch_by_hand():
    run = Run(rule=Cycle(1000)).train(stop=2)
    assert run.follower.force("b").active == "b"
    assert not run.model["a"][0].weight.requires_grad
    run.follower.alternator.force("a")
    losses = run.losses(2)
    losses["b"].backward()
    with pytest.raises(FreezeError, match="the alternator says 'a', but 'b' is applied"):
        run.optimizer.step()


def test_a_switch_of_the_alternator_is_applied_before_the_next_step():
    run = Run(rule=Cycle(1000)).train(stop=2)
    run.follower.alternator.force("b")
    run.follower.before_step()
    run.losses(2)["b"].backward()
    run.optimizer.step()
    assert run.follower.after_step().active == "b"


def test_closed_it_leaves_nothing_behind():
    run = Run(rule=Cycle(2)).train(stop=3)
    run.follower.close()
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    hooked = [module for module in run.model.modules() if module._forward_pre_hooks]
    assert hooked == []
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.optimizer._optimizer_step_post_hooks
    Follower(Alternator(NAMES, rule=Cycle(2)), dict(run.model.items()), run.optimizer)


def test_pending_losses_are_flushed():
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    made = Follower(alternator := Kept(rule=RULE), modules, optimizers, delay=2)
    for step in range(2):
        made.after_step(float(step), ended=True)
    assert alternator.kept == []
    made.flush()
    assert alternator.kept == [("a", 0.0), ("a", 1.0)]


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 1)

    def forward(self, x_BD):
        return self.b(self.a(x_BD))


def train_chain(compiled=None):
    """The model's state after a few steps; with ``compiled`` the forward pass is that of the compiled model."""
    model = Chain()
    called = model if compiled is None else torch.compile(model, backend="eager")
    optimizer = adamw(model.parameters())
    given = called if compiled == "given" else model
    made = Follower(
        Alternator(NAMES, rule=Cycle(2)), {"a": model.a, "b": model.b}, optimizer, model=given, frozen_mode="inference"
    )
    for step in range(6):
        called.train()
        x_BD = batch(step)
        (called(x_BD) - x_BD.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        made.after_step()
    return copy.deepcopy(model.state_dict())


@pytest.mark.parametrize("compiled", ["given", "inside"])
def test_a_compiled_model(compiled):
    torch._dynamo.reset()
    expected = train_chain()
    assert expected["a.1.num_batches_tracked"] == 4
    assert same_bits(expected, train_chain(compiled))


def test_a_negative_delay_is_refused():
    with pytest.raises(ConfigurationError, match="delay must be"):
        Run(delay=-1)


def test_what_was_tried_leaves_no_trace():
    modules = {name: tower(seed) for seed, name in enumerate(NAMES)}
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    schedulers = {name: torch.optim.lr_scheduler.ExponentialLR(each, 0.9) for name, each in optimizers.items()}
    loop = OwnLoop(Alternator(NAMES, rule=Cycle((2, 3))), modules, optimizers, schedulers=schedulers)

    def train(first, last):
        for step in range(first, last):
            losses = {name: tower_loss(module, name, step) for name, module in modules.items()}
            loop.step(sum(losses.values()), losses)

    def everything():
        states = [(modules[name].state_dict(), optimizer_state(optimizers[name], modules[name])) for name in NAMES]
        return copy.deepcopy((states, [each.state_dict() for each in schedulers.values()], torch.get_rng_state()))

    train(0, 3)
    before, saved = everything(), loop.follower.snapshot(*schedulers.values())
    for _ in range(2):
        train(3, 8)
        assert not same_bits(everything(), before)
        loop.follower.rollback(saved)
        assert same_bits(everything(), before)
    train(3, 5)


def test_a_snapshot_is_refused_within_a_window():
    module = {name: nn.Linear(2, 1) for name in NAMES}
    follower = Follower(Alternator(NAMES, rule=Cycle(2)), module, {n: adamw(m.parameters()) for n, m in module.items()})
    saved = follower.snapshot()
    module["a"](torch.ones(1, 2)).sum().backward()
    for refused in (follower.snapshot, lambda: follower.rollback(saved)):
        with pytest.raises(FreezeError, match="must be called between updates"):
            refused()

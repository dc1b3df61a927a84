"""Schedulers that move at the end of an epoch: of what has been updated in it, and of nothing else."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, ReduceLROnPlateau, SequentialLR

from adapters.contract import FreezeError
from adapters.torch import AlternatingOptimizer
from adapters.torch.audit import Audit
from alternator import Alternator, ConfigurationError, Cycle, LossError, StateError, UnknownModuleError

NAMES = ("a", "b")


def towers():
    torch.manual_seed(0)
    modules = {name: torch.nn.Linear(2, 1) for name in NAMES}
    return modules, {name: SGD(module.parameters(), lr=1.0) for name, module in modules.items()}


class Run:
    """Two towers, a scheduler of each; ``schedule`` makes it from the optimizer."""

    def __init__(self, schedule=lambda each: (ExponentialLR(each, 0.5), "epoch"), *, rule=None, **options):
        self.modules, self.optimizers = towers()
        self.schedulers = {
            name: (schedule[name] if isinstance(schedule, dict) else schedule)(optimizer)
            for name, optimizer in self.optimizers.items()
        }
        self.alternating = AlternatingOptimizer(
            Alternator(NAMES, rule=rule or Cycle(2)),
            self.modules,
            self.optimizers,
            schedulers=self.schedulers,
            **options,
        )

    def train(self, num_steps, scale=1.0):
        for _ in range(num_steps):
            loss = sum(module(torch.ones(1, 2)).sum() for module in self.modules.values())
            self.alternating.step(loss * scale)
        return self

    def epoch(self, num_steps, values=None):
        self.train(num_steps)
        self.alternating.end_epoch(values)
        return self

    def rates(self):
        return tuple(optimizer.param_groups[0]["lr"] for optimizer in self.optimizers.values())


def test_only_what_trained_in_the_epoch_moves():
    run = Run(rule=Cycle((4, 2)))
    rates = [run.epoch(2).rates() for _ in range(6)]  # a, a, b, a, a, b
    assert rates == [(0.5, 1.0), (0.25, 1.0), (0.25, 0.5), (0.125, 0.5), (0.0625, 0.5), (0.0625, 0.25)]
    assert run.schedulers["b"][0].last_epoch == 2


def test_an_epoch_without_steps_moves_nothing():
    run = Run().epoch(1)
    run.alternating.end_epoch()
    assert run.rates() == (0.5, 1.0)


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=8), st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_a_module_anneals_as_if_its_own_epochs_were_all(epochs, lengths):
    """The rates are those of the scheduler alone, stepped once per epoch in which the module was active: to the bit."""
    run = Run(lambda each: (CosineAnnealingLR(each, T_max=5), "epoch"), rule=Cycle(lengths))
    own = dict.fromkeys(NAMES, 0)
    for num_steps in epochs:
        active = set()
        for _ in range(num_steps):
            active.add(run.alternating.active)
            run.train(1)
        run.alternating.end_epoch()
        own = {name: count + (name in active) for name, count in own.items()}
    for name, rate in zip(NAMES, run.rates(), strict=True):
        optimizer = SGD([torch.zeros(1)], lr=1.0)
        alone = CosineAnnealingLR(optimizer, T_max=5)
        for _ in range(own[name]):
            optimizer.step()
            alone.step()
        assert rate == optimizer.param_groups[0]["lr"]


def test_both_kinds_beside_each_other():
    run = Run(lambda each: [ExponentialLR(each, 0.5), (ExponentialLR(each, 0.1), "epoch")], rule=Cycle(100))
    assert run.epoch(3).rates() == (pytest.approx(0.5**3 * 0.1), 1.0)
    mixed = Run(
        {"a": lambda each: ExponentialLR(each, 0.5), "b": lambda each: (LambdaLR(each, lambda n: 0.9**n), "epoch")}
    )
    assert mixed.epoch(4).rates() == (0.25, 0.9)


def test_of_several_optimizers_each_moves_with_its_own_scheduler():
    modules = {"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(2, 1)}
    parts = [SGD([modules["a"].weight], lr=1.0), SGD([modules["a"].bias], lr=1.0)]
    alternating = AlternatingOptimizer(
        Alternator(NAMES, rule=Cycle(100)),
        modules,
        {"a": parts, "b": SGD(modules["b"].parameters(), lr=1.0)},
        schedulers={"a": [(ExponentialLR(each, 0.5), "epoch") for each in parts]},
    )
    alternating.step((modules["a"].weight * torch.ones(1, 2)).sum())  # the bias has no gradient, so no update
    alternating.end_epoch()
    assert [each.param_groups[0]["lr"] for each in parts] == [0.5, 1.0]


def test_turns_and_the_always_group():
    weights = torch.nn.Parameter(torch.ones(1))
    own = SGD([weights], lr=1.0)
    modules, optimizers = towers()
    every = {**optimizers, "always": own}
    alternating = AlternatingOptimizer(
        Alternator(("both", "a"), rule=Cycle((2, 4))),
        modules,
        optimizers,
        turns={"both": NAMES, "a": "a"},
        always=(weights, own),
        schedulers={name: (ExponentialLR(each, 0.5), "epoch") for name, each in every.items()},
    )
    rates = []
    for _ in range(3):  # both, a, a
        for _ in range(2):
            alternating.step(sum(module(torch.ones(1, 2)).sum() for module in modules.values()) * weights.sum())
        alternating.end_epoch()
        rates.append(tuple(each.param_groups[0]["lr"] for each in every.values()))
    assert rates == [(0.5, 0.5, 0.5), (0.25, 0.5, 0.25), (0.125, 0.5, 0.125)]


def test_updates_that_the_scaler_skips_are_no_training():
    run = Run(rule=Cycle(100), scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    run.train(2, scale=float("inf"))
    run.alternating.end_epoch()
    assert run.rates() == (1.0, 1.0)
    assert run.train(1, scale=float("inf")).epoch(1).rates() == (0.5, 1.0)


def test_skipped_steps_are_no_training():
    run = Run()
    run.alternating.skip()
    run.alternating.end_epoch()
    assert run.rates() == (1.0, 1.0)


def test_an_epoch_ends_between_updates():
    run = Run(accumulate=2, rule=Cycle(100)).train(1)
    with pytest.raises(FreezeError, match=r"end_epoch\(\) must be called between updates, got micro-step 1 of 2"):
        run.alternating.end_epoch()
    assert run.epoch(1).rates() == (0.5, 1.0)


def plateau(optimizer):
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0), "epoch"


@pytest.mark.parametrize("values", [{"a": 1.0}, {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, 1.0, torch.ones(1)])
def test_reduce_on_plateau_has_the_value_of_its_module(values):
    run = Run(plateau, rule=Cycle(100))
    assert [run.epoch(1, values).rates()[0] for _ in range(3)] == [1.0, 0.5, 0.25]
    assert run.schedulers["a"][0].best == 1.0
    assert run.schedulers["b"][0].last_epoch == 0


def test_each_module_has_its_own_value():
    run = Run(plateau, rule=Cycle(1))
    for value in (3.0, 2.0, 1.0):
        run.epoch(2, {"a": value, "b": 5.0})
    assert run.rates() == (1.0, 0.25)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (
            None,
            LossError,
            r"'a' must be given a value .* values of \(\); call end_epoch\(\{'a': value\}\), or with one",
        ),
        ({"b": 1.0}, LossError, r"must be given a value at the end of an epoch .* got values of \('b',\)"),
        ({"c": 1.0}, UnknownModuleError, "unknown module 'c'"),
        ({"a": torch.ones(2)}, LossError, "scalar"),
        ("low", LossError, "scalar"),
    ],
)
def test_a_value_that_is_missing_or_wrong_moves_nothing(values, error, message):
    run = Run(lambda each: [(ExponentialLR(each, 0.5), "epoch"), plateau(each)], rule=Cycle(100)).train(1)
    with pytest.raises(error, match=message):
        run.alternating.end_epoch(values)
    assert run.rates() == (1.0, 1.0)
    run.alternating.end_epoch(1.0)  # the epoch has not been forgotten
    assert run.rates() == (0.5, 1.0)


def test_reduce_on_plateau_per_step_is_refused_with_what_to_give():
    with pytest.raises(
        ConfigurationError, match=r"has ReduceLROnPlateau; give \(scheduler, \"epoch\"\), and its module"
    ):
        Run(lambda each: plateau(each)[0])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda each: (ExponentialLR(each, 0.5), "epochs"),
        lambda each: (ExponentialLR(each, 0.5), "epoch", 3),
        lambda each: ("epoch", ExponentialLR(each, 0.5)),
        lambda each: [(ExponentialLR(each, 0.5), "step")],
    ],
)
def test_other_pairs_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=r'must be a scheduler, or a pair \(scheduler, "epoch"\), got'):
        Run(wrong)


def test_a_scheduler_of_another_modules_optimizer_is_refused_by_epochs_too():
    modules, _ = towers()
    both = SGD([p for module in modules.values() for p in module.parameters()], lr=1.0)
    with pytest.raises(ConfigurationError, match="that of 'a' also moves 'b'"):
        AlternatingOptimizer(Alternator(NAMES), modules, both, schedulers={"a": (ExponentialLR(both, 0.5), "epoch")})


def test_a_sequence_of_schedulers_is_one_scheduler():
    def warm_up(optimizer):
        parts = [ExponentialLR(optimizer, 2.0), ExponentialLR(optimizer, 0.5)]
        return SequentialLR(optimizer, parts, milestones=[2]), "epoch"

    run = Run(warm_up, rule=Cycle(100))
    assert [run.epoch(1).rates()[0] for _ in range(4)] == [2.0, 1.0, 0.5, 0.25]
    assert run.rates()[1] == 1.0


@pytest.mark.parametrize("include_optimizers", [True, False])
def test_a_run_resumed_in_the_middle_of_an_epoch_knows_who_trained_in_it(include_optimizers):
    def made():
        return Run(lambda each: [(ExponentialLR(each, 0.5), "epoch"), ExponentialLR(each, 0.9)], rule=Cycle(3))

    whole = made().train(4)  # both have trained
    state = copy.deepcopy(whole.alternating.state_dict(include_optimizers=include_optimizers))
    second = made()
    second.alternating.load_state_dict(state if include_optimizers else json.loads(json.dumps(state)))
    if not include_optimizers:
        for name in NAMES:
            second.optimizers[name].load_state_dict(whole.optimizers[name].state_dict())
            for (to, _), (was, _) in zip(second.schedulers[name][:1], whole.schedulers[name][:1], strict=True):
                to.load_state_dict(was.state_dict())
            second.schedulers[name][1].load_state_dict(whole.schedulers[name][1].state_dict())
    for run in (whole, second):
        run.epoch(1)
    assert second.rates() == whole.rates()
    assert whole.rates() == (pytest.approx(0.5 * 0.9**3), pytest.approx(0.5 * 0.9**2))
    assert whole.epoch(1).rates() == second.epoch(1).rates()


def test_a_state_from_before_there_were_epochs_loads():
    run = Run().train(1)
    state = run.alternating.state_dict()
    assert state.pop("trained_in_epoch") == ["a"]
    run.alternating.load_state_dict(state)
    run.alternating.end_epoch()
    assert run.rates() == (1.0, 1.0)


def test_a_state_of_other_epoch_schedulers_is_refused_and_changes_nothing():
    state, other = Run().train(1).alternating.state_dict(), Run(lambda each: ExponentialLR(each, 0.5))
    before = other.alternating.state_dict()
    assert "trained_in_epoch" not in before
    with pytest.raises(StateError, match="schedulers that move by epochs and are not here: 'a'"):
        other.alternating.load_state_dict(state)
    assert other.alternating.state_dict() == before
    run = Run().train(1)
    with pytest.raises(StateError, match="damaged"):
        run.alternating.load_state_dict({**state, "trained_in_epoch": 3})
    assert run.epoch(0).rates() == (0.5, 1.0)


def test_what_is_frozen_keeps_its_rate_to_the_bit():
    run = Run(lambda each: (CosineAnnealingLR(each, T_max=7), "epoch"), rule=Cycle((9, 3)))
    rates = [run.rates(), *(run.epoch(3).rates() for _ in range(4))]  # a, a, a, b
    assert [[after == before for before, after in zip(*pair, strict=True)] for pair in pairwise(rates)] == [
        *[[False, True]] * 3,
        [True, False],
    ]


def test_an_audit_knows_that_the_end_of_an_epoch_moves_a_module_frozen_by_then():
    run = Run(rule=Cycle(2))
    with Audit.of(run.alternating) as audit:
        for _ in range(4):
            run.epoch(3)  # both train in each
        assert run.rates() == (0.0625, 0.0625)
        frozen = next(name for name in NAMES if name != run.alternating.active)
        run.optimizers[frozen].param_groups[0]["lr"] = 3.0
        with pytest.raises(FreezeError, match=f"of '{frozen}' changed"):
            run.alternating.end_epoch()
    assert audit.num_checks == 16  # after steps and epochs


def test_a_scheduler_by_epochs_can_be_audited():
    modules, optimizers = towers()
    scheduler = ExponentialLR(optimizers["a"], 0.5)
    audit = Audit(modules, optimizers, {"a": (scheduler, "epoch")})
    optimizers["a"].step()
    with pytest.raises(FreezeError, match="of 'a' changed"), audit.step("b"):
        scheduler.step()

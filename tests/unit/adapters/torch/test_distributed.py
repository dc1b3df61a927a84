"""Two processes under DDP: the freeze contract on each, the same decisions and weights on both, what is refused.

Cases run on both ranks and return what the tests compare; see `tests.several_ranks`.
"""

import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adapters.torch import AlternatingOptimizer
from adapters.torch.losses import LocalLosses
from adapters.torch.parallel.ranks import Ranks
from alternator import Alternator, ConfigurationError, Cycle, Plateau
from tests.conformance.freeze_contract_torch import adamw, same_bits
from tests.several_ranks import SeveralRanks
from tests.unit.adapters.torch.ranks_run import NAMES, NUM_STEPS, RULE, Model, Run, batch, check_refusal, frozen_stays

WRAPPINGS = ("whole", "each")

NUM_RANKS = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    two = SeveralRanks(tmp_path_factory.mktemp("ranks"))
    yield two
    two.stop()


def contract(rank, wrapping, ddp, unaligned=False, **options):
    if unaligned:
        Ranks.align_buffers, kept = (lambda *_: None), Ranks.align_buffers
    try:
        run = Run(rank, wrapping, ddp=ddp, delay=0, check_ranks_every=1, **options)
        return frozen_stays(run), run.decisions, run.losses, run.parameters()
    finally:
        if unaligned:
            Ranks.align_buffers = kept


@pytest.mark.parametrize("ddp", [{}, {"gradient_as_bucket_view": True}], ids=["", "bucket view"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_frozen_stays_and_ranks_stay_the_same(ranks, wrapping, ddp):
    (stayed0, decisions0, losses0, weights0), (stayed1, decisions1, losses1, weights1) = ranks.run(
        contract, wrapping, ddp
    )
    assert stayed0
    assert stayed1
    assert decisions0 == decisions1
    assert sum(decision.switched for decision in decisions0) >= 4
    assert same_bits(weights0, weights1)
    together = [decision.active for decision in decisions0]
    assert losses0 != losses1
    assert any(decided_alone(losses) != together for losses in (losses0, losses1))
    means = [(one + two) / 2 for one, two in zip(losses0, losses1, strict=True)]
    assert decided_alone(means) == together


def decided_alone(losses):
    alternator = Alternator(NAMES, rule=RULE)
    return [alternator.observe(loss).active for loss in losses]


def contract_in_batch_mode(rank, wrapping):
    stayed, _, _, weights = contract(rank, wrapping, {}, frozen_mode="batch")
    return stayed, weights


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_frozen_stays_in_batch_mode_and_ranks_stay_the_same(ranks, wrapping):
    (stayed0, weights0), (stayed1, weights1) = ranks.run(contract_in_batch_mode, wrapping)
    assert stayed0
    assert stayed1
    assert same_bits(weights0, weights1)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_without_taking_over_buffers_at_the_switch_ddp_would_change_them_while_frozen(ranks, wrapping):
    stayed = [each[0] for each in ranks.run(contract, wrapping, {}, True)]
    assert stayed == [True, False]


def weights_and_history(rank, wrapping):
    run = Run(rank, wrapping, norm=False).train()
    run.alternating.flush()
    history = [run.alternating.alternator.loss_history(name) for name in NAMES]
    return run.decisions, run.parameters(), history


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_two_ranks_are_one_process_with_twice_the_batch(ranks, wrapping):
    """To the bit if that sums the same halves, as accumulation does; halving is exact."""
    decisions, weights, history = ranks.run(weights_and_history, wrapping)[1]
    halves = Run(0, "none", norm=False, accumulate=NUM_RANKS)
    for step in range(NUM_STEPS):
        for rank in range(NUM_RANKS):
            decision = halves.alternating.step(halves.loss(step, rank))
        halves.decisions.append(decision)
    halves.alternating.flush()
    assert same_bits(weights, halves.parameters())
    assert [each.active for each in decisions] == [each.active for each in halves.decisions]
    for name, values in zip(NAMES, history, strict=True):
        assert values == pytest.approx(halves.alternating.alternator.loss_history(name), rel=1e-6)

    joined = Run(0, "none", norm=False)
    for step in range(NUM_STEPS):
        x_BD = torch.cat([batch(rank, step) for rank in range(NUM_RANKS)])
        joined.alternating.step((joined.model(x_BD) - x_BD.sum(1, keepdim=True)).square().mean())
    for one, two in zip(weights, joined.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def resumed(rank, wrapping, stop):
    whole = Run(rank, wrapping).train()
    first = Run(rank, wrapping).train(0, stop)
    second = Run(rank, wrapping)
    model, alternating = first.state()
    second.model.load_state_dict(model)
    second.alternating.load_state_dict(alternating)
    second.train(stop)
    return first.decisions + second.decisions == whole.decisions, same_bits(second.state(), whole.state()), alternating


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_resumed_run_equals_one_never_stopped(ranks, wrapping):
    answers = ranks.run(resumed, wrapping, 13)
    assert [answer[:2] for answer in answers] == [(True, True)] * NUM_RANKS
    schedules = [answer[2] for answer in answers]
    assert same_bits(*schedules)
    alone = Run(0, "none")
    alone.alternating.load_state_dict(schedules[0])
    assert alone.alternating.state_dict()["alternator"] == schedules[0]["alternator"]


def accumulated(rank, wrapping, no_sync):
    run = Run(rank, wrapping, norm=False, accumulate=2, check_ranks_every=1)
    wrappers = [each for each in run.wrapped.modules() if isinstance(each, DistributedDataParallel)]
    for step in range(NUM_STEPS):
        for wrapper in wrappers:
            wrapper.require_backward_grad_sync = not (no_sync and step % 2 == 0)  # as no_sync() does, for all at once
        run.train(step, step + 1)
    return run.decisions, run.parameters()


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_accumulation_with_no_sync_and_without(ranks, wrapping):
    synced = ranks.run(accumulated, wrapping, False)
    unsynced = ranks.run(accumulated, wrapping, True)
    assert same_bits(unsynced[0][1], unsynced[1][1])
    assert [each.active for each in synced[0][0] if each] == [each.active for each in unsynced[1][0] if each]
    for one, two in zip(synced[0][1], unsynced[0][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def turns_with_always(rank, wrapping):
    plain = {name: nn.Linear(4, 1) for name in (*NAMES, "mix")}
    parts = plain if wrapping == "whole" else {name: DistributedDataParallel(each) for name, each in plain.items()}
    whole = Sum(nn.ModuleDict(parts))
    model = DistributedDataParallel(whole, find_unused_parameters=True) if wrapping == "whole" else whole
    alternating = AlternatingOptimizer(
        Alternator(("a", "both", "b"), rule=Cycle(2)),
        {name: parts[name] for name in NAMES},
        {name: adamw(parts[name].parameters()) for name in NAMES},
        model=model,
        turns={"a": "a", "both": NAMES, "b": "b"},
        always=(parts["mix"], adamw(parts["mix"].parameters())),
        check_ranks_every=1,
    )
    moved_as_told = []
    for step in range(9):
        active = alternating.active_modules
        before = {name: each.weight.detach().clone() for name, each in plain.items()}
        alternating.step(model(batch(rank, step)).square().mean())
        moved = {name for name in before if not torch.equal(before[name], plain[name].weight)}
        moved_as_told.append(moved == {*active, "mix"})
    return all(moved_as_told)


class Sum(nn.Module):
    """The sum of what parts compute."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x_BD):
        return sum(part(x_BD) for part in self.parts.values())


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_turns_of_several_modules_and_an_always_group(ranks, wrapping):
    assert ranks.run(turns_with_always, wrapping) == [True, True]


def modes(rank):
    run = Run(rank, "each")
    first, second = run.wrapped
    seen = [(first.training, second.training)]
    run.alternating.force("b")
    seen.append((first.training, second.training))
    run.alternating.eval()
    seen.append((first.training, second.training))
    run.alternating.train()
    return [*seen, (first.training, second.training)]


def test_wrappers_are_in_the_mode_of_their_modules(ranks):
    assert ranks.run(modes) == [[(True, False), (False, True), (False, False), (False, True)]] * 2


def overflowing(rank):
    run = Run(rank, scaler=torch.amp.GradScaler("cpu", init_scale=8.0), check_ranks_every=1)
    updates = []
    for step in range(6):
        before = run.parameters()
        loss = run.loss(step)
        run.alternating.step(loss * float("inf") if (rank, step) == (1, 3) else loss)
        updates.append(not same_bits(before, run.parameters()))
    stats = run.alternating.alternator.stats()
    return updates, sum(module.skipped_steps for module in stats.modules.values())


def test_a_scaler_skips_on_all_ranks_what_overflows_on_one(ranks):
    assert ranks.run(overflowing) == [([True, True, True, False, True, True], 1)] * 2


def not_finite(rank, wrapping):
    run = Run(rank, wrapping, check_ranks_every=1)
    for step in range(10):
        loss = run.loss(step)
        if (rank, step) == (1, 4):
            loss = loss * float("nan")
        if run.alternating.mean_over_ranks(loss).isfinite():
            run.alternating.step(loss)
        else:
            run.alternating.skip(loss)
    run.alternating.flush()
    stats = run.alternating.alternator.stats()
    counts = [(module.skipped_steps, module.nonfinite_losses) for module in stats.modules.values()]
    return counts, run.parameters()


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_all_ranks_skip_a_loss_that_is_not_finite_on_one(ranks, wrapping):
    (counts0, weights0), (counts1, weights1) = ranks.run(not_finite, wrapping)
    assert counts0 == counts1
    assert (1, 1) in counts0
    assert same_bits(weights0, weights1)


def recorded(rank):
    run = Run(rank, rule=Plateau(min_steps=50), delay=0)
    run.alternating.step(run.loss(0), {"a": 1.0 + rank, **({"b": torch.tensor([3.0])} if rank else {})})
    run.alternating.step(run.loss(1), {"a": torch.tensor(0.5 + rank, dtype=torch.bfloat16)})
    run.alternating.step(run.loss(2), {})
    history = [run.alternating.alternator.loss_history(name) for name in NAMES]
    return history, run.alternating.mean_over_ranks(10 * rank).item()


def test_a_loss_that_only_one_rank_has_is_taken_as_it_is(ranks):
    assert ranks.run(recorded) == [([[1.5, 1.0], [3.0]], 5.0)] * 2


def averaged_by_hand(rank):
    run = Run(rank, "none", norm=False, process_group=dist.group.WORLD, delay=0)
    for step in range(NUM_STEPS):
        loss = run.loss(step)
        run.alternating.backward(loss)
        for parameter in run.model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= NUM_RANKS
        run.decisions.append(run.alternating.step(losses={run.alternating.active: loss}))
    return run.decisions, run.parameters()


def test_gradients_that_users_average_themselves(ranks):
    (decisions0, weights0), (decisions1, weights1) = ranks.run(averaged_by_hand)
    assert decisions0 == decisions1
    assert any(decision.switched for decision in decisions0)
    assert same_bits(weights0, weights1)


def compiled(rank):
    torch._dynamo.reset()
    eager = Run(rank, norm=False).train(0, 9)
    run = Run(rank, norm=False)
    run.wrapped = torch.compile(run.wrapped, backend="eager")
    return same_bits(run.train(0, 9).parameters(), eager.parameters())


def test_a_compiled_wrapper(ranks):
    assert ranks.run(compiled) == [True, True]


# What the debug check finds.


def local_losses(run):
    run.alternating._decisions._pending._send = LocalLosses


def moved_parameter(run):
    if run.rank == 1:
        run.model.b[0].bias.data.zero_()  # which no version counter shows


def forward_in_no_sync(run):
    run.loss = lambda step: unsynced_loss(run, step)


def unsynced_loss(run, step):
    with run.wrapped.no_sync():
        return Run.loss(run, step)


MUTANTS = {
    local_losses: r"decisions must be the same on every rank, but by now those of rank 1 differ from rank 0's: 'step",
    moved_parameter: r"parameters must be the same on every rank, but after step 1 those of 'b' of rank 1 differ",
    forward_in_no_sync: r"parameters must be the same on every rank, but after step 1 those of 'a' of rank 1 differ",
}


def message_of(rank, mutate):
    run = Run(rank, check_ranks_every=1)
    if mutate:
        mutate(run)
    try:
        run.train()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__)
def test_the_check_names_the_ranks_that_differ(ranks, mutate):
    messages = ranks.run(message_of, mutate)
    for message in messages:
        assert message.startswith("FreezeError: ")
        assert re.search(MUTANTS[mutate], message)


def test_the_check_passes_what_agrees(ranks):
    assert ranks.run(message_of, None) == ["", ""]


# What is refused.


def without_find_unused(rank):
    model = DistributedDataParallel(Model())
    build({name: getattr(model.module, name) for name in NAMES}, model=model)


def a_static_graph(rank):
    build({name: DistributedDataParallel(getattr(Model(), name), static_graph=True) for name in NAMES})


def frozen_when_wrapped(rank):
    model = Model()
    modules = {name: getattr(model, name) for name in NAMES}
    first = build(modules, process_group=dist.group.WORLD)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    first.release()
    build(modules, model=wrapped)


def unfrozen_later(rank):
    model = Model()
    model.a[0].bias.requires_grad_(False)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    alternating = build({name: getattr(model, name) for name in NAMES}, model=wrapped)
    alternating.step(wrapped(batch(rank, 0)).square().mean())
    model.a[0].bias.requires_grad_(True)
    alternating.step(wrapped(batch(rank, 1)).square().mean())


def one_module_unwrapped(rank):
    build({"a": DistributedDataParallel(Model().a), "b": Model().b})


def wrapped_twice(rank):
    model = Model()
    whole = DistributedDataParallel(model, find_unused_parameters=True)
    build({"a": DistributedDataParallel(model.a), "b": model.b}, model=whole)


def nothing_wrapped(rank):
    model = Model()
    build({name: getattr(model, name) for name in NAMES}, model=model)


def two_groups(rank):
    groups = [dist.new_group([0, 1]) for _ in NAMES]
    build(
        {
            name: DistributedDataParallel(getattr(Model(), name), process_group=group)
            for name, group in zip(NAMES, groups, strict=True)
        }
    )


def a_group_of_others(rank):
    group = dist.new_group([0])
    if rank == 0:
        raise ConfigurationError("process_group must hold this process")
    build({name: getattr(Model(), name) for name in NAMES}, process_group=group)


def a_step_in_no_sync(rank):
    run = Run(rank)
    with run.wrapped.no_sync():
        run.train(0, 1)


def build(modules, **options):
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    return AlternatingOptimizer(Alternator(NAMES, rule=Cycle(1)), modules, optimizers, **options)


REFUSALS = {
    without_find_unused: r"'a' freezes some parameters \('b.*parameters is False; set it to True \(with .*, or",
    a_static_graph: r"must be without static_graph, got True: the graph changes with each switch",
    frozen_when_wrapped: r"must be in a DistributedDataParallel \(and have .*'b.0.weight', .* is not, .*release\(\)",
    unfrozen_later: r"must be in a DistributedDataParallel \(and have .*'a.0.bias' is not",
    one_module_unwrapped: r"must be in a DistributedDataParallel \(and have .*'b.0.weight'.* is not",
    wrapped_twice: r"must be in one DistributedDataParallel, but .*'a.0.weight'.* is in two",
    nothing_wrapped: r"2 processes must decide the same, .*give the wrapper as model=.*process_group=",
    two_groups: r"must have one process group, got 2; say with process_group=",
    a_group_of_others: r"process_group must hold this process",
    a_step_in_no_sync: r"must have gradients that are averaged across ranks, but .*no_sync\(\): leave that before",
}


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.__name__)
def test_refused(ranks, case):
    check_refusal(ranks, case, REFUSALS[case])


def test_processes_that_start_after_the_adapter_was_built(monkeypatch):
    run = Run(0, "none").train(0, 1)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(ConfigurationError, match="2 processes must decide the same"):
        run.train(1, 2)


def test_one_process_needs_no_group():
    run = Run(0, "none", check_ranks_every=1).train(0, 3)
    assert run.alternating.mean_over_ranks(0.5).item() == 0.5
    assert run.alternating.mean_over_ranks(torch.tensor(2.0)).item() == 2.0

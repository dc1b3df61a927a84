"""Two processes under fully_shard (FSDP2): the freeze contract on each, the weights of DDP, what is refused."""

import copy

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adapters.torch import AlternatingOptimizer
from adapters.torch.parallel.ranks import Ranks
from alternator import Alternator, Cycle
from tests.conformance.freeze_contract_torch import adamw, same_bits
from tests.guide_blocks import blocks_of, run_blocks
from tests.several_ranks import SeveralRanks
from tests.unit.adapters.torch.ranks_run import NAMES, NUM_STEPS, SHARDINGS, Model, Run, check_refusal, frozen_stays


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    two = SeveralRanks(tmp_path_factory.mktemp("ranks"))
    yield two
    two.stop()


def gathered(run):
    return [getattr(each, "full_tensor", each.clone)().detach() for each in run.model.parameters()]


def contract(rank, wrapping, clip_norm, evaluated):
    watched = Run(rank, wrapping, norm=False, delay=0, clip_norm=clip_norm)
    stayed = frozen_stays(watched)
    run = Run(rank, wrapping, norm=False, delay=0, check_ranks_every=1, clip_norm=clip_norm)  # a state_dict() reshards
    for step in range(NUM_STEPS):
        run.train(step, step + 1)
        if evaluated:
            with torch.no_grad():
                run.loss(step)
    ddp = Run(rank, "whole", norm=False, delay=0, clip_norm=clip_norm).train()
    stayed &= watched.decisions == run.decisions
    return stayed, run.decisions, ddp.decisions, gathered(run), ddp.parameters(), run.alternating.grad_norm


@pytest.mark.parametrize("evaluated", [False, True], ids=["", "evaluated"])
@pytest.mark.parametrize("wrapping", SHARDINGS)
def test_frozen_stays_and_weights_are_those_of_ddp(ranks, wrapping, evaluated):
    one, two = ranks.run(contract, wrapping, None, evaluated)
    for stayed, decisions, ddp_decisions, weights, ddp_weights, _ in (one, two):
        assert stayed
        assert decisions == ddp_decisions
        assert sum(decision.switched for decision in decisions) >= 4
        assert same_bits(weights, ddp_weights)
    assert one[1] == two[1]


def by_name(rank, wrapping):
    named = Run(rank, wrapping, norm=False, delay=0, named={"a": "*", "b": ["b.0", "b.2.*"]})
    stayed = frozen_stays(named)
    given = Run(rank, wrapping, norm=False, delay=0).train()
    return stayed, named.decisions == given.decisions, same_bits(gathered(named), gathered(given))


@pytest.mark.parametrize("wrapping", ["whole", "shard each", "shard root"])
def test_parts_by_name_are_the_same_as_modules(ranks, wrapping):
    assert ranks.run(by_name, wrapping) == [(True, True, True)] * 2


def test_clipping_by_the_norm_of_all_shards(ranks):
    one, two = ranks.run(contract, "shard each", 0.5, False)
    assert same_bits(one[3], two[3])
    assert one[5] == two[5]
    assert type(one[5]) is torch.Tensor
    for weights, ddp_weights in zip(one[3], one[4], strict=True):
        torch.testing.assert_close(weights, ddp_weights, rtol=1e-4, atol=1e-5)


def without_reshard(rank):
    Ranks.reshard, kept = (lambda _: None), Ranks.reshard
    try:
        Run(rank, "shard each", norm=False, rule=Cycle(3)).train()
    except (RuntimeError, ValueError) as error:
        return str(error)
    finally:
        Ranks.reshard = kept
    return "nothing"


def test_without_sharding_again_at_the_switch_a_module_would_not_train(ranks):
    for message in ranks.run(without_reshard):
        assert "it requires no gradient" in message


def buffers(rank):
    return frozen_stays(Run(rank, "shard each", clip_norm=None))


def test_buffers_of_a_frozen_module_stay(ranks):
    assert ranks.run(buffers) == [True, True]


def resumed(rank, wrapping, stop):
    whole = Run(rank, wrapping).train()
    first = Run(rank, wrapping).train(0, stop)
    second = Run(rank, wrapping)
    model, alternating = first.state()
    second.model.load_state_dict(model)
    second.alternating.load_state_dict(alternating)
    second.train(stop)
    same = same_bits(gathered(second), gathered(whole))
    return first.decisions + second.decisions == whole.decisions, same


@pytest.mark.parametrize("wrapping", SHARDINGS)
def test_a_resumed_run_equals_one_never_stopped(ranks, wrapping):
    assert ranks.run(resumed, wrapping, 13) == [(True, True)] * 2


def checkpointed(rank, wrapping, stop, folder):
    """Saved and loaded by PyTorch's distributed checkpoint, and the guide's functions."""
    guide = run_blocks("docs/distributed.md", blocks_of("docs/distributed.md")[1:], {})
    whole, first, second = [Run(rank, wrapping, norm=False) for _ in range(3)]  # buffers are those of one rank
    whole.train()
    first.train(0, stop)
    guide["save"](folder, first.model, first.optimizers, first.alternating)
    guide["load"](folder, second.model, second.optimizers, second.alternating)
    for run in (first, second):
        run.train(stop)
    same = [same_bits(gathered(run), gathered(whole)) for run in (first, second)]
    return first.decisions[:stop] + second.decisions == whole.decisions == first.decisions, *same


@pytest.mark.parametrize(("wrapping", "stop"), [("shard each", 1), ("shard root", 13), ("shard all", 13)])
def test_a_run_loaded_from_a_distributed_checkpoint_equals_one_never_stopped(ranks, wrapping, stop, tmp_path):
    assert ranks.run(checkpointed, wrapping, stop, str(tmp_path)) == [(True, True, True)] * 2


def accumulated(rank, synced):
    run = Run(rank, "shard each", norm=False, accumulate=2, clip_norm=None)
    for step in range(NUM_STEPS):
        for name in NAMES:
            getattr(run.model, name).set_requires_gradient_sync(synced or step % 2 == 1)
        run.train(step, step + 1)
    return [each and each.active for each in run.decisions], gathered(run)


def test_accumulation_with_gradient_sync_and_without(ranks):
    (decisions, weights), _ = ranks.run(accumulated, True)
    (decisions_unsynced, weights_unsynced), _ = ranks.run(accumulated, False)
    assert decisions == decisions_unsynced
    for one, two in zip(weights, weights_unsynced, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def overflowing(rank):
    run = Run(rank, "shard each", norm=False, scaler=torch.amp.GradScaler("cpu", init_scale=8.0), check_ranks_every=1)
    updates = []
    for step in range(4):
        before = copy.deepcopy(gathered(run))
        loss = run.loss(step)
        run.alternating.backward(loss)
        if (rank, step) == (1, 2):  # in the shard of one rank alone
            next(each for each in run.model.parameters() if each.requires_grad).grad.to_local().fill_(torch.inf)
        run.alternating.step(losses={run.alternating.active: loss})
        updates.append(not same_bits(before, gathered(run)))
    return updates


def test_a_scaler_skips_on_all_ranks_what_overflows_in_one_shard(ranks):
    assert ranks.run(overflowing) == [[True, True, False, True]] * 2


def one_module_not_sharded(rank):
    model = Model(norm=False)
    fully_shard(model.a)
    build(model)


def sharded_as_a_model_not_given(rank):
    model = Model(norm=False)
    fully_shard(model.a)
    fully_shard(model)
    build(model, given=False)


def sharded_and_wrapped(rank):
    model = Model(norm=False)
    fully_shard(model.a)
    build(model, b=DistributedDataParallel(model.b))


def sharded_after_the_optimizers(rank):
    model = Model(norm=False)
    optimizers = {name: adamw(getattr(model, name).parameters()) for name in NAMES}
    fully_shard(model)
    AlternatingOptimizer(Alternator(NAMES), {name: getattr(model, name) for name in NAMES}, optimizers, model=model)


def sharded_in_two_dimensions(rank):
    model = Model(norm=False)
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))
    build(model)


def build(model, given=True, **replaced):
    modules = {name: getattr(model, name) for name in NAMES} | replaced
    optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
    return AlternatingOptimizer(Alternator(NAMES, rule=Cycle(1)), modules, optimizers, model=model if given else None)


REFUSALS = {
    one_module_not_sharded: r"or under fully_shard, but 'b.0.weight', .* is not",
    sharded_as_a_model_not_given: r"or under fully_shard, but 'b.0.weight', .* is not, .*give it as model=",
    sharded_and_wrapped: r"fully_shard or DistributedDataParallel, got both; choose one",
    sharded_after_the_optimizers: r"the optimizer of 'a' must cover it, but 'a.0.weight'",
    sharded_in_two_dimensions: r"one mesh of one dimension, got .*; give the same to each fully_shard\(\)",
}


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.__name__)
def test_refused(ranks, case):
    check_refusal(ranks, case, REFUSALS[case])

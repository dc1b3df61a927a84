"""The follower with two processes under DDP: the same decisions and weights on both, what is refused.

Cases run on both ranks and return what the tests compare.
"""

import pytest

from alternator import Alternator, ConfigurationError
from tests.conformance.freeze_contract_torch import same_bits
from tests.several_ranks import SeveralRanks
from tests.unit.adapters.accelerate.accelerated_runs import NAMES, RULE, Run, as_rank, forget

NUM_RANKS = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    two = SeveralRanks(tmp_path_factory.mktemp("ranks"))
    yield two
    two.stop()


def trained(rank, num_micro):
    as_rank(rank, NUM_RANKS)
    try:
        run = Run(num_micro=num_micro, delay=0, check_ranks_every=1).train(stop=5)
        parameters = dict(run.plain.named_parameters())
        return run.num_moved, run.decisions, run.losses, {name: p.detach() for name, p in parameters.items()}
    finally:
        forget()


@pytest.mark.parametrize("num_micro", [1, 2])
def test_ranks_decide_and_train_alike(ranks, num_micro):
    (moved0, decisions0, losses0, weights0), (moved1, decisions1, losses1, weights1) = ranks.run(trained, num_micro)
    assert moved0 == moved1 == 0
    assert decisions0 == decisions1
    assert sum(decision.switched for decision in decisions0) >= 2
    assert same_bits(weights0, weights1)
    assert len(losses0) == 25  # five batches an epoch for each
    assert losses0 != losses1
    means = [(one + two) / 2 for one, two in zip(losses0, losses1, strict=True)]
    assert decided_by(means, num_micro) == [decision.active for decision in decisions0]


def decided_by(losses, num_micro):
    """Who is active after each step, by these losses of batches alone: five an epoch."""
    alternator = Alternator(NAMES, rule=RULE)
    epochs = [losses[start : start + 5] for start in range(0, len(losses), 5)]
    windows = [epoch[start : start + num_micro] for epoch in epochs for start in range(0, 5, num_micro)]
    return [alternator.observe(sum(window) / len(window)).active for window in windows]


def resumed(rank, folder):
    as_rank(rank, NUM_RANKS)
    try:
        whole = Run().train(stop=5)
        forget()
        first = Run().train(stop=2)
        first.accelerator.save_state(folder)
        first.accelerator.wait_for_everyone()
        forget()
        second = Run()
        second.accelerator.load_state(folder)
        second.train(2, 5)
        same = same_bits([*second.plain.parameters()], [*whole.plain.parameters()])
        return same, first.decisions + second.decisions == whole.decisions
    finally:
        forget()


def test_a_resumed_run_equals_one_that_never_stopped(ranks, tmp_path):
    assert ranks.run(resumed, str(tmp_path / "state")) == [(True, True)] * NUM_RANKS


def refused(rank):
    as_rank(rank, NUM_RANKS)
    try:
        Run(find_unused=False)
    except ConfigurationError as error:
        return str(error)
    finally:
        forget()
    return ""


def test_without_find_unused_parameters_the_remedy_is_named(ranks):
    for said in ranks.run(refused):
        assert "find_unused_parameters is False" in said
        assert "kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)]" in said

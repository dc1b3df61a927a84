"""Two processes, under DDP and fully_shard: the state of what is frozen leaves, and comes back to the bit."""

import pytest

import adapters.torch.parked
from alternator import Cycle
from tests.conformance.freeze_contract_torch import same_bits
from tests.conformance.torch_host import MarkedHost
from tests.guide_blocks import blocks_of, run_blocks
from tests.several_ranks import SeveralRanks
from tests.unit.adapters.torch.frozen_state_runs import bytes_on_device
from tests.unit.adapters.torch.ranks_run import NUM_STEPS, Run
from tests.unit.adapters.torch.test_sharding import gathered


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    two = SeveralRanks(tmp_path_factory.mktemp("ranks"))
    yield two
    two.stop()


def run_of(rank, wrapping, choice):
    adapters.torch.parked.Host = MarkedHost
    return Run(rank, wrapping, norm=False, rule=Cycle(3), frozen_state=choice, check_ranks_every=1)


def measured(rank, wrapping, choice):
    """Weights, and per step the bytes of moments on the device."""
    run, taken = run_of(rank, wrapping, choice), []
    for step in range(NUM_STEPS):
        run.train(step, step + 1)
        taken.append(bytes_on_device(run.optimizers.values()))
    return gathered(run), taken


@pytest.mark.parametrize("wrapping", ["whole", "each", "shard each", "shard all"])
def test_in_two_processes(ranks, wrapping):
    runs = {choice: ranks.run(measured, wrapping, choice) for choice in ("keep", "offload", "drop")}
    for rank in range(2):
        (kept, whole), (moved, away), (dropped, freed) = (runs[choice][rank] for choice in ("keep", "offload", "drop"))
        assert same_bits(moved, kept)
        assert not same_bits(dropped, kept)
        sizes = (whole[0], whole[3] - whole[0])  # of a and b
        steady = [step for step in range(3, NUM_STEPS) if step % 3 != 2]  # at a switch it leaves in the next update
        assert [away[step] for step in steady] == [sizes[step // 3 % 2] for step in steady]
        assert [freed[step] for step in steady] == [sizes[step // 3 % 2] for step in steady]
        assert all(freed[step] == 0 for step in range(NUM_STEPS) if step % 3 == 2)
    for choice in runs:
        assert same_bits(runs[choice][0][0], runs[choice][1][0])


def checkpointed(rank, wrapping, choice, stop, folder):
    """Saved and loaded by PyTorch's distributed checkpoint and the guide's functions."""
    guide = run_blocks("docs/distributed.md", blocks_of("docs/distributed.md")[1:], {})
    whole, first, second = [run_of(rank, wrapping, choice) for _ in range(3)]
    whole.train()
    first.train(0, stop)
    guide["save"](folder, first.model, first.optimizers, first.alternating)
    guide["load"](folder, second.model, second.optimizers, second.alternating)
    for run in (first, second):
        run.train(stop)
    return [same_bits(gathered(run), gathered(whole)) for run in (first, second)]


@pytest.mark.parametrize(("choice", "stop"), [("offload", 4), ("offload", 13), ("drop", 4), ("drop", 13)])
def test_a_distributed_checkpoint(ranks, choice, stop, tmp_path):
    assert ranks.run(checkpointed, "shard each", choice, stop, str(tmp_path)) == [[True, True]] * 2

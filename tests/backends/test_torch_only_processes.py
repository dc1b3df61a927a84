"""Several processes train as one does: the same batches, decisions, losses and metrics, the same bits on all ranks."""

import numpy as np
import pytest

from tests.backends import torch_processes
from tests.backends.torch_processes import CASES, NUM_STEPS, Run, few_rows, make_run, spoil

CLOSE = 1e-5


@pytest.fixture(scope="module")
def trained(four):
    return four.run(torch_processes.trained, list(CASES))


def check_same(found, expected, tolerance=CLOSE):
    """Decisions equal, numbers equal up to rounding."""
    assert found[0] == expected[0]
    for ours, theirs in zip(found[1] + found[2], expected[1] + expected[2], strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, nan_ok=True)
    assert found[3] == pytest.approx(expected[3], rel=tolerance)


def check_same_bits(outcomes):
    """Everything of a rank is everything of the first, to the bit."""
    first = outcomes[0]
    for other in outcomes[1:]:
        assert repr(other[:4]) == repr(first[:4])
        for name, weights in first[4].items():
            np.testing.assert_array_equal(other[4][name], weights)


@pytest.mark.parametrize("name", CASES)
def test_four_processes_train_as_one_does(trained, name):
    expected = Run(**CASES[name]).train(NUM_STEPS.get(name, 26)).outcome()
    assert len({active for active, _ in expected[0]}) > 1
    check_same_bits([found[name][0] for found in trained])
    check_same(trained[0][name][0], expected)


def test_frozen_modules_keep_their_bits_on_every_rank(trained):
    assert [moved for found in trained for _, moved in found.values() if moved] == []


def test_two_processes_train_as_one_does(two):
    found = two.run(torch_processes.trained, ["strategies"])
    check_same(found[1]["strategies"][0], Run(**CASES["strategies"]).train(26).outcome())


def test_what_is_not_finite_on_one_rank_is_skipped_by_all(four):
    found = four.run(torch_processes.with_a_loss_that_is_not_finite)
    one = Run()
    spoil(one, at=7)
    expected = one.train(12).outcome()
    assert expected[2][0]["nonfinite_steps"] == 1
    check_same_bits(found)
    check_same(found[0], expected)


def test_a_run_of_four_processes_is_resumed_by_two(four, two, tmp_path):
    four.run(torch_processes.saved, tmp_path / "saved")
    found = two.run(torch_processes.resumed, tmp_path / "saved")
    expected = Run(**CASES["sampled"]).train(30).outcome()
    check_same_bits(found)
    check_same(
        (found[0][0], found[0][1], found[0][2][-1:], found[0][3]),
        (expected[0][5:], expected[1][5:], expected[2][-1:], expected[3]),
    )


def test_a_batch_with_fewer_rows_than_ranks(four):
    one = Run()
    one.trainer.train_step(few_rows(one))
    one.trainer.flush()
    for losses in four.run(torch_processes.small_batch):
        assert losses == pytest.approx(one.records[0].losses, rel=CLOSE)


def test_ranks_that_disagree_are_refused(two):
    for kind, message in two.run(torch_processes.disagreeing):
        assert kind == "ProcessesError"
        assert "the weights after step 4 must be equal in all processes" in message


def test_one_process_that_is_asked_to_stop_stops_all_and_one_process_ends_the_run(two, tmp_path):
    (tmp_path / "run").mkdir()
    assert two.run(torch_processes.stopped, tmp_path / "run", 10) == [(12, 12)] * 2  # an epoch ends there
    resumed, whole = make_run(tmp_path / "run"), make_run(tmp_path / "whole")
    resumed.resume()
    assert resumed.trainer.step == 12
    resumed.train()
    (tmp_path / "whole").mkdir()
    whole.train()
    for ours, theirs in zip(resumed.epochs, whole.epochs, strict=True):
        assert ours["train"] == pytest.approx(theirs["train"], rel=CLOSE)
        assert ours["validation"] == theirs["validation"]
    assert [record.active for record in resumed.logs.decisions.records] == [
        record.active for record in whole.logs.decisions.records
    ]


def test_processes_of_other_settings_are_refused(two, tmp_path):
    for message in two.run(torch_processes.disagreeing_settings, tmp_path):
        assert message.startswith("the settings of the run must be equal in all processes")

"""The DCGAN of the recipes: in batch mode it is the loop by hand to the bit, in inference mode another algorithm."""

import pytest

from benchmarks.frozen_modes import run


@pytest.fixture(scope="module")
def rows():
    return {row["mode"]: row for row in run(num_steps=300, seed=1)}


def test_batch_mode_is_the_loop_by_hand_to_the_bit(rows):
    by_hand, batch = rows["by hand"], rows["`batch`"]
    assert batch["equal"]
    assert batch["batch"] == by_hand["batch"]
    assert batch["rates"][0] == by_hand["rates"][0]
    assert batch["running"] != by_hand["running"]  # statistics move in a network's own turns alone
    assert batch["running"] == pytest.approx(by_hand["running"], rel=0.1)


def test_inference_mode_is_clearly_worse(rows):
    by_hand, inference = rows["by hand"], rows["`inference`"]
    assert not inference["equal"]
    assert inference["batch"] > 1.5 * by_hand["batch"]
    assert inference["running"] > 1.5 * by_hand["running"]

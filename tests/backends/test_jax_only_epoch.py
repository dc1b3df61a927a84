"""Epochs on the device: the same losses, decisions and weights as step by step."""

import numpy as np
import pytest

from alternator import Cycle, Patience, Payoff, Plateau, Trial
from tests.backends.harness import bits, equal, schedule, updates
from tests.backends.jax_harness import leaves, without_targets
from ur4rec.errors import ConfigurationError, NonFiniteError
from ur4rec_jax.epoch import stack_inputs

PLANS = {
    "fused": (("pretrain_retriever", 1), ("joint_finetune", 4)),
    "separate": (("joint_finetune", 4),),
}
RULES = {"fused": Plateau(threshold=0.05, min_steps=1, window=3), "separate": Patience(patience=2)}


def run(make_trainer, loader, on_device, joint_loss):
    records = []
    trainer = make_trainer(
        joint_loss=joint_loss, rule=RULES[joint_loss], on_device=on_device, on_step=records.append, sasrec_lr=5e-3
    )
    metrics = []
    for stage, epochs in PLANS[joint_loss]:
        trainer.set_training_stage(stage, num_steps=epochs * len(loader))
        metrics += [trainer.train_epoch(loader, epoch) for epoch in range(epochs)]
        if stage == "joint_finetune":
            last = schedule(trainer)
    return trainer, records, metrics, last


@pytest.mark.parametrize("joint_loss", ["fused", "separate"])
def test_it_is_what_the_host_does_step_by_step(make_trainer, loader, joint_loss):
    host, device = (run(make_trainer, loader, on_device, joint_loss) for on_device in (False, True))
    assert [record[:5] for record in device[1]] == [record[:5] for record in host[1]]
    for mine, other in zip(device[1], host[1], strict=True):
        assert mine.losses == pytest.approx(other.losses, rel=1e-5)
        assert (mine.value, mine.limit) == pytest.approx((other.value, other.limit), rel=1e-3, abs=1e-5)
    for mine, other in zip(device[2], host[2], strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
    assert device[2][-1]["adaptive_switch_count"] >= 3
    assert device[3]["alternator"]["counts"]["training_steps"] == host[3]["alternator"]["counts"]["training_steps"]
    assert len(device[3]["pending_losses"]) == len(host[3]["pending_losses"]) == 1
    np.testing.assert_allclose(device[0].score([[1, 2]]), host[0].score([[1, 2]]), rtol=1e-3, atol=1e-4)


def test_frozen_modules_keep_their_bits(make_trainer, loader):
    trainer = make_trainer(rule=Cycle(100), on_device=True)
    before = bits(trainer, "retriever")
    trainer.train_epoch(loader)
    assert equal(bits(trainer, "retriever"), before)
    assert updates(trainer, "sasrec") == {"sasrec": {len(loader)}}


def test_epochs_and_steps_may_take_turns(make_trainer, loader):
    mixed, plain = make_trainer(rule=Cycle(2), on_device=True), make_trainer(rule=Cycle(2))
    for trainer in (mixed, plain):
        trainer.train_epoch(loader, 0)
        trainer.train_step(loader.batch(1, 0))
        trainer.train_epoch(loader, 1)
    assert mixed.step == plain.step == 2 * len(loader) + 1
    schedules = [schedule(trainer) for trainer in (mixed, plain)]
    losses = [each.pop("pending_losses") for each in schedules]
    assert schedules[0]["alternator"]["counts"].pop("rings") != []
    assert schedules[1]["alternator"]["counts"].pop("rings") != []
    assert schedules[0] == schedules[1]
    for mine, other in zip(*losses, strict=True):
        assert {name: float(x) for name, x in mine.items()} == pytest.approx(
            {name: float(x) for name, x in other.items()}, rel=1e-4
        )
    np.testing.assert_allclose(mixed.score([[1, 2]]), plain.score([[1, 2]]), rtol=1e-3, atol=1e-4)


class Batches(list):
    """A loader that says how many targets there usually are, so that nothing is compiled for another number."""

    def __init__(self, batches, usual_targets):
        super().__init__(batches)
        self.usual_targets = usual_targets


def test_losses_that_are_not_finite_skip_the_update_and_too_many_stop_the_run(make_trainer, loader):
    good = list(loader)
    bad = without_targets(good[0])
    trainer = make_trainer(rule=Cycle(100), on_device=True, max_nonfinite_losses=3)
    metrics = trainer.train_epoch(Batches([*good[:-2], bad, bad], loader.usual_targets))
    assert metrics["nonfinite_steps"] == 2
    assert trainer.alternator.get_stats()["sasrec_skipped_steps"] == 2
    assert updates(trainer, "sasrec") == {"sasrec": {len(good) - 2}}
    assert all(np.isfinite(array).all() for array in bits(trainer).values())
    before = leaves(trainer)
    with pytest.raises(NonFiniteError, match="losses must be finite, got nan in the last 3 steps"):
        trainer.train_epoch(Batches([bad] * len(good), loader.usual_targets))
    assert all(np.array_equal(mine, other) for mine, other in zip(leaves(trainer), before, strict=True))


def test_an_epoch_without_batches_is_no_step(make_trainer):
    trainer = make_trainer(on_device=True)
    assert trainer.train_epoch([])["steps"] == trainer.step == 0


def test_steps_of_an_epoch_have_inputs_of_one_shape_and_their_own_numbers(loader):
    batches, padding = list(loader), loader.num_items
    counts = [int((batch.targets_BL != padding).sum()) for batch in batches]
    rates = [{"sasrec": 0.5**step, "retriever": 1.0} for step in range(len(batches))]
    for usual, length in ((max(counts), max(counts)), (max(counts) - 1, 16 * 8), (None, 16 * 8)):
        inputs_S = stack_inputs(batches, padding, usual, 7, rates, [None] * len(batches))
        assert inputs_S.inputs.targets_N.shape == inputs_S.inputs.positions_N.shape == (len(batches), length)
        assert (inputs_S.inputs.targets_N != padding).sum(axis=1).tolist() == counts
        np.testing.assert_array_equal(inputs_S.inputs.items_BL, [batch.items_BL for batch in batches])
        assert inputs_S.step.tolist() == list(range(7, 7 + len(batches)))
        assert inputs_S.learning_rates["sasrec"].tolist() == [rate["sasrec"] for rate in rates]


@pytest.mark.parametrize("rule", [Payoff(costs=(1.0, 0.6, 0.5), groups=4), Trial(groups=4)])
def test_a_whole_epoch_on_the_device_cannot_measure(make_trainer, targets, rule):
    with pytest.raises(ConfigurationError, match="needs the host"):
        make_trainer(rule=rule, probe=next(iter(targets)), on_device=True)

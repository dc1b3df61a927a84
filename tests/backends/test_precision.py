"""Training in bfloat16, in every stage: near float32, with the freeze contract and exact resumption."""

import math

import numpy as np
import pytest

from alternator import Cycle
from tests.backends.harness import bits, equal, snapshot, train
from ur4rec.schedule.stages import MODULES

STAGES = {"pretrain_sasrec": "retriever", "pretrain_retriever": "sasrec", "joint_finetune": None, "end_to_end": None}
"""What is frozen in each stage."""
SAMPLED = {"catalogue_loss": "sampled", "num_negatives": 8, "num_in_batch": 8}


@pytest.fixture
def make(make_trainer, loader):
    """Trainers, and the totals of their steps."""

    def build(**settings):
        records = []
        trainer = make_trainer(rule=Cycle(2), on_step=records.append, item_counts=loader.item_counts, **settings)
        return trainer, records

    return build


@pytest.mark.parametrize(("stages", "settings"), [(tuple(STAGES), {}), (("end_to_end",), SAMPLED)])
def test_every_stage_trains_near_float32_and_leaves_frozen_modules_alone(make, batch_stream, stages, settings):
    runs = [make(bf16=bf16, **settings) for bf16 in (False, True)]
    for stage in stages:
        frozen = STAGES[stage]
        for trainer, _ in runs:
            trainer.set_training_stage(stage)
            before = bits(trainer, frozen) if frozen else {}
            train(trainer, batch_stream(0, 3))
            assert equal(before, bits(trainer, frozen) if frozen else {})
    (plain, exact), (half, rounded) = runs
    for one, other in zip(exact, rounded, strict=True):
        assert one.losses.keys() == other.losses.keys()
        for module, loss in other.losses.items():
            assert math.isfinite(loss)
            assert loss == pytest.approx(one.losses[module], rel=0.02)
    assert [record.active for record in exact] == [record.active for record in rounded]
    assert not equal(snapshot(plain), snapshot(half))


def test_in_the_joint_stage_the_frozen_module_keeps_every_bit(make, batch_stream):
    trainer, _ = make(bf16=True)
    for batch in batch_stream(0, 6):
        (frozen,) = {*MODULES} - {trainer.alternator.active}
        before = bits(trainer, frozen)
        trainer.train_step(batch)
        assert equal(bits(trainer, frozen), before)


def test_a_checkpoint_is_float32_and_resumes_exactly(make, batch_stream, tmp_path):
    (whole, _), (resumed, _) = make(bf16=True), make(bf16=True)
    train(whole, batch_stream(0, 3))
    whole.save_checkpoint(tmp_path / "saved")
    resumed.load_checkpoint(tmp_path / "saved")
    for trainer in (whole, resumed):
        train(trainer, batch_stream(3, 3))
    arrays = snapshot(whole)
    assert equal(arrays, snapshot(resumed))
    assert {array.dtype for array in arrays.values() if array.dtype.kind == "f"} == {np.dtype(np.float32)}

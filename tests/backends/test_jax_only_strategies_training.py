"""JAX alone: strategies in epochs on the device, and what the curriculum must not compile again."""

import numpy as np
import pytest

from alternator import Cycle
from tests.backends.harness import kept, train

STRATEGIES = ("curriculum_learning", "memory_bank", "knowledge_distillation", "uncertainty_weighting")
ALL = {**{f"use_{name}": True for name in STRATEGIES}, "memory_bank_size": 20, "uncertainty_lr": 0.1, "clip_norm": 0.6}


@pytest.fixture
def start(make_trainer):
    """A trainer with everything on, in a stage in which all components come into play; all share compilations."""

    def make(joint_loss, **settings):
        trainer = make_trainer(joint_loss=joint_loss, rule=Cycle(4), **ALL, **settings)
        trainer.set_training_stage("joint_finetune", num_steps=20)
        return trainer

    return make


@pytest.mark.parametrize("joint_loss", ["separate", "fused"])
def test_two_modules_are_two_compilations_whatever_the_curriculum(start, batch_stream, joint_loss):
    trainer = start(joint_loss)
    train(trainer, batch_stream(0, 20))
    assert trainer._functions.compiled_steps[joint_loss == "fused"]._cache_size() == 2


def test_epochs_on_the_device_are_what_the_host_does_step_by_step(start, loader):
    host, device = start("fused"), start("fused", on_device=True)
    batches = list(loader)
    metrics = [[trainer.train_epoch(batches, epoch) for epoch in range(2)] for trainer in (host, device)]
    for mine, other in zip(*metrics, strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    mine, other = kept(host), kept(device)
    np.testing.assert_array_equal(mine["memory_bank.items"], other["memory_bank.items"])
    for name, array in mine.items():
        np.testing.assert_allclose(other[name], array, rtol=1e-3, atol=1e-4)

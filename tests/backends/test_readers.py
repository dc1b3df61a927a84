"""Batches that threads prepare ahead: the same training and ranks to the bit, and no thread outlives its epoch."""

import threading

import numpy as np
import pytest

from tests.backends.harness import equal, snapshot
from ur4rec.errors import ConfigurationError

LOSSES = {
    "fused": {},
    "sampled": {"catalogue_loss": "sampled", "num_negatives": 8, "num_in_batch": 8},
}


@pytest.fixture
def make(make_trainer, loader):
    def build(readers, **settings):
        trainer = make_trainer(readers=readers, item_counts=loader.item_counts, **settings)
        trainer.set_training_stage("end_to_end")
        return trainer

    return build


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_training_and_ranks_do_not_depend_on_the_number_of_readers(make, loader, targets, loss):
    trainers = [make(readers, **loss) for readers in (0, 1, 3)]
    for trainer in trainers:
        trainer.train_epoch(loader, epoch=0)
        trainer.train_epoch(loader, epoch=1, start=1, max_steps=2)
    alone = snapshot(trainers[0])
    assert all(equal(snapshot(trainer), alone) for trainer in trainers[1:])
    ranks = [trainer.rank_all(targets) for trainer in trainers]
    for other in ranks[1:]:
        assert all(np.array_equal(other[scorer], ranks[0][scorer]) for scorer in ranks[0])


def test_an_epoch_that_is_left_leaves_no_thread_and_may_continue(make, loader):
    threads, whole, parts = threading.active_count(), make(0), make(2)
    whole.train_epoch(loader, epoch=0)
    parts.train_epoch(loader, epoch=0, after_step=lambda: parts.step == 2)
    assert (parts.step, threading.active_count()) == (2, threads)
    parts.train_epoch(loader, epoch=0, start=2)
    assert equal(snapshot(parts), snapshot(whole))


def test_an_error_of_the_loader_is_raised_and_leaves_no_thread(make, loader):
    class Broken(list):
        def __iter__(self):
            yield from self[:2]
            raise LookupError("the file has gone")

    threads, trainer = threading.active_count(), make(1)
    with pytest.raises(LookupError, match="the file has gone"):
        trainer.train_epoch(Broken(loader))
    assert (trainer.step, threading.active_count()) == (2, threads)


def test_a_generator_is_read_as_it_is_trained_on(make, loader):
    trainer = make(2)

    def batches():
        for index, batch in enumerate(loader):
            assert trainer.step == index
            yield batch

    trainer.train_epoch(batches())
    assert trainer.step == len(loader)


def test_on_the_cpu_nothing_is_read_ahead_by_default(make):
    assert make(None).readers == 0
    with pytest.raises(ConfigurationError, match="readers must be an integer of at least 0, got -1"):
        make(-1)

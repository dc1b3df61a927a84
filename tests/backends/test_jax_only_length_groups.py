"""Rows grouped by length have constant shapes, step by step and in one scan."""

import pytest

from tests.backends.harness import OfKind

pytestmark = pytest.mark.usefixtures("cheap_groups")


def test_an_epoch_is_one_compilation_and_a_batch_that_does_not_fit_one_more(make_short, short_loader, long_batch):
    trainer = make_short("pretrain_sasrec", clip_norm=0.9)
    steps = trainer._functions.compiled_steps[False]
    for epoch in range(4):
        trainer.train_epoch(short_loader, epoch)
    assert trainer.length_groups is not None
    assert steps._cache_size() == 1
    trainer.train_epoch(OfKind([long_batch], short_loader))
    assert steps._cache_size() == 2


@pytest.mark.parametrize(("with_long", "dropout"), [(False, 0.3), (True, 0.0)])  # masks are those of the shapes
def test_on_device_all_batches_of_an_epoch_are_divided_or_none(
    make_short, short_loader, long_batch, with_long, dropout
):
    batches = OfKind([*short_loader, *([long_batch] if with_long else [])], short_loader)
    trainers = [make_short("pretrain_sasrec", dropout=dropout, on_device=on_device) for on_device in (True, False)]
    on_device, on_host = (trainer.train_epoch(batches)["total_loss"] for trainer in trainers)
    assert on_device == pytest.approx(on_host, rel=1e-5)

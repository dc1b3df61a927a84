"""Rows grouped by length have constant shapes, step by step and in one scan."""

import numpy as np
import pytest

from tests.backends.test_length_groups import Batches, cheap_groups, kept, long_batch, make, short_loader  # noqa: F401


def test_an_epoch_is_one_compilation_and_a_batch_that_does_not_fit_one_more(make, short_loader, long_batch):  # noqa: F811
    trainer = make("pretrain_sasrec", clip_norm=0.9)
    steps = trainer._functions.compiled_steps[False]
    for epoch in range(4):
        trainer.train_epoch(short_loader, epoch)
    assert trainer.length_groups is not None
    assert steps._cache_size() == 1
    trainer.train_epoch(Batches([long_batch], short_loader))
    assert steps._cache_size() == 2


@pytest.mark.parametrize("with_long", [False, True])
def test_on_device_all_batches_of_an_epoch_are_divided_or_none(
    make,
    short_loader,
    long_batch,
    tmp_path,
    with_long,  # noqa: F811
):
    batches = Batches([*short_loader, *([long_batch] if with_long else [])], short_loader)
    dropout = 0.0 if with_long else 0.3  # masks are those of the shapes
    arrays = []
    for on_device in (True, False):
        trainer = make("pretrain_sasrec", dropout=dropout, on_device=on_device)
        trainer.train_epoch(batches)
        arrays.append(kept(trainer, tmp_path / str(on_device)))
    for name, array in arrays[1].items():
        np.testing.assert_allclose(arrays[0][name], array, rtol=1e-3, atol=2e-5, err_msg=name)

"""JAX alone: batches filled up to constant lengths, and dropout of what trains only."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.backends import reference
from ur4rec.config import TrainerConfig
from ur4rec.data import Sequences
from ur4rec.data.batches import TrainBatches
from ur4rec.schedule.stages import MODULES
from ur4rec_jax.device import to_inputs
from ur4rec_jax.losses import SEQUENCE_LOSSES, fused_loss, softmax_cross_entropy


def test_cross_entropy_is_the_mean_of_minus_log_softmax_over_real_targets(backend):
    rng = np.random.default_rng(0)
    hidden, table = (rng.normal(size=(size, 5)).astype(np.float32) for size in (6, 9))
    targets = rng.integers(9, size=6)
    expected = -reference.log_softmax(hidden[:4] @ table.T)[np.arange(4), targets[:4]].mean()
    targets[4:] = 9  # filled up
    found = backend.sequence_loss("ce", (hidden, table, targets, np.zeros((6, 3), int)), TrainerConfig())
    assert found == pytest.approx(expected, rel=1e-5)


def test_losses_against_drawn_items_are_those_of_plain_numpy(backend):
    rng = np.random.default_rng(6)
    hidden, table = (rng.normal(size=(size, 5)).astype(np.float32) for size in (8, 9))
    targets, rows = rng.integers(9, size=8), rng.integers(9, size=(8, 3))
    config = TrainerConfig(num_negatives=5, gbce_t=0.6)
    shared, own = backend.draw_items(0, 5, 9), backend.draw_items(0, 8, 9)
    plain = {
        "sampled": lambda n: reference.sampled_loss(hidden[:n], table, targets[:n], shared),
        "gbce": lambda n: reference.gbce_loss(hidden[:n], table, targets[:n], shared, 0.6),
        "bpr": lambda n: reference.bpr_loss(hidden[:n], table, targets[:n], rows[:n], own[:n]),
    }
    assert set(shared) & set(targets)  # some drawn items are targets
    for name, expected in plain.items():
        loss = jax.jit(partial(_sequence_loss, name, config))
        for num_real in (8, 6):
            filled = np.where(np.arange(8) < num_real, targets, 9)
            found = loss(*map(jnp.asarray, (hidden, table, filled, rows)))
            assert float(found) == pytest.approx(expected(num_real), rel=1e-5)


def _sequence_loss(name, config, *arrays):
    return SEQUENCE_LOSSES[name](*arrays, config, nnx.Rngs(negatives=0))


def test_cross_entropy_has_no_gradient_where_it_is_filled_up():
    scores_NI = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    gradient = jax.grad(softmax_cross_entropy)(scores_NI, jnp.array([1, 4, 4]))
    assert np.abs(gradient[0]).sum() > 0
    assert np.abs(gradient[1:]).sum() == 0


def test_a_frozen_module_has_no_dropout(make_model, loader):
    model = make_model(sasrec_dropout=0.5, retriever_dropout=0.0)
    inputs, catalogue = to_inputs(loader.batch(0, 0), model.config.num_items), model.retriever.catalogue()
    fused = jax.jit(lambda key, name: fused_loss(model, inputs, (name,), catalogue, nnx.Rngs(key)), static_argnums=1)
    losses = {name: [float(fused(jax.random.key(seed), name).total) for seed in (0, 1)] for name in MODULES}
    assert losses["retriever"][0] == losses["retriever"][1]  # SASRec is frozen, and only it has dropout
    assert losses["sasrec"][0] != losses["sasrec"][1]


def test_places_of_targets_are_filled_up_to_one_of_two_lengths(loader):
    batch, num_items = loader.batch(0, 0), loader.num_items
    places = np.flatnonzero(batch.targets_BL != num_items)
    few = to_inputs(batch, num_items, len(places) + 3)
    many, full = to_inputs(batch, num_items, len(places) - 1), to_inputs(batch, num_items)
    assert [len(inputs.positions_N) for inputs in (few, many, full)] == [len(places) + 3, 16 * 8, 16 * 8]
    for inputs in (few, many, full):
        np.testing.assert_array_equal(inputs.positions_N[: len(places)], places)
        np.testing.assert_array_equal(inputs.targets_N[: len(places)], batch.targets_BL.ravel()[places])
        assert (inputs.targets_N[len(places) :] == num_items).all()


def test_usual_targets_are_the_most_of_the_first_epochs():
    lengths = [2, 3, 9, 4, 2, 7, 5]
    sequences = Sequences.from_lists([list(range(length)) for length in lengths])
    batches = TrainBatches(sequences, 9, max_seq_len=8, batch_size=3, seed=0)
    counts = [(batches.batch(e, index).targets_BL != 9).sum() for e in range(16) for index in range(len(batches))]
    assert batches.usual_targets == max(counts) > min(counts)

"""The strategies' losses and the fusions against plain NumPy."""

import numpy as np
import pytest

from tests.backends import reference
from tests.backends.harness import Inputs
from ur4rec.config import FUSIONS, ModelConfig

NUM_ITEMS, LENGTH, DIM = 9, 4, 5


def unit(rng, *shape):
    return reference.normalise(rng.normal(size=shape)).astype(np.float32)


def batch(rng, lengths):
    """Right-padded histories of these lengths with a target at each position; the last rows may be empty."""
    items = rng.integers(NUM_ITEMS, size=(len(lengths), LENGTH))
    is_real = np.arange(LENGTH) < np.array(lengths)[:, None]
    positions = np.flatnonzero(is_real)
    return Inputs(np.where(is_real, items, NUM_ITEMS), positions, rng.integers(NUM_ITEMS, size=len(positions)))


@pytest.fixture
def arrays():
    """Inputs, preference vectors where a target is, keys of all items."""
    rng = np.random.default_rng(1)
    inputs = batch(rng, [3, 1, 4, 0])
    return inputs, unit(rng, len(inputs.positions_N), 3, DIM), unit(rng, NUM_ITEMS, DIM)


def test_consistency_is_the_distance_of_what_is_wanted_from_what_was_read(backend, arrays):
    inputs, preferences, keys = arrays
    loss, (by_preferences, by_keys) = backend.consistency(*arrays)
    expected = reference.consistency_loss(preferences, inputs.items_BL, inputs.positions_N, keys)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert np.abs(by_preferences).sum() > 0
    assert np.abs(by_keys).sum() == 0


def test_diversity_is_minus_the_log_determinant(backend, arrays):
    inputs, preferences, _ = arrays
    assert backend.diversity(inputs, preferences) == pytest.approx(reference.diversity_loss(preferences), rel=1e-5)
    alike = np.repeat(preferences[:, :1], 3, axis=1)
    assert backend.diversity(inputs, alike) == pytest.approx(reference.diversity_loss(alike), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_a_divergence_from_the_teacher_which_gets_no_gradient(backend, temperature):
    student, teacher = np.random.default_rng(2).normal(size=(2, 6, NUM_ITEMS)).astype(np.float32) * 3
    loss, (by_student, by_teacher) = backend.distillation(student, teacher, temperature)
    assert loss == pytest.approx(reference.distillation_loss(student, teacher, temperature), rel=1e-5)
    assert np.abs(by_student).sum() > 0
    assert np.abs(by_teacher).sum() == 0


@pytest.mark.parametrize("size", [2, 5, 64])
def test_the_bank_is_a_fifo_of_last_targets_and_its_loss_is_infonce(backend, size):
    rng = np.random.default_rng(3)
    bank, expected = backend.memory_bank(size, DIM, 0.07), reference.Bank(size)
    for step in range(7):
        inputs = batch(rng, [*rng.integers(LENGTH + 1, size=3).tolist(), 1])
        preferences, keys = unit(rng, len(inputs.positions_N), 3, DIM), unit(rng, NUM_ITEMS, DIM)
        loss = bank.step(inputs, preferences, keys)
        found = (inputs.positions_N, LENGTH, inputs.targets_N, keys)
        assert loss == pytest.approx(reference.contrastive_loss(preferences, *found, expected), rel=1e-5, abs=1e-7)
        assert step > 0 or loss == 0  # an empty bank
        expected.write(*found)
        for mine, theirs in zip(bank.arrays(), expected.arrays(DIM), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert bank.num_compilations in (None, 1)


def test_gradients_of_the_banks_loss_reach_the_query_and_the_targets_key(backend, arrays):
    inputs, preferences, keys = arrays
    bank = backend.memory_bank(8, DIM, 0.07)
    bank.step(*arrays)
    assert (bank.arrays()[0] >= 0).sum() == 3  # the rows with a target
    by_preferences, by_keys = bank.gradients(inputs, preferences, keys)
    last = reference.last_targets(inputs.positions_N, LENGTH)
    assert set(np.flatnonzero(np.abs(by_keys).sum(1))) == set(inputs.targets_N[last])
    assert set(np.flatnonzero(np.abs(by_preferences).sum((1, 2)))) == set(last)


def test_uncertainty_weights_descend_and_those_of_absent_components_stay(backend):
    rng = np.random.default_rng(4)
    uncertainty = backend.uncertainty()
    expected = dict.fromkeys(uncertainty.log_variances(), 0.0)
    for names in (("sasrec", "retriever"), ("fused", "diversity"), ("sasrec", "distillation"), ("fused",)):
        losses = {name: float(np.float32(rng.normal())) for name in names}
        weights = {name: float(rng.uniform(0.1, 2)) for name in names}
        components = {name: (losses[name], weights[name]) for name in names}
        total = reference.uncertainty_total(losses, weights, expected)
        assert uncertainty.total(components) == pytest.approx(total, rel=1e-5, abs=1e-6)
        assert uncertainty.metrics(components) == pytest.approx(
            {"uncertainty_loss": sum(expected[name] for name in names) / 2}
            | {f"{name}_uncertainty_weight": np.exp(-expected[name]) for name in names}
        )
        before = uncertainty.log_variances()
        uncertainty.update(components, is_finite=False, learning_rate=0.3)
        assert uncertainty.log_variances() == before
        uncertainty.update(components, is_finite=True, learning_rate=0.3)
        expected = reference.uncertainty_step(losses, weights, expected, 0.3)
        found = uncertainty.log_variances()
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert all(found[name] == before[name] for name in before if name not in names)


def fuse(backend, name, scores, **settings):
    config = ModelConfig(num_items=scores.shape[2], fusion=name, **settings)
    return backend.call(backend.part("ur4rec").FUSIONS[name](config, None), *scores)


@pytest.fixture
def scores():
    """Scores of both modules, some of them equal."""
    return np.random.default_rng(5).integers(6, size=(2, 7, 12)).astype(np.float32)


def test_rank_fusion_adds_reciprocal_ranks(backend, scores):
    np.testing.assert_allclose(fuse(backend, "rank", scores), reference.rank_fusion(*scores), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 12, 100])
def test_a_cascade_reorders_the_top_and_leaves_no_ties(backend, scores, size):
    fused_NI = fuse(backend, "cascade", scores, cascade_size=size)
    np.testing.assert_array_equal(fused_NI, reference.cascade_fusion(*scores, size))
    assert all(len(set(fused_I)) == 12 for fused_I in fused_NI.tolist())


@pytest.mark.parametrize("name", FUSIONS)
def test_no_fusion_hides_a_score_that_is_not_finite(backend, scores, name):
    scores[0, 2, 3], scores[1, 4, 5] = np.nan, np.inf
    fused_NI = fuse(backend, name, scores)
    assert not np.isfinite(fused_NI[2, 3])
    assert not np.isfinite(fused_NI[4, 5])
    assert np.isfinite(fused_NI[0]).all()

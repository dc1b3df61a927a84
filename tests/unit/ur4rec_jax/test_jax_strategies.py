"""The strategies' losses and the fusions against plain NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import strategy_reference as reference
from ur4rec.config import FUSIONS as FUSION_NAMES
from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.training.components import COMPONENTS
from ur4rec_jax.fusion import FUSIONS
from ur4rec_jax.losses import SEQUENCE_LOSSES, Component, StepInputs
from ur4rec_jax.memory_bank import MemoryBank, find_last_targets
from ur4rec_jax.strategies import consistency_loss, distillation_loss, diversity_loss
from ur4rec_jax.uncertainty import (
    initial_log_variances,
    uncertain_total,
    uncertainty_metrics,
    update_log_variances,
)

NUM_ITEMS, LENGTH, DIM = 9, 4, 5


def unit(rng, *shape):
    return reference.normalise(rng.normal(size=shape)).astype(np.float32)


def batch(rng, lengths):
    """Right-padded histories of these lengths with a target at each position; the last rows may be empty."""
    items = rng.integers(NUM_ITEMS, size=(len(lengths), LENGTH))
    is_real = np.arange(LENGTH) < np.array(lengths)[:, None]
    positions = np.flatnonzero(is_real)
    targets = rng.integers(NUM_ITEMS, size=len(positions))
    return StepInputs(np.where(is_real, items, NUM_ITEMS), positions, targets)


def fill_up(inputs, *arrays):
    """The same filled up to a constant length, as a step takes it; what is filled up must not count."""
    missing = len(inputs.items_BL) * LENGTH - len(inputs.positions_N)
    positions, targets = (np.pad(a, (0, missing)) for a in inputs[1:3])
    targets[len(inputs.targets_N) :] = NUM_ITEMS
    filled = [np.concatenate([array, np.repeat(array[:1], missing, axis=0)]) for array in arrays]
    return StepInputs(*map(jnp.asarray, (inputs.items_BL, positions, targets))), *map(jnp.asarray, filled)


@pytest.fixture
def arrays():
    """Inputs, preference vectors where a target is, keys of all items."""
    rng = np.random.default_rng(1)
    inputs = batch(rng, [3, 1, 4, 0])
    return inputs, unit(rng, len(inputs.positions_N), 3, DIM), unit(rng, NUM_ITEMS, DIM)


def test_consistency_is_the_distance_of_what_is_wanted_from_what_was_read(arrays):
    inputs, preferences, keys = arrays
    filled, preferences_NKd = fill_up(inputs, preferences)
    value_and_gradients = jax.jit(jax.value_and_grad(consistency_loss, argnums=(0, 2)))
    loss, gradients = value_and_gradients(preferences_NKd, filled, jnp.asarray(keys))
    expected = reference.consistency_loss(preferences, inputs.items_BL, inputs.positions_N, keys)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert np.abs(gradients[0]).sum() > 0
    assert np.abs(gradients[1]).sum() == 0


def test_diversity_is_minus_the_log_determinant(arrays):
    inputs, preferences, _ = arrays
    for vectors in (preferences, np.repeat(preferences[:, :1], 3, axis=1)):
        filled, preferences_NKd = fill_up(inputs, vectors)
        loss = jax.jit(diversity_loss)(preferences_NKd, filled.targets_N < NUM_ITEMS)
        assert float(loss) == pytest.approx(reference.diversity_loss(vectors), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_a_divergence_from_the_teacher_which_gets_no_gradient(temperature):
    student, teacher = np.random.default_rng(2).normal(size=(2, 6, NUM_ITEMS)).astype(np.float32) * 3
    value_and_gradients = jax.jit(jax.value_and_grad(distillation_loss, argnums=(0, 1)))
    loss, gradients = value_and_gradients(student, teacher, np.arange(6) < 5, temperature)
    assert float(loss) == pytest.approx(reference.distillation_loss(student[:5], teacher[:5], temperature), rel=1e-5)
    assert np.abs(gradients[0][:5]).sum() > 0
    assert np.abs(gradients[0][5:]).sum() == np.abs(gradients[1]).sum() == 0


@pytest.mark.parametrize("size", [2, 5, 64])
def test_the_bank_is_a_fifo_of_last_targets_and_its_loss_is_infonce(size):
    rng = np.random.default_rng(3)
    bank, expected = MemoryBank.empty(size, DIM), reference.Bank(size)
    step = jax.jit(lambda *given: bank_step(*given))
    for number in range(7):
        inputs = batch(rng, [*rng.integers(LENGTH + 1, size=3).tolist(), 1])
        preferences, keys = unit(rng, len(inputs.positions_N), 3, DIM), unit(rng, NUM_ITEMS, DIM)
        loss, bank = step(bank, *fill_up(inputs, preferences), keys)
        found = (inputs.positions_N, LENGTH, inputs.targets_N, keys)
        assert float(loss) == pytest.approx(reference.contrastive_loss(preferences, *found, expected), rel=1e-5)
        assert number > 0 or loss == 0  # an empty bank
        expected.write(*found)
        for mine, theirs in zip(bank, expected.arrays(DIM), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert step._cache_size() == 1


def bank_step(bank, inputs, preferences_NKd, keys_Id):
    last = find_last_targets(inputs, NUM_ITEMS)
    loss = bank.loss(preferences_NKd, keys_Id, last, 0.07)
    return loss, bank.write(last.items_B, keys_Id.at[last.items_B].get(mode="clip"), last.is_real_B)


def test_gradients_of_the_banks_loss_reach_the_query_and_the_targets_key(arrays):
    inputs, preferences, keys = arrays
    filled, preferences_NKd = fill_up(inputs, preferences)
    last = find_last_targets(filled, NUM_ITEMS)
    bank = MemoryBank.empty(8, DIM).write(jnp.arange(6), jnp.asarray(keys[:6]), jnp.ones(6, bool))
    gradients = jax.jit(jax.grad(bank.loss, argnums=(0, 1)))
    of_queries, of_keys = gradients(preferences_NKd, jnp.asarray(keys), last, 0.07)
    assert set(np.flatnonzero(np.abs(of_keys).sum(1))) == set(np.asarray(last.items_B[last.is_real_B]))
    assert set(np.flatnonzero(np.abs(of_queries).sum((1, 2)))) == set(np.asarray(last.index_B[last.is_real_B]))


def test_uncertainty_weights_descend_and_those_of_absent_components_stay():
    rng = np.random.default_rng(4)
    log_variances_C, expected = initial_log_variances(), dict.fromkeys(COMPONENTS, 0.0)
    for names in (("sasrec", "retriever"), ("fused", "diversity"), ("sasrec", "distillation"), ("fused",)):
        losses = {name: float(np.float32(rng.normal())) for name in names}
        weights = {name: float(rng.uniform(0.1, 2)) for name in names}
        components = {name: Component(jnp.float32(losses[name]), weights[name]) for name in names}
        components["consistency"] = Component(jnp.float32(0), jnp.float32(0))  # absent, as its weight says
        total = uncertain_total(components, log_variances_C)
        assert float(total) == pytest.approx(reference.uncertainty_total(losses, weights, expected), rel=1e-5, abs=1e-6)
        metrics = {name: float(value) for name, value in uncertainty_metrics(components, log_variances_C).items()}
        assert np.isnan(metrics.pop("consistency_uncertainty_weight"))
        assert metrics == pytest.approx(
            {"uncertainty_loss": sum(expected[name] for name in names) / 2}
            | {f"{name}_uncertainty_weight": np.exp(-expected[name]) for name in names}
        )
        before = np.asarray(log_variances_C)
        update = partial(update_log_variances, components, log_variances_C, learning_rate=jnp.float32(0.3))
        np.testing.assert_array_equal(update(is_finite=jnp.array(False)), before)
        log_variances_C = update(is_finite=jnp.array(True))
        expected = reference.uncertainty_step(losses, weights, expected, 0.3)
        np.testing.assert_allclose(log_variances_C, [expected[name] for name in COMPONENTS], rtol=1e-5, atol=1e-6)
        absent = [place for place, name in enumerate(COMPONENTS) if name not in names]
        np.testing.assert_array_equal(log_variances_C[np.array(absent)], before[absent])


def test_losses_against_drawn_items_are_those_of_plain_numpy():
    rng = np.random.default_rng(6)
    hidden, table = rng.normal(size=(8, DIM)).astype(np.float32), rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    targets, rows = rng.integers(NUM_ITEMS, size=8), rng.integers(NUM_ITEMS, size=(8, 3))
    config = TrainerConfig(num_negatives=5, gbce_t=0.6)
    shared, own = (
        np.asarray(jax.random.randint(nnx.Rngs(negatives=0).negatives(), shape, 0, NUM_ITEMS)) for shape in ((5,), (8,))
    )
    expected = {
        "sampled": lambda n: reference.sampled_loss(hidden[:n], table, targets[:n], shared),
        "gbce": lambda n: reference.gbce_loss(hidden[:n], table, targets[:n], shared, 0.6),
        "bpr": lambda n: reference.bpr_loss(hidden[:n], table, targets[:n], rows[:n], own[:n]),
    }
    losses = {name: jax.jit(partial(draw, SEQUENCE_LOSSES[name], config)) for name in expected}
    assert set(shared) & set(targets)  # some drawn items are targets
    for num_real in (8, 6):
        filled = np.where(np.arange(8) < num_real, targets, NUM_ITEMS)
        for name, plain in expected.items():
            loss = losses[name](*map(jnp.asarray, (hidden, table, filled, rows)))
            assert float(loss) == pytest.approx(plain(num_real), rel=1e-5)


def draw(loss, config, *arrays):
    return loss(*arrays, config, nnx.Rngs(negatives=0))


def fuse(name, sasrec, retriever, **settings):
    config = ModelConfig(num_items=sasrec.shape[1], fusion=name, **settings)
    return np.asarray(FUSIONS[name](config)(jnp.asarray(sasrec), jnp.asarray(retriever)))


@pytest.fixture
def scores():
    """Scores of both modules, some of them equal."""
    return np.random.default_rng(5).integers(6, size=(2, 7, 12)).astype(np.float32)


def test_rank_fusion_adds_reciprocal_ranks(scores):
    np.testing.assert_allclose(fuse("rank", *scores), reference.rank_fusion(*scores), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 12, 100])
def test_a_cascade_reorders_the_top_and_leaves_no_ties(scores, size):
    fused_NI = fuse("cascade", *scores, cascade_size=size)
    np.testing.assert_array_equal(fused_NI, reference.cascade_fusion(*scores, size))
    assert all(len(set(fused_I)) == 12 for fused_I in fused_NI.tolist())


@pytest.mark.parametrize("name", FUSION_NAMES)
def test_no_fusion_hides_a_score_that_is_not_finite(scores, name):
    scores[0, 2, 3], scores[1, 4, 5] = np.nan, np.inf
    fused_NI = fuse(name, *scores)
    assert not np.isfinite(fused_NI[2, 3])
    assert not np.isfinite(fused_NI[4, 5])
    assert np.isfinite(fused_NI[0]).all()

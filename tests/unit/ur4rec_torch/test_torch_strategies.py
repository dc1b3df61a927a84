"""The strategies' losses and the fusions against plain NumPy."""

import numpy as np
import pytest
import torch

from tests import strategy_reference as reference
from ur4rec.config import FUSIONS as FUSION_NAMES
from ur4rec.config import ModelConfig
from ur4rec.training.components import BANK_CURSOR, BANK_ITEMS, BANK_KEYS
from ur4rec_torch.fusion import FUSIONS
from ur4rec_torch.losses import Component, StepInputs
from ur4rec_torch.memory_bank import MemoryBank, find_last_targets
from ur4rec_torch.strategies import consistency_loss, distillation_loss, diversity_loss
from ur4rec_torch.uncertainty import UncertaintyWeights

CPU = torch.device("cpu")
NUM_ITEMS, LENGTH, DIM = 9, 4, 5


def unit(rng, *shape):
    return reference.normalise(rng.normal(size=shape)).astype(np.float32)


def batch(rng, lengths):
    """Right-padded histories of these lengths with a target at each position; the last rows may be empty."""
    items = rng.integers(NUM_ITEMS, size=(len(lengths), LENGTH))
    is_real = np.arange(LENGTH) < np.array(lengths)[:, None]
    positions = np.flatnonzero(is_real)
    targets = rng.integers(NUM_ITEMS, size=len(positions))
    return StepInputs(*map(torch.from_numpy, (np.where(is_real, items, NUM_ITEMS), positions, targets)))


@pytest.fixture
def arrays():
    """Inputs, preference vectors where a target is, keys of all items."""
    rng = np.random.default_rng(1)
    inputs = batch(rng, [3, 1, 4, 0])
    return inputs, unit(rng, len(inputs.positions_N), 3, DIM), unit(rng, NUM_ITEMS, DIM)


def test_consistency_is_the_distance_of_what_is_wanted_from_what_was_read(arrays):
    inputs, preferences, keys = arrays
    keys_Id = torch.from_numpy(keys).requires_grad_()
    loss = consistency_loss(torch.from_numpy(preferences).requires_grad_(), inputs, keys_Id)
    expected = reference.consistency_loss(preferences, inputs.items_BL.numpy(), inputs.positions_N.numpy(), keys)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert keys_Id.grad is None


def test_diversity_is_minus_the_log_determinant(arrays):
    _, preferences, _ = arrays
    assert diversity_loss(torch.from_numpy(preferences)).item() == pytest.approx(
        reference.diversity_loss(preferences), rel=1e-5
    )
    alike = np.repeat(preferences[:, :1], 3, axis=1)
    assert diversity_loss(torch.from_numpy(alike)).item() == pytest.approx(reference.diversity_loss(alike), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_a_divergence_from_the_teacher_which_gets_no_gradient(temperature):
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(size=(2, 6, NUM_ITEMS)).astype(np.float32) * 3
    student_NI, teacher_NI = (torch.from_numpy(scores).requires_grad_() for scores in (student, teacher))
    loss = distillation_loss(student_NI, teacher_NI, temperature)
    assert loss.item() == pytest.approx(reference.distillation_loss(student, teacher, temperature), rel=1e-5)
    loss.backward()
    assert student_NI.grad.abs().sum() > 0
    assert teacher_NI.grad is None


@pytest.mark.parametrize("size", [2, 5, 64])
def test_the_bank_is_a_fifo_of_last_targets_and_its_loss_is_infonce(size):
    rng = np.random.default_rng(3)
    bank, expected = MemoryBank(size, DIM, 0.07, CPU), reference.Bank(size)
    for step in range(7):
        inputs = batch(rng, [*rng.integers(LENGTH + 1, size=3).tolist(), 1])
        positions, targets = inputs.positions_N.numpy(), inputs.targets_N.numpy()
        preferences, keys = unit(rng, len(positions), 3, DIM), unit(rng, NUM_ITEMS, DIM)
        last, keys_Id = find_last_targets(inputs), torch.from_numpy(keys)
        loss = bank.loss(torch.from_numpy(preferences), keys_Id, last)
        found = reference.contrastive_loss(preferences, positions, LENGTH, targets, keys, expected)
        assert loss.item() == pytest.approx(found, rel=1e-5, abs=1e-7)
        assert step > 0 or loss.item() == 0  # an empty bank
        bank.write(last.items_B, keys_Id[last.items_B], last.is_real_B)
        expected.write(positions, LENGTH, targets, keys)
        items_M, keys_Md, cursor = expected.arrays(DIM)
        state = bank.state_dict()
        np.testing.assert_array_equal(state[BANK_ITEMS].numpy(), items_M)
        np.testing.assert_array_equal(state[BANK_KEYS].numpy(), keys_Md)
        assert state[BANK_CURSOR].item() == cursor


def test_gradients_of_the_banks_loss_reach_the_query_and_the_targets_key(arrays):
    inputs, preferences, keys = arrays
    bank, last = MemoryBank(8, DIM, 0.07, CPU), find_last_targets(inputs)
    bank.write(torch.arange(6), torch.from_numpy(keys[:6]), torch.ones(6, dtype=torch.bool))
    preferences_NKd, keys_Id = (torch.from_numpy(array).requires_grad_() for array in (preferences, keys))
    bank.loss(preferences_NKd, keys_Id, last).backward()
    moved = set(keys_Id.grad.abs().sum(1).nonzero().ravel().tolist())
    assert moved == set(last.items_B[last.is_real_B].tolist())
    assert preferences_NKd.grad[last.index_B[last.is_real_B]].abs().sum() > 0
    assert not bank.state_dict()[BANK_KEYS].requires_grad


def test_uncertainty_weights_descend_and_those_of_absent_components_stay():
    rng = np.random.default_rng(4)
    uncertainty, expected = UncertaintyWeights(CPU), dict.fromkeys(UncertaintyWeights(CPU).log_variances, 0.0)
    for names in (("sasrec", "retriever"), ("fused", "diversity"), ("sasrec", "distillation"), ("fused",)):
        losses = {name: float(np.float32(rng.normal())) for name in names}
        weights = {name: float(rng.uniform(0.1, 2)) for name in names}
        components = {name: Component(torch.tensor(losses[name]), weights[name]) for name in names}
        total = reference.uncertainty_total(losses, weights, expected)
        assert uncertainty.total(components).item() == pytest.approx(total, rel=1e-5, abs=1e-6)
        metrics = {name: value.item() for name, value in uncertainty.metrics(components).items()}
        assert metrics == pytest.approx(
            {"uncertainty_loss": sum(expected[name] for name in names) / 2}
            | {f"{name}_uncertainty_weight": np.exp(-expected[name]) for name in names}
        )
        before = dict(uncertainty.log_variances)
        uncertainty.update(components, torch.tensor(False), 0.3)
        assert uncertainty.log_variances == before
        uncertainty.update(components, torch.tensor(True), 0.3)
        expected = reference.uncertainty_step(losses, weights, expected, 0.3)
        found = {name: value.item() for name, value in uncertainty.log_variances.items()}
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert all(torch.equal(uncertainty.log_variances[name], before[name]) for name in before if name not in names)


def fuse(name, sasrec, retriever, **settings):
    config = ModelConfig(num_items=sasrec.shape[1], fusion=name, **settings)
    return FUSIONS[name](config)(torch.from_numpy(sasrec), torch.from_numpy(retriever)).detach().numpy()


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

"""The losses against plain NumPy."""

import numpy as np
import pytest

from tests.backends import reference
from ur4rec.config import SEQUENCE_LOSSES, TrainerConfig
from ur4rec.schedule.stages import MODULES

NUM_ITEMS, NUM_TARGETS = 9, 6


@pytest.fixture
def arrays():
    """States, the item table, targets, and the histories that the states come from."""
    rng = np.random.default_rng(0)
    hidden, table = (rng.normal(size=(size, 5)).astype(np.float32) for size in (NUM_TARGETS, NUM_ITEMS))
    return hidden, table, rng.integers(NUM_ITEMS, size=NUM_TARGETS), rng.integers(NUM_ITEMS, size=(NUM_TARGETS, 3))


def own_loss(scores_NI, targets_N, smoothing=0.0):
    return reference.smoothed_cross_entropy(scores_NI, targets_N, smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_of_minus_log_softmax(backend, arrays, smoothing):
    hidden, table, targets, _ = arrays
    loss = backend.sequence_loss("ce", arrays, TrainerConfig(label_smoothing=smoothing))
    assert loss == pytest.approx(own_loss(hidden @ table.T, targets, smoothing), rel=1e-5)


def test_binary_cross_entropy_draws_one_negative_and_drops_those_in_the_history(backend, arrays):
    hidden, table, targets, rows = arrays
    dropped = 0
    for seed in range(8):
        negatives = backend.draw_items(seed, NUM_TARGETS, NUM_ITEMS)
        counts = (negatives != targets) & (negatives[:, None] != rows).all(1)
        dropped += (~counts).sum()
        positive = np.log1p(np.exp(-(hidden * table[targets]).sum(1)))
        negative = np.log1p(np.exp((hidden * table[negatives]).sum(1))) * counts
        loss = backend.sequence_loss("bce", arrays, TrainerConfig(), seed)
        assert loss == pytest.approx((positive + negative).mean(), rel=1e-5)
    assert dropped > 0


@pytest.mark.parametrize(("name", "smoothing"), [("sampled", 0.0), ("sampled", 0.3), ("gbce", 0.0)])
def test_drawn_items_are_shared_and_one_that_is_the_target_is_masked(backend, arrays, name, smoothing):
    hidden, table, targets, _ = arrays
    config = TrainerConfig(num_negatives=5, gbce_t=0.4, label_smoothing=smoothing)
    plain = {
        "sampled": lambda negatives: reference.sampled_loss(hidden, table, targets, negatives, smoothing),
        "gbce": lambda negatives: reference.gbce_loss(hidden, table, targets, negatives, 0.4),
    }
    masked = 0
    for seed in range(4):
        negatives = backend.draw_items(seed, 5, NUM_ITEMS)
        masked += (negatives == targets[:, None]).sum()
        loss = backend.sequence_loss(name, arrays, config, seed)
        assert loss == pytest.approx(plain[name](negatives), rel=1e-5)
    assert masked > 0


def test_bpr_compares_the_target_with_one_drawn_item(backend, arrays):
    hidden, table, targets, rows = arrays
    for seed in range(4):
        expected = reference.bpr_loss(hidden, table, targets, rows, backend.draw_items(seed, NUM_TARGETS, NUM_ITEMS))
        assert backend.sequence_loss("bpr", arrays, TrainerConfig(), seed) == pytest.approx(expected, rel=1e-5)


def test_every_loss_is_in_the_configuration(backend):
    assert tuple(backend.part("losses").SEQUENCE_LOSSES) == SEQUENCE_LOSSES


@pytest.fixture
def scores(backend, make_model, loader):
    """A model without dropout, a batch, its targets, and the scores of both modules where the batch has one."""
    model = backend.inference(make_model(sasrec_dropout=0.0, retriever_dropout=0.0))
    batch = loader.batch(0, 0)
    rows, columns = np.nonzero(batch.targets_BL != model.config.num_items)
    histories_NL = np.where(np.arange(8) <= columns[:, None], batch.items_BL[rows], model.config.num_items)
    own = backend.call(lambda items_BL: tuple(model.score(items_BL, scorer) for scorer in MODULES), histories_NL)
    return model, batch, batch.targets_BL[rows, columns], *own


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_separate_loss_is_the_weighted_sum_over_real_positions_alone(backend, scores, smoothing):
    model, batch, targets_N, sasrec_NI, retriever_NI = scores
    weights = {"sasrec_loss_weight": 0.5, "retriever_loss_weight": 2.0}
    config = TrainerConfig(joint_loss="separate", label_smoothing=smoothing, **weights)
    scores = {"sasrec": sasrec_NI, "retriever": retriever_NI}
    losses = {name: own_loss(each, targets_N, smoothing) for name, each in scores.items()}
    alone, both = (backend.step_losses(model, config, batch, modules) for modules in (("sasrec",), MODULES))
    assert alone.total == pytest.approx(0.5 * losses["sasrec"], rel=1e-4)
    assert set(alone.modules) == {"sasrec"}
    fusion = own_loss(sasrec_NI + retriever_NI, targets_N, smoothing)
    assert both.total == pytest.approx(0.5 * losses["sasrec"] + 2 * losses["retriever"] + fusion, rel=1e-4)
    assert both.modules == pytest.approx(losses, rel=1e-4)


def test_under_separate_the_modules_do_not_touch(backend, scores):
    model, batch, *_ = scores
    config = TrainerConfig(joint_loss="separate")
    both = backend.step_gradients(model, config, batch, MODULES)
    assert set(both) == backend.weights(model).keys() - {"retriever.item_text_vectors"}
    for module in MODULES:
        alone = backend.step_gradients(model, config, batch, (module,))
        assert set(alone) == {name for name in both if name.startswith(module)}
        for name, gradient in alone.items():
            np.testing.assert_allclose(both[name], gradient, rtol=1e-4, atol=1e-7)
    assert np.abs(both["fusion.weights"]).sum() > 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_fused_loss_is_the_cross_entropy_of_the_fused_scores(backend, scores, smoothing):
    model, batch, targets_N, sasrec_NI, retriever_NI = scores
    backend.set_weights(model, {"fusion.weights": [0.8, 0.3]})
    config = TrainerConfig(joint_loss="fused", label_smoothing=smoothing)
    found = backend.step_losses(model, config, batch, MODULES)
    fused_NI = 0.8 * sasrec_NI + 0.3 * retriever_NI
    assert found.total == pytest.approx(own_loss(fused_NI, targets_N, smoothing), rel=1e-4)
    assert found.modules == dict.fromkeys(MODULES, found.total)


def test_of_mixed_probabilities_the_mixture_is_smoothed(backend, make_model, loader):
    model = backend.inference(make_model(sasrec_dropout=0.0, retriever_dropout=0.0, fusion="weighted"))
    batch, padding = loader.batch(0, 0), model.config.num_items
    rows, columns = np.nonzero(batch.targets_BL != padding)
    histories_NL = np.where(np.arange(8) <= columns[:, None], batch.items_BL[rows], padding)
    logs_NI = backend.call(model.score, histories_NL)
    np.testing.assert_allclose(np.exp(logs_NI).sum(1), 1, rtol=1e-5)
    found = backend.step_losses(model, TrainerConfig(joint_loss="fused", label_smoothing=0.2), batch, MODULES)
    assert found.total == pytest.approx(own_loss(logs_NI, batch.targets_BL[rows, columns], 0.2), rel=1e-4)

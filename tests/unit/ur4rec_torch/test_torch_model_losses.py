"""The losses against plain NumPy."""

import numpy as np
import pytest
import torch

from tests import strategy_reference as reference
from ur4rec.config import SEQUENCE_LOSSES as SEQUENCE_LOSS_NAMES
from ur4rec.config import TrainerConfig
from ur4rec.schedule.stages import MODULES
from ur4rec_torch.device import seeded, to_device
from ur4rec_torch.losses import SEQUENCE_LOSSES, fused_loss, separate_loss

CPU = torch.device("cpu")


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=(9, 5)).astype(np.float32)
    return hidden, table, rng.integers(9, size=6), rng.integers(9, size=(6, 3))


def test_cross_entropy_is_the_mean_of_minus_log_softmax(arrays):
    hidden, table, targets, _ = arrays
    loss = SEQUENCE_LOSSES["ce"](*map(torch.from_numpy, arrays), TrainerConfig())
    expected = -log_softmax(hidden @ table.T)[np.arange(6), targets].mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_binary_cross_entropy_draws_one_negative_and_drops_those_in_the_history(arrays):
    hidden, table, targets, rows = arrays
    dropped = 0
    for step in range(8):
        with seeded(0, step, CPU):
            negatives = torch.randint(9, (6,)).numpy()
        with seeded(0, step, CPU):
            loss = SEQUENCE_LOSSES["bce"](*map(torch.from_numpy, arrays), TrainerConfig())
        counts = (negatives != targets) & (negatives[:, None] != rows).all(1)
        dropped += (~counts).sum()
        positive = np.log1p(np.exp(-(hidden * table[targets]).sum(1)))
        negative = np.log1p(np.exp((hidden * table[negatives]).sum(1))) * counts
        assert loss.item() == pytest.approx((positive + negative).mean(), rel=1e-5)
    assert dropped > 0


@pytest.mark.parametrize("name", ["sampled", "gbce"])
def test_drawn_items_are_shared_and_one_that_is_the_target_is_masked(arrays, name):
    hidden, table, targets, _ = arrays
    config = TrainerConfig(num_negatives=5, gbce_t=0.4)
    masked = 0
    for step in range(4):
        with seeded(0, step, CPU):
            negatives = torch.randint(9, (5,)).numpy()
        with seeded(0, step, CPU):
            loss = SEQUENCE_LOSSES[name](*map(torch.from_numpy, arrays), config)
        masked += (negatives == targets[:, None]).sum()
        if name == "sampled":
            expected = reference.sampled_loss(hidden, table, targets, negatives)
        else:
            expected = reference.gbce_loss(hidden, table, targets, negatives, 0.4)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert masked > 0


def test_bpr_compares_the_target_with_one_drawn_item(arrays):
    hidden, table, targets, rows = arrays
    for step in range(4):
        with seeded(0, step, CPU):
            negatives = torch.randint(9, (6,)).numpy()
        with seeded(0, step, CPU):
            loss = SEQUENCE_LOSSES["bpr"](*map(torch.from_numpy, arrays), TrainerConfig())
        expected = reference.bpr_loss(hidden, table, targets, rows, negatives)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_every_loss_is_in_the_configuration():
    assert tuple(SEQUENCE_LOSSES) == SEQUENCE_LOSS_NAMES


@pytest.fixture
def scores(make_model, loader):
    """A model in inference mode, a batch, and the scores of both modules where the batch has a target."""
    model = make_model().eval()
    batch = loader.batch(0, 0)
    rows, columns = np.nonzero(batch.targets_BL != model.config.num_items)
    sasrec, retriever = [], []
    with torch.no_grad():
        for row, column in zip(rows, columns, strict=True):
            history = torch.from_numpy(batch.items_BL[row : row + 1, : column + 1]).long()
            sasrec.append(model.score(history, "sasrec")[0].numpy())
            retriever.append(model.score(history, "retriever")[0].numpy())
    return model, batch, batch.targets_BL[rows, columns], np.array(sasrec), np.array(retriever)


def own_loss(scores_NI, targets_N):
    return -log_softmax(scores_NI)[np.arange(len(targets_N)), targets_N].mean()


def test_separate_loss_is_the_weighted_sum_over_real_positions_alone(scores):
    model, batch, targets_N, sasrec_NI, retriever_NI = scores
    inputs = to_device(batch, model.config.num_items, CPU)
    config = TrainerConfig(joint_loss="separate", sasrec_loss_weight=0.5, retriever_loss_weight=2.0)
    catalogue = model.retriever.catalogue()
    losses = {"sasrec": own_loss(sasrec_NI, targets_N), "retriever": own_loss(retriever_NI, targets_N)}
    found = separate_loss(model, config, inputs, ("sasrec",), None)
    assert found.total.item() == pytest.approx(0.5 * losses["sasrec"], rel=1e-4)
    assert set(found.modules) == {"sasrec"}
    found = separate_loss(model, config, inputs, ("sasrec", "retriever"), catalogue)
    fusion = own_loss(sasrec_NI + retriever_NI, targets_N)
    expected = 0.5 * losses["sasrec"] + 2 * losses["retriever"] + fusion
    assert found.total.item() == pytest.approx(expected, rel=1e-4)
    assert {name: loss.item() for name, loss in found.modules.items()} == pytest.approx(losses, rel=1e-4)


def test_under_separate_the_modules_do_not_touch(scores):
    model, batch, *_ = scores
    inputs = to_device(batch, model.config.num_items, CPU)
    gradients = {}
    for modules in (("sasrec",), ("retriever",), ("sasrec", "retriever")):
        model.zero_grad()
        separate_loss(model, TrainerConfig(), inputs, modules, model.retriever.catalogue()).total.backward()
        gradients[modules] = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    both = gradients["sasrec", "retriever"]
    assert set(both) == {name for name, _ in model.named_parameters()}
    for module in ("sasrec", "retriever"):
        alone = gradients[(module,)]
        assert all(name.startswith(module) for name in alone)
        for name, gradient in alone.items():
            torch.testing.assert_close(both[name], gradient, rtol=1e-4, atol=1e-7)


def test_fused_loss_is_the_cross_entropy_of_the_fused_scores(scores):
    model, batch, targets_N, sasrec_NI, retriever_NI = scores
    inputs = to_device(batch, model.config.num_items, CPU)
    with torch.no_grad():
        model.fusion.weights.copy_(torch.tensor([0.8, 0.3]))
    found = fused_loss(model, inputs, model.retriever.catalogue())
    assert found.total.item() == pytest.approx(own_loss(0.8 * sasrec_NI + 0.3 * retriever_NI, targets_N), rel=1e-4)
    assert {name: loss.item() for name, loss in found.modules.items()} == dict.fromkeys(MODULES, found.total.item())
    assert not any(loss.requires_grad for loss in found.modules.values())

"""The losses against plain NumPy, and batches on their way to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ur4rec.config import TrainerConfig
from ur4rec.data import Sequences
from ur4rec.data.batches import TrainBatches
from ur4rec.schedule.stages import MODULES
from ur4rec_jax.device import to_inputs
from ur4rec_jax.losses import SEQUENCE_LOSSES, fused_loss, separate_loss, softmax_cross_entropy


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    hidden, table = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=(9, 5)).astype(np.float32)
    return hidden, table, rng.integers(9, size=6), rng.integers(9, size=(6, 3))


def test_cross_entropy_is_the_mean_of_minus_log_softmax_over_real_targets(arrays):
    hidden, table, targets, rows = arrays
    expected = -log_softmax(hidden @ table.T)[np.arange(6), targets]
    assert float(SEQUENCE_LOSSES["ce"](*arrays, TrainerConfig(), None)) == pytest.approx(expected.mean(), rel=1e-5)
    targets[4:] = 9  # filled up
    assert float(SEQUENCE_LOSSES["ce"](hidden, table, targets, rows, TrainerConfig(), None)) == pytest.approx(
        expected[:4].mean(), rel=1e-5
    )


def test_cross_entropy_has_no_gradient_where_it_is_filled_up():
    scores_NI = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    gradient = jax.grad(softmax_cross_entropy)(scores_NI, jnp.array([1, 4, 4]))
    assert np.abs(gradient[0]).sum() > 0
    assert np.abs(gradient[1:]).sum() == 0


def test_binary_cross_entropy_draws_one_negative_and_drops_those_in_the_history(arrays):
    hidden, table, targets, rows = arrays
    dropped = 0
    for seed in range(8):
        negatives = np.asarray(jax.random.randint(nnx.Rngs(negatives=seed).negatives(), (6,), 0, 9))
        loss = SEQUENCE_LOSSES["bce"](*map(jnp.asarray, arrays), TrainerConfig(), nnx.Rngs(negatives=seed))
        counts = (negatives != targets) & (negatives[:, None] != rows).all(1)
        dropped += (~counts).sum()
        positive = np.log1p(np.exp(-(hidden * table[targets]).sum(1)))
        negative = np.log1p(np.exp((hidden * table[negatives]).sum(1))) * counts
        assert float(loss) == pytest.approx((positive + negative).mean(), rel=1e-5)
    assert dropped > 0


@pytest.fixture(scope="module")
def scores(make_model, loader):
    """A model, a batch, and the scores of both modules where the batch has a target."""
    model = make_model(sasrec_dropout=0.0, retriever_dropout=0.0)
    batch = loader.batch(0, 0)
    rows, columns = np.nonzero(batch.targets_BL != model.config.num_items)
    lengths_N = columns + 1
    histories_NL = np.where(np.arange(8) < lengths_N[:, None], batch.items_BL[rows], model.config.num_items)
    score = jax.jit(lambda items_BL: [model.score(items_BL, scorer) for scorer in MODULES])
    own = map(np.asarray, score(histories_NL))
    return model, batch, batch.targets_BL[rows, columns], *own


def own_loss(scores_NI, targets_N):
    return -log_softmax(scores_NI)[np.arange(len(targets_N)), targets_N].mean()


def test_separate_loss_is_the_weighted_sum_over_real_positions_alone(scores):
    model, batch, targets_N, sasrec_NI, retriever_NI = scores
    inputs = to_inputs(batch, model.config.num_items)
    config = TrainerConfig(joint_loss="separate", sasrec_loss_weight=0.5, retriever_loss_weight=2.0)
    losses = {"sasrec": own_loss(sasrec_NI, targets_N), "retriever": own_loss(retriever_NI, targets_N)}
    alone = jax.jit(lambda: separate_loss(model, config, inputs, ("sasrec",), None, nnx.Rngs(0)))
    found = alone()
    assert float(found.total) == pytest.approx(0.5 * losses["sasrec"], rel=1e-4)
    assert set(found.modules) == {"sasrec"}
    both = jax.jit(lambda: separate_loss(model, config, inputs, MODULES, model.retriever.catalogue(), nnx.Rngs(0)))
    found = both()
    fusion = own_loss(sasrec_NI + retriever_NI, targets_N)
    expected = 0.5 * losses["sasrec"] + 2 * losses["retriever"] + fusion
    assert float(found.total) == pytest.approx(expected, rel=1e-4)
    assert {name: float(loss) for name, loss in found.modules.items()} == pytest.approx(losses, rel=1e-4)


def test_under_separate_the_modules_do_not_touch(scores):
    model, batch, *_ = scores
    inputs = to_inputs(batch, model.config.num_items)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradients(params):
        whole = nnx.merge(graphdef, params, rest)
        losses = separate_loss(whole, TrainerConfig(), inputs, MODULES, whole.retriever.catalogue(), nnx.Rngs(0))
        return losses.total

    def alone(name):
        def loss(part):
            whole = nnx.merge(graphdef, nnx.State({**params, name: part}), rest)
            catalogue = whole.retriever.catalogue()
            return separate_loss(whole, TrainerConfig(), inputs, (name,), catalogue, nnx.Rngs(0)).total

        return jax.jit(jax.grad(loss))(params[name])

    both = gradients(params)
    for name in MODULES:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), both[name], alone(name))
    assert np.abs(both["fusion"]["weights"][...]).sum() > 0


def test_fused_loss_is_the_cross_entropy_of_the_fused_scores(scores):
    model, batch, targets_N, sasrec_NI, retriever_NI = scores
    inputs = to_inputs(batch, model.config.num_items)
    model.fusion.weights[...] = jnp.array([0.8, 0.3])
    found = jax.jit(lambda: fused_loss(model, inputs, MODULES, model.retriever.catalogue(), nnx.Rngs(0)))()
    model.fusion.weights[...] = jnp.ones(2)
    expected = own_loss(0.8 * sasrec_NI + 0.3 * retriever_NI, targets_N)
    assert float(found.total) == pytest.approx(expected, rel=1e-4)
    assert {name: float(loss) for name, loss in found.modules.items()} == dict.fromkeys(MODULES, float(found.total))


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

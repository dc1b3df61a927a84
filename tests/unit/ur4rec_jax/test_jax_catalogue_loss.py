"""The cross-entropy in slices against that of the whole logits: values, gradients, and what is not computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ur4rec_jax import catalogue_loss
from ur4rec_jax.catalogue_loss import catalogue_cross_entropy
from ur4rec_jax.losses import softmax_cross_entropy

NAMES = ("hidden", "table", "queries", "keys", "weights")
FORMS = {"sasrec": NAMES[:2], "retriever": NAMES[2:4], "both": NAMES}
SIZES = {"slices": 8 * 23, "one slice": 2**18}


def set_size(monkeypatch, size):
    """Logits of a slice, which may have few rows."""
    monkeypatch.setattr(catalogue_loss, "MINIMUM_ROWS", 1)
    monkeypatch.setattr(catalogue_loss, "CPU_SLICE", size)
    monkeypatch.setattr(catalogue_loss, "ACCELERATOR_SLICE", size)


@pytest.fixture(params=SIZES.values(), ids=SIZES)
def _size(request, monkeypatch):
    set_size(monkeypatch, request.param)


def draw_factors(num_rows=37, num_items=23):
    """Random factors of all kinds, and targets, of which the last five fill up."""
    random = np.random.default_rng(3)
    shapes = {"hidden": (num_rows, 4), "table": (num_items, 4), "queries": (num_rows, 3, 5), "keys": (num_items, 5)}
    factors = {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    targets_N = random.integers(num_items, size=num_rows)
    targets_N[-5:] = num_items
    return factors | {"weights": jnp.array([0.8, 1.3])}, jnp.asarray(targets_N)


def sliced(factors, targets_N):
    """The loss under test, of the factors that are there."""
    found = {
        "sasrec": (factors["hidden"], factors["table"]) if "hidden" in factors else None,
        "retriever": (factors["queries"], factors["keys"]) if "queries" in factors else None,
    }
    return catalogue_cross_entropy(targets_N, **found, weights_2=factors.get("weights"))


def whole(factors, targets_N):
    """The cross-entropy of the whole logits."""
    scores = []
    if "hidden" in factors:
        scores.append(factors["hidden"] @ factors["table"].T)
    if "queries" in factors:
        products_NKI = jnp.einsum("nke,ie->nki", factors["queries"], factors["keys"])
        scores.append(jax.nn.logsumexp(products_NKI, axis=1))
    weights = factors.get("weights", jnp.ones(1))
    return softmax_cross_entropy(sum(weight * each for weight, each in zip(weights, scores, strict=True)), targets_N)


def train(loss, factors, targets_N, trains=NAMES):
    """Its value and the gradients by some factors; the others are frozen."""
    frozen = {name: factor for name, factor in factors.items() if name not in trains}
    trained = {name: factor for name, factor in factors.items() if name in trains}
    return jax.jit(jax.value_and_grad(lambda trained: 3 * loss({**frozen, **trained}, targets_N)))(trained)


def assert_same(ours, theirs):
    """Trees of the same values."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=5e-6), ours, theirs)


def count_products(trains):
    """Matrix products in the program that computes the loss and the gradients by some factors."""
    factors, targets_N = draw_factors()
    return str(jax.make_jaxpr(lambda: train(sliced, factors, targets_N, trains))()).count("dot_general")


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("names", FORMS.values(), ids=FORMS)
def test_it_is_the_cross_entropy_of_the_whole_logits(names):
    """Value and every gradient."""
    factors, targets_N = draw_factors()
    factors = {name: factors[name] for name in names}
    assert_same(train(sliced, factors, targets_N), train(whole, factors, targets_N))
    assert float(sliced(factors, targets_N)) == pytest.approx(float(whole(factors, targets_N)), rel=1e-5)


@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("trains", [NAMES[:2], NAMES[2:4], NAMES[4:], (*NAMES[2:4], "weights")])
def test_what_is_frozen_changes_no_gradient_of_another(trains):
    """Each set of factors that may train, beside frozen ones."""
    factors, targets_N = draw_factors()
    value, everything = train(sliced, factors, targets_N)
    assert_same(train(sliced, factors, targets_N, trains), (value, {name: everything[name] for name in trains}))


def test_gradients_by_what_is_frozen_are_not_computed():
    """The logits take one product of SASRec and three of the retriever, and so does each factor's gradient."""
    assert count_products(NAMES) == 4 + 2 * 4
    assert count_products(NAMES[:2]) == 4 + 2
    assert count_products(NAMES[2:4]) == 4 + 2 * 3
    assert count_products(NAMES[3:]) == 4 + 3
    assert count_products(NAMES[4:]) == 4


def test_a_detached_factor_is_frozen():
    """As the modules are where the fusion weights alone learn from their scores."""
    factors, targets_N = draw_factors()

    def detached(factors, targets_N):
        return sliced({**jax.lax.stop_gradient(factors), "weights": factors["weights"]}, targets_N)

    program = str(jax.make_jaxpr(lambda: train(detached, factors, targets_N))())
    assert program.count("dot_general") == 4
    _, gradients = train(detached, factors, targets_N)
    expected = train(sliced, factors, targets_N, ("weights",))[1]
    assert_same(gradients, {name: expected.get(name, jnp.zeros_like(factor)) for name, factor in factors.items()})


def test_gradients_are_those_of_finite_differences():
    """By JAX's own check."""
    factors, targets_N = draw_factors(num_rows=9, num_items=7)
    check_grads(lambda each: sliced(each, targets_N), (factors,), order=1, modes=["rev"], rtol=0.02, atol=0.02)


def test_it_trains_inside_a_loop_under_a_traced_turn(monkeypatch):
    """As an epoch on the device does, where `jax.lax.switch` chooses what trains."""
    set_size(monkeypatch, SIZES["slices"])
    factors, targets_N = draw_factors()
    turns = (NAMES[:2], NAMES[2:4])
    zeros = jax.tree.map(jnp.zeros_like, factors)
    branches = [lambda each, names=names: {**zeros, **train(sliced, each, targets_N, names)[1]} for names in turns]

    @jax.jit
    def loop(order):
        return jax.lax.scan(lambda each, turn: (each, jax.lax.switch(turn, branches, each)), factors, order)[1]

    found, expected = loop(jnp.array([0, 1])), train(whole, factors, targets_N)[1]
    for turn, names in enumerate(turns):
        wanted = {**zeros, **{name: expected[name] for name in names}}
        assert_same({name: each[turn] for name, each in found.items()}, wanted)


def test_in_bfloat16_it_is_close_and_its_gradients_are_of_the_factors_type():
    """The products are of bfloat16, what is summed is of float32."""
    factors, targets_N = draw_factors()
    halved = jax.tree.map(lambda factor: factor.astype(jnp.bfloat16), factors)
    (loss, ours), (expected, theirs) = train(sliced, halved, targets_N), train(whole, factors, targets_N)
    assert loss.dtype == jnp.float32
    assert {gradient.dtype for gradient in ours.values()} == {jnp.dtype(jnp.bfloat16)}
    for name in NAMES:
        np.testing.assert_allclose(ours[name].astype(jnp.float32), theirs[name], rtol=0.1, atol=1.5e-2)
    assert float(loss) == pytest.approx(float(expected), rel=2e-2)


@pytest.mark.usefixtures("_size")
def test_what_fills_up_has_no_gradient():
    """Nor has what fills the last slice up an effect: see the whole logits above."""
    factors, targets_N = draw_factors()
    _, gradients = train(sliced, factors, targets_N)
    for name in ("hidden", "queries"):
        assert np.abs(gradients[name][:-5]).sum() > 0
        assert np.abs(gradients[name][-5:]).sum() == 0


def test_a_score_that_is_not_finite_shows_in_the_loss():
    """It is what the trainer looks at."""
    factors, targets_N = draw_factors()
    factors["hidden"] = factors["hidden"].at[30, 0].set(jnp.nan)
    assert jnp.isnan(sliced(factors, targets_N))

"""JAX alone: the program that is compiled, targets that fill up, traced turns and bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.backends import reference
from tests.backends.catalogue_factors import NAMES, catalogue_loss, draw_factors

NUM_FILLED = 5


@pytest.fixture
def drawn(backend):
    """Factors and targets of which the last five fill up."""
    factors, targets_N = draw_factors()
    targets_N[-NUM_FILLED:] = 23
    return {name: jnp.asarray(each, jnp.float32) for name, each in factors.items()}, targets_N


@pytest.fixture
def train(backend):
    """The loss and its gradients by some factors; the others are frozen."""

    def run(factors, targets_N, trains=NAMES, detach=lambda factors: factors, smoothing=0.0):
        frozen = {name: factor for name, factor in factors.items() if name not in trains}
        trained = {name: factor for name, factor in factors.items() if name in trains}

        def loss(trained):
            return catalogue_loss(backend, detach({**frozen, **trained}), targets_N, smoothing)

        return jax.jit(jax.value_and_grad(loss))(trained)

    return run


def whole(factors, targets_N, smoothing=0.0):
    """The same of the whole logits, of what does not fill up."""
    real = {name: np.asarray(factor, float) for name, factor in factors.items()}
    real |= {name: real[name][:-NUM_FILLED] for name in ("hidden", "queries")}
    value, gradients = reference.catalogue_loss(real, targets_N[:-NUM_FILLED], smoothing)
    for name in ("hidden", "queries"):
        gradients[name] = np.concatenate([gradients[name], np.zeros_like(gradients[name][:NUM_FILLED])])
    return value, gradients


def count_products(run):
    """Matrix products in a program."""
    return str(jax.make_jaxpr(run)()).count("dot_general")


def assert_same(backend, ours, theirs):
    """Trees of the same values."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **backend.tolerance), ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("num_rows", [8, 2**14])
def test_what_fills_up_has_no_gradient(backend, drawn, train, monkeypatch, num_rows, smoothing):
    """Nor has what fills the last slice up an effect."""
    backend.set_slices(monkeypatch, num_rows, 23)
    found, expected = train(*drawn, smoothing=smoothing), whole(*drawn, smoothing)
    assert_same(backend, found, expected)
    for name in ("hidden", "queries"):
        assert np.abs(found[1][name][:-NUM_FILLED]).sum() > 0
        assert np.abs(found[1][name][-NUM_FILLED:]).sum() == 0


def test_gradients_by_what_is_frozen_are_not_computed(drawn, train):
    """The logits take one product of SASRec and three of the retriever, and so does each factor's gradient."""
    counts = {NAMES: 4 + 2 * 4, NAMES[:2]: 4 + 2, NAMES[2:4]: 4 + 2 * 3, NAMES[3:]: 4 + 3, NAMES[4:]: 4}
    assert {trains: count_products(lambda names=trains: train(*drawn, names)) for trains in counts} == counts


def test_a_detached_factor_is_frozen(backend, drawn, train):
    """As the modules are where the fusion weights alone learn from their scores."""

    def detach(factors):
        return {**jax.lax.stop_gradient(factors), "weights": factors["weights"]}

    assert count_products(lambda: train(*drawn, detach=detach)) == 4
    expected = train(*drawn, ("weights",))[1]
    wanted = {name: expected.get(name, jnp.zeros_like(factor)) for name, factor in drawn[0].items()}
    assert_same(backend, train(*drawn, detach=detach)[1], wanted)


def test_it_trains_inside_a_loop_under_a_traced_turn(backend, drawn, train, monkeypatch):
    """As an epoch on the device does, where `jax.lax.switch` chooses what trains."""
    backend.set_slices(monkeypatch, 8, 23)
    factors, targets_N = drawn
    turns = (NAMES[:2], NAMES[2:4])
    zeros = jax.tree.map(jnp.zeros_like, factors)
    branches = [lambda each, names=names: {**zeros, **train(each, targets_N, names)[1]} for names in turns]

    @jax.jit
    def loop(order):
        return jax.lax.scan(lambda each, turn: (each, jax.lax.switch(turn, branches, each)), factors, order)[1]

    found, expected = loop(jnp.array([0, 1])), whole(*drawn)[1]
    for turn, names in enumerate(turns):
        wanted = {**zeros, **{name: expected[name] for name in names}}
        assert_same(backend, {name: each[turn] for name, each in found.items()}, wanted)


def test_in_bfloat16_it_is_close_and_its_gradients_are_of_the_factors_type(drawn, train):
    """The products are of bfloat16, what is summed is of float32."""
    factors, targets_N = drawn
    halved = jax.tree.map(lambda factor: factor.astype(jnp.bfloat16), factors)
    (loss, ours), (expected, theirs) = train(halved, targets_N), whole(*drawn)
    assert loss.dtype == jnp.float32
    assert {gradient.dtype for gradient in ours.values()} == {jnp.dtype(jnp.bfloat16)}
    for name in NAMES:
        np.testing.assert_allclose(ours[name].astype(jnp.float32), theirs[name], rtol=0.1, atol=5e-3)
    assert float(loss) == pytest.approx(float(expected), rel=2e-2)

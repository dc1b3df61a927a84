"""JAX alone: gradients at zero, and random numbers that are an argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ur4rec_jax.layers import Linear, _rows_at_once, attend, normalize


def test_a_zero_vector_stays_zero_with_finite_gradients():
    value, gradient = jax.value_and_grad(lambda x: normalize(x).sum())(jnp.zeros(3))
    assert value == 0
    assert np.isfinite(gradient).all()


def test_dropout_needs_random_numbers_and_falls_where_they_are_given(make_model):
    model = make_model(sasrec_dropout=0.5, retriever_dropout=0.5)
    items_BL = jnp.array([[3, 1, 4]])
    catalogue = model.retriever.catalogue()
    for run in (model.sasrec, lambda items_BL, rngs=None: model.retriever(items_BL, catalogue, rngs)):
        first, again, other = (run(items_BL, nnx.Rngs(dropout=seed)) for seed in (0, 0, 1))
        assert np.array_equal(first, again)
        assert not np.allclose(first, other, atol=1e-3)
        assert np.array_equal(run(items_BL), run(items_BL))
        assert not np.allclose(run(items_BL), first, atol=1e-3)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_attention_and_its_gradients_are_those_of_jax(kind, is_causal, num_rows, monkeypatch):
    monkeypatch.setattr("ur4rec_jax.layers._rows_at_once", lambda query, key: num_rows)
    draws = np.random.default_rng(0)
    parts = [jnp.asarray(draws.normal(size=(3, 5, 2, 4)), kind) for _ in range(3)]
    mask = jnp.tri(5, dtype=bool) if is_causal else jnp.asarray(draws.random((3, 1, 1, 5)) < 0.5)

    def expected(*parts):
        return jax.nn.dot_product_attention(*parts, mask=None if is_causal else mask, is_causal=is_causal)

    def found(attention):
        values, back = jax.vjp(attention, *parts)
        return [values, *back(jnp.ones_like(values))]

    tolerance = 1e-5 if kind == jnp.float32 else 5e-2
    for mine, other in zip(found(lambda *parts: attend(*parts, mask)), found(expected), strict=True):
        assert mine.dtype == kind
        np.testing.assert_allclose(mine.astype(float), other.astype(float), atol=tolerance)


@pytest.mark.parametrize(
    ("platform", "num_devices", "length", "num_rows"),
    [("cpu", 1, 200, 2), ("cpu", 1, 512, 1), ("cpu", 1, 16, 256), ("cpu", 2, 200, 32), ("gpu", 1, 200, 32)],
)
def test_on_one_processor_rows_attend_as_many_at_a_time_as_fit_its_caches(
    platform, num_devices, length, num_rows, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "device_count", lambda: num_devices)
    query = key = jax.ShapeDtypeStruct((32, length, 4, 16), jnp.float32)
    assert _rows_at_once(query, key) == num_rows


def test_a_linear_layer_takes_any_number_of_axes():
    layer = Linear(4, 3, rngs=nnx.Rngs(0))
    inputs = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_allclose(layer(inputs)[1, 2], layer(inputs[1, 2]), rtol=1e-6)


def test_the_catalogue_in_blocks_is_the_catalogue(make_model):
    retriever = make_model().retriever
    for size in (7, 16):
        whole, blocks = jax.jit(lambda size=size: (retriever.catalogue(), retriever.catalogue_in_blocks(size)))()
        for mine, other in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)

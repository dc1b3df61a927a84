"""JAX alone: gradients at zero, and random numbers that are an argument."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ur4rec_jax.layers import normalize


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


def test_the_catalogue_in_blocks_is_the_catalogue(make_model):
    retriever = make_model().retriever
    for size in (7, 16):
        whole, blocks = jax.jit(lambda size=size: (retriever.catalogue(), retriever.catalogue_in_blocks(size)))()
        for mine, other in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)

"""The model: causal, blind to padding, scores as the formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ur4rec.errors import ConfigurationError, UnknownNameError
from ur4rec_jax import UR4Rec
from ur4rec_jax.fusion import LogitFusion, WeightedFusion
from ur4rec_jax.layers import normalize
from ur4rec_jax.weights import export_weights, import_weights

SCORERS = ["fused", "sasrec", "retriever"]


def weights(model):
    return export_weights(nnx.to_pure_dict(nnx.state(model)))


def outputs(model, items_BL):
    """What both modules say at each position."""
    return jax.jit(lambda items_BL: _outputs(model, items_BL))(items_BL)


def _outputs(model, items_BL):
    return model.sasrec(items_BL), model.retriever(items_BL, model.retriever.catalogue())


def test_the_future_does_not_change_what_is_said_of_the_past(make_model):
    model = make_model()
    items_BL = jnp.array(np.random.default_rng(0).integers(model.config.num_items, size=(5, 8)))
    changed_BL = items_BL.at[:, 4:].set((items_BL[:, 4:] + 7) % model.config.num_items)
    for before, after in zip(outputs(model, items_BL), outputs(model, changed_BL), strict=True):
        np.testing.assert_allclose(before[:, :4], after[:, :4], rtol=0, atol=1e-6)
        assert not np.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_padding_does_not_change_scores(make_model):
    model = make_model()
    score = jax.jit(lambda items_BL: {scorer: model.score(items_BL, scorer) for scorer in SCORERS})
    short_BL = jnp.array([[3, 1, 4], [1, 5, model.config.num_items]])
    long_BL = jnp.pad(short_BL, ((0, 0), (0, 5)), constant_values=model.config.num_items)
    long = score(long_BL)
    for scorer, scores_BI in score(short_BL).items():
        np.testing.assert_allclose(scores_BI, long[scorer], rtol=0, atol=1e-5)
    for scorer, scores_BI in score(long_BL[1:, :2]).items():
        np.testing.assert_allclose(scores_BI, long[scorer][1:], rtol=0, atol=1e-5)


def test_retriever_scores_are_attention_over_preferences_in_closed_form(make_model):
    retriever = make_model().retriever
    catalogue = retriever.catalogue()
    preferences_NKd = retriever(jnp.array([[3, 1, 4]]), catalogue)[0]
    scores_NI = retriever.score(preferences_NKd, catalogue.keys_Id)
    logits_NKI = np.asarray(preferences_NKd) @ np.asarray(catalogue.keys_Id).T / retriever.temperature
    np.testing.assert_allclose(np.linalg.norm(preferences_NKd, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(catalogue.keys_Id, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(scores_NI, np.log(np.exp(logits_NKI).sum(1)), atol=1e-4)


def test_retriever_attends_as_its_formula_says(make_model):
    retriever = make_model().retriever
    items = [3, 1, 4, 1]
    recency = np.random.default_rng(0).normal(size=retriever.recency.embedding.shape).astype(np.float32)
    retriever.recency.embedding[...] = jnp.asarray(recency)
    found_Kd = retriever(jnp.array([items]), retriever.catalogue())[0, -1]
    texts = retriever.item_text_vectors[...][np.array(items)]
    keys, values = np.asarray(retriever.key_projection(texts)), np.asarray(retriever.value_projection(texts))
    for query, bias, found in zip(np.asarray(retriever.queries.embedding[...]), recency, found_Kd, strict=True):
        logits = keys @ query / np.sqrt(len(query)) + bias[[3, 2, 1, 0]]
        gathered = np.exp(logits) / np.exp(logits).sum() @ values
        preference = np.asarray(retriever.preference_projection(jnp.asarray(gathered, jnp.float32)))
        np.testing.assert_allclose(found, preference / np.linalg.norm(preference), atol=1e-5)


def test_fusions_are_weighted_log_probabilities_and_weighted_probabilities():
    sasrec_NI, retriever_NI = np.random.default_rng(0).normal(size=(2, 4, 7)).astype(np.float32)
    probabilities = [np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in (sasrec_NI, retriever_NI)]
    logit, weighted = LogitFusion(), WeightedFusion()
    logit.weights[...] = jnp.array([0.7, 1.6])
    weighted.weights[...] = jnp.array([0.3, -0.4])
    product = np.exp(0.7 * np.log(probabilities[0]) + 1.6 * np.log(probabilities[1]))
    expected = product / product.sum(1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(logit(sasrec_NI, retriever_NI), axis=1), expected, atol=1e-6)
    shares = np.exp([0.3, -0.4]) / np.exp([0.3, -0.4]).sum()
    mixture = shares[0] * probabilities[0] + shares[1] * probabilities[1]
    np.testing.assert_allclose(jnp.exp(weighted(sasrec_NI, retriever_NI)), mixture, atol=1e-6)


def test_the_padding_row_is_zero_and_gets_no_gradient(make_model):
    model = make_model()
    padding = model.config.num_items
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    items_BL = jnp.array([[3, 1, padding]])
    gradient = jax.jit(jax.grad(lambda p: jnp.square(nnx.merge(graphdef, p, rest)(items_BL)).sum()))(params)
    rows = np.abs(gradient["sasrec"]["item_embedding"]["embedding"][...]).sum(axis=1)
    assert not np.asarray(model.sasrec.item_embedding.embedding[padding]).any()
    assert rows[padding] == 0
    assert rows[3] > 0


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


def test_initial_weights_are_a_function_of_the_seed_alone(make_model):
    first, second, other = (weights(make_model(seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["sasrec.item_embedding.weight"], other["sasrec.item_embedding.weight"])


def test_initial_weights_have_the_distributions_that_are_meant(make_model):
    drawn = weights(make_model(sasrec_hidden_dim=64))
    inner = drawn["sasrec.blocks.0.feedforward.inner.weight"]
    bound = np.sqrt(6 / sum(inner.shape))
    assert inner.shape == (256, 64)
    assert 0.95 * bound < np.abs(inner).max() <= bound
    assert drawn["sasrec.item_embedding.weight"][:-1].std() == pytest.approx(0.02, rel=0.05)
    assert not any(array.any() for name, array in drawn.items() if name.endswith("bias"))


def test_weights_survive_export_and_import(make_model):
    model, other = make_model(seed=1), make_model(seed=2)
    graphdef, state = nnx.split(other)
    loaded = nnx.merge(graphdef, import_weights(nnx.to_pure_dict(state), weights(model)))
    items_BL = jnp.array([[3, 1, 4]])
    np.testing.assert_array_equal(loaded(items_BL), model(items_BL))
    assert not np.allclose(loaded(items_BL), other(items_BL), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sasrec_hidden_dim": 10, "sasrec_num_heads": 4}, r"multiple of sasrec_num_heads \(4\), got 10"),
        ({"text_embedding_dim": 13}, r"shape \(num_items, text_embedding_dim\) = \(\d+, 13\), got"),
    ],
)
def test_settings_out_of_range_are_refused(make_model, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make_model(**settings)


def test_text_vectors_that_are_not_finite_are_refused():
    with pytest.raises(ConfigurationError, match="item_text_vectors must be finite"):
        UR4Rec(3, np.full((3, 4), np.nan), text_embedding_dim=4)


def test_an_unknown_scorer_lists_the_choices(make_model):
    with pytest.raises(UnknownNameError, match=r"unknown scorer 'both'; expected one of \('fused', 'sasrec'"):
        make_model().score(jnp.array([[1, 2]]), "both")

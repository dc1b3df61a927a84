"""The model: causal, blind to padding, scores as the formulas say."""

import numpy as np
import pytest

from tests.backends import reference
from ur4rec.errors import ConfigurationError, UnknownNameError

SCORERS = ("fused", "sasrec", "retriever")


def outputs(backend, model, items_BL):
    """What both modules say at each position."""
    return backend.call(
        lambda items_BL: (model.sasrec(items_BL), model.retriever(items_BL, model.retriever.catalogue())), items_BL
    )


def scores(backend, model, items_BL):
    """The scores of every scorer by name, (B, I) each."""
    return backend.call(lambda items_BL: {scorer: model.score(items_BL, scorer) for scorer in SCORERS}, items_BL)


def softmax(scores_NI):
    return np.exp(scores_NI) / np.exp(scores_NI).sum(1, keepdims=True)


def test_the_future_does_not_change_what_is_said_of_the_past(backend, make_model):
    model = backend.inference(make_model(sasrec_num_blocks=2))
    items_BL = np.random.default_rng(0).integers(model.config.num_items, size=(5, 8))
    changed_BL = items_BL.copy()
    changed_BL[:, 4:] = (changed_BL[:, 4:] + 7) % model.config.num_items
    for found in outputs(backend, model, np.concatenate([items_BL, changed_BL])):
        before, after = found[:5], found[5:]
        np.testing.assert_allclose(before[:, :4], after[:, :4], rtol=0, atol=1e-6)
        assert not np.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_padding_does_not_change_scores(backend, make_model):
    model = backend.inference(make_model())
    short_BL = np.array([[3, 1, 4], [1, 5, model.config.num_items]])
    long_BL = np.pad(short_BL, ((0, 0), (0, 5)), constant_values=model.config.num_items)
    long = scores(backend, model, long_BL)
    for scorer, scores_BI in scores(backend, model, short_BL).items():
        np.testing.assert_allclose(scores_BI, long[scorer], rtol=0, atol=1e-5)
    for scorer, scores_BI in scores(backend, model, np.array([[1, 5]])).items():
        np.testing.assert_allclose(scores_BI, long[scorer][1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_the_last_position_alone_says_what_it_says_among_all(backend, make_model, num_blocks):
    padding = make_model().config.num_items
    texts_UT = np.random.default_rng(1).normal(size=(4, 12))
    texts_UT[2] = 0
    model = backend.inference(make_model(sasrec_num_blocks=num_blocks, user_text_vectors=texts_UT))
    backend.set_weights(model, {"retriever.recency.weight": np.random.default_rng(2).normal(size=(3, 8))})
    lengths_B = np.array([1, 2, 5, 8, 8])
    items_BL = np.random.default_rng(0).integers(padding, size=(5, 8))
    items_BL[np.arange(8) >= lengths_B[:, None]] = padding
    users_B = np.array([0, 1, 2, 3, -1])

    def of_all(items_BL, users_B):
        found = model.sasrec(items_BL), model.retriever(items_BL, model.retriever.catalogue(), users_B=users_B)
        hidden_Bd, preferences_BKd = (each[np.arange(5), lengths_B - 1] for each in found)
        keys_Id = model.retriever.catalogue().keys_Id
        sasrec_BI = model.sasrec.score(hidden_Bd, model.sasrec.item_table())
        retriever_BI = model.retriever.score(preferences_BKd, keys_Id)
        return {"sasrec": sasrec_BI, "retriever": retriever_BI, "fused": model.fusion(sasrec_BI, retriever_BI)}

    expected = backend.call(of_all, items_BL, users_B)
    found = backend.call(lambda items_BL, users_B: model.scores(items_BL, users_B=users_B), items_BL, users_B)
    for scorer, scores_BI in found.items():
        np.testing.assert_allclose(scores_BI, expected[scorer], rtol=1e-6, atol=1e-6 * np.abs(scores_BI).max())


def test_an_explanation_is_what_each_query_looked_at_times_its_share_in_the_score(backend, make_model):
    draws = np.random.default_rng(1)
    model = backend.inference(make_model(user_text_vectors=draws.normal(size=(2, 12))))
    recency = {"retriever.recency.weight": draws.normal(size=(3, 8)), "retriever.user_bias": draws.normal(size=3)}
    backend.set_weights(model, recency)
    padding, candidates_BC = model.config.num_items, np.array([[7, 8, 10], [0, 1, 3]])
    found_BCM = backend.call(
        lambda items_BL, candidates_BC, users_B: model.explain(
            items_BL, candidates_BC, model.retriever.catalogue(), users_B
        ),
        *(np.array([[3, 1, 4, 1, padding], [5, 9, 2, 6, 5]]), candidates_BC, np.array([1, -1])),
    )
    weights, temperature = backend.weights(model.retriever), model.config.retriever_temperature
    with_text_CM = reference.explanation(weights, [3, 1, 4, 1], candidates_BC[0], temperature, user=1)
    without_CM = reference.explanation(weights, [5, 9, 2, 6, 5], candidates_BC[1], temperature)
    np.testing.assert_allclose(found_BCM[0], np.insert(with_text_CM, 4, 0, axis=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found_BCM[1], np.insert(without_CM, 5, 0, axis=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found_BCM.sum(2), 1, rtol=1e-5)


def test_scores_depend_on_order_and_content(backend, make_model):
    model = backend.inference(make_model())
    scores_BI = backend.call(model, [[3, 1, 4], [1, 3, 4], [3, 1, 5]])
    assert scores_BI.shape == (3, model.config.num_items)
    assert not np.allclose(scores_BI[0], scores_BI[1], atol=1e-5)
    assert not np.allclose(scores_BI[0], scores_BI[2], atol=1e-3)


def test_retriever_scores_are_attention_over_preferences_in_closed_form(backend, make_model):
    retriever = backend.inference(make_model()).retriever

    def run(items_BL):
        catalogue = retriever.catalogue()
        preferences_NKd = retriever(items_BL, catalogue)[0]
        return preferences_NKd, catalogue.keys_Id, retriever.score(preferences_NKd, catalogue.keys_Id)

    preferences_NKd, keys_Id, scores_NI = backend.call(run, [[3, 1, 4]])
    np.testing.assert_allclose(np.linalg.norm(preferences_NKd, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(keys_Id, axis=-1), 1, atol=1e-5)
    logits_NKI = preferences_NKd @ keys_Id.T / retriever.temperature
    np.testing.assert_allclose(scores_NI, np.log(np.exp(logits_NKI).sum(1)), atol=1e-4)
    weights_NKI = softmax(logits_NKI)
    entropy_NI = -(weights_NKI * np.log(weights_NKI)).sum(1)
    np.testing.assert_allclose(scores_NI, (weights_NKI * logits_NKI).sum(1) + entropy_NI, atol=1e-4)


def test_retriever_attends_as_its_formula_says(backend, make_model):
    retriever = backend.inference(make_model()).retriever
    shape = backend.weights(retriever)["recency.weight"].shape
    backend.set_weights(retriever, {"recency.weight": np.random.default_rng(0).normal(size=shape)})
    weights, items = backend.weights(retriever), [3, 1, 4, 1]

    def project(name, inputs):
        return inputs @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    found_Kd = backend.call(lambda items_BL: retriever(items_BL, retriever.catalogue())[0, -1], [items])
    texts = weights["item_text_vectors"][items]
    keys, values = project("key_projection", texts), project("value_projection", texts)
    for query, bias, found in zip(weights["queries.weight"], weights["recency.weight"], found_Kd, strict=True):
        logits = keys @ query / np.sqrt(len(query)) + bias[[3, 2, 1, 0]]
        preference = project("preference_projection", np.exp(logits) / np.exp(logits).sum() @ values)
        np.testing.assert_allclose(found, preference / np.linalg.norm(preference), atol=1e-5)


def test_fusions_are_weighted_log_probabilities_and_weighted_probabilities(backend):
    sasrec_NI, retriever_NI = np.random.default_rng(0).normal(size=(2, 4, 7)).astype(np.float32)
    probabilities = softmax(sasrec_NI), softmax(retriever_NI)
    logit, weighted = backend.part("ur4rec").LogitFusion(), backend.part("ur4rec").WeightedFusion()
    backend.set_weights(logit, {"weights": [0.7, 1.6]})
    backend.set_weights(weighted, {"weights": [0.3, -0.4]})
    product = np.exp(0.7 * np.log(probabilities[0]) + 1.6 * np.log(probabilities[1]))
    fused = softmax(backend.call(logit, sasrec_NI, retriever_NI))
    np.testing.assert_allclose(fused, product / product.sum(1, keepdims=True), atol=1e-6)
    shares = np.exp([0.3, -0.4]) / np.exp([0.3, -0.4]).sum()
    mixed = np.exp(backend.call(weighted, sasrec_NI, retriever_NI))
    np.testing.assert_allclose(mixed, shares[0] * probabilities[0] + shares[1] * probabilities[1], atol=1e-6)


def test_the_padding_row_is_zero_and_gets_no_gradient(backend, make_model):
    model = make_model(sasrec_dropout=0.0)
    padding = model.config.num_items
    items_BL = backend.array([[3, 1, padding]])
    gradient = backend.gradients(model, lambda model: (model(items_BL) ** 2).sum())["sasrec.item_embedding.weight"]
    assert not backend.weights(model)["sasrec.item_embedding.weight"][padding].any()
    assert not gradient[padding].any()
    assert np.abs(gradient[3]).sum() > 0


def test_initial_weights_are_a_function_of_the_seed_alone(backend, make_model):
    first, second, other = (backend.weights(make_model(seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["sasrec.item_embedding.weight"], other["sasrec.item_embedding.weight"])


def test_initial_weights_have_the_distributions_that_are_meant(backend, make_model):
    drawn = backend.weights(make_model(sasrec_hidden_dim=64))
    inner = drawn["sasrec.blocks.0.feedforward.inner.weight"]
    bound = np.sqrt(6 / sum(inner.shape))
    assert inner.shape == (256, 64)
    assert 0.95 * bound < np.abs(inner).max() <= bound
    assert drawn["sasrec.item_embedding.weight"][:-1].std() == pytest.approx(0.02, rel=0.05)
    assert not any(array.any() for name, array in drawn.items() if name.endswith("bias"))


def test_weight_names_are_canonical(backend, make_model):
    expected = {
        "sasrec.item_embedding.weight",
        "sasrec.position_embedding.weight",
        "sasrec.blocks.0.attention.query.weight",
        "sasrec.blocks.0.feedforward.inner.bias",
        "sasrec.final_norm.weight",
        "retriever.item_text_vectors",
        "retriever.item_projection.weight",
        "retriever.queries.weight",
        "fusion.weights",
    }
    assert expected <= backend.weights(make_model()).keys()


def test_weights_survive_export_and_import(backend, make_model):
    model, other, loaded = (backend.inference(make_model(seed=seed)) for seed in (1, 2, 2))
    backend.set_weights(loaded, backend.weights(model))
    found, expected, different = (backend.call(each, [[3, 1, 4]]) for each in (loaded, model, other))
    np.testing.assert_array_equal(found, expected)
    assert not np.allclose(found, different, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sasrec_hidden_dim": 10, "sasrec_num_heads": 4}, r"multiple of sasrec_num_heads \(4\), got 10"),
        ({"max_seq_len": 0}, "max_seq_len must be an integer of at least 1, got 0"),
        ({"sasrec_dropout": 1.0}, "sasrec_dropout must be at least 0 and below 1, got 1.0"),
        ({"retriever_temperature": 0.001}, "retriever_temperature must be at least 0.02"),
        ({"fusion": "sum"}, r"unknown fusion 'sum'; expected one of \('logit', 'weighted'"),
        ({"text_embedding_dim": 13}, r"shape \(num_items, text_embedding_dim\) = \(\d+, 13\), got"),
    ],
)
def test_settings_out_of_range_are_refused(make_model, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make_model(**settings)


def test_text_vectors_that_are_not_finite_are_refused(backend):
    with pytest.raises(ConfigurationError, match="item_text_vectors must be finite"):
        backend.package.UR4Rec(3, np.full((3, 4), np.nan), text_embedding_dim=4)


def test_an_unknown_scorer_lists_the_choices(backend, make_model):
    with pytest.raises(UnknownNameError, match=r"unknown scorer 'both'; expected one of \('fused', 'sasrec'"):
        make_model().score(backend.array([[1, 2]]), "both")

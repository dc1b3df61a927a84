"""The model: causal, blind to padding, scores as the formulas say."""

import numpy as np
import pytest
import torch

from ur4rec.errors import ConfigurationError, UnknownNameError
from ur4rec_torch import UR4Rec
from ur4rec_torch.fusion import LogitFusion, WeightedFusion

SCORERS = ["fused", "sasrec", "retriever"]


def outputs(model, items_BL):
    """What both modules say at each position."""
    with torch.no_grad():
        return model.sasrec(items_BL), model.retriever(items_BL, model.retriever.catalogue())


def test_the_future_does_not_change_what_is_said_of_the_past(make_model):
    model = make_model().eval()
    items_BL = torch.randint(model.config.num_items, (5, 8), generator=torch.Generator().manual_seed(0))
    changed_BL = items_BL.clone()
    changed_BL[:, 4:] = (changed_BL[:, 4:] + 7) % model.config.num_items
    for before, after in zip(outputs(model, items_BL), outputs(model, changed_BL), strict=True):
        torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-6)
        assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


@pytest.mark.parametrize("scorer", SCORERS)
def test_padding_does_not_change_scores(make_model, scorer):
    model = make_model().eval()
    padding = model.config.num_items
    short_BL = torch.tensor([[3, 1, 4], [1, 5, padding]])
    long_BL = torch.cat([short_BL, torch.full((2, 5), padding)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model.score(short_BL, scorer), model.score(long_BL, scorer), rtol=0, atol=1e-5)
        alone_BI = model.score(torch.tensor([[1, 5]]), scorer)
        torch.testing.assert_close(model.score(long_BL, scorer)[1:], alone_BI, rtol=0, atol=1e-5)


def test_scores_depend_on_order_and_content(make_model):
    model = make_model().eval()
    with torch.no_grad():
        scores_BI = model(torch.tensor([[3, 1, 4], [1, 3, 4], [3, 1, 5]]))
    assert scores_BI.shape == (3, model.config.num_items)
    assert not torch.allclose(scores_BI[0], scores_BI[1], atol=1e-5)
    assert not torch.allclose(scores_BI[0], scores_BI[2], atol=1e-3)


def test_retriever_scores_are_attention_over_preferences_in_closed_form(make_model):
    model = make_model().eval()
    retriever = model.retriever
    with torch.no_grad():
        catalogue = retriever.catalogue()
        preferences_NKd = retriever(torch.tensor([[3, 1, 4]]), catalogue)[0]
        scores_NI = retriever.score(preferences_NKd, catalogue.keys_Id).numpy()
    cosine_NKI = preferences_NKd.numpy() @ catalogue.keys_Id.numpy().T
    np.testing.assert_allclose(np.linalg.norm(preferences_NKd.numpy(), axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(catalogue.keys_Id.numpy(), axis=-1), 1, atol=1e-5)
    logits_NKI = cosine_NKI / retriever.temperature
    np.testing.assert_allclose(scores_NI, np.log(np.exp(logits_NKI).sum(1)), atol=1e-4)
    weights_NKI = np.exp(logits_NKI) / np.exp(logits_NKI).sum(1, keepdims=True)
    entropy_NI = -(weights_NKI * np.log(weights_NKI)).sum(1)
    np.testing.assert_allclose(scores_NI, (weights_NKI * logits_NKI).sum(1) + entropy_NI, atol=1e-4)


def test_retriever_attends_as_its_formula_says(make_model):
    retriever = make_model().eval().retriever
    torch.nn.init.normal_(retriever.recency.weight, generator=torch.Generator().manual_seed(0))
    items = [3, 1, 4, 1]
    with torch.no_grad():
        found_Kd = retriever(torch.tensor([items]), retriever.catalogue())[0, -1].numpy()
        texts = retriever.item_text_vectors[items]
        keys, values = retriever.key_projection(texts).numpy(), retriever.value_projection(texts).numpy()
        queries, recency = retriever.queries.weight.numpy(), retriever.recency.weight.numpy()
        for query, bias, found in zip(queries, recency, found_Kd, strict=True):
            logits = keys @ query / np.sqrt(len(query)) + bias[[3, 2, 1, 0]]
            weights = np.exp(logits) / np.exp(logits).sum()
            preference = retriever.preference_projection(torch.from_numpy(weights @ values).float()).numpy()
            np.testing.assert_allclose(found, preference / np.linalg.norm(preference), atol=1e-5)


def test_fusions_are_weighted_log_probabilities_and_weighted_probabilities():
    rng = np.random.default_rng(0)
    sasrec_NI, retriever_NI = rng.normal(size=(2, 4, 7)).astype(np.float32)
    probabilities = [np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in (sasrec_NI, retriever_NI)]
    logit, weighted = LogitFusion(), WeightedFusion()
    with torch.no_grad():
        logit.weights.copy_(torch.tensor([0.7, 1.6]))
        weighted.weights.copy_(torch.tensor([0.3, -0.4]))
        fused = torch.softmax(logit(torch.from_numpy(sasrec_NI), torch.from_numpy(retriever_NI)), dim=1).numpy()
        mixed = weighted(torch.from_numpy(sasrec_NI), torch.from_numpy(retriever_NI)).exp().numpy()
    product = np.exp(0.7 * np.log(probabilities[0]) + 1.6 * np.log(probabilities[1]))
    np.testing.assert_allclose(fused, product / product.sum(1, keepdims=True), atol=1e-6)
    shares = np.exp([0.3, -0.4]) / np.exp([0.3, -0.4]).sum()
    np.testing.assert_allclose(mixed, shares[0] * probabilities[0] + shares[1] * probabilities[1], atol=1e-6)


def test_the_padding_row_is_zero_and_gets_no_gradient(make_model):
    model = make_model()
    padding = model.config.num_items
    model(torch.tensor([[3, 1, padding]])).square().sum().backward()
    weight = model.sasrec.item_embedding.weight
    assert weight[padding].abs().sum() == 0
    assert weight.grad[padding].abs().sum() == 0
    assert weight.grad[3].abs().sum() > 0


def test_initial_weights_are_a_function_of_the_seed_alone(make_model):
    torch.manual_seed(5)
    first = make_model(seed=1).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(6)
    second, other = make_model(seed=1).state_dict(), make_model(seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["sasrec.item_embedding.weight"], other["sasrec.item_embedding.weight"])
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # the caller's random state was left alone


def test_weight_names_are_canonical(make_model):
    names = set(make_model(sasrec_num_blocks=1).state_dict())
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
    assert expected <= names


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


def test_text_vectors_that_are_not_finite_are_refused():
    with pytest.raises(ConfigurationError, match="item_text_vectors must be finite"):
        UR4Rec(3, np.full((3, 4), np.nan), text_embedding_dim=4)


def test_an_unknown_scorer_lists_the_choices(make_model):
    with pytest.raises(UnknownNameError, match=r"unknown scorer 'both'; expected one of \('fused', 'sasrec'"):
        make_model().score(torch.tensor([[1, 2]]), "both")

"""The text encoder as a part of a model: what it computes, what it is built from, what it refuses.

Shapes: I items, S tokens of a text, T width.
"""

import numpy as np
import pytest

from tests.backends.tiny_bert import TINY, write_bert
from ur4rec.errors import ConfigurationError
from ur4rec.text.pretrained import read_shape, read_weights
from ur4rec.training.checkpoint import load_checkpoint
from ur4rec.training.shapes import ENCODED_TEXTS, ITEM_TOKENS, weight_shapes

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a small BERT of the transformers library, and what gives its sentence vectors."""
    folder = tmp_path_factory.mktemp("bert")
    return folder, write_bert(folder)


def pretrained(make_encoder_model, folder, tokens_IS, **settings):
    shape = {**read_shape(folder), "text_encoder_tokens": tokens_IS.shape[1]}
    weights = read_weights(folder, shape | {"text_encoder_tokens": TINY["max_position_embeddings"]}, tokens_IS.shape[1])
    given = {"text_encoder": "pretrained", "encoder_weights": weights, "item_tokens": tokens_IS}
    return make_encoder_model(**given, **shape, **settings)


def vectors(backend, model):
    return backend.call(lambda: model.item_texts())


@pytest.mark.parametrize("trains", ["all", "last:1", "lora:2"])
def test_encodings_are_those_of_bert(backend, make_encoder_model, bert, tokens, trains):
    folder, encode = bert
    model = pretrained(make_encoder_model, folder, tokens, text_encoder_trains=trains)
    found_JT = vectors(backend, model)
    np.testing.assert_allclose(found_JT[:-1], encode(tokens), **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(found_JT[:-1], axis=1), 1, **CLOSE)
    assert not found_JT[-1].any()  # the padding


def test_a_text_has_one_vector_however_it_is_padded(backend, make_encoder_model, tokens):
    model = backend.inference(make_encoder_model())
    whole_IT = backend.call(model.text_encoder.encode, tokens)
    for width in (2, 4):
        rows = np.flatnonzero((tokens != 0).sum(1) <= width)
        assert len(rows) > 1
        found_NT = backend.call(model.text_encoder.encode, tokens[rows, :width])
        np.testing.assert_allclose(found_NT, whole_IT[rows], **CLOSE)


def test_words_and_their_order_count(backend, make_encoder_model):
    model = backend.inference(make_encoder_model())
    found_NT = backend.call(model.text_encoder.encode, np.array([[2, 5, 7, 3], [2, 7, 5, 3], [2, 5, 8, 3]], np.int32))
    assert np.abs(found_NT[0] - found_NT[1]).max() > 1e-4
    assert np.abs(found_NT[0] - found_NT[2]).max() > 1e-4


def test_a_text_without_tokens_has_a_finite_vector(backend, make_encoder_model, tokens):
    empty = tokens.copy()
    empty[[3, 7]] = 0
    model = make_encoder_model(item_tokens=empty)
    found_JT = vectors(backend, model)
    assert np.isfinite(found_JT).all()
    assert not found_JT[[3, 7]].any()
    gradients = backend.gradients(model, lambda model: (model.text_encoder.encode(backend.array(empty)) ** 3).sum())
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_given_vectors_are_taken_as_they_are(backend, make_encoder_model, split):
    known_IT = np.random.default_rng(1).normal(size=(split.num_items, 12)).astype(np.float32)
    found_JT = vectors(backend, make_encoder_model(item_text_vectors=known_IT))
    np.testing.assert_array_equal(found_JT[:-1], known_IT)


def test_the_seed_decides_the_first_weights_and_the_other_modules_have_those_without_an_encoder(
    backend, make_encoder_model
):
    first, second, other = (backend.weights(make_encoder_model(seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    name = "text_encoder.blocks.1.feedforward.inner.weight"
    assert not np.array_equal(first[name], other[name])
    assert first[name].std() == pytest.approx(0.02, rel=0.1)
    texts_IT = first[ENCODED_TEXTS][:-1]
    plain = backend.weights(make_encoder_model(seed=1, text_encoder="none", item_text_vectors=texts_IT))
    assert {name for name in plain if not np.array_equal(plain[name], first.get(name))} == {
        "retriever.item_text_vectors"
    }


@pytest.mark.parametrize("trains", ["all", "last:1", "lora:3"])
def test_the_shapes_are_those_of_the_model(make_encoder_model, make_encoder_trainer, tmp_path, trains):
    model = make_encoder_model(text_encoder_trains=trains)
    make_encoder_trainer(model=model).save_checkpoint(tmp_path / "saved")
    weights = load_checkpoint(tmp_path / "saved").weights
    assert dict(weight_shapes(model.config)) == {name: array.shape for name, array in weights.items()}
    assert weights[ITEM_TOKENS].dtype == np.int32


WEIGHTS = {"embedding_norm.bias": np.zeros(12)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_tokens": None}, "item_tokens must be given with text_encoder='transformer', got None; make them"),
        ({"text_encoder": "none", "item_tokens": None}, "item_text_vectors must be given with text_encoder='none'"),
        ({"text_encoder": "none", "item_tokens": [[1]]}, "item_tokens must be left out with text_encoder='none'"),
        ({"encoder_weights": WEIGHTS}, "encoder_weights must be left out with text_encoder='transformer'"),
        ({"text_encoder": "pretrained"}, "encoder_weights must be given with text_encoder='pretrained', got None"),
        (
            {"text_encoder": "pretrained", "encoder_weights": WEIGHTS},
            r"encoder_weights must be those of the text encoder, with 'word_embedding.weight' of the shape \(20, 12\)",
        ),
        ({"item_tokens": np.zeros((5, 6), np.int32)}, r"item_tokens must be integers of the shape .* \(60, 6\), got"),
        ({"item_tokens": np.zeros((60, 6))}, "item_tokens must be integers of the shape .* got float64"),
        ({"item_tokens": np.full((60, 6), 20)}, "item_tokens must be from 0 to text_encoder_vocab - 1 = 19, got 20"),
        ({"item_tokens": np.full((60, 6), -1)}, "item_tokens must be from 0 to .* got -1"),
        ({"item_text_vectors": np.ones((60, 11))}, r"item_text_vectors must have the shape .* \(60, 12\), got"),
        ({"user_text_vectors": np.ones((4, 12))}, "text_encoder must be 'none' for a model with user texts"),
        ({"text_encoder_heads": 5}, r"text_embedding_dim must be a multiple of text_encoder_heads \(5\), got 12"),
        ({"text_encoder_trains": "last:3"}, "text_encoder_trains must name at most 2 blocks, got 'last:3'"),
        ({"text_encoder_trains": "lora:0"}, "text_encoder_trains must be 'all', 'last:K' .* got 'lora:0'"),
        ({"text_encoder_trains": "lora:13"}, "text_encoder_trains must have a rank of at most 12, got 'lora:13'"),
    ],
)
def test_what_does_not_go_together_is_refused(make_encoder_model, change, message):
    with pytest.raises(ConfigurationError, match=message):
        make_encoder_model(**change)


def test_weights_that_are_not_finite_are_refused(make_encoder_model, bert, tokens):
    folder, _ = bert
    shape = read_shape(folder)
    weights = read_weights(folder, shape, tokens.shape[1])
    weights["blocks.0.attention.key.bias"] = np.full_like(weights["blocks.0.attention.key.bias"], np.nan)
    sizes = {**shape, "text_encoder_tokens": tokens.shape[1]}
    with pytest.raises(ConfigurationError, match=r"encoder_weights must be finite, got others in 'blocks.0.attention"):
        make_encoder_model(text_encoder="pretrained", encoder_weights=weights, **sizes)

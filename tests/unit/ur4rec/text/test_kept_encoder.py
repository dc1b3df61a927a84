"""An encoder that was kept encodes as it did: the vectors of its own texts, and those of texts that come later."""

import numpy as np
import pytest

from ur4rec.errors import DataError
from ur4rec.text import tfidf
from ur4rec.text.encoders import TextEncoder, fit_encoder
from ur4rec.text.tfidf import Tfidf

WORDS = [[f"{group}{number}" for number in range(6)] for group in "abcd"]
TEXTS = [" ".join(np.random.default_rng(item).choice(WORDS[item % 4], 3)) for item in range(40)]


@pytest.fixture
def kept(tmp_path):
    def keep(texts, dim):
        vectors, encoder = fit_encoder(texts, encoder="tfidf", dim=dim, cache_dir=tmp_path / "cache")
        (tmp_path / "encoder.safetensors").write_bytes(encoder.to_bytes())
        return vectors, TextEncoder.read(tmp_path / "encoder.safetensors")

    return keep


@pytest.mark.parametrize(("texts", "dim"), [(TEXTS, 8), (TEXTS, 200), (["red", "", "red hen"], 4), (["", "!"], 3)])
def test_the_texts_that_it_was_fitted_to_have_their_vectors(kept, texts, dim):
    for _ in range(2):  # the second time from the cache
        vectors, encoder = kept(texts, dim)
        np.testing.assert_allclose(encoder.encode(texts), vectors, atol=2e-6)


def test_a_text_that_comes_later_is_near_those_that_it_resembles(kept):
    vectors, encoder = kept(TEXTS, 8)
    similar = vectors @ encoder.encode(["a1 a3 unheard of"])[0]
    assert similar[0::4].mean() > 0.6
    assert max(abs(similar[group::4].mean()) for group in (1, 2, 3)) < 0.1
    neutral = vectors.mean(axis=0)
    np.testing.assert_allclose(encoder.encode(["unheard"])[0], neutral / np.linalg.norm(neutral), atol=0.05)
    assert encoder.encode([]).shape == (0, 8)


def test_a_flipped_bit_is_refused_or_changes_nothing(kept, tmp_path):
    _, encoder = kept(TEXTS[:5], 3)
    path = tmp_path / "encoder.safetensors"
    expected, whole = encoder.encode(TEXTS), path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            np.testing.assert_array_equal(TextEncoder.read(path).encode(TEXTS), expected)
        except DataError:
            refused += 1
    assert refused > len(whole) // 7 // 2


def test_texts_without_a_word_in_common_are_not_factored(caplog, monkeypatch):
    """As where the texts are ids: every direction is as good as another, and is drawn again for what comes later."""
    import sklearn.decomposition

    monkeypatch.setattr(sklearn.decomposition, "TruncatedSVD", None)
    texts = [f"item{number}" for number in range(200)]
    model, vectors_NT = Tfidf.fit(texts, dim=64)
    assert "no two item texts share a word" in caplog.text
    assert set(model.to_arrays()) == {"words", "idf", "directions"}
    again = Tfidf.from_arrays(model.to_arrays(), dim=64)
    np.testing.assert_allclose(again.encode(texts[:3], 64), vectors_NT[:3], rtol=1e-6)
    assert not again.encode(["item999"], 64).any()
    unit_NT = vectors_NT / np.linalg.norm(vectors_NT, axis=1, keepdims=True)
    cosines = (unit_NT @ unit_NT.T)[~np.eye(200, dtype=bool)]
    assert abs(cosines).max() < 0.7
    assert abs(cosines.mean()) < 0.01


def test_of_many_texts_the_components_are_those_of_a_part(monkeypatch):
    whole, _ = Tfidf.fit(TEXTS, dim=4)
    monkeypatch.setattr(tfidf, "LARGE", 20)
    monkeypatch.setattr(tfidf, "_BLOCK", 7)
    model, vectors_NK = Tfidf.fit(TEXTS, dim=4)
    assert set(model.words) <= set(whole.words)
    np.testing.assert_allclose(model.encode(TEXTS, 4), vectors_NK)
    lengths_N = np.linalg.norm(vectors_NK, axis=1, keepdims=True)
    unit_NK = vectors_NK / np.where(lengths_N > 0, lengths_N, 1)  # of a text without a known word, zeros
    same = np.equal.outer(np.arange(40) % 4, np.arange(40) % 4)
    cosines = unit_NK @ unit_NK.T
    assert cosines[same].mean() > 0.4 > 0.1 > abs(cosines[~same].mean())


def test_many_texts_without_a_word_in_common_have_a_direction_each(monkeypatch):
    texts = [f"item{number}" for number in range(100)]
    expected = Tfidf.fit(texts, dim=40)[1]
    monkeypatch.setattr(tfidf, "LARGE", 50)
    np.testing.assert_array_equal(Tfidf.fit(texts, dim=40)[1], expected)

"""First item embeddings from texts against a singular value decomposition of the whole matrix."""

import tracemalloc

import numpy as np
import pytest

from ur4rec.config import ModelConfig
from ur4rec.errors import ConfigurationError
from ur4rec.training import item_init
from ur4rec.training.item_init import STD, item_embeddings

NUM_ITEMS, WIDTH, DIM = 200, 12, 6


def config(init, dim=DIM, num_items=NUM_ITEMS, width=WIDTH):
    return ModelConfig(
        num_items=num_items, text_embedding_dim=width, sasrec_hidden_dim=dim, sasrec_num_heads=1, sasrec_item_init=init
    )


@pytest.fixture
def texts():
    """Vectors with a mean and components of different sizes; each seventh item has no text."""
    random = np.random.default_rng(0)
    vectors_IT = (
        random.normal(size=(NUM_ITEMS, WIDTH)) * np.linspace(3, 0.5, WIDTH) @ random.normal(size=(WIDTH, WIDTH))
    )
    vectors_IT += 2
    vectors_IT[::7] = 0
    return vectors_IT.astype(np.float32)


@pytest.fixture(params=[7, 2**14], ids=["blocks", "one block"], autouse=True)
def _blocks(request, monkeypatch):
    monkeypatch.setattr(item_init, "_BLOCK", request.param)


@pytest.mark.parametrize("init", ["pca", "whitened"])
def test_items_with_texts_begin_as_principal_components(texts, init):
    table_Id = item_embeddings(config(init), texts, seed=3)
    assert table_Id.shape == (NUM_ITEMS, DIM)
    assert table_Id.dtype == np.float32
    has_text = texts.any(axis=1)
    centred = texts[has_text].astype(float) - texts[has_text].astype(float).mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :DIM] * (sizes[:DIM] if init == "pca" else 1)
    expected *= STD / expected.std()
    found = table_Id[has_text]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=1e-4, atol=1e-8)
    assert found.std() == pytest.approx(STD, rel=1e-5)
    if init == "whitened":
        np.testing.assert_allclose(found.std(axis=0), STD, rtol=1e-5)
    else:
        assert found[:, 0].std() > 1.5 * found[:, -1].std()


@pytest.mark.parametrize("init", ["pca", "whitened"])
def test_what_texts_do_not_give_is_drawn(texts, init):
    """Items without a text, and columns beyond the rank of the texts, which zeros may fill up."""
    texts[:, 3:] = 0
    drawn_Id = np.random.default_rng(5).standard_normal((NUM_ITEMS, DIM), np.float32) * np.float32(STD)
    table_Id, has_text = item_embeddings(config(init), texts, seed=5), texts.any(axis=1)
    np.testing.assert_array_equal(table_Id[~has_text], drawn_Id[~has_text])
    np.testing.assert_array_equal(table_Id[:, 3:], drawn_Id[:, 3:])
    assert not np.isclose(table_Id[has_text, :3], drawn_Id[has_text, :3]).any(axis=0).all()
    assert table_Id[has_text, :3].std() == pytest.approx(STD, rel=1e-5)


def test_a_narrow_text_fills_its_columns_alone(texts):
    table_Id = item_embeddings(config("pca", dim=WIDTH + 4), texts, seed=5)
    drawn_Id = np.random.default_rng(5).standard_normal((NUM_ITEMS, WIDTH + 4), np.float32) * np.float32(STD)
    np.testing.assert_array_equal(table_Id[:, WIDTH:], drawn_Id[:, WIDTH:])
    assert not np.array_equal(table_Id[:, :WIDTH], drawn_Id[:, :WIDTH])


def test_of_many_items_a_sample_says_where_the_components_point(texts, monkeypatch):
    whole = item_embeddings(config("whitened"), np.repeat(texts, 3, axis=0)[: 3 * NUM_ITEMS : 3], seed=1)
    monkeypatch.setattr(item_init, "SAMPLE", NUM_ITEMS)
    thrice = item_embeddings(config("whitened", num_items=3 * NUM_ITEMS), np.repeat(texts, 3, axis=0), seed=1)
    has_text = texts.any(axis=1)
    np.testing.assert_allclose(thrice[::3][has_text], whole[has_text], rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(thrice[1::3][has_text], thrice[::3][has_text])


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_texts_that_do_not_differ_are_refused(value):
    alike_IT = np.full((NUM_ITEMS, WIDTH), value, np.float32)
    with pytest.raises(ConfigurationError, match="sasrec_item_init='pca' needs item_text_vectors that differ, got"):
        item_embeddings(config("pca"), alike_IT, seed=0)


def test_drawn_embeddings_are_left_to_the_backend(texts):
    assert item_embeddings(config("normal"), texts, seed=0) is None


def test_many_items_take_little_more_memory_than_the_result(monkeypatch):
    """Nothing as large as the texts in float64, or as the square of the catalogue."""
    monkeypatch.setattr(item_init, "_BLOCK", 2**10)
    vectors_IT = np.random.default_rng(0).standard_normal((20_000, 64), np.float32)
    tracemalloc.start()
    table_Id = item_embeddings(config("whitened", dim=8, num_items=20_000, width=64), vectors_IT, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < table_Id.nbytes + 4 * 2**10 * 64 * 8 < vectors_IT.nbytes

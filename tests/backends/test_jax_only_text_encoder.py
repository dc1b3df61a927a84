"""JAX alone: what a text encoder that trains compiles, writes in place, and refuses."""

import jax
import numpy as np
import pytest

from tests.backends.harness import equal, snapshot, train
from ur4rec.errors import ConfigurationError
from ur4rec.training.checkpoint import load_checkpoint
from ur4rec.training.shapes import CACHED, ENCODED_TEXTS
from ur4rec_jax import text_groups
from ur4rec_jax.device import to_inputs
from ur4rec_jax.step import Step
from ur4rec_jax.text_groups import TextGroups

CACHE = f"{ENCODED_TEXTS}/{CACHED}"


def cached(trainer):
    return trainer._buffers["text_encoder"]["vectors"]


def test_a_turn_is_compiled_for_few_numbers_of_texts_and_with_a_frozen_encoder_for_none(
    make_encoder_trainer, loader, monkeypatch
):
    traced, loss = [], Step._loss
    monkeypatch.setattr(Step, "_loss", lambda self, turn: traced.append(turn) or loss(self, turn))
    trainer = make_encoder_trainer("sequence:(('text_encoder', 1), ('retriever', 6))", clip_norm=0.71)  # new to all
    groups = trainer._text_cache.groups
    batches = [loader.batch(epoch, index) for epoch in range(40) for index in range(len(loader) - 1)]
    inputs = [to_inputs(batch, loader.num_items, loader.usual_targets, texts=groups) for batch in batches]
    texts = [np.asarray(each.texts_E) for each in inputs]
    assert len({len(texts_E) for texts_E in texts}) <= 6 < len({len(np.unique(texts_E)) for texts_E in texts})
    trainer.train_epoch(batches, max_steps=7)
    assert len({len(texts_E) for texts_E in texts[1:7]}) > 1
    assert len({each.targets_N.shape for each in inputs[:7]}) == 1
    assert traced == ["text_encoder", "retriever"]
    assert trainer._functions.write_texts._cache_size() == 1


def random_tokens(num_items, longest, seed=0):
    lengths = np.random.default_rng(seed).integers(0, longest + 1, num_items) ** 2 // longest
    return np.where(np.arange(longest) < lengths[:, None], 5, 0).astype(np.int32)


def test_all_texts_are_encoded_by_few_functions_of_bounded_size(monkeypatch):
    monkeypatch.setattr(text_groups, "TOKENS", 64)
    tokens_JS = random_tokens(301, 40)
    tokens_JS[0] = [*[5] * 3, 0, 5, *[0] * 35]  # padding between tokens is read
    found = list(TextGroups(tokens_JS).all())
    items = np.concatenate([texts.items_C for texts in found])
    assert sorted(items[items < 300]) == list(range(300))
    for items_C, num_tokens in found:
        assert len(items_C) * num_tokens <= 64
        assert not tokens_JS[items_C[items_C < 300], num_tokens:].any()
    assert len({(len(items_C), num_tokens) for items_C, num_tokens in found}) <= 3


@pytest.mark.parametrize("seed", range(3))
def test_a_steps_texts_are_all_there_in_few_shapes_and_with_little_padding(seed):
    draw, tokens_JS = np.random.default_rng(seed), random_tokens(1001, 30, seed)
    groups, found = TextGroups(tokens_JS), set()
    for number in draw.integers(500, 700, 100):
        items = np.sort(draw.choice(1000, number, replace=False))
        items_E = groups.divide(items)
        assert sorted(items_E[items_E < 1000]) == items.tolist()
        first = 0
        for size, num_tokens in groups.of(len(items_E)):
            of_group = items_E[first : first + size]
            assert not tokens_JS[of_group[of_group < 1000], num_tokens:].any()
            first += size
        assert first == len(items_E) <= 1.3 * number
        assert sum(size * num_tokens for size, num_tokens in groups.of(len(items_E))) < 0.75 * number * 30
        found.add(groups.of(len(items_E)))
    assert len(found) <= 8


def test_texts_that_are_not_like_all_others_are_read_too():
    """The longest alone; and all, of which some have no tokens."""
    tokens_JS = random_tokens(101, 30)
    counts = (tokens_JS[:-1] != 0).sum(1)
    groups = TextGroups(tokens_JS)
    for items in (np.argsort(counts)[-40:], np.arange(100), np.argsort(counts)[:2]):
        items_E = groups.divide(np.sort(items))
        assert sorted(items_E[items_E < 100]) == sorted(items.tolist())


def test_the_cache_is_written_in_place_and_a_model_taken_before_keeps_its_own(make_encoder_trainer, batch_stream):
    trainer = make_encoder_trainer("text_encoder")
    train(trainer, batch_stream(0, 1))
    pointer, model = cached(trainer).unsafe_buffer_pointer(), trainer.model
    vectors_JT = np.array(model.text_encoder.vectors[...])
    train(trainer, batch_stream(1, 2))
    assert cached(trainer).unsafe_buffer_pointer() == pointer
    np.testing.assert_array_equal(model.text_encoder.vectors[...], vectors_JT)
    assert not np.array_equal(trainer.model.text_encoder.vectors[...], vectors_JT)


def test_bfloat16_reads_the_same_tokens(make_encoder_model, make_encoder_trainer, batch_stream, tokens):
    """Token numbers beyond 256 are no numbers of bfloat16."""
    model = make_encoder_model(item_tokens=np.where(tokens > 0, tokens * 10 + 301, 0), text_encoder_vocab=600)
    trainer = make_encoder_trainer("text_encoder", model=model, bf16=True)
    before = snapshot(trainer)[ENCODED_TEXTS]
    train(trainer, batch_stream(0, 1))
    after = snapshot(trainer)
    written = (after[CACHE] != before).any(1)
    assert written.sum() > 20
    np.testing.assert_allclose(after[CACHE], before, atol=0.03)
    assert after[CACHE].dtype == np.float32


def test_an_epoch_on_the_device_is_refused(make_encoder_trainer):
    message = "on_device=True needs text_encoder='none', got 'transformer', .*; leave out on_device=True"
    with pytest.raises(ConfigurationError, match=message):
        make_encoder_trainer("both", on_device=True)


def test_a_mesh_is_refused(make_encoder_trainer):
    with pytest.raises(ConfigurationError, match="a layout with data=1,items=1 needs a model without a text encoder"):
        make_encoder_trainer("all", mesh="data=1")


def test_a_stale_cache_is_saved_as_it_is_and_not_the_one_to_score_with(make_encoder_trainer, batch_stream, tmp_path):
    trainer = make_encoder_trainer("text_encoder")
    train(trainer, batch_stream(0, 2))
    trainer.save_checkpoint(tmp_path / "saved")
    saved = load_checkpoint(tmp_path / "saved")
    train(trainer, batch_stream(2, 1))  # which writes into the cache
    again = load_checkpoint(tmp_path / "saved")
    np.testing.assert_array_equal(saved.moments[CACHE], again.moments[CACHE])
    loaded = make_encoder_trainer("text_encoder")
    loaded.load_checkpoint(tmp_path / "saved")
    np.testing.assert_array_equal(cached(loaded), saved.moments[CACHE])
    np.testing.assert_array_equal(jax.device_get(loaded.model.text_encoder.vectors[...]), saved.weights[ENCODED_TEXTS])


def test_what_is_undone_is_the_cache_too(make_encoder_trainer, batch_stream):
    """From a cache that is older than the weights, over its refresh, and back."""
    trainer = make_encoder_trainer("sequence:(('text_encoder', 2), ('retriever', 100))")
    train(trainer, batch_stream(0, 2))
    before, state = snapshot(trainer), trainer._take_state()
    train(trainer, batch_stream(2, 1))
    after = snapshot(trainer)
    assert CACHE in before
    assert CACHE not in after
    for _ in range(2):  # it may be undone again
        trainer._set_state(state)
        assert equal(snapshot(trainer), before)
        train(trainer, batch_stream(2, 1))

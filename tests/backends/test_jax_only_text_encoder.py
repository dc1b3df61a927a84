"""JAX alone: what a text encoder that trains compiles, writes in place, and refuses."""

import jax
import numpy as np
import pytest

from tests.backends.harness import snapshot, train
from ur4rec.errors import ConfigurationError
from ur4rec.training.checkpoint import load_checkpoint
from ur4rec.training.shapes import CACHED, ENCODED_TEXTS
from ur4rec_jax import text_encoder
from ur4rec_jax.device import to_inputs
from ur4rec_jax.step import Step
from ur4rec_jax.text_encoder import texts_of

CACHE = f"{ENCODED_TEXTS}/{CACHED}"


def cached(trainer):
    return trainer._buffers["text_encoder"]["vectors"]


def test_a_turn_is_compiled_for_few_numbers_of_texts(make_encoder_trainer, loader, monkeypatch):
    traced, loss = [], Step._loss
    monkeypatch.setattr(Step, "_loss", lambda self, turn: traced.append(turn) or loss(self, turn))
    trainer = make_encoder_trainer("sequence:(('all', 3), ('both', 4))", clip_norm=0.71)  # not compiled for yet
    for epoch in range(4):
        trainer.train_epoch(loader, epoch)
    batches = [loader.batch(epoch, index) for epoch in range(4) for index in range(len(loader))]
    inputs = [to_inputs(batch, loader.num_items, loader.usual_targets, reads_texts=True) for batch in batches]
    shapes = {(each.items_BL.shape, each.targets_N.shape, each.texts_E.shape) for each in inputs}
    numbers = {len(np.unique(each.texts_E)) for each in inputs}
    assert len(shapes) < len(numbers)
    assert traced.count("both") == len({shape[:2] for shape in shapes})  # it reads no texts
    assert 1 <= traced.count("all") <= len(shapes)
    assert trainer._functions.write_texts._cache_size() <= len({shape[2] for shape in shapes})


def test_all_texts_are_encoded_by_few_functions_of_bounded_size(monkeypatch):
    monkeypatch.setattr(text_encoder, "TOKENS", 64)
    lengths = np.random.default_rng(0).integers(0, 41, 300)
    tokens_JS = np.where(np.arange(40) < lengths[:, None], 5, 0).astype(np.int32)
    tokens_JS[0] = [*[5] * 3, 0, 5, *[0] * 35]  # padding between tokens is none
    found = texts_of(np.concatenate([tokens_JS, np.zeros((1, 40), np.int32)]))
    items = np.concatenate([texts.items_C for texts in found])
    assert sorted(items[items < 300]) == list(range(300))
    for items_C, num_tokens in found:
        assert len(items_C) * num_tokens <= 64
        assert not tokens_JS[items_C[items_C < 300], num_tokens:].any()
    assert len({(len(items_C), num_tokens) for items_C, num_tokens in found}) <= 4


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


def test_an_epoch_on_the_device_trains_beside_a_frozen_encoder_as_from_the_host(make_encoder_trainer, loader):
    found = []
    for on_device in (False, True):
        trainer = make_encoder_trainer("sequence:(('both', 2), ('sasrec', 1))", on_device=on_device)
        trainer.set_training_stage("joint_finetune", num_steps=6)
        trainer.train_epoch(loader, max_steps=6)
        found.append(snapshot(trainer))
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=2e-3, atol=2e-5, err_msg=name)


def test_an_epoch_on_the_device_that_trains_the_encoder_is_refused(make_encoder_trainer):
    message = "a text encoder needs the host to train, .* leave out on_device=True, .* got .*'all'"
    with pytest.raises(ConfigurationError, match=message):
        make_encoder_trainer("sequence:(('both', 2), ('all', 1))", on_device=True)
    trainer = make_encoder_trainer("both", on_device=True)
    with pytest.raises(ConfigurationError, match=message):
        trainer.set_training_stage("end_to_end")
    assert trainer.stage == "joint_finetune"


def test_a_mesh_is_refused(make_encoder_trainer):
    with pytest.raises(ConfigurationError, match="a mesh needs text_encoder='none', got 'transformer' with data=1"):
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

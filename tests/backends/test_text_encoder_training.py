"""The text encoder as the third module of a trainer: the freeze contract, its cache, resuming, evaluating.

Shapes: I items, J = I + 1 items with the padding.
"""

import numpy as np
import pytest

from alternator import Trial
from tests.backends.harness import bits, changed, equal, snapshot, train
from ur4rec.config import SCORERS
from ur4rec.errors import CheckpointError, ConfigurationError
from ur4rec.schedule.stages import TURNS
from ur4rec.training.checkpoint import load_checkpoint, save_checkpoint
from ur4rec.training.shapes import CACHED, ENCODED_TEXTS, ITEM_TEXTS, ITEM_TOKENS

PARTS = ("sasrec", "retriever", "text_encoder", "fusion")
CACHE = f"{ENCODED_TEXTS}/{CACHED}"
CLOSE = {"rtol": 0, "atol": 1e-6}
SAMPLED = {"catalogue_loss": "sampled", "num_negatives": 6, "num_in_batch": 6}


def encoded(backend, make_model, arrays, **settings):
    """All texts as the weights among some arrays encode them, by hand."""
    model = backend.inference(make_model(seed=9, **settings))
    start = "text_encoder."
    weights = {
        name.removeprefix(start): array
        for name, array in arrays.items()
        if name.startswith(start) and "/" not in name and name not in (ITEM_TOKENS, ENCODED_TEXTS)
    }
    backend.set_weights(model.text_encoder, weights)
    return backend.call(model.text_encoder.encode, arrays[ITEM_TOKENS])


def items_of(batch, num_items):
    found = np.unique([*np.ravel(batch.items_BL), *np.ravel(batch[1])])
    return found[found < num_items]


def sampling(catalogue_loss, loader):
    return {**SAMPLED, "item_counts": loader.item_counts} if catalogue_loss == "sampled" else {}


def resave(path, loaded):
    """Save a changed checkpoint, whole."""
    state = {name: value for name, value in loaded.state.items() if name != "sha256"}
    save_checkpoint(path, loaded._replace(state=state))


@pytest.mark.parametrize("turn", TURNS)
def test_a_turn_trains_its_modules_and_changes_no_bit_of_the_others(make_encoder_trainer, batch_stream, turn):
    trainer = make_encoder_trainer(f"sequence:(('all', 2), ('{turn}', 9))", weight_decay=0.1, clip_norm=0.1)
    train(trainer, batch_stream(0, 2))
    own = [name for name in TURNS[turn] if name != "text_encoder"]
    frozen = [name for name in PARTS[:3] if name not in TURNS[turn]]
    if "text_encoder" in frozen:
        train(trainer, batch_stream(2, 1))  # in which its cache is refreshed
    before = {name: bits(trainer, name) for name in PARTS}
    train(trainer, batch_stream(3, 4))
    assert {name for name in frozen if not equal(bits(trainer, name), before[name])} == set()
    moved = {name for name in (*own, "fusion") if not equal(bits(trainer, name), before[name])}
    assert moved == {*own, "fusion"}
    if "text_encoder" in TURNS[turn]:
        now = bits(trainer, "text_encoder")
        still = {name for name in before["text_encoder"] if name not in changed(before["text_encoder"], now)}
        assert still == {ITEM_TOKENS}


@pytest.mark.parametrize("turn", ["text_encoder", "sasrec+text_encoder", "retriever+text_encoder"])
def test_with_separate_losses_the_encoder_has_the_retrievers(make_encoder_trainer, batch_stream, turn):
    records = []
    trainer = make_encoder_trainer(turn, joint_loss="separate", on_step=records.append)
    before = {name: bits(trainer, name) for name in PARTS}
    train(trainer, batch_stream(0, 3))
    trainer.flush()
    moved = {name for name in PARTS if not equal(bits(trainer, name), before[name])}
    assert moved == {*TURNS[turn], *(["fusion"] if "sasrec" in TURNS[turn] else [])}
    for record in records:
        assert set(record.losses) == set(TURNS[turn])
        if "retriever" in record.losses:
            assert record.losses["text_encoder"] == record.losses["retriever"]


@pytest.mark.parametrize(
    ("trains", "moves"),
    [
        ("last:1", "text_encoder.blocks.1."),
        ("lora:2", "_adapter."),
    ],
)
def test_only_what_is_to_train_moves_and_has_moments(
    make_encoder_model, make_encoder_trainer, batch_stream, trains, moves
):
    trainer = make_encoder_trainer("all", model=make_encoder_model(text_encoder_trains=trains), weight_decay=0.1)
    before = snapshot(trainer)
    train(trainer, batch_stream(0, 3))
    after = snapshot(trainer)
    weights = {name for name in before if name.startswith("text_encoder.") and name != ENCODED_TEXTS}
    expected = {name for name in weights if moves in name}
    assert changed(before, after) & weights == expected
    assert len(expected) == (16 if trains == "last:1" else 8)
    moments = {name.rpartition("/")[0] for name in after if name.endswith("/exp_avg")}
    assert {name for name in moments if name.startswith("text_encoder.")} == expected


@pytest.mark.parametrize("catalogue_loss", ["full", "sampled"])
def test_steps_with_a_frozen_encoder_are_those_of_a_model_with_its_vectors(
    backend, make_encoder_model, make_encoder_trainer, batch_stream, loader, catalogue_loss
):
    schedule = "sequence:(('both', 3), ('sasrec', 2), ('retriever', 2))"
    model = make_encoder_model(seed=1)
    texts_IT = backend.weights(model)[ENCODED_TEXTS][:-1]
    plain = make_encoder_model(seed=1, text_encoder="none", item_text_vectors=texts_IT)
    found = []
    for each in (model, plain):
        trainer = make_encoder_trainer(schedule, model=each, **sampling(catalogue_loss, loader))
        decisions = train(trainer, batch_stream(0, 7))
        arrays = {
            name: array
            for name, array in snapshot(trainer).items()
            if not name.startswith("text_encoder.") and name != ITEM_TEXTS
        }
        found.append((arrays, [decision.active for decision in decisions]))
    assert found[0][0].keys() == found[1][0].keys()
    assert changed(*(arrays for arrays, _ in found)) == set()
    assert found[0][1] == found[1][1]
    assert len(found[0][0]) > 30


@pytest.mark.parametrize("catalogue_loss", ["full", "sampled"])
def test_a_step_encodes_its_own_items_and_takes_the_others_from_the_cache(
    backend, make_encoder_model, make_encoder_trainer, batch_stream, loader, split, catalogue_loss
):
    trainer = make_encoder_trainer("all", **sampling(catalogue_loss, loader))
    first = snapshot(trainer)
    (batch,) = batch_stream(0, 1)
    few = type(batch)(*(None if each is None else each[:2] for each in batch))
    trainer.train_step(few)
    after = snapshot(trainer)
    by_hand_JT = encoded(backend, make_encoder_model, first)
    own = items_of(few, split.num_items)
    assert 2 < len(own) < split.num_items
    np.testing.assert_allclose(after[CACHE][own], by_hand_JT[own], **CLOSE)
    others = np.setdiff1d(np.arange(split.num_items + 1), own)
    np.testing.assert_allclose(after[CACHE][others], first[ENCODED_TEXTS][others], **CLOSE)
    if catalogue_loss == "full":  # the sampled items are encoded too
        np.testing.assert_array_equal(after[CACHE][others], first[ENCODED_TEXTS][others])
    # the model's own vectors are of the weights as they are
    np.testing.assert_allclose(after[ENCODED_TEXTS], encoded(backend, make_encoder_model, after), **CLOSE)
    assert np.abs(after[ENCODED_TEXTS] - after[CACHE]).max() > 1e-4
    trainer.train_step(few)
    later = snapshot(trainer)
    np.testing.assert_allclose(later[CACHE][own], after[ENCODED_TEXTS][own], **CLOSE)


def test_the_cache_is_refreshed_when_the_encoder_is_frozen_and_only_then(
    backend, make_encoder_model, make_encoder_trainer, batch_stream
):
    trainer = make_encoder_trainer("sequence:(('all', 2), ('both', 3), ('all', 1))")
    train(trainer, batch_stream(0, 2))
    stale = snapshot(trainer)
    train(trainer, batch_stream(2, 1))
    refreshed = snapshot(trainer)
    assert CACHE in stale
    assert CACHE not in refreshed
    np.testing.assert_array_equal(refreshed[ENCODED_TEXTS], stale[ENCODED_TEXTS])
    np.testing.assert_allclose(refreshed[ENCODED_TEXTS], encoded(backend, make_encoder_model, stale), **CLOSE)
    train(trainer, batch_stream(3, 2))
    np.testing.assert_array_equal(snapshot(trainer)[ENCODED_TEXTS], stale[ENCODED_TEXTS])
    train(trainer, batch_stream(5, 1))
    assert CACHE in snapshot(trainer)


@pytest.mark.parametrize("saved_after", [1, 2, 3])
def test_a_run_continues_to_the_bit(make_encoder_model, make_encoder_trainer, batch_stream, tmp_path, saved_after):
    schedule = "sequence:(('all', 2), ('both', 2), ('retriever+text_encoder', 2))"
    whole, first = make_encoder_trainer(schedule), make_encoder_trainer(schedule)
    expected = train(whole, batch_stream(0, 6))
    train(first, batch_stream(0, saved_after))
    first.save_checkpoint(tmp_path / "saved")
    resumed = make_encoder_trainer(schedule, model=make_encoder_model(seed=5))
    train(resumed, batch_stream(10, 3))  # whatever it had before is gone
    resumed.load_checkpoint(tmp_path / "saved")
    assert train(resumed, batch_stream(saved_after, 6 - saved_after)) == expected[saved_after:]
    assert equal(snapshot(resumed), snapshot(whole))


def test_a_checkpoint_brings_its_tokens(make_encoder_model, make_encoder_trainer, batch_stream, tokens, tmp_path):
    """Those of the model that continues may be others, and shorter."""
    whole = make_encoder_trainer("all")
    train(whole, batch_stream(0, 1))
    whole.save_checkpoint(tmp_path / "saved")
    short = np.where(np.arange(tokens.shape[1]) < 2, tokens, 0)
    resumed = make_encoder_trainer("all", model=make_encoder_model(item_tokens=short))
    resumed.load_checkpoint(tmp_path / "saved")
    for trainer in (whole, resumed):
        train(trainer, batch_stream(1, 2))
    assert equal(snapshot(resumed), snapshot(whole))


def test_evaluating_changes_no_training(make_encoder_trainer, batch_stream, targets):
    schedule = "sequence:(('all', 2), ('both', 2), ('text_encoder', 2))"
    alone, watched = make_encoder_trainer(schedule), make_encoder_trainer(schedule)
    for batch in batch_stream(0, 6):
        alone.train_step(batch)
        watched.train_step(batch)
        watched.evaluate(targets)
    assert equal(snapshot(watched), snapshot(alone))


def test_scores_are_those_of_the_weights_as_they_are(
    backend, make_encoder_model, make_encoder_trainer, batch_stream, loader, tmp_path
):
    trainer = make_encoder_trainer("sequence:(('text_encoder', 3), ('both', 1))")
    items_BL, before = loader.batch(0, 0).items_BL, None
    for number, batch in enumerate(batch_stream(0, 4)):
        trainer.train_step(batch)
        scores = trainer.scores(items_BL)
        arrays = snapshot(trainer)
        texts_JT = encoded(backend, make_encoder_model, arrays)
        model = backend.inference(make_encoder_model(item_text_vectors=texts_JT[:-1]))
        others = {
            name: array
            for name, array in arrays.items()
            if "/" not in name and name.startswith(("sasrec.", "retriever.", "fusion."))
        }
        backend.set_weights(model, others)
        found = backend.package.Scorer(model, device="cpu").scores(items_BL)
        for scorer in SCORERS:
            np.testing.assert_allclose(scores[scorer], found[scorer], rtol=0, atol=1e-4, err_msg=f"{scorer} {number}")
        assert before is None or not np.allclose(before, scores["retriever"], atol=1e-4)
        before = scores["retriever"]


def test_a_loss_that_is_not_finite_leaves_weights_and_cache(backend, make_encoder_trainer, batch_stream, monkeypatch):
    for is_accelerator in (False, True):
        trainer = make_encoder_trainer("all")
        train(trainer, batch_stream(0, 1))
        if is_accelerator:
            backend.act_like_an_accelerator(trainer)
        before = snapshot(trainer)
        with monkeypatch.context() as patch:
            backend.spoil(trainer, patch, [1])
            train(trainer, batch_stream(1, 1))
        after = snapshot(trainer)
        assert equal(after, before)


def test_all_strategies_go_with_a_text_encoder(make_encoder_trainer, batch_stream):
    trainer = make_encoder_trainer(
        "sequence:(('all', 1), ('text_encoder', 1), ('retriever+text_encoder', 1), ('both', 1))",
        use_curriculum_learning=True,
        use_memory_bank=True,
        memory_bank_size=20,
        use_knowledge_distillation=True,
        use_uncertainty_weighting=True,
        joint_loss="separate",
    )
    trainer.set_training_stage("joint_finetune")
    metrics = trainer.train_epoch(list(batch_stream(0, 8)))
    assert metrics["nonfinite_steps"] == 0
    assert np.isfinite(metrics["distillation_loss"])
    assert np.isfinite(metrics["text_encoder_loss"])
    assert metrics["all_steps"] == metrics["text_encoder_steps"] == 2


def test_stages_train_what_they_say(make_encoder_trainer, batch_stream):
    trainer = make_encoder_trainer("all")
    for stage, expected in (
        ("pretrain_sasrec", {"sasrec"}),
        ("pretrain_retriever", {"retriever"}),
        ("end_to_end", set(PARTS)),
    ):
        trainer.set_training_stage(stage, num_steps=4)
        before = {name: bits(trainer, name) for name in PARTS}
        train(trainer, batch_stream(0, 2))
        assert {name for name in PARTS if not equal(bits(trainer, name), before[name])} == expected


TRIAL = Trial(candidates=((0,), (0, 6), (6,)), steps=3, hold=2, groups=4)
"""Both modules, both with the encoder in every second step, and all."""


@pytest.mark.parametrize("first", ["both", "all"])
def test_what_was_tried_leaves_no_trace_in_the_cache(make_encoder_trainer, batch_stream, targets, first):
    """The cache that a trial returns to may be older than the weights, or not."""
    trainer = make_encoder_trainer("all", rule=TRIAL, probe=next(iter(targets)))
    if first == "all":
        trainer.set_training_stage("end_to_end")
        train(trainer, batch_stream(0, 1))
        trainer.set_training_stage("joint_finetune")
    state, before = trainer._take_state(), bits(trainer, *PARTS)
    assert (CACHE in before) == (first == "all")
    for turn in ("end_to_end", "joint_finetune"):
        trainer.set_training_stage(turn)
        train(trainer, batch_stream(1, 2))
        assert not equal(bits(trainer, *PARTS), before)
        trainer._set_state(state)
        after = bits(trainer, *PARTS)
        assert after.keys() == before.keys()
        assert changed(before, after) == set()


def test_later_items_are_encoded_by_their_tokens(backend, make_encoder_trainer, batch_stream, split, tmp_path):
    trainer = make_encoder_trainer("all")
    train(trainer, batch_stream(0, 2))
    trainer.save_checkpoint(tmp_path / "saved")
    known_IS = load_checkpoint(tmp_path / "saved").weights[ITEM_TOKENS]
    history = np.array([[3, 1, 4]])
    before = trainer.scores(history)
    model = backend.package.load_model(tmp_path / "saved", later_items=known_IS[[7, 20]])
    found = backend.package.Scorer(model, device="cpu").scores(history)
    num = split.num_items
    for scorer in SCORERS:
        assert found[scorer].shape == (1, num + 2)
        np.testing.assert_allclose(found[scorer][:, :num], before[scorer], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["retriever"][:, num:], found["retriever"][:, [7, 20]], rtol=0, atol=1e-5)
    with pytest.raises(ConfigurationError, match="item_tokens must be integers of the shape"):
        backend.package.load_model(tmp_path / "saved", later_items=known_IS[:2, :3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tokens: np.where(tokens == tokens.max(), 20, tokens), "must be from 0 to text_encoder_vocab - 1"),
        (lambda tokens: -tokens, "must be from 0 to text_encoder_vocab - 1"),
        (lambda tokens: tokens[:-1], r"text_encoder.tokens must have the shape \(61, 6\), got \(60, 6\)"),
        (lambda tokens: tokens.astype(np.float32), "weights must be int32, got float32 in 'text_encoder.tokens'"),
    ],
)
def test_damaged_tokens_are_refused(backend, make_encoder_trainer, tmp_path, damage, message):
    make_encoder_trainer("all").save_checkpoint(tmp_path / "saved")
    loaded = load_checkpoint(tmp_path / "saved")
    loaded.weights[ITEM_TOKENS] = damage(loaded.weights[ITEM_TOKENS])
    resave(tmp_path / "damaged", loaded)
    with pytest.raises(CheckpointError, match=message):
        backend.package.load_model(tmp_path / "damaged")


def test_a_cache_of_another_shape_is_refused(make_encoder_trainer, batch_stream, tmp_path):
    trainer = make_encoder_trainer("all")
    train(trainer, batch_stream(0, 1))
    trainer.save_checkpoint(tmp_path / "saved")
    loaded = load_checkpoint(tmp_path / "saved")
    loaded.moments[CACHE] = loaded.moments[CACHE][:-1]
    resave(tmp_path / "damaged", loaded)
    with pytest.raises(CheckpointError, match="must have the shape of its weight"):
        trainer.load_checkpoint(tmp_path / "damaged")


@pytest.mark.parametrize("schedule", ["payoff", "sequence:(('all', 1),)"])
def test_a_schedule_of_other_modules_is_refused(make_encoder_model, make_encoder_trainer, split, schedule):
    has_encoder = schedule == "payoff"
    texts = {} if has_encoder else {"text_encoder": "none", "item_text_vectors": np.ones((split.num_items, 12))}
    expected = "a Payoff rule needs a model of the modules" if has_encoder else "turns must be those of the model's"
    with pytest.raises(ConfigurationError, match=expected):
        make_encoder_trainer(schedule, model=make_encoder_model(**texts))

"""User texts in both backends: what the retriever makes of them, and what they leave alone.

Shapes: B rows, K queries, d width of the preference space.
"""

import json

import numpy as np
import pytest

from alternator import Cycle
from tests.conformance.comparisons import same_curves, same_scores
from tests.conformance.registry import chosen
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec.errors import CheckpointError, ConfigurationError
from ur4rec.training.backend import BACKENDS, load_backend

MAX_SEQ_LEN = 8
WITHOUT_TEXT = 5
SIZES = {
    **{"text_embedding_dim": 12, "max_seq_len": MAX_SEQ_LEN, "sasrec_dropout": 0.0, "retriever_dropout": 0.0},
    **{"sasrec_hidden_dim": 16, "sasrec_num_heads": 2, "sasrec_num_blocks": 1},
    **{"retriever_output_dim": 8, "retriever_num_queries": 3},
}


@pytest.fixture(scope="module")
def split():
    return leave_one_out(synthetic(num_users=40, num_items=60, mean_length=12))


@pytest.fixture(scope="module")
def loader(split):
    return TrainBatches(split.train, split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=16, seed=0)


@pytest.fixture(scope="module")
def test_batch(split):
    (batch,) = EvaluationBatches(split.test, split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=40)
    return batch


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The name of each backend."""
    if request.param not in chosen(request.config.getoption("--backend", default=None)):
        pytest.skip(f"{request.param} is not chosen")
    if request.param == "torch":
        pytest.importorskip("torch").set_num_threads(1)
    return request.param


@pytest.fixture(scope="module")
def make_trainer(split):
    rng = np.random.default_rng(0)
    items_IT, users_UT = (rng.normal(size=(size, 12)).astype(np.float32) for size in (split.num_items, 40))
    users_UT[WITHOUT_TEXT] = 0

    def make(name, *, users=True, **settings):
        package = load_backend(name)
        vectors = {"user_text_vectors": users_UT} if users else {}
        model = package.UR4Rec(split.num_items, items_IT, **vectors, **SIZES)
        return package.JointTrainer(model, device="cpu", progress=False, **settings)

    return make


def arrays(trainer, path):
    """All parameters, buffers and moments of a trainer, by their canonical names."""
    from safetensors.numpy import load_file

    trainer.save_checkpoint(path)
    return {**load_file(path / "model.safetensors"), **load_file(path / "optimizer.safetensors")}


def expected_preferences(weights, items, user):
    """The preference vectors at the last position of a history, (K, d), computed plainly."""

    def project(name, texts):
        return texts @ weights[f"retriever.{name}.weight"].T + weights[f"retriever.{name}.bias"]

    texts = weights["retriever.item_text_vectors"][items]
    queries = weights["retriever.queries.weight"]
    bias_KM = weights["retriever.recency.weight"][:, : len(items)][:, ::-1]
    if user is not None:
        texts = np.vstack([texts, weights["retriever.user_text_vectors"][user]])
        bias_KM = np.hstack([bias_KM, weights["retriever.user_bias"][:, None]])
    keys, values = project("key_projection", texts), project("value_projection", texts)
    logits_KM = queries @ keys.T / np.sqrt(queries.shape[1]) + bias_KM
    weights_KM = np.exp(logits_KM) / np.exp(logits_KM).sum(1, keepdims=True)
    preferences_Kd = project("preference_projection", weights_KM @ values)
    return preferences_Kd / np.linalg.norm(preferences_Kd, axis=1, keepdims=True)


def expected_scores(weights, items, user, temperature=0.1):
    keys = weights["retriever.item_text_vectors"][:-1] @ weights["retriever.item_projection.weight"].T
    keys = keys + weights["retriever.item_projection.bias"]
    cosines_KI = expected_preferences(weights, items, user) @ (keys / np.linalg.norm(keys, axis=1, keepdims=True)).T
    return np.log(np.exp(cosines_KI / temperature).sum(0))


def test_every_query_may_look_at_the_text_of_its_user(backend, make_trainer, loader, test_batch, tmp_path):
    trainer = make_trainer(backend, rule=Cycle((1, 2)), retriever_lr=0.1, warmup_steps=0)
    for step in range(3):
        trainer.train_step(loader.batch(0, step))
    weights = arrays(trainer, tmp_path / "checkpoint")
    assert np.abs(weights["retriever.user_bias"]).max() > 0.01
    rows = [0, 1, 2, 3]
    items_BL = test_batch.items_BL[rows]
    users_B = np.array([7, WITHOUT_TEXT, -1, 40], np.int32)  # the last two are nobody
    scores_BI = trainer.score(items_BL, "retriever", users_B)
    for items, user, scores_I in zip(items_BL, (7, None, None, None), scores_BI, strict=True):
        real = items[items < len(weights["retriever.item_text_vectors"]) - 1]
        np.testing.assert_allclose(scores_I, expected_scores(weights, real, user), rtol=1e-4, atol=1e-4)
    same_scores(scores_BI[1:], trainer.score(items_BL, "retriever")[1:])  # nobody named: as if nobody had a text
    assert np.abs(scores_BI[0] - trainer.score(items_BL, "retriever")[0]).max() > 0.01
    ranks = trainer.rank([test_batch], "retriever")
    targets_B, users_B = test_batch.targets_B, test_batch.users_B
    for row in (0, 9):
        scores_I = expected_scores(
            weights, test_batch.items_BL[row][: (test_batch.items_BL[row] < 60).sum()], users_B[row]
        )
        seen = test_batch.seen_items_M[test_batch.seen_rows_M == row]
        others = np.setdiff1d(np.arange(60), [*seen, targets_B[row]])
        assert ranks[row] == 1 + (scores_I[others] >= scores_I[targets_B[row]]).sum()


def test_a_model_without_user_texts_pays_no_heed_to_users(backend, make_trainer, test_batch, tmp_path):
    trainer = make_trainer(backend, users=False)
    np.testing.assert_array_equal(
        trainer.score(test_batch.items_BL, "fused", test_batch.users_B), trainer.score(test_batch.items_BL)
    )
    names = set(arrays(trainer, tmp_path / "without"))
    extra = set(arrays(make_trainer(backend), tmp_path / "with")) - names
    assert extra == {"retriever.user_text_vectors", "retriever.user_bias"}


def test_a_frozen_retriever_keeps_every_bit_and_its_bias_moves_when_it_trains(backend, make_trainer, loader, tmp_path):
    trainer = make_trainer(backend, rule=Cycle((4, 2)))
    states = []
    for step in range(12):  # SASRec trains until step 4, and from step 6 to step 10
        if step in (4, 6, 10):
            states.append(arrays(trainer, tmp_path / f"step-{step}"))
        trainer.train_step(loader.batch(step // len(loader), step % len(loader)))
    states.append(arrays(trainer, tmp_path / "end"))
    first, second, third, fourth = (
        {name: array for name, array in state.items() if name.startswith("retriever.")} for state in states
    )
    assert second.keys() == third.keys()
    assert all(np.array_equal(second[name], third[name]) for name in second)
    for before, after in ((first, second), (third, fourth)):
        assert (before["retriever.user_bias"] != after["retriever.user_bias"]).all()
        np.testing.assert_array_equal(before["retriever.user_text_vectors"], after["retriever.user_text_vectors"])
    assert (second["retriever.user_bias/exp_avg"] != fourth["retriever.user_bias/exp_avg"]).all()


def test_both_backends_train_alike_from_one_checkpoint(make_trainer, loader, test_batch, tmp_path, request):
    if not set(BACKENDS) <= set(chosen(request.config.getoption("--backend", default=None))):
        pytest.skip("needs both backends")
    records = {name: [] for name in BACKENDS}
    trainers = {name: make_trainer(name, rule=Cycle((2, 2)), on_step=records[name].append) for name in BACKENDS}
    trainers["torch"].save_checkpoint(tmp_path / "checkpoint")
    trainers["jax"].load_checkpoint(tmp_path / "checkpoint")
    for trainer in trainers.values():
        for step in range(12):
            trainer.train_step(loader.batch(step // len(loader), step % len(loader)))
    same_curves(*([loss for record in records[name] for loss in record.losses.values()] for name in ("jax", "torch")))
    for name in BACKENDS:  # what one saved, the other's load_model scores alike
        other = "jax" if name == "torch" else "torch"
        trainers[name].save_checkpoint(tmp_path / name)
        scorer = load_backend(other).Scorer(load_backend(other).load_model(tmp_path / name), device="cpu")
        mine = trainers[name].score(test_batch.items_BL, "fused", test_batch.users_B)
        same_scores(scorer.score(test_batch.items_BL, "fused", test_batch.users_B), mine)


def test_a_checkpoint_with_user_texts_is_refused_by_a_model_without(backend, make_trainer, tmp_path):
    make_trainer(backend).save_checkpoint(tmp_path / "checkpoint")
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["model"]["num_users"] == 40
    with pytest.raises(CheckpointError, match="num_users was 40, is 0"):
        make_trainer(backend, users=False).load_checkpoint(tmp_path / "checkpoint")


def test_user_vectors_that_do_not_fit_are_refused(backend):
    build = load_backend(backend).UR4Rec
    with pytest.raises(ConfigurationError, match=r"user_text_vectors must have the shape .* \(2, 12\), got \(2, 3\)"):
        build(60, np.zeros((60, 12)), user_text_vectors=np.zeros((2, 3)), **SIZES)
    with pytest.raises(ConfigurationError, match="user_text_vectors must be finite"):
        build(60, np.zeros((60, 12)), user_text_vectors=np.full((2, 12), np.nan), **SIZES)

"""UR4Rec with a text encoder in both backends: equal weights give equal scores and gradients, equal batches equal runs.

Shapes: I items, S tokens of a text.
"""

import numpy as np
import pytest

from tests.backends.harness import load
from tests.conformance.comparisons import same_curves, same_ranking, same_scores
from tests.conformance.registry import chosen
from ur4rec.config import CATALOGUE_LOSSES, SCORERS
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import TrainBatches
from ur4rec.schedule.alternators import parse_schedule
from ur4rec.training.backend import BACKENDS, load_backend

SCHEDULE = "sequence:(('all', 3), ('both', 3), ('text_encoder', 2), ('sasrec', 2), ('retriever+text_encoder', 2))"
SIZES = {
    "sasrec_hidden_dim": 16,
    "sasrec_num_heads": 2,
    "sasrec_dropout": 0.0,
    "retriever_output_dim": 8,
    "retriever_num_queries": 3,
    "retriever_dropout": 0.0,
    "text_embedding_dim": 12,
    "text_encoder": "transformer",
    "text_encoder_vocab": 20,
    "text_encoder_tokens": 6,
    "max_seq_len": 8,
}


@pytest.fixture(scope="module")
def split():
    return leave_one_out(synthetic(num_users=60, num_items=60, mean_length=12))


@pytest.fixture(scope="module")
def tokens(split):
    """Two to six tokens of each item's text."""
    draw = np.random.default_rng(0)
    tokens_IS = draw.integers(4, 20, (split.num_items, 6), dtype=np.int32)
    tokens_IS[np.arange(6) >= draw.integers(2, 7, (split.num_items, 1))] = 0
    return tokens_IS


@pytest.fixture
def make_trainer(split, tokens, loader, request):
    """Builds trainers of small models without dropout, alike in both backends."""
    chosen_backends = chosen(request.config.getoption("--backend", default=None))
    if not set(BACKENDS) <= set(chosen_backends):
        pytest.skip(f"needs the backends {tuple(BACKENDS)} both")
    pytest.importorskip("torch").set_num_threads(1)

    def make(backend, *, trains="all", **settings):
        package = load_backend(backend)
        model = package.UR4Rec(split.num_items, item_tokens=tokens, text_encoder_trains=trains, **SIZES)
        rule = parse_schedule(SCHEDULE).rule
        given = {"rule": rule, "text_encoder_lr": 1e-3, "item_counts": loader.item_counts, **settings}
        return package.JointTrainer(model, device="cpu", progress=False, **given)

    return make


@pytest.fixture(scope="module")
def loader(split):
    return TrainBatches(split.train, split.num_items, max_seq_len=8, batch_size=16, seed=0)


@pytest.mark.parametrize("direction", ["torch to jax", "jax to torch"])
@pytest.mark.parametrize("trains", ["all", "lora:3"])
def test_weights_of_one_backend_give_the_same_scores_in_the_other(trains, direction, loader, make_trainer, tmp_path):
    source, _, target = direction.split()
    trainer = make_trainer(source, trains=trains)
    for index in range(2 if source == "torch" else 1):
        trainer.train_step(loader.batch(0, index))
    trainer.save_checkpoint(tmp_path / "checkpoint")  # in the middle of a tenure: its cache is older than its weights
    package = load_backend(target)
    scorer = package.Scorer(package.load_model(tmp_path / "checkpoint"), device="cpu")
    items_BL = loader.batch(0, 0).items_BL
    for name in SCORERS:
        ours, theirs = scorer.score(items_BL, name), trainer.score(items_BL, name)
        same_ranking(ours, theirs, top=20)
        same_scores(ours, theirs)


def test_both_backends_have_the_same_gradients(tokens, split, make_trainer):
    directions_IT = np.random.default_rng(2).normal(size=(len(tokens), 12)).astype(np.float32)
    found, weights = {}, None
    for name in ("torch", "jax"):
        backend = load(name)
        model = backend.package.UR4Rec(split.num_items, item_tokens=tokens, **SIZES)
        weights = backend.weights(model) if weights is None else weights
        backend.set_weights(model, weights)

        def project(model, backend=backend):
            return (model.text_encoder.encode(backend.array(tokens)) * backend.array(directions_IT)).sum()

        found[name] = backend.gradients(model, project)
    assert len(found["torch"]) == 4 + 16 * 2
    for name, gradient in found["torch"].items():
        if not name.endswith("key.bias"):  # which no softmax can see: its gradient is made of rounding errors
            limit = 1e-4 * np.abs(gradient).max()
            np.testing.assert_allclose(found["jax"][name], gradient, rtol=1e-3, atol=limit, err_msg=name)


@pytest.mark.parametrize("catalogue_loss", CATALOGUE_LOSSES)
@pytest.mark.parametrize("joint_loss", ["fused", "separate"])
def test_equal_weights_and_batches_give_equal_curves_decisions_and_caches(
    joint_loss, catalogue_loss, loader, make_trainer, tmp_path
):
    records = {"torch": [], "jax": []}
    settings = {"joint_loss": joint_loss, "catalogue_loss": catalogue_loss, "num_negatives": 6, "num_in_batch": 6}
    trainers = {name: make_trainer(name, on_step=records[name].append, **settings) for name in records}
    trainers["torch"].save_checkpoint(tmp_path / "first")
    trainers["jax"].load_checkpoint(tmp_path / "first")
    decisions = {name: [] for name in trainers}
    for name, trainer in trainers.items():
        for step in range(14):
            decision = trainer.train_step(loader.batch(*divmod(step, len(loader))))
            decisions[name].append(decision._replace(value=0, limit=0))
        trainer.flush()
        trainer.save_checkpoint(tmp_path / name)
    assert decisions["jax"] == decisions["torch"]
    losses = {name: [sorted(record.losses.items()) for record in records[name]] for name in records}
    named = {name: [[module for module, _ in of_step] for of_step in losses[name]] for name in losses}
    assert named["jax"] == named["torch"]
    curves = {name: [loss for of_step in losses[name] for _, loss in of_step] for name in losses}
    same_curves(curves["jax"], curves["torch"])
    load_file = pytest.importorskip("safetensors.numpy").load_file
    for file in ("model.safetensors", "optimizer.safetensors"):
        theirs, ours = (load_file(tmp_path / name / file) for name in ("torch", "jax"))
        assert theirs.keys() == ours.keys()
        for name in (name for name in theirs if name.split("/")[0] in ("text_encoder.vectors", "text_encoder.tokens")):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-3, err_msg=name)

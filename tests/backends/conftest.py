"""One small model, its data and its trainers in every backend.

All tests share these shapes and, where they can, the settings: JAX compiles a step once for all of them.
"""

from importlib.util import find_spec

import numpy as np
import pytest

from tests.backends.harness import BACKENDS, installed, load
from ur4rec.data import Sequences, leave_one_out, synthetic
from ur4rec.data.batches import Batch, EvaluationBatches, TrainBatches
from ur4rec.runs.config import RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import PreparedData
from ur4rec.runs.run import TrainingRun
from ur4rec.schedule.alternators import parse_schedule
from ur4rec.schedule.stages import TURNS
from ur4rec.text.encoders import TextEncoder
from ur4rec.training import length_groups

MAX_SEQ_LEN = 8
SHORT = {"max_seq_len": 24, "batch_size": 32}
"""Sizes of batches with short rows, which are divided by their lengths."""

collect_ignore_glob = [
    pattern
    for backend, patterns in {"torch": ("*torch_*.py",), "jax": ("*jax_*.py",)}.items()
    if backend not in installed()
    for pattern in patterns
]
"""Doctests are looked for in every file, and these cannot be imported."""


def pytest_generate_tests(metafunc):
    """A test that asks for a backend or what it makes runs with each, in ``test_NAME_only_*`` with that alone."""
    if "backend" in metafunc.fixturenames:
        only = [name for name in BACKENDS if f"test_{name}_only_" in metafunc.module.__name__]
        metafunc.parametrize("backend", only or list(BACKENDS), indirect=True, scope="session")


@pytest.fixture(scope="session")
def backend(request):
    """A `harness.Backend`."""
    if request.param not in installed():
        pytest.skip(f"{request.param} is not installed")
    return load(request.param)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    if find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two processes of PyTorch; of a file, since processes that wait take time too."""
    yield from _ranks(tmp_path_factory, 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four processes of PyTorch."""
    yield from _ranks(tmp_path_factory, 4)


def _ranks(tmp_path_factory, num_ranks):
    from tests.several_ranks import SeveralRanks  # which imports PyTorch

    ranks = SeveralRanks(tmp_path_factory.mktemp("ranks"), num_ranks)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def split():
    return leave_one_out(synthetic(num_users=60, num_items=60, mean_length=12))


@pytest.fixture(scope="session")
def make_model(backend, split):
    """Builds small models; keyword arguments are settings of the model."""

    def make(**settings):
        vectors_IT = np.random.default_rng(0).normal(size=(split.num_items, 12)).astype(np.float32)
        sizes = {"sasrec_hidden_dim": 16, "sasrec_num_heads": 2, "retriever_output_dim": 8, "retriever_num_queries": 3}
        shape = {"text_embedding_dim": 12, "max_seq_len": MAX_SEQ_LEN, "sasrec_num_blocks": 1, **sizes}
        return backend.package.UR4Rec(split.num_items, vectors_IT, **{**shape, "sasrec_dropout": 0.2, **settings})

    return make


@pytest.fixture(scope="session")
def make_trainer(backend, make_model):
    """Builds trainers of small models; keyword arguments are settings of the trainer."""

    def make(*, model=None, fusion="logit", **settings):
        model = make_model(fusion=fusion) if model is None else model
        return backend.package.JointTrainer(model, **{"device": "cpu", "progress": False, **settings})

    return make


@pytest.fixture(scope="session")
def tokens(split):
    """The tokens of items' texts: two to six of them, and no two texts are the same."""
    draw = np.random.default_rng(0)
    tokens_IS = draw.integers(4, 20, (split.num_items, 6), dtype=np.int32)
    tokens_IS[np.arange(6) >= draw.integers(2, 7, (split.num_items, 1))] = 0
    return tokens_IS


@pytest.fixture(scope="session")
def make_encoder_model(backend, split, tokens):
    """Builds small models with a text encoder; keyword arguments are those of the model."""

    def make(**given):
        sizes = {"sasrec_hidden_dim": 16, "sasrec_num_heads": 2, "retriever_output_dim": 8, "retriever_num_queries": 3}
        shape = {"text_embedding_dim": 12, "max_seq_len": MAX_SEQ_LEN, "sasrec_num_blocks": 1, "sasrec_dropout": 0.2}
        encoder = {"text_encoder": "transformer", "text_encoder_vocab": 20, "text_encoder_tokens": 6}
        texts = {"item_tokens": tokens} if given.get("text_encoder") != "none" else {}
        settings = {**sizes, **shape, **encoder, **texts, **given}
        return backend.package.UR4Rec(settings.pop("num_items", split.num_items), **settings)

    return make


@pytest.fixture(scope="session")
def make_encoder_trainer(backend, make_encoder_model):
    """Builds trainers of them by a schedule; keyword arguments are settings of the trainer."""

    def make(schedule="all", *, model=None, **settings):
        text = f"sequence:(('{schedule}', 100),)" if schedule in TURNS else schedule
        rates = {"sasrec_lr": 1e-2, "retriever_lr": 1e-2, "text_encoder_lr": 1e-2}
        model = make_encoder_model() if model is None else model
        return backend.package.JointTrainer(
            model, **{"device": "cpu", "progress": False, "rule": parse_schedule(text).rule, **rates, **settings}
        )

    return make


@pytest.fixture(scope="session")
def loader(split):
    return TrainBatches(split.train, split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=16, seed=0)


@pytest.fixture(scope="session")
def targets(split):
    return EvaluationBatches(split.validation, split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=16)


@pytest.fixture(scope="session")
def batch_stream(loader):
    """Batches by a step's number, over as many epochs as it takes."""

    def stream(first, count):
        for step in range(first, first + count):
            yield loader.batch(step // len(loader), step % len(loader))

    return stream


@pytest.fixture(scope="module")
def make_run(backend):
    """Builds tiny runs in a directory; keyword arguments are settings of the run."""
    interactions = synthetic(num_users=50, num_items=24, num_clusters=4, mean_length=7)
    split = leave_one_out(interactions)
    vectors_IT = np.random.default_rng(0).normal(size=(split.num_items, 8)).astype(np.float32)

    def make(path, **settings):
        config = RunConfig(
            dataset="synthetic",
            backend=backend.name,
            device="cpu",
            batch_size=16,
            checkpoint_every=3,
            model={
                **{"max_seq_len": 5, "sasrec_hidden_dim": 8, "sasrec_num_heads": 1, "sasrec_num_blocks": 1},
                **{"text_embedding_dim": 8, "retriever_output_dim": 8, "retriever_num_queries": 2},
                **settings.pop("model", {}),
            },
            **{"schedule": "2:1", "epochs": {"pretrain_sasrec": 4, "joint_finetune": 3}, "eval_users": 30, **settings},
        )
        model = config.model_config(split.num_items)
        train = TrainBatches(split.train, split.num_items, max_seq_len=5, batch_size=16, seed=0)
        prepared = PreparedData(
            interactions=interactions,
            split=split,
            item_text_vectors_IT=vectors_IT,
            model=model,
            train=train,
            encoder=TextEncoder("tfidf", 8, {"neutral": vectors_IT[0]}),
        )
        return TrainingRun(config, prepared, RunDirectory(path), progress=False)

    return make


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than these runs."""
    for name in ("result_files.plot_schedule", "run.write_popularity"):
        monkeypatch.setattr(f"ur4rec.runs.{name}", lambda *given: None)


@pytest.fixture
def cheap_groups(monkeypatch):
    """Groups pay in batches as small as those of a test."""
    monkeypatch.setattr(length_groups, "CPU_COST", 16)


@pytest.fixture(scope="session")
def short_loader(split):
    """Batches of histories that are much shorter than a row, except for one."""
    draws = np.random.default_rng(0)
    lengths = np.append(2 + draws.geometric(0.3, 90), SHORT["max_seq_len"] + 1)
    sequences = Sequences.from_lists([draws.integers(0, split.num_items, length).tolist() for length in lengths])
    return TrainBatches(sequences, split.num_items, seed=0, **SHORT)


@pytest.fixture(scope="session")
def long_batch(split):
    """A batch of which every row is full."""
    shape = SHORT["batch_size"], SHORT["max_seq_len"] + 1
    window_BW = np.random.default_rng(1).integers(0, split.num_items, shape).astype(np.int32)
    return Batch(window_BW[:, :-1], window_BW[:, 1:], np.zeros(len(window_BW), np.int32))


@pytest.fixture
def make_short(make_trainer, make_model, short_loader):
    """Builds trainers for them in a stage, by default without dropout; keyword arguments are settings."""

    def make(stage, *, dropout=0.0, **settings):
        model = make_model(max_seq_len=SHORT["max_seq_len"], sasrec_dropout=dropout, retriever_dropout=dropout)
        trainer = make_trainer(model=model, item_counts=short_loader.item_counts, **settings)
        trainer.set_training_stage(stage, num_steps=12)
        return trainer

    return make

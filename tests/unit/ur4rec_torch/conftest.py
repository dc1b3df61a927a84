import numpy as np
import pytest
import torch

from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec_torch import JointTrainer, UR4Rec

MAX_SEQ_LEN = 8


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def split():
    return leave_one_out(synthetic(num_users=60, num_items=60, mean_length=12))


@pytest.fixture(scope="session")
def make_model(split):
    """Builds small models; keyword arguments are settings of the model."""

    def make(**settings):
        vectors_IT = np.random.default_rng(0).normal(size=(split.num_items, 12)).astype(np.float32)
        sizes = {"sasrec_hidden_dim": 16, "sasrec_num_heads": 2, "retriever_output_dim": 8, "retriever_num_queries": 3}
        settings = {"text_embedding_dim": 12, "max_seq_len": MAX_SEQ_LEN, "sasrec_dropout": 0.2, **sizes, **settings}
        return UR4Rec(split.num_items, vectors_IT, **settings)

    return make


@pytest.fixture(scope="session")
def make_trainer(make_model):
    """Builds trainers of small models; keyword arguments are settings of the trainer."""

    def make(*, model=None, fusion="logit", **settings):
        return JointTrainer(model or make_model(fusion=fusion), device="cpu", progress=False, **settings)

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

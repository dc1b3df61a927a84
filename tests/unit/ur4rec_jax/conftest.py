import jax
import numpy as np
import pytest

from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec_jax import JointTrainer, UR4Rec
from ur4rec_jax.weights import export_weights

MAX_SEQ_LEN = 8


@pytest.fixture(scope="session")
def split():
    return leave_one_out(synthetic(num_users=60, num_items=60, mean_length=12))


@pytest.fixture(scope="session")
def make_model(split):
    """Builds small models; keyword arguments are settings of the model."""

    def make(**settings):
        vectors_IT = np.random.default_rng(0).normal(size=(split.num_items, 12)).astype(np.float32)
        sizes = {"sasrec_hidden_dim": 16, "sasrec_num_heads": 2, "retriever_output_dim": 8, "retriever_num_queries": 2}
        settings = {"text_embedding_dim": 12, "max_seq_len": MAX_SEQ_LEN, "sasrec_dropout": 0.2, **sizes, **settings}
        return UR4Rec(split.num_items, vectors_IT, **{"sasrec_num_blocks": 1, **settings})

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


@pytest.fixture(scope="session")
def bits():
    """Everything of a part of a trainer's model: parameters, moments and step counts, by name."""

    def read(trainer, *parts):
        arrays = {}
        for part in parts or ("sasrec", "retriever", "fusion"):
            adam = trainer._state.optimizers.inner_states[part][0]
            arrays |= export_weights({part: trainer._state.params[part]})
            for key, tree in (("exp_avg", adam.mu), ("exp_avg_sq", adam.nu)):
                arrays |= {f"{name}/{key}": array for name, array in export_weights(tree).items()}
            arrays[f"{part}/step"] = np.asarray(adam.count)
        return jax.tree.map(np.copy, arrays)

    return read


@pytest.fixture(scope="session")
def same_bits():
    def compare(first, second):
        return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)

    return compare

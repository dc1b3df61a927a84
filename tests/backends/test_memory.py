"""Memory that runs out, for real: sizes that no machine has, and a limited process. The same words in both backends."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from ur4rec.data.batches import Batch
from ur4rec.errors import ConfigurationError, OutOfMemoryError
from ur4rec.training.memory import enough_memory

SMALL = {"text_embedding_dim": 1, "max_seq_len": 8, "sasrec_hidden_dim": 8, "sasrec_num_heads": 1}
NUM_ROWS = 2**16


def make_model(backend, **settings):
    return backend.package.UR4Rec(20, np.ones((20, 1)), **{**SMALL, "retriever_output_dim": 8, **settings})


def test_a_model_that_does_not_fit_says_its_sizes_and_what_to_lower(backend):
    sizes = "20 items, max_seq_len=8, sasrec_hidden_dim=8, retriever_output_dim=8388608, text_embedding_dim=1"
    message = f"there must be memory for a model of {sizes}, but 256 TiB was not to be had; lower a width"
    with pytest.raises(OutOfMemoryError, match=message):
        make_model(backend, retriever_output_dim=2**23)  # a layer of 2**46 weights


def test_what_64_bits_cannot_count_is_refused_before(backend):
    with pytest.raises(ConfigurationError, match=r"sasrec_hidden_dim must be at most 16777216, got 8589934592"):
        make_model(backend, sasrec_hidden_dim=2**33)


def test_a_batch_that_does_not_fit_says_its_size(backend, make_trainer):
    items_BL = np.broadcast_to(np.int32(3), (2**41, 8))  # one number, seen 2**44 times
    batch = Batch(items_BL, items_BL, np.broadcast_to(np.int32(0), 2**41))
    trainer = make_trainer()
    for work in (lambda: trainer.train_step(batch), lambda: trainer.train_epoch([batch])):
        with pytest.raises(OutOfMemoryError, match=r"step on 2199023255552 histories .* TiB .*; lower batch_size"):
            work()


def test_a_strategy_that_does_not_fit_is_refused(backend):
    with pytest.raises(OutOfMemoryError, match=r"the optimizers of a model of 20 items"):
        backend.package.JointTrainer(
            make_model(backend), device="cpu", use_memory_bank=True, memory_bank_size=2**44, progress=False
        )


def test_a_step_and_scores_in_a_process_with_too_little_memory(backend):
    program = f"import tests.backends.test_memory as test; test.run_out_of_memory({backend.package.__name__!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    scores, step = done.stdout.splitlines()
    assert scores.startswith("there must be memory for the scores of a batch of histories for every item, but ")
    assert "; lower the batch size of the evaluation" in scores
    assert step.startswith("there must be memory for a training step on ")  # JAX may find out after the step
    assert "histories with a model of 20 items" in step
    assert "; lower batch_size" in step


def run_out_of_memory(package_name):
    """Write what a step and scoring say after the process's memory was limited; in a process of its own."""
    package = __import__(package_name)
    model = package.UR4Rec(20, np.ones((20, 1)), retriever_output_dim=8, **SMALL)
    trainer = package.JointTrainer(model, device="cpu", progress=False)
    items_BL = np.full((NUM_ROWS, 8), 3, np.int32)
    batch = Batch(items_BL, items_BL, np.zeros(NUM_ROWS, np.int32))
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 150 * 2**20, resource.RLIM_INFINITY))
    for work in (lambda: trainer.score(np.full((NUM_ROWS * 16, 8), 3)), lambda: trainer.train_epoch([batch])):
        try:
            work()
        except OutOfMemoryError as error:
            sys.stdout.write(f"{error}\n")


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB", "2.5 GiB"),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3221225472 bytes.", "3 GiB"),
        ("std::bad_alloc: out of memory", "enough"),
    ],
)
def test_what_accelerators_say(message, size):
    expected = pytest.raises(OutOfMemoryError, match=f"for a list, but {size} was not to be had")
    with expected, enough_memory("a list", "its length"):
        raise RuntimeError(message)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), enough_memory("a list", "its length"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

"""JAX alone: donated arrays, devices, and logs of epochs on the device."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alternator import Cycle
from tests.backends.harness import train
from ur4rec.errors import ConfigurationError
from ur4rec_jax import count_threads


def test_models_from_outside_and_to_outside_are_not_consumed_by_training(make_model, make_trainer, batch_stream):
    model = make_model()
    trainer = make_trainer(model=model)
    train(trainer, batch_stream(0, 1))
    taken = jax.jit(trainer.model.score)
    scores_BI = taken(jnp.array([[1, 2]]))
    np.testing.assert_allclose(trainer.score([[1, 2]]), scores_BI, rtol=1e-5, atol=1e-5)
    train(trainer, batch_stream(1, 2))
    np.testing.assert_array_equal(taken(jnp.array([[1, 2]])), scores_BI)
    assert np.isfinite(model.sasrec.item_table()).all()
    assert not np.allclose(trainer.score([[1, 2]]), scores_BI, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_switch_is_logged_once(make_trainer, loader, caplog, on_device):
    trainer = make_trainer(rule=Cycle(2), on_device=on_device)
    with caplog.at_level(logging.INFO, logger="alternator"):
        trainer.train_epoch(loader)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"step {step}" for step in range(2, len(loader) + 1, 2)
    ]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("quantum", "device must be auto, cpu, cuda, cuda:N, gpu, gpu:N or tpu"),
        ("cpu:99", "must be one of this machine, got 'cpu:99', but JAX finds only"),
    ],
)
def test_a_device_that_is_not_there_is_refused(make_trainer, device, message):
    with pytest.raises(ConfigurationError, match=message):
        make_trainer(device=device)


def test_the_device_is_the_one_asked_for(make_trainer):
    trainer = make_trainer(device="cpu:0")
    assert trainer.device == jax.devices("cpu")[0]
    assert {device for leaf in jax.tree.leaves(trainer._state) for device in leaf.devices()} == {trainer.device}
    assert make_trainer(device=trainer.device).device == trainer.device


def test_the_number_of_threads_is_what_xla_goes_by(monkeypatch):
    names = ("PJRT_NPROC", "NPROC")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert count_threads() >= 1
    for number, name in enumerate(reversed(names), 3):
        monkeypatch.setenv(name, str(number))
        assert count_threads() == number  # PJRT_NPROC comes before NPROC


def test_compile_changes_nothing_and_says_so(make_trainer, caplog):
    assert make_trainer(compile=True).config.compile
    assert [record.getMessage() for record in caplog.records] == [
        "compile=True changes nothing in JAX, which compiles every step anyway"
    ]

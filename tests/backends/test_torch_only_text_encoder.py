"""PyTorch alone: a text encoder in bfloat16 and beside compiled modules, its chunks, snapshots of it, and layouts."""

import numpy as np
import pytest
import torch
from torch._dynamo import reset
from torch._dynamo.testing import CompileCounterWithBackend

from tests.backends.harness import snapshot, train
from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.errors import ConfigurationError
from ur4rec.training.mesh import Mesh
from ur4rec.training.shapes import CACHED, ENCODED_TEXTS
from ur4rec_torch import compiled, device, text_encoder
from ur4rec_torch.device import find_texts
from ur4rec_torch.layout import check_layout

CACHE = f"{ENCODED_TEXTS}/{CACHED}"


def test_bfloat16_reads_the_same_texts(make_encoder_trainer, batch_stream):
    found = []
    for bf16 in (False, True):
        trainer = make_encoder_trainer("all", bf16=bf16)
        train(trainer, batch_stream(0, 1))
        found.append(snapshot(trainer)[CACHE])
    assert not np.array_equal(*found)
    np.testing.assert_allclose(*found, atol=0.03)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is:DeprecationWarning")
def test_the_other_modules_may_be_compiled(make_encoder_trainer, batch_stream, targets, monkeypatch):
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "COMPILER", {"backend": counter})
    reset()
    found = []
    for settings in ({}, {"compile": True}):
        records = []
        trainer = make_encoder_trainer(
            "sequence:(('all', 2), ('both', 2))", on_step=records.append, loss_delay=0, **settings
        )
        train(trainer, batch_stream(0, 6))
        trainer.rank_all(targets)
        trainer.flush()
        found.append([record.losses["sasrec"] for record in records])
    reset()
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert counter.frame_count >= 2


@pytest.mark.parametrize("size", [3, 10, 1000])
def test_texts_are_read_in_chunks_of_about_one_length(make_encoder_model, tokens, monkeypatch, size):
    model = make_encoder_model()
    expected = model.item_texts()
    monkeypatch.setattr(text_encoder, "CPU_CHUNK", size)
    monkeypatch.setattr(device, "CPU_CHUNK", size)
    torch.testing.assert_close(model.text_encoder.encode_all(), expected)
    counts_I = (tokens != 0).sum(1)
    texts_E, chunks = find_texts([np.array([[3, 60], [8, 3]]), np.array([5, 60])], counts_I, torch.device("cpu"))
    assert sorted(texts_E.tolist()) == [3, 5, 8]
    assert sum(number for number, _ in chunks) == 3
    assert all(number * longest <= size or number == 1 for number, longest in chunks)
    with torch.no_grad():
        torch.testing.assert_close(model.text_encoder.encode_chunks(texts_E, chunks), expected[texts_E])
    texts_E, chunks = find_texts([np.array([60])], counts_I, torch.device("cpu"))
    assert model.text_encoder.encode_chunks(texts_E, chunks).shape == (0, 12)


@pytest.mark.parametrize("sizes", [{"data": 2}, {"items": 2}, {"data": 2, "items": 2}])
def test_layouts_of_several_processes_are_refused(sizes):
    model = ModelConfig(num_items=9, text_encoder="transformer")
    with pytest.raises(
        ConfigurationError, match="needs a model without a text encoder, got text_encoder='transformer'"
    ):
        check_layout(Mesh(**sizes), model, TrainerConfig(), shard=False)
    check_layout(Mesh(), model, TrainerConfig(), shard=True)

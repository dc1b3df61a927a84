"""What makes an accelerator's host wait: no training step does, and evaluation does at its end alone.

The operators of a step are watched on the CPU, and all of it runs on PyTorch's device without data, ``meta``: there
whatever reads a value, has a shape that depends on values, or mixes devices is an error.
"""

from contextlib import nullcontext
from itertools import chain

import numpy as np
import pytest
import torch
from torch.optim import optimizer as torch_optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.torch import LateScalar
from alternator import Cycle, Payoff
from ur4rec.data.batches import EvaluationBatches
from ur4rec_torch import strategies

STAGES = {"pretrain_sasrec": 2, "pretrain_retriever": 2, "joint_finetune": 5, "end_to_end": 2}
"""Steps in each stage: enough for both modules to train, and for the curriculum to take its course."""
STRATEGIES = {
    "use_curriculum_learning": True,
    "use_memory_bank": True,
    "memory_bank_size": 32,
    "use_knowledge_distillation": True,
    "use_uncertainty_weighting": True,
}
SEPARATE, SAMPLED = {"joint_loss": "separate"}, {"catalogue_loss": "sampled", "num_negatives": 8, "num_in_batch": 8}
SETTINGS = {
    "fused": {},
    "a mixture": {"fusion": "weighted"},
    "separate": SEPARATE,
    **{name: {**SEPARATE, "sasrec_loss": name} for name in ("sampled", "gbce", "bce", "bpr")},
    "bf16": {"bf16": True},
    "bank": {"use_memory_bank": True, "memory_bank_size": 32},
    "strategies": STRATEGIES,
    "separate strategies": {**SEPARATE, **STRATEGIES},
    "sampled catalogue": SAMPLED,
    "sampled catalogue, separate": {**SAMPLED, **SEPARATE},
    "sampled catalogue, strategies": {**SAMPLED, **STRATEGIES},
    "users": {"users": True},
}
READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_coalesce", "_unique2"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Waits(TorchDispatchMode):
    """Lists operators that wait for the device, but for reads of late losses, which have arrived by then."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found, self.num_late = [], 0
        self._is_late, read = False, LateScalar.read

        def read_late(late):
            self._is_late, before = True, len(self.found)
            try:
                return read(late)
            finally:
                self.num_late, self.found[before:] = self.num_late + len(self.found) - before, []

        monkeypatch.setattr(LateScalar, "read", read_late)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [each for each in args[1] if each is not None] if name in INDEXING else []
        if name in READS or any(each.dtype in (torch.bool, torch.uint8) for each in masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def make(make_model, make_trainer, split, loader):
    """Trainers in whose joint stage the turn changes after two steps."""

    def build(*, users=False, fusion="logit", **settings):
        texts_UT = np.random.default_rng(1).normal(size=(len(split.train), 12)) if users else None
        model = make_model(fusion=fusion, user_text_vectors=texts_UT)
        arguments = {"rule": Cycle(2), "item_counts": loader.item_counts, **settings}
        return make_trainer(model=model, **arguments)

    return build


@pytest.fixture
def train_all(batch_stream):
    """Takes a trainer through all stages."""

    def train(trainer):
        for stage, num_steps in STAGES.items():
            trainer.set_training_stage(stage, num_steps=num_steps)
            for batch in batch_stream(0, num_steps):
                trainer.train_step(batch)

    return train


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_no_step_reads_anything_but_late_losses(make, train_all, backend, monkeypatch, settings):
    monkeypatch.setattr(strategies.MemoryBank, "_filled", lambda bank: bank.size)  # as it looks at an accelerator's
    trainer = make(**settings)
    backend.act_like_an_accelerator(trainer)
    with Waits(monkeypatch) as waits:
        train_all(trainer)
    assert waits.found == []
    assert waits.num_late >= 2 * sum(STAGES.values()) - 2


def test_on_the_cpu_the_loss_of_each_step_is_read(make, batch_stream, monkeypatch):
    trainer = make()
    with Waits(monkeypatch) as waits:
        for batch in batch_stream(0, 3):
            trainer.train_step(batch)
    assert waits.found == ["_local_scalar_dense"] * 3


@pytest.mark.parametrize(
    "wait",
    [
        lambda values: values.sum().item(),
        lambda values: values[values > 1],
        lambda values: values.index_put((values > 1,), values.new_zeros(())),
        lambda values: bool((values > 1).any()),
        lambda values: torch.sparse_coo_tensor((values // 2)[None], values, check_invariants=False).coalesce(),
    ],
)
def test_what_waits_is_found(wait, monkeypatch):
    with Waits(monkeypatch) as waits:
        wait(torch.arange(4))
    assert waits.found


def test_ranking_waits_when_all_batches_are_ranked(make, targets, monkeypatch):
    trainer = make()
    found = []

    def watched():
        for batch in targets:
            yield batch
            found.append(len(waits.found))

    with Waits(monkeypatch) as waits:
        trainer.rank_all(watched())
    assert found == [0] * len(targets)


def test_a_payoff_rule_reads_when_it_measures_alone(make, backend, split, batch_stream, monkeypatch):
    probe = EvaluationBatches(split.validation, split.num_items, max_seq_len=8, batch_size=60).batch(0)
    trainer = make(rule=Payoff(min_steps=3, costs=(2.0, 1.0, 1.0)), probe=probe)
    backend.act_like_an_accelerator(trainer)
    measured, fuse = [], trainer._measuring._held_out._scores.fuse
    monkeypatch.setattr(trainer._measuring._held_out._scores, "fuse", lambda *given: measured.append(1) or fuse(*given))
    with Waits(monkeypatch) as waits:
        for batch in batch_stream(0, 7):
            trainer.train_step(batch)
    assert waits.found == []
    assert measured


class NoData:
    """In place of a copy of a scalar on its way to the host, where there is nothing to copy."""

    def __init__(self, value):
        assert value.device.type == "meta", f"a loss is on {value.device}"

    def read(self):
        return 0.5


@pytest.fixture
def without_data(monkeypatch):
    """Lets trainers train on ``meta``, which PyTorch has neither autocast nor fused optimizers for."""
    supported = torch_optimizer._get_fused_kernels_supported_devices
    monkeypatch.setattr(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: [*supported(), "meta"])
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    for place in ("adapters.torch.losses", "ur4rec_torch.trainer"):
        monkeypatch.setattr(f"{place}.LateScalar", NoData)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_all_runs_on_a_device_without_data(make, train_all, targets, without_data, settings):
    trainer = make(device="meta", **settings)
    train_all(trainer)
    tensors = chain(trainer.model.parameters(), trainer.model.buffers(), trainer._strategies.state_dict().values())
    moments = [each.values() for optimizer in trainer._optimizers.values() for each in optimizer.state.values()]
    assert len(moments) == len(list(trainer.model.parameters()))
    assert {each.device.type for each in chain(tensors, *moments)} == {"meta"}
    with trainer._scoring(("fused", "sasrec", "retriever")) as score:
        ranked = [found for batch in targets for found in score.rank(batch, trainer.num_items).values()]
    assert {each.device.type for pair in ranked for each in pair} == {"meta"}


def test_a_device_without_data_refuses_what_waits():
    values = torch.arange(4, device="meta")
    for wait in (
        lambda: values.sum().item(),
        lambda: values[values > 1],
        lambda: values.cpu(),
        lambda: values.unique(),
    ):
        with pytest.raises((NotImplementedError, RuntimeError)):
            wait()

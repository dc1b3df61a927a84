"""What a step must do, by formula, against PyTorch's count of what it does; and the rates that it is set against."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel

import ur4rec_torch
from ur4rec.data.batches import TrainBatches
from ur4rec.data.interactions import Sequences

CASES = {
    "pretrain_sasrec": ("sasrec", ("sasrec",)),
    "pretrain_retriever": ("retriever", ("retriever",)),
    "end_to_end": ("both", ("sasrec", "retriever")),
    "joint_finetune, sasrec": ("sasrec", ("sasrec", "retriever")),
    "joint_finetune, retriever": ("retriever", ("sasrec", "retriever")),
}
SHAPE = {"text_embedding_dim": 7, "sasrec_hidden_dim": 8, "retriever_output_dim": 12, "retriever_num_queries": 3}


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        names = ("work", "rates", "roofline", "steps_torch")
        yield SimpleNamespace(**{name: import_module(name) for name in names})


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    rows = [rng.integers(50, size=size).tolist() for size in (3, 9, 5, 9, 2, 7)]
    return TrainBatches(Sequences.from_lists(rows), 50, max_seq_len=8, batch_size=6, seed=0).batch(0, 0)


def make_trainer(stage, max_seq_len=8):
    model = ur4rec_torch.UR4Rec(50, np.ones((50, 7)), max_seq_len=max_seq_len, **SHAPE)
    trainer = ur4rec_torch.JointTrainer(model, device="cpu", progress=False, warmup=0.0, catalogue_loss="full")
    trainer.set_training_stage(stage.split(",")[0])
    if "," in stage:
        trainer._alternating.force(stage.split(", ")[1])
    return trainer


@pytest.mark.parametrize("case", CASES)
def test_the_formula_gives_the_products_that_pytorch_counts(benchmark, batch, case):
    trainer, (turn, run) = make_trainer(case), CASES[case]
    trained = ("sasrec", "retriever") if turn == "both" else (turn,)
    trainer.train_step(batch)  # a frozen retriever's catalogue is computed once
    with sdpa_kernel(SDPBackend.MATH):  # whose products PyTorch counts on every device
        counted = benchmark.steps_torch.count_torch(trainer, batch)
    shape = benchmark.work.Shape.padded(batch, 50, trainer.model.config)
    assert benchmark.work.step_work(shape, trained, run).flops == counted


def test_the_formula_knows_rows_that_are_grouped_by_length(benchmark):
    rng = np.random.default_rng(0)
    rows = [rng.integers(50, size=size).tolist() for size in [3] * 180 + [41] * 12]
    loader = TrainBatches(Sequences.from_lists(rows), 50, max_seq_len=40, batch_size=64, seed=0)
    trainer = make_trainer("end_to_end", max_seq_len=40)
    trainer.train_epoch(loader, 0, max_steps=1)
    groups = trainer.length_groups
    assert groups is not None
    with sdpa_kernel(SDPBackend.MATH), benchmark.steps_torch.flop_counter() as counted:
        trainer.train_epoch(loader, 0, max_steps=1)
    both = ("sasrec", "retriever")
    computed, padded = (
        benchmark.work.Shape.computed(loader.batch(0, 0), 50, trainer.model.config, each) for each in (groups, None)
    )
    assert benchmark.work.step_work(computed, both, both).flops == counted.get_total_flops()
    assert computed.positions < 0.7 * padded.positions


def test_what_is_needed_leaves_out_padding_and_pairs_with_what_comes_later(benchmark, batch):
    config = make_trainer("pretrain_sasrec").model.config
    padded, needed = (make(batch, 50, config) for make in (benchmark.work.Shape.padded, benchmark.work.Shape.needed))
    assert (padded.positions, padded.pairs) == (6 * 8, 6 * 64)
    assert needed.positions == needed.targets == 2 + 8 + 4 + 8 + 1 + 6
    assert needed.pairs == sum(size * (size + 1) // 2 for size in (2, 8, 4, 8, 1, 6))
    works = [benchmark.work.step_work(shape, ("sasrec",), ("sasrec",)) for shape in (padded, needed)]
    assert works[0].flops > works[1].flops
    assert works[0].bytes > works[1].bytes
    assert works[0].exponentials == works[1].exponentials == 29 * 50


def test_bytes_hold_every_trained_weight_and_frozen_modules_need_less(benchmark, batch):
    shape = benchmark.work.Shape.padded(batch, 50, make_trainer("pretrain_sasrec").model.config)
    both = ("sasrec", "retriever")
    all_trained, one, none = (benchmark.work.step_work(shape, trained, both) for trained in (both, ("sasrec",), ()))
    assert all_trained.bytes > one.bytes > none.bytes
    assert all_trained.flops > one.flops > none.flops
    weights = sum(each.numel() for each in make_trainer("pretrain_sasrec").model.sasrec.parameters())
    assert 0.8 * weights < shape.sasrec_weights < weights
    assert all_trained.bytes > 4 * 9 * shape.sasrec_weights


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_rates_are_measured(benchmark, backend):
    rates = benchmark.rates.torch_rates("cpu", "quick") if backend == "torch" else benchmark.rates.jax_rates("quick")
    assert min(rates.flops, rates.bytes, rates.exponentials) > 1e4
    seconds = benchmark.work.Work(flops=2 * rates.flops, bytes=rates.bytes).seconds(rates)
    assert seconds == pytest.approx({"products": 2.0, "memory": 1.0, "exponentials": 0.0})


def test_a_look_at_the_roofline_writes_its_table(benchmark, tmp_path):
    assert benchmark.roofline.main(["--quick", "--rounds", "2", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("roofline_*-quick_*.md")
    text = file.read_text()
    for backend in ("torch", "jax"):
        for case in ("pretrain_sasrec", "joint_finetune, sasrec", "joint_finetune, retriever", "end_to_end"):
            assert f"| {backend} | quick | {case} |" in text
    assert len(list(tmp_path.glob("roofline_*.json"))) == 1
    assert next(tmp_path.glob("roofline_*.png")).read_bytes().startswith(b"\x89PNG")

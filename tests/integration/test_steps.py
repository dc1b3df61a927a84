"""The benchmark of training steps: its ideal step does the work of the trainer's step, and no more."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import ur4rec_jax
import ur4rec_torch

TINY = {"num_users": 16, "num_items": 60, "mean_length": 10, "batch_size": 8, "max_seq_len": 6}
TINY |= {"sasrec_hidden_dim": 8, "sasrec_num_heads": 2, "retriever_output_dim": 8}
NO_DROPOUT = {"sasrec_dropout": 0.0, "retriever_dropout": 0.0}


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        names = ("steps", "steps_torch", "steps_jax", "overhead_jax")
        yield SimpleNamespace(**{name: import_module(name) for name in names})


@pytest.fixture
def setting(benchmark):
    return benchmark.overhead_jax.Setting(**TINY, **NO_DROPOUT)


def trained(setting, *steps):
    for index in range(3):
        for step in steps:
            step(setting.loader.batch(0, index % 2))


def is_unseen(name):
    """The bias of keys, which softmax does not see: its gradient is rounding alone."""
    return "key" in name and "bias" in name


def test_the_ideal_step_trains_as_the_trainer_does(benchmark, setting):
    cases = [*benchmark.steps.plain_cases(), *benchmark.steps.strategy_cases()]
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        if "loss" in case.strategy:  # which draws its own negatives
            continue
        trainer = benchmark.steps.build_trainer(setting, ur4rec_torch, case)
        ideal = benchmark.steps_torch.TorchByHand(setting, case)
        trained(setting, trainer.train_step, ideal.step)
        found = ideal.model.state_dict()
        for name, expected in trainer.model.state_dict().items():
            if not is_unseen(name):
                torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5, msg=f"{case.name}: {name}")


def test_the_ideal_step_in_jax_trains_as_the_trainer_does(benchmark, setting):
    case = next(
        case for case in benchmark.steps.strategy_cases() if case.name.endswith("retriever, fused, all strategies")
    )
    trainer = benchmark.steps.build_trainer(setting, ur4rec_jax, case)
    ideal = benchmark.steps_jax.JaxByHand(setting, case)
    trained(setting, trainer.train_step, ideal.step)
    params = nnx.to_pure_dict(nnx.state(trainer.model, nnx.Param))
    for part, leaves in ideal.trained.items():
        pairs = zip(jax.tree.leaves_with_path(leaves), jax.tree.leaves(params[part]), strict=True)
        for (path, found), expected in pairs:
            if not is_unseen(jax.tree_util.keystr(path)):
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=str(path))


def test_flops_tell_what_is_frozen(benchmark, setting):
    cases = {case.name: case for case in benchmark.steps.plain_cases()}
    counts = {}
    for name in ("pretrain_sasrec", "joint_finetune, sasrec, fused", "end_to_end, fused"):
        trainer = benchmark.steps.build_trainer(setting, ur4rec_torch, cases[name])
        trained(setting, trainer.train_step)
        ideal = benchmark.steps_torch.TorchByHand(setting, cases[name])
        counts[name] = [
            benchmark.steps_torch.count_torch(each, setting.loader.batch(0, 0)) for each in (trainer, ideal)
        ]
    assert all(ours == theirs for ours, theirs in counts.values())
    ordered = [ours for ours, _ in counts.values()]
    assert ordered == sorted(ordered)
    assert len(set(ordered)) == 3


def test_a_row_names_its_case_and_counts_flops_as_a_row_of_its_own(benchmark, setting):
    case = benchmark.steps.plain_cases()[0]
    row = benchmark.steps.step_row(setting, "torch", case, rounds=2)
    assert row.name == "torch: pretrain_sasrec"
    assert row.megaflops == row.ideal_megaflops > 0
    flops = benchmark.steps.flop_row(row)
    assert flops.value == 1.0
    assert flops.passes

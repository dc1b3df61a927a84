"""What does scheduling cost in JAX?  `python benchmarks/overhead_jax.py` writes a JSON result, a table and a plot.

Measured as in `overhead.py`: what is compared takes turns within one process, and CPU times are compared. XLA computes
with one thread, as PyTorch does here.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
import torch
from flax import nnx
from overhead import RESULTS, SEED, Row, machine, save, side_by_side

import ur4rec_jax
import ur4rec_torch
from alternator import Plateau
from ur4rec.config import TrainerConfig
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import TrainBatches
from ur4rec.schedule.stages import MODULES
from ur4rec_jax import catalogue_loss
from ur4rec_jax.compiled import functions_of, split_model
from ur4rec_jax.device import to_inputs
from ur4rec_jax.epoch import Epoch, EpochLog, EpochState, StepInput, stack_inputs
from ur4rec_jax.losses import separate_loss
from ur4rec_jax.precision import compiled

TENURE = 5
ALWAYS_PLATEAU = Plateau(threshold=1e9, min_steps=TENURE, window=3)
"""Computes the original rule in full and always finds a plateau: tenures of a fixed length."""


class Setting:
    """A model, batches of one epoch, and trainers of either backend for them."""

    def __init__(self, *, num_users: int, num_items: int, mean_length: int, batch_size: int, **model: Any) -> None:
        interactions = synthetic(num_users=num_users, num_items=num_items, mean_length=mean_length, seed=SEED)
        self.split = leave_one_out(interactions)
        self.texts_IT = np.random.default_rng(SEED).normal(size=(self.split.num_items, 64)).astype(np.float32)
        self.model = {"text_embedding_dim": 64, **model}
        self.loader = TrainBatches(
            self.split.train,
            self.split.num_items,
            max_seq_len=model["max_seq_len"],
            batch_size=batch_size,
            seed=SEED,
        )

    def trainer(self, package: Any, **settings: Any) -> Any:
        """A trainer of a backend."""
        model = package.UR4Rec(self.split.num_items, self.texts_IT, **self.model)
        return package.JointTrainer(model, device="cpu", progress=False, **settings)


class FixedEpoch(Epoch):
    """An epoch on the device whose schedule is the step's number: there is no machine."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._turns = MODULES

    def _one(self, buffers: Any, key: jax.Array, state: EpochState, given: StepInput) -> tuple[EpochState, EpochLog]:
        return self._switch((given.step // TENURE) % len(MODULES), buffers, key, state, given)


def epoch_rows(rounds: int, setting: Setting) -> Iterator[Row]:
    """An epoch in one scan with the schedule on the device, against a fixed schedule, and against a Python loop."""
    calls = len(setting.loader)
    on_device, on_host = (setting.trainer(ur4rec_jax, rule=ALWAYS_PLATEAU, on_device=each) for each in (True, False))
    machined, fixed = scan(setting, on_device, Epoch), scan(setting, on_device, FixedEpoch)
    name, against = "epoch in one scan, Plateau on the device", "fixed schedule in the scan"
    yield side_by_side(name, against, machined, fixed, rounds=rounds, calls=calls, bar=1.02)
    name = "fixed schedule again: the error of this measurement"
    yield side_by_side(name, against, fixed, fixed, rounds=rounds, calls=calls, bar=None)

    def epoch(trainer: Any) -> None:
        trainer.train_epoch(setting.loader)

    name, against = "JointTrainer(on_device=True), an epoch", "the same, a Python loop of steps"
    yield side_by_side(
        name, against, partial(epoch, on_device), partial(epoch, on_host), rounds=rounds, calls=calls, bar=None
    )


def scan(setting: Setting, trainer: Any, kind: type[Epoch]) -> Callable[[], None]:
    """An epoch of steps on the device, from the same weights, batches and schedule whenever it is called."""
    functions, machine_or_none = trainer._functions, trainer._epoch()._machine if kind is Epoch else None
    run = kind(functions.steps[True], machine_or_none or "sasrec", functions.project)._run
    batches = list(setting.loader)
    rates, no_curriculum = [trainer._learning_rates(0)] * len(batches), [None] * len(batches)
    inputs_S = jax.device_put(
        stack_inputs(batches, setting.split.num_items, setting.loader.usual_targets, 0, rates, no_curriculum)
    )
    begin = None if machine_or_none is None else machine_or_none.init()
    catalogue = functions.project(trainer._state.params, trainer._buffers)

    def once() -> None:
        state = jax.tree.map(jax.numpy.copy, EpochState(trainer._state, begin, catalogue, jax.numpy.array(False)))
        jax.block_until_ready(run(state, trainer._buffers, trainer._key, inputs_S))

    return once


def retriever_rows(rounds: int, setting: Setting) -> Iterator[Row]:
    """A step of `JointTrainer` in which the retriever alone trains, against the same step by hand."""
    trainer = setting.trainer(ur4rec_jax, warmup=0.0)
    trainer.set_training_stage("pretrain_retriever")
    batches = [setting.loader.batch(0, index) for index in range(2)]
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.01))

    def step(
        retriever: Any, opt_state: Any, rest: Any, buffers: Any, inputs: Any, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        def loss(retriever: Any) -> jax.Array:
            whole = nnx.merge(trainer._graphdef, {**rest, "retriever": retriever}, buffers)
            rngs = nnx.Rngs(dropout=key)
            return separate_loss(whole, trainer.config, inputs, ("retriever",), whole.retriever.catalogue(), rngs).total

        value, gradients = jax.value_and_grad(loss)(retriever)
        updates, opt_state = optimizer.update(gradients, opt_state, retriever)
        return optax.apply_updates(retriever, updates), opt_state, value

    by_hand = compiled(step, donate_argnums=(0, 1))
    start = trainer.model
    graphdef, params, buffers = split_model(start)
    rest = {name: part for name, part in params.items() if name != "retriever"}
    state = [params["retriever"], optimizer.init(params["retriever"])]
    key = jax.random.key(SEED)

    def hand() -> None:
        for index, batch in enumerate(batches):
            inputs = to_inputs(batch, setting.split.num_items)
            *state[:], value = by_hand(*state, rest, buffers, inputs, jax.random.fold_in(key, index))
            float(value)

    def trained() -> None:
        for batch in batches:
            trainer.train_step(batch)

    name, against = "JointTrainer, a step of the retriever alone", "the same step by hand"
    yield side_by_side(name, against, trained, hand, rounds=rounds, calls=len(batches), bar=1.1)
    inputs = to_inputs(batches[0], setting.split.num_items)
    hand_flops = count_flops(by_hand, *state, rest, buffers, inputs, key)
    ours = functions_of(graphdef, TrainerConfig()).compiled_steps[False]
    rates = {name: np.float32(rate) for name, rate in trainer._learning_rates(0).items()}
    arguments = (trainer._state, trainer._buffers, None, inputs, trainer._key, np.int32(0), rates)
    flops = count_flops(ours, *arguments, turn="retriever")
    ratio = flops / hand_flops
    detail = f"{flops:.4g} against {hand_flops:.4g}"
    name = "the same, floating-point operations by XLA's count"
    yield Row(name=name, against=against, value=ratio, low=ratio, high=ratio, unit="×", bar=1.05, detail=detail)


def count_flops(function: Callable[..., Any], *arguments: Any, **static: Any) -> float:
    """Floating-point operations of what `compiled` gave, by XLA's count.

    XLA counts the body of a loop once, so the catalogue's loss is computed in one slice here.
    """
    recompiled = jax.jit(lambda *arguments: function.__wrapped__(*arguments, **static))
    with mock.patch.multiple(catalogue_loss, CPU_SLICE=sys.maxsize, ACCELERATOR_SLICE=sys.maxsize):
        return float(recompiled.lower(*arguments).compile().cost_analysis()["flops"])


def backend_rows(rounds: int, setting: Setting) -> Iterator[Row]:
    """A step in JAX against the same step in PyTorch, one thread each."""
    batches = [setting.loader.batch(0, index) for index in range(4)]
    trainers = {package: setting.trainer(package, rule=Plateau()) for package in (ur4rec_jax, ur4rec_torch)}

    def steps(package: Any) -> None:
        for batch in batches:
            trainers[package].train_step(batch)

    for stage in ("pretrain_sasrec", "pretrain_retriever", "joint_finetune", "end_to_end"):
        for trainer in trainers.values():
            trainer.set_training_stage(stage)
        ours, theirs = (partial(steps, package) for package in trainers)
        if stage == "joint_finetune":  # the two may be in different tenures, so a tenure of each is one round
            ours, theirs = (partial(both_tenures, trainers[package], batches) for package in trainers)
        name, calls = f"JAX, a step of {stage}", len(batches)
        yield side_by_side(name, "PyTorch", ours, theirs, rounds=rounds, calls=calls, bar=None)


def both_tenures(trainer: Any, batches: list[Any]) -> None:
    """As many steps of one module as of the other."""
    for turn in MODULES:
        force = trainer._alternating.force if hasattr(trainer._alternating, "force") else trainer.alternator.force
        force(turn)
        for batch in batches[: len(batches) // 2]:
            trainer.train_step(batch)


SMALL = {"sasrec_hidden_dim": 32, "sasrec_num_heads": 2, "retriever_output_dim": 32, "max_seq_len": 20}
DEMO = {"sasrec_hidden_dim": 64, "sasrec_num_heads": 2, "retriever_output_dim": 64, "max_seq_len": 50}


def rows(*, quick: bool) -> list[Row]:
    """All rows."""
    if quick:
        setting = Setting(num_users=64, num_items=60, mean_length=12, batch_size=16, **{**SMALL, "max_seq_len": 8})
        return [*epoch_rows(2, setting), *retriever_rows(2, setting), *backend_rows(2, setting)]
    small = Setting(num_users=600, num_items=300, mean_length=24, batch_size=32, **SMALL)
    demo = Setting(num_users=943, num_items=1682, mean_length=106, batch_size=64, retriever_num_queries=2, **DEMO)
    return [*epoch_rows(40, small), *retriever_rows(40, small), *backend_rows(10, demo)]


def main(arguments: list[str] | None = None) -> int:
    """Measure, save, and fail if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for a look; figures are rough, no bar is judged")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measured = rows(quick=options.quick)
    if options.quick:
        measured = [dataclasses.replace(row, bar=None) for row in measured]  # too few rounds to judge by
    hardware = f"cpu{os.cpu_count()}" + ("-quick" if options.quick else "")
    command = "python benchmarks/overhead_jax.py" + (" --quick" if options.quick else "")
    about = machine()
    about["torch"] = f"{about['torch']}, jax {jax.__version__}"
    question = "What does scheduling cost in JAX?"
    file = save(measured, options.out, hardware, command, theme="overhead_jax", question=question, about=about)
    print(file.with_suffix(".md").read_text())
    missed = [row.name for row in measured if not row.passes]
    kept = "no bar is judged" if options.quick else "every bar is kept"
    print(f"bars missed: {', '.join(missed)}" if missed else kept)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

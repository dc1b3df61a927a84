"""Trains one model on several meshes of host devices, and writes what it finds as JSON; see test_jax_only_mesh.py.

XLA takes the number of host devices when it starts, so this runs in a process of its own, or in one of several.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

import ur4rec_jax.device
from alternator import Cycle, Patience, Payoff, Trial
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec.training.slices import MIN_MEMORY
from ur4rec_jax import JointTrainer, UR4Rec, load_model, start_processes

LENGTH, BATCH = 6, 10  # rows that neither 4 nor 8 parts divide
SPLIT = leave_one_out(synthetic(num_users=60, num_items=53, seed=1))
LOADER = TrainBatches(SPLIT.train, SPLIT.num_items, max_seq_len=LENGTH, batch_size=BATCH, seed=0)
TARGETS = EvaluationBatches(SPLIT.validation, SPLIT.num_items, max_seq_len=LENGTH, batch_size=BATCH)
TEXTS = np.random.default_rng(0).normal(size=(SPLIT.num_items, 5)).astype(np.float32)
EPOCHS = -(-200 // len(LOADER))
MESHES = {"one": (1, None), "data=4": (4, "data=4"), "data=4,items=2": (8, "data=4,items=2"), "items=8": (8, "items=8")}
HISTORY = [[1, 2, 3]]
MOVE = re.compile(r" = (.*?) (all-gather|all-to-all|collective-permute)(?:-start)?\(")
CASES: dict[str, dict[str, Any]] = {
    "sampled, with strategies": {
        **{"joint_loss": "separate", "catalogue_loss": "sampled", "item_counts": LOADER.item_counts},
        **{"num_negatives": 6, "num_in_batch": 4, "use_memory_bank": True, "memory_bank_size": 16},
        **{"use_knowledge_distillation": True, "use_uncertainty_weighting": True, "on_device": True},
        **{"ema_decay": 0.9, "fusion_fit": "held_out", "fusion_popularity": True},
    },
    "payoffs, weighted fusion": {
        **{"joint_loss": "separate", "sasrec_loss": "bpr", "fusion": "weighted"},
        **{"rule": Payoff(costs=(1.0, 0.6, 0.5), groups=3), "probe": next(iter(TARGETS))},
    },
    "trials, with popularity": {
        **{"joint_loss": "separate", "fusion_fit": "held_out", "fusion_popularity": True},
        **{
            "rule": Trial(candidates=((0,), (1, 2, 2)), steps=3, start=3, hold=12, halvings=9, groups=3),
            "probe": next(iter(TARGETS)),
        },
        **{"use_memory_bank": True, "memory_bank_size": 16, "ema_decay": 0.9},
        **{"label_smoothing": 0.1, "sasrec_block": "ligr"},
    },
}


def make(mesh: str, **settings: Any) -> tuple[JointTrainer, list[Any]]:
    """A trainer on a mesh, and the list of its records."""
    records: list[Any] = []
    num_devices, layout = {**MESHES, "all": (None, "data=2,items=2")}[mesh]
    ur4rec_jax.device.find_devices = lambda kind: jax.devices()[:num_devices]
    model = UR4Rec(
        *(SPLIT.num_items, TEXTS),
        text_embedding_dim=5,
        sasrec_hidden_dim=8,
        sasrec_num_heads=1,
        sasrec_num_blocks=1,
        retriever_output_dim=4,
        retriever_num_queries=2,
        max_seq_len=LENGTH,
        item_counts=LOADER.item_counts,
        **{name: settings.pop(name) for name in ("fusion", "fusion_popularity", "sasrec_block") if name in settings},
    )
    settings = {"rule": Patience(patience=4), "progress": False, **settings}
    trainer = JointTrainer(model, device="cpu", mesh=layout, on_step=records.append, **settings)
    trainer.set_training_stage("joint_finetune", num_steps=EPOCHS * len(LOADER))
    return trainer, records


def found(trainer: JointTrainer, records: list[Any], *, ranks: bool = True) -> dict[str, Any]:
    """What a run is compared by."""
    trainer.flush()
    return {
        "losses": [max(record.losses.values()) for record in records],
        "decisions": [[record.active, record.next, record.reason] for record in records],
        "ranks": trainer.rank(TARGETS).tolist() if ranks else [],
    }


def best(trainer: JointTrainer) -> dict[str, Any]:
    """Its best items and scores."""
    tops = [top.items_Bk for top in trainer.top(SPLIT.validation.histories, 3)]
    return {"top": np.concatenate(tops).tolist(), "scores": trainer.score(HISTORY).tolist()}


def frozen_bits(trainer: JointTrainer, module: str) -> list[bytes]:
    """The bits of a module's parameters and moments on each device."""
    inner = trainer._state.optimizers.inner_states[module]
    leaves = jax.tree.leaves((trainer._state.params[module], inner))
    return [bytes(np.asarray(shard.data)) for leaf in leaves for shard in leaf.addressable_shards]


def large_moves(text: str) -> list[str]:
    """What a program moves between devices that is as large as an item table, other than sums."""
    moves = []
    for line in text.splitlines():
        if (move := MOVE.search(line)) is not None:
            shapes = re.findall(r"\[([\d,]*)\]", move[1])
            sizes = [int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes]
            moves += [line.strip()[:200]] if max(sizes) >= SPLIT.num_items * 4 else []
    return moves


def watched(function: Callable[..., Any], moves: list[str], sums: list[int]) -> Callable[..., Any]:
    """The function, compiled ahead so that its program can be read."""
    programs: dict[str, Any] = {}

    def call(*arguments: Any, **static: Any) -> Any:
        if (key := str(static)) not in programs:
            programs[key] = function.lower(*arguments, **static).compile()  # type: ignore[attr-defined]
            text = programs[key].as_text()
            moves.extend(large_moves(text))
            sums.append(text.count(" all-reduce"))
        return programs[key](*arguments)

    return call


def train(mesh: str, folder: Path) -> dict[str, Any]:
    """Epochs in one call of the devices each, saved in the middle of the run."""
    trainer, records = make(mesh, on_device=True, ema_decay=0.9)
    moves: list[str] = []
    sums: list[int] = []
    epoch_of_stage = trainer._epoch()
    epoch_of_stage._run = watched(epoch_of_stage._run, moves, sums)
    for epoch in range(EPOCHS):
        trainer.train_epoch(LOADER, epoch)
        if epoch == EPOCHS // 2:
            trainer.save_checkpoint(folder / mesh)
    return {**found(trainer, records), "moves": moves, "sums": sums}


def resume(saved: str, mesh: str, folder: Path) -> dict[str, Any]:
    """The second half of a run on another mesh."""
    trainer, records = make(mesh, on_device=True, ema_decay=0.9)
    trainer.load_checkpoint(folder / saved)
    for epoch in range(EPOCHS // 2 + 1, EPOCHS):
        trainer.train_epoch(LOADER, epoch)
    return found(trainer, records)


def step_by_step(mesh: str, folder: Path) -> dict[str, Any]:
    """The first steps from the host, with what is frozen watched on every device, and what comes of the model."""
    trainer, records = make(mesh)
    moves: list[str] = []
    sums: list[int] = []
    steps = trainer._functions.compiled_steps
    steps[True] = watched(steps[True], moves, sums)
    moved = []
    for batch in (LOADER.batch(0, index) for index in range(len(LOADER))):
        frozen = "retriever" if trainer.alternator.active == "sasrec" else "sasrec"
        before = frozen_bits(trainer, frozen)
        trainer.train_step(batch)
        moved.append(frozen_bits(trainer, frozen) != before)
    trainer.save_checkpoint(folder / f"steps {mesh}")
    models = (trainer.model, load_model(folder / f"steps {mesh}"))
    return {
        **found(trainer, records, ranks=False),
        **best(trainer),
        "frozen_moved": moved,
        "moves": moves,
        "sums": sums,
        "elsewhere": [np.asarray(model.score(np.array(HISTORY))).tolist() for model in models],
    }


def case(name: str, mesh: str) -> dict[str, Any]:
    """A few steps with other settings."""
    settings = {"rule": Cycle(2), **CASES[name]}
    measures, fits = "probe" in settings, "fusion_popularity" in settings
    trainer, records = make(mesh, **settings)
    trainer.memory = MIN_MEMORY
    if fits:
        trainer.set_fusion_weights((1, 0.5, 2))
    trainer.train_epoch(LOADER, max_steps=8)
    return {
        **found(trainer, records, ranks=measures),
        **(best(trainer) if measures else {"top": [], "scores": []}),
        "fusion": trainer.fit_fusion(TARGETS) if fits else [],
    }


def shapes(checkpoint: Path) -> list[Any]:
    """The names and shapes of the arrays of a checkpoint."""
    files = (load_file(checkpoint / name) for name in ("model.safetensors", "optimizer.safetensors"))
    return sorted([name, list(array.shape)] for arrays in files for name, array in arrays.items())


def on_meshes(folder: Path) -> dict[str, Any]:
    """What one process with 8 devices finds."""
    return {
        "runs": {mesh: train(mesh, folder) for mesh in MESHES},
        "saved": {mesh: shapes(folder / mesh) for mesh in MESHES},
        "resumed": {"data=4": resume("data=4,items=2", "data=4", folder), "one": resume("items=8", "one", folder)},
        "steps": step_by_step("data=4,items=2", folder),
        "cases": {name: {mesh: case(name, mesh) for mesh in ("one", "data=4,items=2")} for name in CASES},
    }


def together(folder: Path) -> dict[str, Any]:
    """What a process finds that trains with others on all their devices."""
    with start_processes("cpu") as processes:
        trainer, records = make("all", on_device=True, ema_decay=0.9)
        trainer.train_epoch(LOADER, 0)
        trainer.save_checkpoint(folder / f"of {processes.rank}")
        gathered = [array.tolist() for array in processes.gather(np.arange(processes.rank + 1))]
        where = [processes.rank, processes.count, processes.any(processes.rank == 1), gathered]
        return {**found(trainer, records), "processes": where}


if __name__ == "__main__":
    folder, name = Path(sys.argv[1]), sys.argv[2]
    (folder / name).write_text(json.dumps(together(folder) if name.startswith("rank") else on_meshes(folder)))

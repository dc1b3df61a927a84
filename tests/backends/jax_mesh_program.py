"""Trains one model on several meshes of host devices and prints what it finds as JSON; see test_jax_only_mesh.py.

XLA takes the number of host devices when it starts, so this runs in a process of its own.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import ur4rec_jax.trainer
from alternator import Cycle, Patience, Payoff
from safetensors.numpy import load_file
from ur4rec.data import leave_one_out, synthetic
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec.training.slices import MIN_MEMORY
from ur4rec_jax import JointTrainer, UR4Rec, load_model
from ur4rec_jax.layout import to_host

LENGTH, BATCH = 6, 10  # rows that neither 4 nor 8 parts divide
SPLIT = leave_one_out(synthetic(num_users=60, num_items=53, seed=1))
LOADER = TrainBatches(SPLIT.train, SPLIT.num_items, max_seq_len=LENGTH, batch_size=BATCH, seed=0)
TARGETS = EvaluationBatches(SPLIT.validation, SPLIT.num_items, max_seq_len=LENGTH, batch_size=BATCH)
TEXTS = np.random.default_rng(0).normal(size=(SPLIT.num_items, 5)).astype(np.float32)
EPOCHS = -(-200 // len(LOADER))
MESHES = {"one": (1, None), "data=4": (4, "data=4"), "data=4,items=2": (8, "data=4,items=2"), "items=8": (8, "items=8")}
LARGE = re.compile(r" = (.*?) (all-gather|all-to-all|collective-permute)(?:-start)?\(")
STRATEGIES = {"use_memory_bank": True, "memory_bank_size": 16, "use_knowledge_distillation": True}
CASES: dict[str, dict[str, Any]] = {
    "strategies": {"joint_loss": "separate", "sasrec_loss": "bpr", "use_uncertainty_weighting": True, **STRATEGIES},
    "sampled": {"catalogue_loss": "sampled", "num_negatives": 6, "num_in_batch": 4, "item_counts": LOADER.item_counts},
    "weighted": {"fusion": "weighted", "rule": Payoff(costs=(1.0, 0.6, 0.5), groups=4)},
}


def make(mesh: str, **settings: Any) -> tuple[JointTrainer, list[Any]]:
    """A trainer on a mesh, and the list of its records."""
    records: list[Any] = []
    num_devices, layout = MESHES[mesh]
    ur4rec_jax.trainer.find_devices = lambda kind: jax.devices()[:num_devices]  # type: ignore[attr-defined]
    fusion = settings.pop("fusion", "logit")
    model = UR4Rec(
        *(SPLIT.num_items, TEXTS),
        text_embedding_dim=5,
        sasrec_hidden_dim=4,
        sasrec_num_heads=1,
        sasrec_num_blocks=1,
        retriever_output_dim=4,
        retriever_num_queries=2,
        max_seq_len=LENGTH,
        fusion=fusion,
    )
    settings = {"rule": Patience(patience=4), "progress": False, **settings}
    trainer = JointTrainer(model, device="cpu", mesh=layout, on_step=records.append, **settings)
    trainer.set_training_stage("joint_finetune", num_steps=EPOCHS * len(LOADER))
    return trainer, records


def found(trainer: JointTrainer, records: list[Any]) -> dict[str, Any]:
    """What a run is compared by."""
    trainer.flush()
    best = [top.items_Bk for top in trainer.top(SPLIT.validation.histories, 3)]
    return {
        "losses": [[record.losses[name] for name in sorted(record.losses)] for record in records],
        "decisions": [[record.active, record.next, record.reason] for record in records],
        "metrics": trainer.evaluate(TARGETS, k_list=[5, 10]),
        "ranks": trainer.rank(TARGETS).tolist(),
        "top": np.concatenate(best).tolist(),
        "scores": trainer.score([[1, 2, 3]]).tolist(),
    }


def frozen_bits(trainer: JointTrainer, module: str) -> list[bytes]:
    """The bits of a module's parameters and moments on each device."""
    inner = trainer._state.optimizers.inner_states[module]
    leaves = jax.tree.leaves((trainer._state.params[module], inner))
    return [bytes(np.asarray(shard.data)) for leaf in leaves for shard in leaf.addressable_shards]


def large_moves(compiled: Callable[..., Any], *arguments: Any, **options: Any) -> list[str]:
    """What moves at least as much as an item table between devices, other than sums."""
    text = compiled.lower(*arguments, **options).compile().as_text()  # type: ignore[attr-defined]
    moves = []
    for line in text.splitlines():
        if (move := LARGE.search(line)) is not None:
            shapes = re.findall(r"\[([\d,]*)\]", move[1])
            sizes = (int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes)
            moves += [line.strip()[:200]] if max(sizes) >= SPLIT.num_items * 4 else []
    return moves


def watch(trainer: JointTrainer, moves: list[str]) -> None:
    """Collect the large moves of the programs of a trainer's epochs when they run."""
    epoch = trainer._epoch()
    run = epoch._run

    def watched(*arguments: Any) -> Any:
        moves.extend(large_moves(run, *arguments))
        epoch._run = run
        return run(*arguments)

    epoch._run = watched


def train(mesh: str, folder: Path) -> dict[str, Any]:
    """Epochs in one call of the devices each; the run of one mesh is saved in its middle."""
    trainer, records = make(mesh, on_device=True)
    moves: list[str] = []
    watch(trainer, moves)
    for epoch in range(EPOCHS):
        trainer.train_epoch(LOADER, epoch)
        if epoch == EPOCHS // 2:
            trainer.save_checkpoint(folder / mesh)
    return {**found(trainer, records), "moves": moves}


def resume(saved: str, mesh: str, folder: Path) -> dict[str, Any]:
    """The second half of a run on another mesh."""
    trainer, records = make(mesh, on_device=True)
    trainer.load_checkpoint(folder / saved)
    for epoch in range(EPOCHS // 2 + 1, EPOCHS):
        trainer.train_epoch(LOADER, epoch)
    return found(trainer, records)


def step_by_step(mesh: str, folder: Path) -> dict[str, Any]:
    """Steps from the host, with what is frozen watched on every device."""
    trainer, records = make(mesh, rule=Cycle(2))
    moved, moves = [], []
    for batch in (LOADER.batch(0, index) for index in range(6)):
        frozen = "retriever" if trainer.alternator.active == "sasrec" else "sasrec"
        before = frozen_bits(trainer, frozen)
        trainer.train_step(batch)
        moved.append(frozen_bits(trainer, frozen) != before)
    step = trainer._functions.compiled_steps[True]
    for turn in ("sasrec", "retriever"):
        moves += large_moves(step, *step_arguments(trainer), turn=turn, distils=False)
    model = trainer.model
    alone = np.asarray(model.score(np.array([[1, 2, 3]])))
    trainer.save_checkpoint(folder / f"steps {mesh}")
    loaded = load_model(folder / f"steps {mesh}")
    return {
        **found(trainer, records),
        "frozen_moved": moved,
        "moves": moves,
        "alone": alone.tolist(),
        "loaded": np.asarray(loaded.score(np.array([[1, 2, 3]]))).tolist(),
        "shapes": sorted((name, array.shape) for name, array in load_file(folder / f"steps {mesh}" / "model.safetensors").items()),
    }


def step_arguments(trainer: JointTrainer) -> tuple[Any, ...]:
    """Those of a compiled step."""
    got: list[Any] = []
    steps = trainer._functions.compiled_steps
    real = steps[True]

    def spy(*arguments: Any, **options: Any) -> Any:
        got.append(jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, arguments))
        return real(*arguments, **options)

    steps[True] = spy
    trainer.train_step(LOADER.batch(1, 0))
    steps[True] = real
    arguments: tuple[Any, ...] = got[0]
    return arguments


def case(name: str, mesh: str) -> dict[str, Any]:
    """A few steps with other settings."""
    settings = dict(CASES[name])
    if isinstance(settings.get("rule"), Payoff):
        settings["probe"] = next(iter(TARGETS))
    trainer, records = make(mesh, **settings)
    trainer.memory = MIN_MEMORY
    trainer.train_epoch(LOADER, max_steps=12)
    return {**found(trainer, records), "weights": to_host(trainer._state.params["retriever"]["queries"]["embedding"]).tolist()}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    wanted = sys.argv[2:]
    result = {mesh: train(mesh, folder) for mesh in MESHES if not wanted or mesh in wanted}
    if not wanted:
        result["resumed on 4"] = resume("data=4,items=2", "data=4", folder)
        result["resumed on 1"] = resume("items=8", "one", folder)
    steps = {mesh: step_by_step(mesh, folder) for mesh in ("one", "data=4,items=2")}
    cases = {name: {mesh: case(name, mesh) for mesh in ("one", "data=4,items=2")} for name in CASES}
    print(json.dumps({"epochs": result, "steps": steps, "cases": cases}))

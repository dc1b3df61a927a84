"""Is an accelerator kept busy, and does the freeze contract hold there?  `python benchmarks/gpu.py` needs one.

For each backend, precision and turn: milliseconds of a training step by the clock, many steps between two waits for the
device. For PyTorch also the same step by a plain loop over whole logits, the peak of memory of both, and how often a
step makes the host wait; the same compiled; and with sampled losses. Of both backends, an epoch whose batches are
prepared as they are needed, and ahead. Then what must hold: a step never makes the host wait, a frozen module keeps its
bits through steps of the other one, and scores are those of the CPU up to rounding. `--device cpu --quick` runs the
same without an accelerator, for a look; nothing is compiled then.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from overhead import RESULTS, Row, machine, save, spread
from torch import nn
from torch.nn.functional import cross_entropy

import ur4rec_jax
import ur4rec_torch
from ur4rec.data.batches import TrainBatches
from ur4rec.data.interactions import Sequences
from ur4rec.schedule.stages import MODULES, TURNS, turns_of
from ur4rec_torch.device import to_device

QUESTION = "Is an accelerator kept busy?"
SHAPES = {
    "MovieLens-1M": {"num_users": 6040, "num_items": 3416, "length": 165, "batch_size": 256, "dim": 64},
    "large catalogue": {"num_users": 4000, "num_items": 50_000, "length": 100, "batch_size": 128, "dim": 128},
}
QUICK = {"quick": {"num_users": 40, "num_items": 60, "length": 12, "batch_size": 16, "dim": 8}}
KINDS: dict[str, dict[str, Any]] = {
    "": {},
    ", bf16": {"bf16": True},
    ", compiled": {"compile": True},
    ", sampled": {"catalogue_loss": "sampled"},
}
PACKAGES: dict[str, Any] = {"torch": ur4rec_torch, "jax": ur4rec_jax}
MAX_SEQ_LEN = 50


class Setting:
    """Random sequences of a shape: what is measured does not depend on their content.

    Args:
        device: Where to train.
        shape: Sizes, as in `SHAPES`.
    """

    def __init__(self, device: str, *, num_users: int, num_items: int, length: int, batch_size: int, dim: int) -> None:
        rng = np.random.default_rng(0)
        self.device = device
        self.num_items = num_items
        self.texts_IT = rng.normal(size=(num_items, 64)).astype(np.float32)
        self.histories_BL = rng.integers(num_items, size=(64, MAX_SEQ_LEN)).astype(np.int32)
        sequences = Sequences.from_lists(rng.integers(num_items, size=(num_users, length)).tolist())
        self.loader = TrainBatches(sequences, num_items, max_seq_len=MAX_SEQ_LEN, batch_size=batch_size, seed=0)
        self.model = {"text_embedding_dim": 64, "sasrec_hidden_dim": dim, "retriever_output_dim": dim}
        self.model |= {"max_seq_len": MAX_SEQ_LEN, "retriever_num_queries": 2}

    def trainer(self, backend: str, turn: str, device: str | None = None, **settings: Any) -> Any:
        """A trainer in which every step is of one turn."""
        package = PACKAGES[backend]
        model = package.UR4Rec(self.num_items, self.texts_IT, **self.model)
        given = {"catalogue_loss": "full", "item_counts": self.loader.item_counts, **settings}
        trainer = package.JointTrainer(model, device=device or self.device, progress=False, warmup=0.0, **given)
        trainer.set_training_stage("end_to_end" if turn == "both" else "joint_finetune")
        if turn != "both":
            getattr(trainer._alternating, "force", trainer.alternator.force)(turn)
        return trainer


def by_hand(setting: Setting, turn: str, *, bf16: bool) -> Callable[[Any], None]:
    """The step in plain PyTorch: whole logits, one optimizer for what trains."""
    device = torch.device(setting.device)
    model = ur4rec_torch.UR4Rec(setting.num_items, setting.texts_IT, **setting.model).to(device)
    active = [*TURNS[turn], "fusion"]
    for name, part in model.named_children():
        part.requires_grad_(name in active).train(name in active)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)

    def step(batch: Any) -> None:
        inputs = to_device(batch, setting.num_items, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            catalogue = model.retriever.catalogue()
            hidden_Nd = model.sasrec(inputs.items_BL).flatten(0, 1)[inputs.positions_N]
            preferences_NKd = model.retriever(inputs.items_BL, catalogue).flatten(0, 1)[inputs.positions_N]
            sasrec_NI = model.sasrec.score(hidden_Nd, model.sasrec.item_table())
            retriever_NI = model.retriever.score(preferences_NKd, catalogue.keys_Id)
            loss = cross_entropy(model.fusion(sasrec_NI, retriever_NI), inputs.targets_N)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def milliseconds(
    step: Callable[[Any], object], wait: Callable[[], None], batches: list[Any], rounds: int
) -> list[float]:
    """Of a step, per round: the clock from one wait for the device to the next."""
    times = []
    for _ in range(rounds + 1):  # the first is to warm up
        started = time.perf_counter()
        for batch in batches:
            step(batch)
        wait()
        times.append((time.perf_counter() - started) / len(batches) * 1000)
    return times[1:]


def synchronise(setting: Setting) -> None:
    """Wait for PyTorch's device."""
    if setting.device != "cpu":
        torch.cuda.synchronize()


def peak_mebibytes(setting: Setting, step: Callable[[Any], object], batch: Any) -> float | None:
    """Peak memory of a step, including what was allocated before it; None on the CPU."""
    if setting.device == "cpu":
        return None
    synchronise(setting)
    torch.cuda.reset_peak_memory_stats()
    step(batch)
    synchronise(setting)
    return torch.cuda.max_memory_allocated() / 2**20


def waits(setting: Setting, step: Callable[[Any], object], batch: Any) -> int | None:
    """How often a step makes the host wait for the device; None on the CPU."""
    if setting.device == "cpu":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)


def step_rows(setting: Setting, shape: str, backends: list[str], rounds: int, num_steps: int) -> Iterator[Row]:
    """Steps of every backend, precision and turn."""
    batches = [setting.loader.batch(0, index % len(setting.loader)) for index in range(num_steps)]
    for backend in backends:
        for kind, settings in KINDS.items():
            if settings.get("compile") and (backend == "jax" or setting.device == "cpu"):
                continue
            for turn in turns_of(MODULES):
                trainer = setting.trainer(backend, turn, **settings)
                name = f"{backend}, {shape}, {turn}{kind}"
                if backend == "jax":
                    values = milliseconds(trainer.train_step, trainer.flush, batches, rounds)
                    yield figure(name, values, f"{num_steps} steps between two waits")
                    continue
                yield from torch_rows(setting, name, trainer, turn, batches, rounds)


def torch_rows(setting: Setting, name: str, trainer: Any, turn: str, batches: list[Any], rounds: int) -> Iterator[Row]:
    """A step in PyTorch beside a plain loop over whole logits, and how often it makes the host wait."""
    wait = lambda: synchronise(setting)  # noqa: E731
    plain = by_hand(setting, turn, bf16=trainer.config.bf16)
    ours = milliseconds(trainer.train_step, wait, batches, rounds)
    theirs = milliseconds(plain, wait, batches, rounds)
    memory = [peak_mebibytes(setting, each, batches[0]) for each in (trainer.train_step, plain)]
    detail = f"plain loop over whole logits: {statistics.median(theirs):.2f} ms"
    if memory[0] is not None:
        detail += f"; peak {memory[0]:.0f} against {memory[1]:.0f} MiB"
    yield figure(name, ours, detail)
    number = waits(setting, trainer.train_step, batches[0])
    if number is not None:
        yield Row(
            name=f"{name}: waits of the host in a step",
            against="", value=number, low=number, high=number, unit="", bar=0, detail="as PyTorch's debug mode warns",
        )  # fmt: skip


def reader_rows(setting: Setting, shape: str, backends: list[str], rounds: int, num_steps: int) -> Iterator[Row]:
    """Steps of epochs whose batches are built and sent as they are needed, and ahead by a thread."""
    for backend in backends:
        for kind in ("", ", sampled"):
            for readers in (0, 1):
                trainer = setting.trainer(backend, "both", readers=readers, **KINDS[kind])
                times = []
                for epoch in range(rounds + 1):  # the first is to warm up
                    started = time.perf_counter()
                    trainer.train_epoch(setting.loader, epoch, max_steps=num_steps)
                    times.append((time.perf_counter() - started) / min(num_steps, len(setting.loader)) * 1000)
                name = f"{backend}, {shape}, epoch{kind}, {readers} reader{'' if readers == 1 else 's'}"
                yield figure(name, times[1:], "a step of an epoch, batches built and losses read")


def figure(name: str, values: list[float], detail: str) -> Row:
    """Milliseconds as a row."""
    median, low, high = spread(values) if len(values) > 1 else (values[0],) * 3
    return Row(name=name, against="", value=median, low=low, high=high, unit="ms", bar=None, detail=detail)


def exact_rows(setting: Setting, backends: list[str], num_steps: int) -> Iterator[Row]:
    """What must hold: bits of a frozen module that differ, and the distance of the scores from those of the CPU."""
    for backend in backends:
        for frozen, active in (MODULES, MODULES[::-1]):
            trainer = setting.trainer(backend, active)
            before = bits(trainer, frozen)
            for index in range(num_steps):
                trainer.train_step(setting.loader.batch(0, index % len(setting.loader)))
            changed = sum(not np.array_equal(a, b) for a, b in zip(before, bits(trainer, frozen), strict=True))
            yield Row(
                name=f"{backend}: arrays of the frozen {frozen} that changed in {num_steps} steps of the other module",
                against="", value=changed, low=changed, high=changed, unit="", bar=0, detail=f"of {len(before)}",
            )  # fmt: skip
        scores = [
            setting.trainer(backend, "both", device).score(setting.histories_BL) for device in (setting.device, "cpu")
        ]
        distance = float(np.abs(scores[0] - scores[1]).max() / np.abs(scores[1]).max())
        yield Row(
            name=f"{backend}: largest difference of scores from those on the CPU, by the largest score",
            against="", value=distance, low=distance, high=distance, unit="", bar=1e-4, detail="float32, 64 histories",
        )  # fmt: skip


def bits(trainer: Any, module: str) -> list[Any]:
    """Every array of a module as bytes that compare exactly."""
    if isinstance(trainer, ur4rec_torch.JointTrainer):
        arrays = [tensor.detach().cpu().numpy() for tensor in getattr(trainer.model, module).state_dict().values()]
    else:
        arrays = [np.asarray(array) for array in jax.tree.leaves(trainer._state.params[module])]
    return [np.frombuffer(array.tobytes(), np.uint8) for array in arrays]


def main(arguments: list[str] | None = None) -> int:
    """Measure, save, and fail if something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda (the default), or cpu with --quick for a look")
    parser.add_argument("--backend", choices=tuple(PACKAGES), action="append", help="default: both")
    parser.add_argument("--quick", action="store_true", help="a tiny shape and few steps")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that PyTorch sees, and there is none; give --device cpu --quick")
    backends = options.backend or list(PACKAGES)
    rounds, num_steps = (1, 3) if options.quick else (7, 30)
    rows: list[Row] = []
    for shape, sizes in (QUICK if options.quick else SHAPES).items():
        setting = Setting(options.device, **sizes)
        given = setting, shape, backends, rounds, num_steps
        for row in chain(step_rows(*given), reader_rows(*given), exact_rows(setting, backends, num_steps)):
            print(f"{row.name}: {row.value:.4g} {row.unit}; {row.detail}", flush=True)
            rows.append(row)
    is_gpu = options.device != "cpu"
    device = torch.cuda.get_device_name() if is_gpu else "CPU"
    about = machine()
    about |= {"processor": f"{device}, {about['processor']}", "torch": f"{about['torch']}, jax {jax.__version__}"}
    hardware = device.lower().replace(" ", "-") + ("-quick" if options.quick else "")
    command = " ".join(["python benchmarks/gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    save(rows, options.out, hardware, command, theme="gpu", question=QUESTION, about=about)
    broken = [row.name for row in rows if not row.passes]
    print(f"does not hold: {', '.join(broken)}" if broken else "all holds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

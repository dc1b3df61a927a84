"""What does a text encoder that trains cost?  `python benchmarks/text_encoder.py` measures steps of the preset `demo`.

Steps of four kinds take turns, so that all of them see the same machine: of a model without an encoder whose item
vectors are the encoder's; with the encoder frozen; of the encoder alone; of all three modules. Seconds are those of the
processor, of all threads, the median of the steps. Beside them stands what encoding all texts again costs. Of JAX's
steps it also counts the floating-point operations, without running them: ``--only-count`` does no more than that.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ur4rec.runs.prepared import PreparedData, prepare
from ur4rec.runs.presets import preset
from ur4rec.schedule.alternators import parse_schedule
from ur4rec.training.backend import BACKENDS, load_backend
from ur4rec.training.checkpoint import load_checkpoint
from ur4rec.training.item_texts import items_of, token_counts
from ur4rec.training.shapes import ENCODED_TEXTS

KINDS = {"without": "both", "frozen": "both", "text_encoder": "text_encoder", "all": "all"}
"""Kinds of steps, and the turn of each."""
CONFIGURATIONS = {
    "small": {"text_encoder": "transformer", "text_embedding_dim": 64},
    "minilm": {"text_encoder": "pretrained"},
    "minilm, last:1": {"text_encoder": "pretrained", "text_encoder_trains": "last:1"},
    "minilm, lora:8": {"text_encoder": "pretrained", "text_encoder_trains": "lora:8"},
}


def trainers_of(backend: str, prepared: PreparedData, scratch: Path) -> dict[str, Any]:
    """A trainer for each kind of step, all of the same weights."""
    package = load_backend(backend)
    arguments = prepared.model_arguments()
    found: dict[str, Any] = {}
    for kind, turn in KINDS.items():
        if kind == "without":
            model = package.UR4Rec(prepared.model.num_items, **_without(prepared, package, scratch))
        else:
            model = package.UR4Rec(**arguments)
        rule = parse_schedule(f"sequence:(('{turn}', 1000000),)").rule
        found[kind] = package.JointTrainer(model, device="cpu", progress=False, rule=rule)
    return found


def _without(prepared: PreparedData, package: Any, scratch: Path) -> dict[str, Any]:
    """The arguments of a model without an encoder whose item vectors are the encoder's."""
    trainer = package.JointTrainer(package.UR4Rec(**prepared.model_arguments()), device="cpu", progress=False)
    trainer.save_checkpoint(scratch / "encoded")
    vectors_IT = load_checkpoint(scratch / "encoded").weights[ENCODED_TEXTS][:-1]
    left_out = ("num_items", "num_users", "text_encoder")
    settings = {name: value for name, value in asdict(prepared.model).items() if not name.startswith(left_out)}
    return {**settings, "item_text_vectors": vectors_IT}


def measure(trainers: dict[str, Any], prepared: PreparedData, num_steps: int) -> dict[str, float]:
    """Seconds of a step of each kind, all on one batch, so that JAX compiles each once."""
    seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
    batch = prepared.train.batch(0, 0)
    for _ in range(num_steps + 3):
        for kind, trainer in trainers.items():
            start = time.process_time()
            trainer.train_step(batch)
            trainer.flush()
            seconds[kind].append(time.process_time() - start)
    return {kind: float(np.median(of_kind[3:])) for kind, of_kind in seconds.items()}


class _Counted(Exception):  # noqa: N818
    """Carries the operations of a step out of the trainer that was about to run it."""


def count(trainer: Any, batch: Any) -> float:
    """Floating-point operations of a step of a trainer in JAX, as XLA counts them before it optimises."""
    steps, is_fused = trainer._functions.compiled_steps, trainer._is_fused
    step = steps[is_fused]

    def counting(*arguments: Any, **options: Any) -> Any:
        raise _Counted(step.lower(*arguments, **options).cost_analysis()["flops"])

    steps[is_fused] = counting
    try:
        trainer.train_step(batch)
    except _Counted as counted:
        return float(counted.args[0])
    finally:
        steps[is_fused] = step
    raise AssertionError("a step has been made without its function")


def seconds_of(function: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the processor that a function takes, after a first call."""
    function()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return float(np.median(taken))


def texts_of_step(prepared: PreparedData) -> dict[str, float]:
    """How many texts a step encodes, and of how many tokens."""
    tokens_IS = prepared.encoder.ids_IS  # type: ignore[union-attr]
    items = [items_of(prepared.model.num_items, *prepared.train.batch(0, step)[:2]) for step in range(8)]
    counts_I = token_counts(tokens_IS)
    return {
        "texts": float(np.mean([len(each) for each in items])),
        "of": len(tokens_IS),
        "tokens": float(counts_I.mean()),
        "longest": tokens_IS.shape[1],
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--encoder", default="auto", help="the folder of a sentence encoder")
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=list(BACKENDS))
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--only-count", action="store_true")
    parser.add_argument("--scratch", type=Path, default=Path("scratch"))
    given = parser.parse_args()
    for name in given.configurations:
        encoder = given.encoder if "minilm" in name else "auto"
        settings = CONFIGURATIONS[name]
        demo = preset("demo")
        config = replace(demo, dataset=given.dataset, encoder=encoder, model={**demo.model, **settings})
        prepared = prepare(config)
        print(json.dumps({"configuration": name, **texts_of_step(prepared)}), flush=True)
        for backend in given.backends:
            trainers = trainers_of(backend, prepared, given.scratch / name / backend)
            if backend == "jax":
                flops = {kind: count(trainer, prepared.train.batch(0, 0)) for kind, trainer in trainers.items()}
                counted = {kind: round(value / flops["without"], 3) for kind, value in flops.items()}
                print(json.dumps({"operations": flops, "ratios": counted}), flush=True)
            if given.only_count:
                continue
            seconds = measure(trainers, prepared, given.steps)
            encoder = trainers["frozen"].model.text_encoder
            refresh = seconds_of(lambda encoder=encoder: np.asarray(encoder.encode_all()))
            row = {kind: round(value, 4) for kind, value in {**seconds, "encode all": refresh}.items()}
            ratios = {kind: round(value / seconds["without"], 3) for kind, value in seconds.items()}
            print(json.dumps({"backend": backend, "seconds": row, "ratios": ratios}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

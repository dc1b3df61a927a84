"""What does a training step cost?  `python benchmarks/steps.py` measures every kind of step in both backends.

Each stage and active module, both joint losses, and each strategy, against the ideal: a hand-written loop that does the
needed work and nothing else (`steps_torch.py`, `steps_jax.py`). The two take turns in one process with one thread, and
the median of the ratios of their processor times is reported. FLOPs are those of matrix products by PyTorch's count
(`torch.utils.flop_counter`), and all by XLA's (`cost_analysis`), so they compare within a backend only.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import torch
from overhead import RESULTS, Row, machine, save, spread, turns
from overhead_jax import DEMO, SMALL, Setting  # which sets XLA to one thread
from steps_jax import JaxByHand, count_jax
from steps_torch import TorchByHand, count_torch

import ur4rec_jax
import ur4rec_torch
from alternator import Plateau
from ur4rec.schedule.stages import JOINT_STAGES, TURNS

QUESTION = "What does a training step cost?"
BAR = 1.1
NEVER = Plateau(threshold=1e-12)
"""Computes the original rule in full and does not switch: its threshold is below the step of float32."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of training step."""

    stage: str
    """The stage."""
    turn: str
    """What trains."""
    joint_loss: str = "fused"
    """The joint loss; without effect in a stage of one module."""
    strategy: str = ""
    """The strategies that are on, for people to read."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings that turn them on."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that train."""
        return TURNS[self.turn]

    @property
    def is_joint(self) -> bool:
        """Whether the stage is a joint one."""
        return self.stage in JOINT_STAGES

    @property
    def is_fused(self) -> bool:
        """Whether the fused scores are trained."""
        return self.is_joint and self.joint_loss == "fused"

    @property
    def name(self) -> str:
        """What it is called in the table."""
        words = [self.stage, *([self.turn] if self.stage == "joint_finetune" else [])]
        words += [self.joint_loss] if self.is_joint else []
        return ", ".join([*words, *([self.strategy] if self.strategy else [])])


@dataclass(frozen=True, kw_only=True)
class StepRow(Row):
    """A step beside the ideal one."""

    milliseconds: float
    """Processor time of a step: median."""
    ideal_milliseconds: float
    """That of the ideal step."""
    megaflops: float
    """Floating-point operations of a step, in millions."""
    ideal_megaflops: float
    """Those of the ideal step."""


def plain_cases() -> list[Case]:
    """Every stage and active module."""
    joint = [
        Case(stage=stage, turn=turn, joint_loss=joint_loss)
        for stage, turns_ in (("joint_finetune", ("sasrec", "retriever")), ("end_to_end", ("both",)))
        for turn in turns_
        for joint_loss in ("fused", "separate")
    ]
    return [
        Case(stage="pretrain_sasrec", turn="sasrec"),
        Case(stage="pretrain_retriever", turn="retriever"),
        *joint,
    ]


STRATEGIES: dict[str, dict[str, Any]] = {
    "curriculum": {"use_curriculum_learning": True},
    "memory bank": {"use_memory_bank": True},
    "distillation": {"use_knowledge_distillation": True},
    "uncertainty weighting": {"use_uncertainty_weighting": True},
}
STRATEGIES["all strategies"] = {name: value for settings in STRATEGIES.values() for name, value in settings.items()}


def strategy_cases() -> list[Case]:
    """Each loss of SASRec's own, each strategy where the retriever trains, and those that concern both modules."""
    losses = [
        Case(stage="pretrain_sasrec", turn="sasrec", strategy=f"loss {name}", settings={"sasrec_loss": name})
        for name in ("sampled", "gbce", "bce", "bpr")
    ]
    distillation = {"strategy": "distillation", "settings": STRATEGIES["distillation"]}
    everything = {"strategy": "all strategies", "settings": STRATEGIES["all strategies"]}
    return [
        *losses,
        *(
            Case(stage="joint_finetune", turn="retriever", strategy=name, settings=settings)
            for name, settings in STRATEGIES.items()
        ),
        Case(stage="joint_finetune", turn="sasrec", joint_loss="separate", **distillation),
        Case(stage="joint_finetune", turn="sasrec", **everything),
        Case(stage="end_to_end", turn="both", **everything),
        Case(stage="end_to_end", turn="both", joint_loss="separate", **everything),
    ]


def build_trainer(setting: Setting, package: Any, case: Case) -> Any:
    """A trainer in which every step is of this kind."""
    trainer = setting.trainer(package, rule=NEVER, warmup_steps=0, joint_loss=case.joint_loss, **case.settings)
    trainer.set_training_stage(case.stage)
    if case.stage == "joint_finetune":
        force = getattr(trainer._alternating, "force", trainer.alternator.force)
        force(case.turn)
    return trainer


def step_row(setting: Setting, backend: str, case: Case, rounds: int) -> StepRow:
    """A kind of step beside the ideal one."""
    package, by_hand, count = BACKENDS[backend]
    trainer, ideal = build_trainer(setting, package, case), by_hand(setting, case)
    batches = [setting.loader.batch(0, index) for index in range(2)]

    def steps(step: Callable[[Any], object]) -> None:
        for batch in batches:
            step(batch)

    pairs = turns(partial(steps, trainer.train_step), partial(steps, ideal.step), rounds)
    median, low, high = spread([ours / theirs for ours, theirs in pairs])
    milliseconds = [statistics.median(column) / len(batches) * 1000 for column in zip(*pairs, strict=True)]
    megaflops = [count(each, batches[0]) / 1e6 for each in (trainer, ideal)]
    return StepRow(
        name=f"{backend}: {case.name}",
        against="the ideal step",
        value=median,
        low=low,
        high=high,
        unit="×",
        bar=BAR,
        detail=f"{milliseconds[0]:.2f} against {milliseconds[1]:.2f} ms; {megaflops[0]:.0f} against "
        f"{megaflops[1]:.0f} MFLOP ({megaflops[0] / megaflops[1]:.3f} ×)",
        milliseconds=milliseconds[0],
        ideal_milliseconds=milliseconds[1],
        megaflops=megaflops[0],
        ideal_megaflops=megaflops[1],
    )


BACKENDS: dict[str, tuple[Any, Callable[..., Any], Callable[..., float]]] = {
    "torch": (ur4rec_torch, TorchByHand, count_torch),
    "jax": (ur4rec_jax, JaxByHand, count_jax),
}


def flop_row(row: StepRow) -> Row:
    """The floating-point operations of a step beside those of the ideal one, with the same bar."""
    ratio = row.megaflops / row.ideal_megaflops
    plain = {name: getattr(row, name) for name in Row.__dataclass_fields__}
    detail = f"{row.megaflops:.1f} against {row.ideal_megaflops:.1f} MFLOP"
    return replace(Row(**plain), name=f"{row.name}: FLOPs", value=ratio, low=ratio, high=ratio, detail=detail)


def main(arguments: list[str] | None = None) -> int:
    """Measure, save, and fail if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for a look; figures are rough")
    parser.add_argument("--backend", choices=tuple(BACKENDS), action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=60, help="turns of each kind of step (default: 60)")
    parser.add_argument("--only", default="", help="the kinds of step whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shape = {"num_users": 943, "num_items": 1682, "mean_length": 106, "batch_size": 64, **DEMO}
    if options.quick:
        shape = {"num_users": 64, "num_items": 60, "mean_length": 12, "batch_size": 16, **SMALL}
    setting = Setting(retriever_num_queries=2, **shape)
    measured: list[Row] = []
    for backend in options.backend or BACKENDS:
        for case in [case for case in [*plain_cases(), *strategy_cases()] if options.only in case.name]:
            row = step_row(setting, backend, case, rounds=2 if options.quick else options.rounds)
            print(f"{row.name}: {row.value:.3f} ({row.low:.3f} to {row.high:.3f}); {row.detail}", flush=True)
            measured += [row, flop_row(row)]
    hardware = f"cpu{os.cpu_count()}" + ("-quick" if options.quick else "")
    about = machine()
    about["torch"] = f"{about['torch']}, jax {jax.__version__}"
    words = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python benchmarks/steps.py", *words])
    save(measured, options.out, hardware, command, theme="steps", question=QUESTION, about=about)
    missed = [row.name for row in measured if not row.passes]
    print(f"bars missed: {', '.join(missed)}" if missed else "every bar is kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Does adaptive win?  `python benchmarks/schedules.py --study NAME` runs a study of schedules and writes its report.

The engine is that of `ur4rec compare`. The finished runs of the committed studies are in ``benchmarks/studies/NAME``,
packed into one file: anybody can make the report again from them (``--report-only``), and the same command continues a
study that is not complete. Give another --work to run everything from scratch. The report goes to
``benchmarks/results/schedules_NAME_cpuN_DATE`` as .md, .json and plots.
"""

import argparse
import datetime
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alternator import AlternatorError
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.report import write_report
from ur4rec.compare.study import StudyConfig
from ur4rec.compare.summary import pack_study
from ur4rec.compare.workers import run_study

RESULTS = Path(__file__).parent / "results"
STUDIES_PATH = Path(__file__).parent / "studies"
RATIOS = ("1:8", "1:4", "1:2", "2:1", "4:1", "8:1")
RULES = ("plateau", "patience", "trend", "gain")
CONTROLS = (*(f"matched:{rule}" for rule in RULES), "shuffled:payoff")
ALL_ARMS = ("parity", "joint", *RATIOS, *RULES, "payoff", *CONTROLS)
KEY_ARMS = ("parity", "joint", "2:1", "4:1", "plateau", "patience", "matched:patience", "payoff")
BY_HAND = (
    "sequence:(('both',1),('sasrec',2))",
    "sequence:(('both',25),('sasrec',75))",
    "sequence:(('both',25),('sasrec',10000))",
)
"""Of the synthetic study: what somebody might choose who knows it: the costly module in part of the steps, or early."""
LESS_RETRIEVER = ("sequence:(('both',1),('sasrec',2))", "sequence:(('both',100),('sasrec',10000))")
"""The same for MovieLens-100K, where fixed ratios do better the less the retriever is trained."""
ONLY_SASREC = "sequence:(('sasrec',1),)"
"""What somebody would choose who knows that the texts carry no information."""
SEEDS = (0, 1, 2, 3, 4)

COSTLY_RETRIEVER = {
    "data": {"num_users": 1500, "num_items": 400, "num_clusters": 20, "follow": 0.2, "stay": 0.75},
    "model": {"sasrec_hidden_dim": 64, "retriever_output_dim": 128, "retriever_num_queries": 8},
    "trainer": {"sasrec_lr": 5e-4, "retriever_lr": 3e-2},
}
"""One module learns ten times faster, and costs more.

An item's text gives away its cluster and users stay in theirs, so that the retriever soon knows most of what there is,
while SASRec with a small learning rate has to learn 400 items one by one. The retriever has eight queries: a step of
both costs twice as much as one of SASRec.
"""

NEVER = "sequence:(('both',1),)"
SOMETIMES = tuple(f"sequence:(('both',{steps}),('all',1))" for steps in (1, 3, 7, 15))
ENCODER_FIRST = "sequence:(('all',25),('both',10000))"
"""Of a model whose text encoder can train: never, in every so many steps, and in the first third."""


def _with_encoder(
    arms: Sequence[str], seeds: Sequence[int], backend: str = "torch", updates: int = 105, **model: str
) -> StudyConfig:
    """A study of a transformer of two layers over titles and genres, from scratch.

    Its learning rate is the best of 1e-4, 1e-3 and 3e-3 for joint training, by validation, on another seed.
    """
    return StudyConfig(
        arms=tuple(arms),
        seeds=tuple(seeds),
        updates=updates,
        eval_every=updates // 5,
        budgets=("cost",),
        backend=backend,
        model={"text_encoder": "transformer", "text_embedding_dim": 64, **model},
        trainer={"text_encoder_lr": 1e-3},
    )


STUDIES = {
    "ml-100k": StudyConfig(arms=(*ALL_ARMS, *LESS_RETRIEVER), seeds=SEEDS, eval_every=80),
    "ml-100k-pretrained": StudyConfig(
        arms=("parity", "joint", "2:1", "plateau", "trend", "patience", "payoff"),
        seeds=SEEDS[:3],
        eval_every=80,
        pretrain=190,
        budgets=("cost",),
    ),
    "ml-100k-blank": StudyConfig(
        arms=("parity", "joint", "4:1", "8:1", "payoff", ONLY_SASREC),
        seeds=SEEDS,
        eval_every=80,
        blank_texts=True,
        budgets=("cost",),
    ),
    "separate": StudyConfig(arms=KEY_ARMS, seeds=SEEDS[:3], eval_every=80, joint_loss="separate", budgets=("cost",)),
    "ml-1m": StudyConfig(
        dataset="ml-1m",
        num_users=3000,
        batch_size=32,
        arms=KEY_ARMS,
        seeds=SEEDS,
        eval_every=80,
        budgets=("cost",),
    ),
    "synthetic": StudyConfig(
        dataset="synthetic",
        preset="smoke",
        arms=(*ALL_ARMS, *BY_HAND),
        seeds=SEEDS,
        eval_every=80,
        **COSTLY_RETRIEVER,
    ),
    "encoder": _with_encoder(
        (
            "parity",
            "joint",
            "3:3:1",
            "7:7:1",
            *SOMETIMES,
            NEVER,
            ENCODER_FIRST,
            "trial",
            "gain",
            "random_tenure,mean=8",
        ),
        SEEDS,
    ),
    "encoder-long": _with_encoder(
        ("parity", "joint", *SOMETIMES[2:], NEVER, ENCODER_FIRST, "trial"), SEEDS[:3], updates=315
    ),
    "encoder-jax": _with_encoder(("parity", "joint", SOMETIMES[2], NEVER, "trial"), SEEDS, backend="jax"),
    "encoder-sports": replace(
        _with_encoder(
            ("parity", "joint", *SOMETIMES[2:], NEVER, "trial"),
            SEEDS,
            updates=300,
            sasrec_item_init="normal",
        ),
        dataset="./sports",
        num_users=8000,
        preset="amazon",
    ),
    "jax": StudyConfig(
        arms=("parity", "joint", "2:1", "patience", "payoff"),
        seeds=SEEDS[:2],
        eval_every=80,
        budgets=("cost",),
        backend="jax",
    ),
}
"""The committed studies. ``ml-100k-pretrained`` starts where five epochs of each pretraining stage end; the steps of
``encoder-long`` cost what those of ``encoder`` do, whose ``costs.json`` it has. ``encoder-sports`` reads the RecBole
files of Amazon Sports in the folder ``sports`` of the working directory."""


def main() -> None:
    """Run a study, or what is missing of it, and report."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("alternator").setLevel(logging.WARNING)
    name = arguments.study
    try:
        study = STUDIES[name].extended(arms=tuple(arguments.arms), seeds=tuple(arguments.seeds))
        directory = StudyDirectory.begin(arguments.work / name, study)
        if not arguments.report_only:
            run_study(directory, jobs=arguments.jobs, data_dir=arguments.data_dir)
        extra = [word for arm in arguments.arms for word in ("--arms", arm)]
        extra += [word for seed in arguments.seeds for word in ("--seeds", str(seed))]
        command = shlex.join(["python", "benchmarks/schedules.py", "--study", name, *extra])
        prefix = arguments.out / f"schedules_{name}_cpu{os.cpu_count()}_{datetime.date.today()}"
        if arguments.pack:
            pack_study(directory)
        write_report(directory, prefix, command, brief=True)
    except AlternatorError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {prefix}.md, .json and plots")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--study", required=True, choices=STUDIES, help="one of the committed studies")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--arms", nargs="+", default=[], help="further arms, such as a rule of yours")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="further seeds")
    parser.add_argument("--work", type=Path, default=STUDIES_PATH, help="where runs are kept")
    parser.add_argument("--data-dir", type=Path, help="where to look for MovieLens before it is downloaded")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the report")
    parser.add_argument("--report-only", action="store_true", help="run nothing, report what is there")
    parser.add_argument("--pack", action="store_true", help="pack the finished runs into one file, to commit them")
    return parser.parse_args()


if __name__ == "__main__":
    main()

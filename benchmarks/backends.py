"""Do both backends score alike?  `python benchmarks/backends.py RUN` compares them on every test user of a run.

Both load the run's best checkpoint. It prints the largest difference of a score, relative to the largest score, and how
many users have another top 20 although no two of its items score closer than the bound. Exit code 1 if a bar is missed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ur4rec.config import SCORERS
from ur4rec.runs.config import RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import prepare
from ur4rec.training.backend import BACKENDS, load_scorer

BOUND = 1e-5
TOP = 20


def different_tops(first_BI: NDArray[Any], second_BI: NDArray[Any], bound: float) -> int:
    """Users whose top items differ by more than near ties: an item that moved must score within ``bound``."""
    count = 0
    for first, second in zip(first_BI, second_BI, strict=True):
        tops = [np.argsort(-scores, kind="stable")[:TOP] for scores in (first, second)]
        count += bool((np.abs(first[tops[0]] - first[tops[1]]) > bound).any())
    return count


def compare(directory: RunDirectory) -> dict[str, dict[str, float]]:
    """Per scorer: users, largest relative difference of a score, users with another top 20."""
    config = RunConfig.from_json(directory.read_json("config.json"))
    prepared = prepare(config)
    trainers = {name: load_scorer(name, directory.require_checkpoint()) for name in BACKENDS}
    found: dict[str, dict[str, float]] = {}
    for scorer in SCORERS:
        users, worst, different = 0, 0.0, 0
        for batch in prepared.evaluation(prepared.split.test):
            torch_BI, jax_BI = (
                trainers[name].score(batch.items_BL, scorer, batch.users_B)[: batch.num_valid] for name in BACKENDS
            )
            largest = float(np.abs(torch_BI).max())
            users += batch.num_valid
            worst = max(worst, float(np.abs(torch_BI - jax_BI).max()) / largest)
            different += different_tops(torch_BI, jax_BI, BOUND * largest)
        found[scorer] = {"users": users, "relative_difference": worst, "different_tops": different}
    return found


def main() -> int:
    """Compare, print, and fail if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run directory, of either backend")
    found = compare(RunDirectory.open_existing(parser.parse_args().run))
    print(json.dumps(found, indent=2))
    return int(any(row["relative_difference"] > BOUND or row["different_tops"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())

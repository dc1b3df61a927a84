"""What a finished run is good for besides recommending: it is evaluated again, or handed to the other backend."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alternator.checks import check_choice
from ur4rec.config import SCORERS
from ur4rec.data import Targets
from ur4rec.errors import ConfigurationError
from ur4rec.evaluation.popularity import PopularityGroup, by_popularity
from ur4rec.evaluation.results import summarise_rows
from ur4rec.runs.config import read_config
from ur4rec.runs.directory import REFIT, RunDirectory
from ur4rec.runs.prepared import read_data, split_of
from ur4rec.runs.ranking import Ranking, Ranks
from ur4rec.training.backend import BACKENDS, load_backend, load_scorer
from ur4rec.training.checkpoint import check_settings
from ur4rec.training.slices import parse_memory


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The ranks of a run's targets, and what follows from them."""

    ranks: Ranks
    """The rank of each target by each scorer."""
    targets: Targets
    """The targets."""
    counts_I: NDArray[np.integer[Any]]
    """Training interactions of each item."""

    def rows(self) -> dict[str, dict[str, float]]:
        """Hit@k, NDCG@k and MRR of each scorer; where some targets are repeated, of both kinds apart too."""
        return summarise_rows(self.ranks, self.targets.is_repeated)

    def by_popularity(self) -> list[PopularityGroup]:
        """Hit@10 and NDCG@10 of each scorer by popularity of the target, with intervals."""
        return by_popularity(self.ranks, self.targets, self.counts_I)


def evaluate_run(
    directory: RunDirectory,
    *,
    split: str = "test",
    checkpoint: str | None = None,
    data_dir: Path | None = None,
    memory: int | str | None = None,
) -> Evaluation:
    """Rank the targets of a run with its model.

    Args:
        directory: The run.
        split: "test" or "validation".
        checkpoint: "best" (by validation), "latest" or "refit"; None is `default_checkpoint`.
        data_dir: Where to look for the dataset's files before anything is downloaded.
        memory: Bytes that scores may take at once; None is as the run has it.

    Raises:
        AlternatorError: An unknown split or checkpoint, no checkpoint yet, a damaged one, or not the run's data.
    """
    check_choice("split", split, ("test", "validation"))
    config = read_config(directory)
    limit = parse_memory(config.memory if memory is None else memory)
    if checkpoint is None:
        checkpoint = default_checkpoint(directory, split)
    elif (checkpoint, split) == (REFIT, "validation"):
        raise ConfigurationError(
            "a refit has trained on the validation targets, so they say nothing of it; give --split test, or "
            "--checkpoint best"
        )
    path = directory.require_checkpoint(checkpoint)
    check_settings(path, config.model_config(num_items=2))
    held_out = split_of(config, read_data(directory, config, data_dir))
    directory.check_fact("split_hash", held_out.hash)
    model = load_scorer(config.backend, path, config.device, memory=limit)
    targets = getattr(held_out, split)
    ranks = Ranking(targets, config.model_config(held_out.num_items), limit).ranks(model, SCORERS)
    counts_I = held_out.train.count_items(held_out.num_items)
    return Evaluation(ranks=ranks, targets=targets, counts_I=counts_I)


def default_checkpoint(directory: RunDirectory, split: str) -> str:
    """The checkpoint to evaluate: the refit's where it has ended; on validation targets, which it knows, the best."""
    return "best" if split == "validation" else directory.chosen()


def convert_run(directory: RunDirectory, backend: str, out: Path, *, overwrite: bool = False) -> RunDirectory:
    """Copy a run so that another backend evaluates, recommends from or resumes it.

    The other backend must load the best and the newest checkpoint before the copy is made.

    Args:
        directory: The run.
        backend: "torch" or "jax".
        out: The directory to make.
        overwrite: Replace an earlier run there, but never the run itself.

    Raises:
        AlternatorError: An unknown or missing backend, a run without a checkpoint, a damaged one, or an ``out`` that
            holds something.
    """
    check_choice("backend", backend, tuple(BACKENDS))
    model = read_config(directory).model_config(num_items=2)
    checkpoints = {directory.require_checkpoint(which) for which in ("best", "latest")}
    if (refitted := directory.refit.checkpoint("latest")) is not None:
        checkpoints.add(refitted)
    load_model = load_backend(backend).load_model
    for checkpoint in checkpoints:
        check_settings(checkpoint, model)
        load_model(checkpoint)
    config = directory.read_json("config.json")
    if out.resolve().is_relative_to(directory.path.resolve()):
        raise ConfigurationError(f"--out must not be in the run's own directory, got {out}; choose another --out")
    copy = RunDirectory.create(out, overwrite=overwrite)
    for file in directory.files():
        name = file.relative_to(directory.path)
        if any(part.startswith(".") for part in name.parts):
            continue  # a lock, or what a crash left half-written
        if file.is_dir():
            (out / name).mkdir(exist_ok=True)
        else:
            shutil.copyfile(file, out / name)
    copy.write_json("config.json", {**config, "backend": backend})
    if (copy.refit.path / "config.json").is_file():
        copy.refit.write_json("config.json", {**copy.refit.read_json("config.json"), "backend": backend})
    return copy

"""Evaluation of a finished run: its checkpoint, its data, and every target ranked again."""

from dataclasses import replace
from pathlib import Path

from alternator.checks import check_choice
from ur4rec.evaluation.metrics import summarise
from ur4rec.evaluation.results import K_LIST
from ur4rec.runs.config import RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import prepare
from ur4rec.training.backend import load_scorer


def evaluate_run(
    directory: RunDirectory, *, split: str = "test", checkpoint: str = "best", data_dir: Path | None = None
) -> dict[str, dict[str, float]]:
    """Hit@k, NDCG@k and MRR of each scorer of a run.

    Args:
        directory: The run.
        split: "test" or "validation".
        checkpoint: "best" (by validation) or "latest".
        data_dir: Where to look for the dataset's files before anything is downloaded.

    Raises:
        AlternatorError: An unknown split or checkpoint, no checkpoint yet, a damaged one, or not the run's data.
    """
    check_choice("split", split, ("test", "validation"))
    config = RunConfig.from_json(directory.read_json("config.json"))
    path = directory.require_checkpoint(checkpoint)
    prepared = prepare(replace(config, user_texts=None), directory=data_dir)  # their vectors are in the checkpoint
    directory.check_fact("split_hash", prepared.split.hash)
    model = load_scorer(config.backend, path, config.device)
    targets = prepared.evaluation(getattr(prepared.split, split))
    return {scorer: summarise(ranks_T, K_LIST) for scorer, ranks_T in model.rank_all(targets).items()}

"""What a finished run is good for: it recommends, is evaluated again, or is handed to the other backend."""

import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alternator.checks import check_choice
from ur4rec.data import Interactions
from ur4rec.errors import ConfigurationError, DataError, UnknownNameError
from ur4rec.evaluation.results import summarise_rows
from ur4rec.runs.config import read_config
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import evaluation_batches, load_interactions, split_of
from ur4rec.training.backend import BACKENDS, load_backend, load_scorer
from ur4rec.training.checkpoint import check_settings


class Recommendation(NamedTuple):
    """One recommended item."""

    item_id: str
    """The source's name of the item."""
    title: str
    """Its title."""
    probabilities: dict[str, float]
    """What SASRec, the retriever and both fused take for the probability that it is next, among all that the run's
    protocol recommends: where repeats are excluded, the items that are not in the history."""


class Recommender:
    """The best model of a run by validation, ready to recommend.

    Args:
        directory: A run directory.
        data_dir: Where to look for the dataset's files before anything is downloaded.

    Raises:
        AlternatorError: The run has no checkpoint yet, it is damaged, or its data cannot be had.
    """

    def __init__(self, directory: RunDirectory, *, data_dir: Path | None = None) -> None:
        config = read_config(directory)
        checkpoint = directory.require_checkpoint()
        check_settings(checkpoint, config.model_config(num_items=2))
        self.interactions: Interactions = load_interactions(config, data_dir)
        directory.check_fact("interactions_hash", self.interactions.hash)
        self._scorer = load_scorer(config.backend, checkpoint)
        repeats = split_of(config, self.interactions).repeats if config.repeats == "auto" else config.repeats
        self._excludes_seen = repeats == "exclude"
        self._max_seq_len = config.model_config(self.interactions.num_items).max_seq_len

    def history_of(self, user_id: str) -> NDArray[np.int32]:
        """All items of a user in order of time.

        Raises:
            UnknownNameError: There is no such user; the message names some that exist.
        """
        return self.interactions.sequences[self._find_user(user_id)]

    def find_items(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Items by id, by title, or by the part of a title that only one item has.

        Raises:
            DataError: A name fits no item, or several; the message lists the nearest titles.
        """
        return np.array([self._find_item(name) for name in names], np.int32)

    def recommend(
        self, history_L: NDArray[np.int32], *, top: int = 10, user_id: str | None = None
    ) -> list[Recommendation]:
        """The items that a history is most likely to continue with, best first: fewer where fewer are left.

        The history's own items are left out where the run excludes repeats.

        Args:
            history_L: Canonical item indices, oldest first.
            top: How many.
            user_id: Whose history it is, for a model that knows preference texts of users.

        Raises:
            ConfigurationError: The history is empty, leaves no item to recommend, or ``top`` is below 1.
            NonFiniteError: A score is NaN or infinite.
        """
        if not len(history_L):
            raise ConfigurationError("a history must have at least one item, got none; name a user or some titles")
        excluded = np.unique(history_L) if self._excludes_seen else history_L[:0]
        if len(excluded) == self.interactions.num_items:
            raise ConfigurationError(
                f"a history must leave items to recommend, got all {self.interactions.num_items}; name another user, "
                "or train with --repeats allow"
            )
        if top < 1:
            raise ConfigurationError(f"top must be at least 1, got {top}")
        recent = history_L[-self._max_seq_len :]
        items_BL = np.full((1, self._max_seq_len), self.interactions.num_items, np.int64)
        items_BL[0, : len(recent)] = recent
        users_B = None if user_id is None else [self._find_user(user_id)]
        scores = self._scorer.scores(items_BL, users_B)
        probabilities = {scorer: _softmax_without(scores_BI[0], excluded) for scorer, scores_BI in scores.items()}
        fused_I = scores["fused"][0].astype(np.float64)
        fused_I[excluded] = -np.inf
        order = np.argsort(-fused_I, kind="stable")[: min(top, len(fused_I) - len(excluded))]
        return [
            Recommendation(
                item_id=self.interactions.item_ids[item],
                title=self.interactions.titles[item],
                probabilities={scorer: float(values[item]) for scorer, values in probabilities.items()},
            )
            for item in order
        ]

    def _find_user(self, user_id: str) -> int:
        if user_id not in self.interactions.user_ids:
            examples = (*self.interactions.user_ids[:3], "...", self.interactions.user_ids[-1])
            raise UnknownNameError("user", user_id, examples)
        return self.interactions.user_ids.index(user_id)

    def _find_item(self, name: str) -> int:
        if name in self.interactions.item_ids:
            return self.interactions.item_ids.index(name)
        titles = [title.casefold() for title in self.interactions.titles]
        wanted = name.casefold()
        for found in (
            [index for index, title in enumerate(titles) if title == wanted],
            [index for index, title in enumerate(titles) if wanted in title],
        ):
            if len(found) == 1:
                return found[0]
            if found:
                several = [self.interactions.titles[index] for index in found[:5]]
                raise DataError(f"an item must be named clearly, {name!r} fits {len(found)} titles: {several}")
        near = difflib.get_close_matches(wanted, titles, n=3, cutoff=0.4)
        choices = [self.interactions.titles[titles.index(title)] for title in near]
        raise DataError(f"no item has the id or title {name!r}; the nearest titles are {choices}")


def _softmax_without(scores_I: NDArray[np.float32], excluded: NDArray[np.int32]) -> NDArray[np.float64]:
    """Probabilities over all items but some."""
    scores = scores_I.astype(np.float64)
    scores[excluded] = -np.inf
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


def evaluate_run(
    directory: RunDirectory, *, split: str = "test", checkpoint: str = "best", data_dir: Path | None = None
) -> dict[str, dict[str, float]]:
    """Hit@k, NDCG@k and MRR of each scorer of a run; where some targets are repeated, of both kinds apart too.

    Args:
        directory: The run.
        split: "test" or "validation".
        checkpoint: "best" (by validation) or "latest".
        data_dir: Where to look for the dataset's files before anything is downloaded.

    Raises:
        AlternatorError: An unknown split or checkpoint, no checkpoint yet, a damaged one, or not the run's data.
    """
    check_choice("split", split, ("test", "validation"))
    config = read_config(directory)
    path = directory.require_checkpoint(checkpoint)
    check_settings(path, config.model_config(num_items=2))
    held_out = split_of(
        config, load_interactions(config, data_dir)
    )  # no text is encoded: vectors are in the checkpoint
    directory.check_fact("split_hash", held_out.hash)
    model = load_scorer(config.backend, path, config.device)
    targets = getattr(held_out, split)
    ranks = model.rank_all(evaluation_batches(targets, config.model_config(held_out.num_items)))
    return summarise_rows(ranks, targets.is_repeated)


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
    return copy

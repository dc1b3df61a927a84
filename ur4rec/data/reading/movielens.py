"""MovieLens 100K and 1M in both layouts: the official archives and the RecBole copies.

The layouts name users and items differently (the copy of ML-1M uses titles as item names), but their interactions are
in the same file order, and canonical indices are the order of first appearance there. So both give the same
`Interactions.hash`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ur4rec.data.interactions import Interactions, build_interactions
from ur4rec.data.reading.tables import Table, require_columns
from ur4rec.data.reading.text import TextFormat, read_text_table
from ur4rec.data.reading.times import read_times

_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_RATINGS = ("user_id", "item_id", "rating", "timestamp")
_ITEMS_100K = ("item_id", "title", "release_date", "video_release_date", "url", *_GENRES_100K)
RATINGS_100K = TextFormat(separator="\t", columns=_RATINGS)
RATINGS_1M = TextFormat(separator="::", columns=_RATINGS)
MOVIES_100K = TextFormat(separator="|", columns=_ITEMS_100K, encoding="latin-1")
MOVIES_1M = TextFormat(separator="::", columns=("item_id", "title", "genres"), encoding="latin-1")
_ATOMIC = TextFormat(separator="\t")


@dataclass(frozen=True)
class Movie:
    """The title and the genres of an item."""

    title: str
    genres: tuple[str, ...]

    @property
    def text(self) -> str:
        """Title with year, then the genres."""
        known = [genre for genre in self.genres if genre != "unknown"]
        return f"{self.title}: {', '.join(known)}" if known else self.title


def read_movielens(name: str, directory: Path, *, min_item_interactions: int, source: str) -> Interactions:
    """Read a MovieLens directory, whichever layout it has.

    Args:
        name: ``ml-100k`` or ``ml-1m``.
        directory: Holds the files of one of the layouts that `find_layout` knows.
        min_item_interactions: Items with fewer interactions are dropped.
        source: Where it came from, for reports.

    Raises:
        DataError: A file is missing or malformed.
    """
    ratings_file, movies_file = find_layout(name, directory) or LAYOUTS[name][0]
    if ratings_file.endswith(".inter"):
        ratings, movies = _read_copy(directory / ratings_file, directory / movies_file)
    elif name == "ml-100k":
        ratings = read_text_table(directory / ratings_file, RATINGS_100K)
        movies = flagged_movies(read_text_table(directory / movies_file, MOVIES_100K))
    else:
        ratings = read_text_table(directory / ratings_file, RATINGS_1M)
        movies = listed_movies(read_text_table(directory / movies_file, MOVIES_1M))
    interactions = build_interactions(
        users=ratings.names("user_id"),
        items=ratings.names("item_id"),
        timestamps=read_times(ratings, "timestamp", None)[0],
        titles={item: movie.title for item, movie in movies.items()},
        texts={item: movie.text for item, movie in movies.items()},
        name=name,
        source=source,
        min_item_interactions=min_item_interactions,
    )
    return replace(interactions, user_ids=[user.removeprefix("1m_") for user in interactions.user_ids])


LAYOUTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ml-100k": (("u.data", "u.item"), ("ml-100k.inter", "ml-100k.item")),
    "ml-1m": (("ratings.dat", "movies.dat"), ("ml-1m.inter", "ml-1m.item")),
}
"""For each dataset the file names of its layouts: interactions and items; the official one first."""


def find_layout(name: str, directory: Path) -> tuple[str, str] | None:
    """The file names of the layout that a directory has, or None if it has neither."""
    for files in LAYOUTS[name]:
        if all((directory / file).is_file() for file in files):
            return files
    return None


def flagged_movies(table: Table) -> dict[str, Movie]:
    """ML-100K's official items: one column of 0 and 1 for each genre."""
    flags = [table.strings(genre) for genre in _GENRES_100K]
    return {
        item: Movie(
            _tidy(title), tuple(genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag[row] == "1")
        )
        for row, (item, title) in enumerate(
            zip(table.names("item_id").to_pylist(), table.strings("title"), strict=True)
        )
    }


def listed_movies(table: Table) -> dict[str, Movie]:
    """ML-1M's official items: genres between bars."""
    columns = (table.names("item_id").to_pylist(), table.strings("title"), table.strings("genres"))
    return {item: Movie(_tidy(title), tuple(genres.split("|"))) for item, title, genres in zip(*columns, strict=True)}


def _read_copy(ratings_file: Path, movies_file: Path) -> tuple[Table, dict[str, Movie]]:
    """The RecBole copies: typed headers, title and year apart, genres between blanks."""
    ratings, movies = (_untyped(read_text_table(file, _ATOMIC)) for file in (ratings_file, movies_file))
    genres = "class" if "class" in movies.columns else "genre"
    remedy = "take the copy that the documentation names"
    require_columns(ratings, _RATINGS, remedy)
    require_columns(movies, ("item_id", "movie_title", "release_year", genres), remedy)
    columns = (
        movies.names("item_id").to_pylist(),
        *(movies.strings(name) for name in ("movie_title", "release_year", genres)),
    )
    return ratings, {
        item: Movie(_with_year(title, year), tuple(genre.split()))
        for item, title, year, genre in zip(*columns, strict=True)
    }


def _untyped(table: Table) -> Table:
    return replace(table, columns={name.partition(":")[0]: column for name, column in table.columns.items()})


def _with_year(title: str, year: str) -> str:
    """The official title. The copy spells the one movie without a name and year ``unkonwn``."""
    return "unknown" if year == "unkonwn" else _tidy(f"{title} ({year})")


def _tidy(title: str) -> str:
    return " ".join(title.split())

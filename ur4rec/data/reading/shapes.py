"""Known shapes: the files of public datasets, recognised by their names or by the names of their columns.

What is recognised is said. A file of any other shape is read by the names of its columns alone; see `find_role`.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ur4rec.data.reading.content import bare_name
from ur4rec.data.reading.movielens import (
    MOVIES_1M,
    MOVIES_100K,
    RATINGS_1M,
    RATINGS_100K,
    Movie,
    flagged_movies,
    listed_movies,
)
from ur4rec.data.reading.tables import Table
from ur4rec.data.reading.text import TextFormat


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The files of a public dataset."""

    label: str
    """What it is, for people."""
    roles: Mapping[str, str]
    """The columns of the interactions: user, item, time, rating."""
    known_by: str | tuple[str, ...] = ()
    """A pattern that the name of the interactions file has, or columns; none: all those of the roles."""
    form: TextFormat | None = None
    """The format of the interactions file; None: by its suffix."""
    items_name: str | None = None
    """A pattern of the name of the items file beside it; {} is what the first group of ``stem`` finds."""
    stem: str = ".*"
    """A pattern of the name of the interactions file."""
    items_form: TextFormat | None = None
    """The format of the items file; None: by its suffix."""
    item_roles: Mapping[str, str] = field(default_factory=dict)
    """The columns of the items file: item and title."""
    texts: tuple[str, ...] = ()
    """Further texts in the items file; those that are there count."""
    movies: Callable[[Table], dict[str, Movie]] | None = None
    """Reads the titles and texts of MovieLens."""
    order: str = "time"
    """``file``: the order of the file stands for that of time."""
    note: str = ""
    """What else is to be said."""

    def items_beside(self, path: Path) -> Path | None:
        """The items file that belongs to a file of interactions."""
        found = re.fullmatch(self.stem, bare_name(path), re.IGNORECASE)
        if self.items_name is None or found is None:
            return None
        pattern = self.items_name.replace("{}", re.escape(found[1]) if found.groups() else "")
        return next((each for each in sorted(path.parent.iterdir()) if _has_name(each, pattern)), None)


def _has_name(path: Path, pattern: str) -> bool:
    return re.fullmatch(pattern, bare_name(path), re.IGNORECASE) is not None


_AMAZON = r"(?:reviews_)?(.+?)(?:_5)?\.jsonl?"
_BOOKS = TextFormat(separator=";", quoted=True, escaped=True, encoding="latin-1")
_EVENTS = TextFormat(separator="\t", columns=("userid", "timestamp", "artid", "artname", "traid", "traname"))
_RATED = {"user": "user_id", "item": "item_id", "time": "timestamp", "rating": "rating"}
_BOOK_CROSSING = Shape(
    label="Book-Crossing",
    roles={"user": "User-ID", "item": "ISBN", "rating": "Book-Rating"},
    items_name=r"Books\.csv",
    item_roles={"item": "ISBN", "title": "Book-Title"},
    texts=("Book-Author", "Publisher"),
    order="file",
    note="it has no times: the order of the file stands for them",
)
SHAPES = (
    Shape(
        label="MovieLens u.data",
        known_by=r"u\.data",
        form=RATINGS_100K,
        roles=_RATED,
        items_name=r"u\.item",
        items_form=MOVIES_100K,
        movies=flagged_movies,
    ),
    Shape(
        label="MovieLens ratings.dat",
        known_by=r"ratings\.dat",
        form=RATINGS_1M,
        roles=_RATED,
        items_name=r"movies\.dat",
        items_form=MOVIES_1M,
        movies=listed_movies,
    ),
    Shape(
        label="MovieLens ratings.csv",
        roles={"user": "userId", "item": "movieId", "time": "timestamp", "rating": "rating"},
        items_name=r"movies\.csv",
        item_roles={"item": "movieId", "title": "title"},
        texts=("genres",),
    ),
    Shape(
        label="Amazon reviews (2014, 2018)",
        roles={"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "rating": "overall"},
        stem=_AMAZON,
        items_name=r"meta_{}\.jsonl?",
        item_roles={"item": "asin", "title": "title"},
        texts=("categories", "category", "brand"),
    ),
    Shape(
        label="Amazon reviews (2023)",
        roles={"user": "user_id", "item": "parent_asin", "time": "timestamp", "rating": "rating"},
        stem=_AMAZON,
        items_name=r"meta_{}\.jsonl?",
        item_roles={"item": "parent_asin", "title": "title"},
        texts=("main_category", "categories", "store"),
    ),
    Shape(
        label="Last.fm listening events",
        known_by=r"userid-timestamp-artid-artname-traid-traname\.tsv",
        form=_EVENTS,
        roles={"user": "userid", "item": "artname", "time": "timestamp"},
        note="items are artists, by name, as some have no id; for tracks --columns item=traname",
    ),
    Shape(
        label="retailrocket events",
        known_by=("timestamp", "visitorid", "event", "itemid", "transactionid"),
        roles={"user": "visitorid", "item": "itemid", "time": "timestamp"},
        note="views count too; for purchases alone --where event=transaction",
    ),
    replace(
        _BOOK_CROSSING,
        known_by=r"BX[-_]Book[-_]Ratings\.csv",
        form=_BOOKS,
        items_name=r"BX[-_]Books\.csv",
        items_form=_BOOKS,
    ),
    _BOOK_CROSSING,
)
"""The shapes that are known."""

MAIN_FILES = (
    *(r"interactions\.\w+", r"u\.data", r"ratings\.dat", r"ratings\.csv", r"events\.csv"),
    *(r"BX[-_]Book[-_]Ratings\.csv", r"userid-timestamp-artid-artname-traid-traname\.tsv"),
)
"""What the file of interactions in a directory is called, the first that is there."""

_OWN = {"user": ("user", "userid"), "item": ("item", "itemid"), "time": ("timestamp", "time"), "rating": ("rating",)}
"""The names that are taken for a role, in any case, without blanks, hyphens and underscores."""
_SYNONYMS = {
    "user": r"user|customer|reviewer|visitor|session|member|account|client|buyer|listener|profile|person",
    "item": r"item|movie|product|asin|isbn|sku|article|track|artist|song|book|business|game|video|page|recipe|film",
    "time": r"time|date|when|created|[_ ]at$|(^|_)ts$",
    "rating": r"rating|score|stars|overall",
}
"""What the name of a column for a role may have in it, for suggestions alone."""


def shape_of_name(path: Path) -> Shape | None:
    """The shape of a file of that name."""
    return next((each for each in SHAPES if isinstance(each.known_by, str) and _has_name(path, each.known_by)), None)


def shape_of_columns(columns: Collection[str]) -> Shape | None:
    """The shape of a table with those columns."""
    return next(
        (
            each
            for each in SHAPES
            if not isinstance(each.known_by, str) and set(each.known_by or each.roles.values()) <= set(columns)
        ),
        None,
    )


def main_file(directory: Path) -> Path | None:
    """The file of interactions in a directory, if it has one of the names that are known."""
    files = sorted(directory.iterdir())
    return next((file for pattern in MAIN_FILES for file in files if _has_name(file, pattern)), None)


def find_role(role: str, columns: Iterable[str]) -> str | None:
    """The column for a role: of its very name, or the only one whose name says so.

    Example:
        >>> find_role("user", ["userId", "movieId"]), find_role("item", ["userId", "movieId"])
        ('userId', None)
    """
    names = list(columns)
    if (exact := _OWN[role][0]) in names:
        return exact
    found = [name for name in names if re.sub(r"[\s_-]", "", name).lower() in _OWN[role]]
    return found[0] if len(found) == 1 else None


def suggest_roles(columns: Iterable[str]) -> dict[str, str]:
    """The columns that user, item and time may be, for a suggestion."""
    names = list(columns)
    found: dict[str, str] = {}
    for role in ("user", "item", "time"):
        left = [name for name in names if name not in found.values()]
        like = [name for name in left if re.search(_SYNONYMS[role], name, re.IGNORECASE)]
        ids = [name for name in like if re.search(r"id$", name, re.IGNORECASE)]
        best = find_role(role, left) or next(iter(ids if role != "time" else like), None) or next(iter(like), None)
        if best is not None:
            found[role] = best
    return found

"""Options: how files of one's own are read, and the choices of how data is split."""

import codecs
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alternator.checks import check_choice, check_integer, check_range, check_switch, listed, set_fields
from alternator.errors import quoted
from ur4rec.errors import ConfigurationError

ORDERS = ("time", "file")
SPLITS = ("auto", "leave-one-out", "temporal", "given")
"""How data is split; see `ur4rec.data.make_split`."""
REPEATS = ("auto", "allow", "exclude")
"""What becomes of items that a user had before; see `ur4rec.data.make_split`."""
AUTO_SHARE = 0.1
"""From this share of repeated targets on, ``auto`` is ``allow``."""
TIME_FORMATS = ("iso", "dayfirst", "monthfirst", "s", "ms", "us", "ns")
"""The times that have a name; any other ``time_format`` is one of strptime."""
_MAX_TIME_FORMAT = 64
_SEPARATORS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " ", "bar": "|"}
_ENCODINGS = ("ascii", "utf-8", "utf-16", "utf-32", "iso8859", "cp", "gb", "big5", "shift_jis", "euc_", "koi8", "mac-")
"""How the names of encodings of text begin; others (punycode, idna) are slow or no encodings of files."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    r"""How files of one's own are read: names of columns, format, and which rows count. None: the file says it.

    Raises:
        ConfigurationError: A value is out of range; the message states the rule, the value and the remedy.

    Example:
        >>> options = DataOptions(user="userId", separator="tab", where=("event=purchase",))
        >>> options.to_json()
        {'user': 'userId', 'separator': '\t', 'where': ['event=purchase']}
        >>> DataOptions.from_json(options.to_json()) == options
        True
    """

    user: str | None = None
    """The column of users."""
    item: str | None = None
    """The column of items, in the interactions and in the items file."""
    time: str | None = None
    """The column of times."""
    rating: str | None = None
    """The column of ratings; it is read for ``min_rating`` alone."""
    title: str | None = None
    """The column of titles, in the items file or, where there is none, in the interactions."""
    texts: tuple[str, ...] | None = None
    """What the encoder reads besides the title; None: all other columns of the items file except ids."""
    separator: str | None = None
    """What separates two fields: one character, ``::``, or a word such as ``tab``."""
    names: tuple[str, ...] | None = None
    """The names of the columns of a file without a header; None: its first line has them."""
    encoding: str | None = None
    """The encoding of text files; None: UTF-8, or what a known shape has."""
    time_format: str | None = None
    """A format of strptime, or ``iso``, ``dayfirst``, ``monthfirst``, ``s``, ``ms``, ``us``, ``ns``."""
    min_rating: float | None = None
    """Rows with a lower rating are left out."""
    where: tuple[str, ...] = ()
    """``COLUMN=VALUE``: only such rows count. Several values of a column: any of them; several columns: all of them."""
    k_core: int = 1
    """Users and items with fewer interactions are dropped, again and again until none is left."""
    order: str = "time"
    """``time``, or ``file``: the order of the rows is that of time, and no column of times is needed."""
    deduplicate: bool = False
    """Drop rows that repeat another one: user, item and time."""
    items: str | None = None
    """A file with titles and texts of items, if it is not beside the interactions."""

    def __post_init__(self) -> None:
        for name in ("user", "item", "time", "rating", "title", "encoding", "time_format", "items"):
            if getattr(self, name) is not None:
                _check_string(name, getattr(self, name))
        for name in ("texts", "names", "where"):
            set_fields(self, **{name: _check_strings(name, getattr(self, name))})
        if self.separator is not None:
            set_fields(self, separator=_check_separator(self.separator))
        if self.names is not None and len(set(self.names)) < len(self.names):
            raise ConfigurationError(f"names must be distinct, got {listed(self.names)}")
        for each in self.where:
            if not each.partition("=")[0] or "=" not in each:
                raise ConfigurationError(f"where must read COLUMN=VALUE, got {quoted(each)}")
        if self.encoding is not None:
            _check_encoding(self.encoding)
        if self.time_format is not None and not _is_time_format(self.time_format):
            raise ConfigurationError(
                f"time_format must be one of {TIME_FORMATS} or of strptime, such as %d.%m.%Y, got "
                f"{quoted(self.time_format)}"
            )
        if self.min_rating is not None:
            set_fields(self, min_rating=check_range("min_rating", self.min_rating, -1e9, 1e9, closed=True))
        set_fields(self, k_core=check_integer("k_core", self.k_core, 1))
        check_choice("order", self.order, ORDERS)
        check_switch("deduplicate", self.deduplicate)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: what differs from the defaults."""
        content = {
            each.name: value
            for each in dataclasses.fields(self)
            if (value := getattr(self, each.name)) is not None and value != each.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "DataOptions":
        """The options that `to_json` gave.

        Raises:
            ConfigurationError: Options that do not exist or cannot work.
        """
        known = tuple(each.name for each in dataclasses.fields(cls))
        for name in content:
            check_choice("option of data", name, known)
        return cls(**content)


def _is_time_format(value: str) -> bool:
    return value in TIME_FORMATS or ("%" in value and len(value) <= _MAX_TIME_FORMAT)


def _check_string(name: str, value: object) -> None:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigurationError(f"{name} must be a string that is not empty, got {quoted(value)}")


def _check_strings(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None and name != "where":
        return None
    if not isinstance(value, (list, tuple)) or not (value or name == "where"):
        raise ConfigurationError(f"{name} must be strings, got {quoted(value)}")
    for each in value:
        _check_string(f"each of {name}", each)
    return tuple(value)


def _check_separator(value: object) -> str:
    found = _SEPARATORS.get(value, value) if isinstance(value, str) else value
    if not isinstance(found, str) or found in ("\n", "\r", "\0", '"') or not (found == "::" or _is_one_byte(found)):
        raise ConfigurationError(
            f"separator must be one ASCII character, '::' or one of {tuple(_SEPARATORS)}, got {quoted(value)}"
        )
    return found


def _is_one_byte(value: str) -> bool:
    return len(value) == 1 and value.isascii()


def _check_encoding(value: str) -> None:
    try:
        found = codecs.lookup(value).name
    except (LookupError, UnicodeError, ValueError):
        found = ""
    if not found.startswith(_ENCODINGS):
        raise ConfigurationError(
            f"encoding must be one of text files, such as utf-8, latin-1 or cp1252, got {quoted(value)}"
        )

"""How files of one's own are read: the options that several commands share."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ur4rec.errors import ConfigurationError
from ur4rec.options import TIME_FORMATS, DataOptions

GivenOptions = Callable[[], dict[str, Any]]
"""What was given, checked when it is called."""
_ROLES = ("user", "item", "time", "rating", "title")


def _option(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Data", show_default=False, **settings)


def _parse(
    columns: Annotated[
        list[str] | None,
        _option(
            metavar="ROLE=COLUMN,...",
            help=f"Which columns are what ({', '.join(_ROLES)}): --columns user=userId,item=movieId.",
        ),
    ] = None,
    separator: Annotated[
        str | None, _option(help="What is between two fields: ',' ';' tab '|' '::' or another.")
    ] = None,
    no_header: Annotated[
        bool, _option("--no-header", help="The first line is a row; --names has the columns.")
    ] = False,
    names: Annotated[str | None, _option(metavar="A,B,...", help="The columns of a file without a header.")] = None,
    encoding: Annotated[str | None, _option(help="Of text files. Default: utf-8.")] = None,
    time_format: Annotated[
        str | None,
        _option(metavar="FORMAT", help=f"Of times: {', '.join(TIME_FORMATS)}, or one such as '%d.%m.%Y %H:%M'."),
    ] = None,
    min_rating: Annotated[float | None, _option(metavar="RATING", help="Only rows rated at least this count.")] = None,
    where: Annotated[
        list[str] | None,
        _option(metavar="COLUMN=VALUE", help="Only such rows count, e.g. --where event=purchase. Repeatable."),
    ] = None,
    k_core: Annotated[
        int | None, _option(metavar="K", help="Drop users and items with fewer interactions, until none is left.")
    ] = None,
    text: Annotated[
        str | None, _option(metavar="A,B,...", help="Columns of the items that the encoder reads, besides the title.")
    ] = None,
    order: Annotated[
        Literal["time", "file"] | None,
        _option(help="file: rows are in the order of time, no column of times is needed."),
    ] = None,
    deduplicate: Annotated[
        bool, _option("--deduplicate", help="Drop rows that repeat another one: user, item and time.")
    ] = False,
    items: Annotated[
        Path | None, _option("--items", metavar="FILE", help="Titles and texts of items, if not beside the data.")
    ] = None,
) -> dict[str, Any]:
    """What was given, as `DataOptions.to_json` has it."""
    roles: dict[str, str] = {}
    for pair in ",".join(columns or []).split(",") if columns else ():
        role, equals, column = (each.strip() for each in pair.partition("="))
        if role not in _ROLES or not equals or not column:
            raise ConfigurationError(f"--columns must read ROLE=COLUMN with a role of {_ROLES}, got {pair!r}")
        roles[role] = column
    if no_header != (names is not None):
        raise ConfigurationError(
            "--no-header and --names must be given together: a file without a header needs names, one with a header "
            "has its own; rename columns with --columns"
        )
    given: dict[str, Any] = {
        **roles,
        "separator": separator,
        "names": _split(names),
        "encoding": encoding,
        "time_format": time_format,
        "min_rating": min_rating,
        "where": tuple(where or ()),
        "k_core": k_core,
        "texts": _split(text),
        "order": order,
        "deduplicate": deduplicate,
        "items": None if items is None else str(items.expanduser().resolve()),
    }
    return DataOptions(**{name: value for name, value in given.items() if value is not None}).to_json()


def command_words(data: Mapping[str, Any]) -> list[str]:
    """The words of a command that give these options, as `DataOptions.to_json` has them.

    Example:
        >>> command_words({"user": "userId", "k_core": 5, "where": ["event=purchase"]})
        ['--columns', 'user=userId', '--k-core', '5', '--where', 'event=purchase']
    """
    words: list[str] = []
    if roles := [f"{role}={data[role]}" for role in _ROLES if role in data]:
        words += ["--columns", ",".join(roles)]
    for name, value in data.items():
        option = "--text" if name == "texts" else f"--{name.replace('_', '-')}"
        if name == "where":
            words += [word for each in value for word in (option, each)]
        elif name not in _ROLES:
            words += ["--no-header"] * (name == "names")
            words.append(option)
            if value is not True:
                words.append(",".join(value) if isinstance(value, list) else str(value))
    return words


def _split(names: str | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(each.strip() for each in names.split(","))


def with_data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `DataOptions`; it gets a function that returns what was given, ``data_options``.

    The function may raise a `ConfigurationError`, so the command calls it where it turns errors into one line.
    """
    own, options = inspect.signature(command).parameters, inspect.signature(_parse).parameters

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        mine = {name: given.pop(name) for name in options}
        command(**given, data_options=functools.partial(_parse, **mine))

    left = [each for name, each in own.items() if name != "data_options"]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*left, *options.values())]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped

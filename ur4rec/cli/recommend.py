"""``ur4rec recommend``."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from ur4rec.cli.options import REFIT_IS_USED, AsJson, Checkpoint, DataDirectory, Memory, Quiet, Run, one_line_errors
from ur4rec.cli.output import build_table, log_to_stderr, say, say_json, say_table, say_to_stderr
from ur4rec.cli.together import first_speaks, together
from ur4rec.errors import ConfigurationError
from ur4rec.training.processes import Processes

if TYPE_CHECKING:
    import pyarrow as pa

    from ur4rec.runs.recommender import Recommendation, Recommender

_SHOWN_USERS = 3
_RIGHT = {"justify": "right", "no_wrap": True}
_FILE = "one id per line, or a .csv, .tsv, .parquet or .jsonl with a column"


def recommend(
    run: Run,
    user: Annotated[str | None, typer.Option(help="A user id of the dataset.", rich_help_panel="For whom")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(
            "--item",
            help="An item of a history, oldest first: an id, a title, or a part of one. Repeatable.",
            rich_help_panel="For whom",
        ),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Many users: {_FILE} 'user'.", rich_help_panel="For whom"),
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every user.", rich_help_panel="For whom")] = False,
    top: Annotated[int, typer.Option(help="The number of items.", rich_help_panel="What")] = 10,
    exclude: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Items never to recommend: {_FILE} 'item'.", rich_help_panel="What"),
    ] = None,
    only: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The only items to recommend, likewise.", rich_help_panel="What"),
    ] = None,
    interactions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows that came after the run was trained, in the form of its data; the whole file, grown, will do.",
            rich_help_panel="What came later",
        ),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Items that came after the run was trained, in the form of its items: item, title and further texts.",
            rich_help_panel="What came later",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a .parquet, .csv or .jsonl with a row per user and place: user, place, item, title, the "
            "probabilities, cold.",
            rich_help_panel="How",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    device: Annotated[str, typer.Option(help="cpu, auto, cuda, cuda:1, ...", rich_help_panel="How")] = "cpu",
    data_dir: DataDirectory = None,
    memory: Memory = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what users, or somebody with a history of your own, are likely to choose next.

    The columns are the probabilities, among all items that may be recommended, that SASRec, the retriever and both
    fused give an item to be the next one. The items of a history are left out, unless the run allows repeats.

    *One user:* ur4rec recommend runs/mine --user 42

    *Everyone, every night:* ur4rec recommend runs/mine --all-users --top 20 --interactions plays.csv --out recs.parquet

    Users and items of --interactions and --items that the run has never seen are taken too. Such items are scored by
    their text alone and marked as cold.
    """
    with one_line_errors():
        log_to_stderr(quiet)
        with first_speaks():
            if sum((user is not None, bool(history), users is not None, all_users)) != 1:
                raise ConfigurationError(
                    "give either --user ID or one or more --item TITLE, or for many users --users FILE or --all-users"
                )
            if as_json and out is not None:
                raise ConfigurationError(
                    f"give either --out FILE or --json, got both ({out}); a .jsonl file holds the rows as JSON"
                )
            backend = _backend_of(run)
        with together(backend, device) as processes:
            given = (run, data_dir, interactions, items, device, memory, checkpoint, out, exclude, only)
            recommender, candidates_I = _open(*given)
            if recommender.checkpoint == "refit" and processes.rank == 0 and not quiet:
                say_to_stderr(REFIT_IS_USED)
            if users is not None or all_users:
                ids = recommender.interactions.user_ids if users is None else _read_users(users)
                _recommend_many(recommender, ids, top, candidates_I, processes, out, as_json=as_json, quiet=quiet)
            elif processes.rank == 0:
                _recommend_one(recommender, user, history or [], top, candidates_I, out, as_json)


def _backend_of(run: Path) -> str:
    from ur4rec.runs.config import read_config
    from ur4rec.runs.directory import RunDirectory

    return read_config(RunDirectory.open_existing(run)).backend


def _recommend_many(
    recommender: "Recommender",
    ids: Sequence[str],
    top: int,
    candidates_I: Any,
    processes: Processes,
    out: Path | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the lists of many users, or show the first; the first of several processes does."""
    writes = processes.rank == 0
    if out is None and not as_json:
        if writes:
            shown = ids[:_SHOWN_USERS]
            _show_users(recommender.recommend_users(shown, top=top, candidates_I=candidates_I))
            if len(ids) > len(shown):
                say(f"... and {len(ids) - len(shown):,} more users: write them all with --out recs.parquet")
        return
    with _progress(len(ids), quiet or not writes) as progress:
        tables = recommender.recommend_users(
            ids, top=top, candidates_I=candidates_I, progress=progress, processes=processes
        )
        if writes:
            _write(tables, out)
        else:
            deque(tables, maxlen=0)


def _open(
    run: Path,
    data_dir: Path | None,
    interactions: Path | None,
    items: Path | None,
    device: str,
    memory: str | None,
    checkpoint: str | None,
    out: Path | None,
    exclude: Path | None,
    only: Path | None,
) -> "tuple[Recommender, Any]":
    """The run, and the items that may be recommended; what is wrong with --out is said first."""
    from ur4rec.data.reading.ids import read_ids
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.recommendations import check_output
    from ur4rec.runs.recommender import Recommender

    if out is not None:
        check_output(out)
    recommender = Recommender(
        RunDirectory.open_existing(run),
        data_dir=data_dir,
        interactions=interactions,
        items=items,
        device=device,
        memory=memory,
        checkpoint=checkpoint,
    )
    if exclude is None and only is None:
        return recommender, None
    lists = {name: read_ids(path, ("item", "item_id")) for name, path in (("exclude", exclude), ("only", only)) if path}
    return recommender, recommender.candidates(**lists)


def _read_users(path: Path) -> list[str]:
    from ur4rec.data.reading.ids import read_ids

    found = read_ids(path, ("user", "user_id"))
    ids = list(dict.fromkeys(found))
    if len(ids) < len(found):
        say_to_stderr(f"{path}: {len(found) - len(ids)} of {len(found)} users are there twice, and get one list")
    return ids


def _recommend_one(
    recommender: "Recommender",
    user: str | None,
    history: list[str],
    top: int,
    candidates_I: Any,
    out: Path | None,
    as_json: bool,
) -> None:
    from ur4rec.data.interactions import Sequences

    items = recommender.history_of(user) if user is not None else recommender.find_items(history)
    found = recommender.recommend(items, top=top, user_id=user, candidates_I=candidates_I)
    if out is not None:
        history_1 = Sequences.from_lists([items.tolist()])
        _write(recommender.tables([user or ""], history_1, top=top, candidates_I=candidates_I), out)
    elif as_json:
        say_json([each._asdict() for each in found])
    else:
        titles = [recommender.interactions.titles[item] for item in items[-3:]]
        _show(found, f"after {len(items)} item{'s' if len(items) > 1 else ''}, the last: {', '.join(titles)}")
        if len(found) < top:
            say(f"{len(found)} items are all that can be recommended: {_why_no_more(recommender, candidates_I)}")


def _why_no_more(recommender: "Recommender", candidates_I: Any) -> str:
    """Why fewer items are recommended than were asked for."""
    causes = ["in the history"] if recommender.excludes_seen else []
    if candidates_I is not None and not candidates_I.all():
        causes.append("excluded")
    return f"the others are {' or '.join(causes)}" if causes else "the run has no others"


def _show(found: "list[Recommendation]", title: str) -> None:
    columns: dict[str, Any] = {"#": _RIGHT, "title": {}, "SASRec": _RIGHT, "retriever": _RIGHT, "fused": _RIGHT}
    scorers = ("sasrec", "retriever", "fused")
    rows = [
        [str(place), _marked(each.title, each.cold), *(f"{each.probabilities[scorer]:.2%}" for scorer in scorers)]
        for place, each in enumerate(found, 1)
    ]
    say_table(build_table(columns, rows, title=title))


def _show_users(tables: "Iterable[pa.Table]") -> None:
    columns: dict[str, Any] = {"user": {}, "#": _RIGHT, "title": {}, "fused": _RIGHT}
    rows = [
        [row["user"], str(row["place"]), _marked(row["title"], row["cold"]), f"{row['fused']:.2%}"]
        for table in tables
        for row in table.to_pylist()
    ]
    say_table(build_table(columns, rows, title="the first users"))


def _marked(title: str, cold: bool) -> str:
    return f"{title} (cold)" if cold else title


def _write(tables: "Iterable[pa.Table]", out: Path | None) -> None:
    from ur4rec.runs.recommendations import write_recommendations

    if out is None:
        say_json([row for table in tables for row in table.to_pylist()])
        return
    write_recommendations(out, tables)
    say(f"Everything is in {out}")


@contextmanager
def _progress(num_users: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """What is told how many users are done: a bar on a terminal, and elsewhere a line for every tenth of them."""
    started, said = time.monotonic(), 0
    with tqdm(total=num_users, unit="user", disable=quiet or not sys.stderr.isatty()) as bar:

        def show(done: int) -> None:
            nonlocal said
            bar.update(done - bar.n)
            if bar.disable and not quiet and (tenth := 10 * done // num_users) > said:
                said, left = tenth, (time.monotonic() - started) / done * (num_users - done)
                say_to_stderr(f"{done:,} of {num_users:,} users, {left:.0f} s left")

        yield show

"""``ur4rec data``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ur4rec.cli.data_options import GivenOptions, command_words, with_data_options
from ur4rec.cli.options import AsJson, DataDirectory, Repeats, Split, one_line_errors
from ur4rec.cli.output import build_table, log_to_stderr, say, say_json, say_table
from ur4rec.errors import ConfigurationError
from ur4rec.options import DataOptions

if TYPE_CHECKING:
    from ur4rec.data import Interactions


@with_data_options
def data(
    data_options: GivenOptions,
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="As --dataset.", show_default=False)] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset as for train. Default: ml-100k.", show_default=False)
    ] = None,
    data_dir: DataDirectory = None,
    split: Split = None,
    repeats: Repeats = None,
    as_json: AsJson = False,
    texts_file: Annotated[
        Path | None,
        typer.Option(
            "--write-user-texts",
            metavar="FILE",
            help="Write a file for train --user-texts: the last 20 titles of each user's training prefix.",
        ),
    ] = None,
) -> None:
    """Fetch a dataset or read files of your own; print how they were read, rows, counts, hashes, what is repeated."""
    from ur4rec.data import describe, load_dataset, make_split
    from ur4rec.data.describe import describe_split, explain_duplicates, explain_repeats
    from ur4rec.text.users import texts_of_prefixes, write_user_texts

    with one_line_errors():
        if name is not None and dataset is not None:
            raise ConfigurationError(
                f"a dataset must be named once, got {name!r} and --dataset {dataset!r}; leave one out"
            )
        log_to_stderr(quiet=True)  # warnings alone: the rest is printed
        given = data_options()
        interactions = load_dataset(
            name or dataset or "ml-100k", directory=data_dir, options=DataOptions.from_json(given)
        )
        found = make_split(interactions, split or "auto", repeats or "auto")
        if texts_file is not None:
            texts = texts_of_prefixes(found, interactions)
            write_user_texts(texts_file, interactions.user_ids, texts)
        facts: dict[str, Any] = {
            "dataset": interactions.name,
            "source": interactions.source,
            **({"options": given} if given else {}),
            "read": list(interactions.notes),
            "first_rows": first_rows(interactions),
            **describe(interactions),
            "interactions_hash": interactions.hash,
            **describe_split(found),
        }
        if as_json:
            say_json(facts)
            return
        rows = [row for name, value in facts.items() for row in _table_rows(name, value)]
        say_table(build_table({"fact": {}, "value": {"overflow": "fold"}}, rows))  # a hash is of use only whole
        duplicates = explain_duplicates(interactions, bool(given.get("deduplicate")))
        for line in (duplicates, explain_repeats(found, repeats or "auto")):
            if line:
                say(line)


def first_rows(interactions: "Interactions", num_rows: int = 3) -> list[dict[str, str]]:
    """The first interactions as they were read: user, item, time and title."""
    return [
        {
            "user": interactions.user_ids[user],
            "item": interactions.item_ids[item],
            "time": str(time),
            "title": interactions.titles[item],
        }
        for user, item, time in zip(
            interactions.users_N[:num_rows].tolist(),
            interactions.items_N[:num_rows].tolist(),
            interactions.timestamps_N[:num_rows].tolist(),
            strict=True,
        )
    ]


def _table_rows(name: str, value: Any) -> list[list[str]]:
    """A fact as rows of the table: one for each value of a list."""
    if isinstance(value, list):
        shown = [", ".join(each.values()) if isinstance(each, dict) else each for each in value]
    elif isinstance(value, dict):
        shown = [shlex.join(command_words(value))]
    else:
        shown = [f"{value:.4g}" if isinstance(value, float) else str(value)]
    return [["" if number else name, each] for number, each in enumerate(shown)]

"""``ur4rec data``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ur4rec.cli.options import AsJson, DataDirectory, Deduplicate, Repeats, Split, one_line_errors
from ur4rec.cli.output import build_table, say, say_json, say_table
from ur4rec.errors import ConfigurationError


def data(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="As --dataset.", show_default=False)] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset as for train. Default: ml-100k.", show_default=False)
    ] = None,
    data_dir: DataDirectory = None,
    deduplicate: Deduplicate = False,
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
    """Fetch a dataset, check and split it, and print its counts and hashes, and how much of it is repeated."""
    from ur4rec.data import describe, load_dataset, make_split
    from ur4rec.data.describe import describe_split, explain_duplicates, explain_repeats
    from ur4rec.text.users import texts_of_prefixes, write_user_texts

    with one_line_errors():
        if name is not None and dataset is not None:
            raise ConfigurationError(
                f"a dataset must be named once, got {name!r} and --dataset {dataset!r}; leave one out"
            )
        interactions = load_dataset(name or dataset or "ml-100k", directory=data_dir, deduplicate=deduplicate)
        found = make_split(interactions, split or "auto", repeats or "auto")
        if texts_file is not None:
            texts = texts_of_prefixes(found, interactions)
            write_user_texts(texts_file, interactions.user_ids, texts)
        facts: dict[str, Any] = {
            "dataset": interactions.name,
            "source": interactions.source,
            **describe(interactions),
            "interactions_hash": interactions.hash,
            **describe_split(found),
        }
        if as_json:
            say_json(facts)
            return
        rows = [[name, f"{value:.4g}" if isinstance(value, float) else str(value)] for name, value in facts.items()]
        say_table(build_table({"fact": {}, "value": {"overflow": "fold"}}, rows))  # a hash is of use only whole
        for line in (explain_duplicates(interactions, deduplicate), explain_repeats(found, repeats or "auto")):
            if line:
                say(line)

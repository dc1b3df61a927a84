"""``ur4rec data``: ``show``, which is meant where no command is named, and ``prepare``."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ur4rec.cli.data_options import GivenOptions, command_words, with_data_options
from ur4rec.cli.options import AsJson, DataDirectory, Quiet, Repeats, Split, one_line_errors
from ur4rec.cli.output import build_table, log_to_stderr, say, say_json, say_table, say_to_stderr
from ur4rec.cli.progress import ShareBar, end_on_termination
from ur4rec.errors import ConfigurationError
from ur4rec.options import DataOptions

if TYPE_CHECKING:
    from ur4rec.data import Interactions

DEFAULT = "show"


class WithDefault(TyperGroup):
    """Commands of which one is meant where the first word is none of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words, with the name of the default command in front where that is left out."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


data = typer.Typer(
    name="data",
    cls=WithDefault,
    help="Look at a dataset, or prepare one that is larger than memory.\n\n"
    "`ur4rec data FILE` is short for `ur4rec data show FILE`.",
    epilog="Start with: ur4rec data plays.csv, or ur4rec data prepare plays.parquet --out plays",
)


@data.command(DEFAULT)
@with_data_options
def show(
    data_options: GivenOptions,
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="As --dataset.", show_default=False)] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset as for train. Default: ml-100k.", show_default=False)
    ] = None,
    data_dir: DataDirectory = None,
    split: Split = None,
    repeats: Repeats = None,
    check: Annotated[
        bool, typer.Option("--check", help="Of prepared data, read all files and compare their checksums.")
    ] = False,
    as_json: AsJson = False,
    texts_file: Annotated[
        Path | None,
        typer.Option(
            "--write-user-texts",
            metavar="FILE",
            help="Write a file for train --user-texts: the last 20 titles of each user's training prefix.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file that --write-user-texts names, if it is there.")
    ] = False,
) -> None:
    """Fetch a dataset or read files of your own; print how they were read, rows, counts, hashes, what is repeated.

    Below it is what `ur4rec train` takes for what you don't set: sizes, learning rates and lengths, with the reasons.
    Data on which nothing can be trained is described, and then refused with exit code 2.

    This is what `ur4rec data DATASET` does.
    """
    from ur4rec.data import describe, load_dataset, make_split
    from ur4rec.data.describe import describe_split, explain_duplicates, explain_repeats
    from ur4rec.data.splits import check_trainable
    from ur4rec.runs.prepared import counts_of
    from ur4rec.runs.presets import preset
    from ur4rec.text.users import check_output, texts_of_prefixes, write_user_texts

    with one_line_errors():
        if name is not None and dataset is not None:
            raise ConfigurationError(
                f"a dataset must be named once, got {name!r} and --dataset {dataset!r}; leave one out"
            )
        if texts_file is not None:
            check_output(texts_file, overwrite=overwrite)
        elif overwrite:
            raise ConfigurationError("--overwrite is for --write-user-texts, which is not given; leave it out")
        log_to_stderr(quiet=True)  # warnings alone: the rest is printed
        given = data_options()
        interactions = load_dataset(
            name or dataset or "ml-100k", directory=data_dir, options=DataOptions.from_json(given)
        )
        if check:
            _check(interactions)
        found = make_split(interactions, split or "auto", repeats or "auto")
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
        choices = preset("default", data=given).settled(counts_of(found))[1]
        if as_json:
            say_json({**facts, "default": {choice.name: choice.value for choice in choices}})
        else:
            rows = [row for name, value in facts.items() for row in _table_rows(name, value)]
            say_table(build_table({"fact": {}, "value": {"overflow": "fold"}}, rows))  # a hash is of use only whole
        check_trainable(found, interactions.name)
        if texts_file is not None:
            texts = texts_of_prefixes(found, interactions)
            write_user_texts(texts_file, interactions.user_ids, texts)
            say_to_stderr(f"the texts of {sum(map(bool, texts)):,} users are in {texts_file}")
        if as_json:
            return
        duplicates = explain_duplicates(interactions, bool(given.get("deduplicate")))
        for line in (duplicates, explain_repeats(found, repeats or "auto")):
            if line:
                say(line)
        say("What the preset default takes for it:")
        for choice in choices:
            say(f"  {choice}")


@data.command()
@with_data_options
def prepare(
    data_options: GivenOptions,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="A file, the parts of one table, or a directory of a dataset.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="The directory to make, for train --dataset.", show_default=False)],
    split: Split = None,
    repeats: Repeats = None,
    memory: Annotated[
        str,
        typer.Option(
            metavar="BYTES",
            help="What rows may take at once, e.g. 500MB; ids and texts of users and items come on top.",
        ),
    ] = "2GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace prepared data that is in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write data of any number of rows as a directory that `train --dataset` maps into memory instead of reading it.

    The files are read in pieces and sorted on the disk, so that memory stays bounded; users, items, hashes and the
    split are those that the files have when they are read whole. The directory is there once it is whole; Ctrl-C
    leaves nothing behind.
    """
    from ur4rec.data.preparing import prepare_files
    from ur4rec.training.slices import parse_memory

    with one_line_errors(), end_on_termination(), ShareBar(quiet=quiet) as bar:
        log_to_stderr(quiet)
        found = prepare_files(
            files,
            out,
            options=DataOptions.from_json(data_options()),
            split=split or "auto",
            repeats=repeats or "auto",
            memory=parse_memory(memory),
            overwrite=overwrite,
            progress=bar.show,
        )
    counts = f"{len(found):,} interactions of {found.num_users:,} users and {found.num_items:,} items"
    for line in (f"{counts} are in {out}", *found.notes):
        say(line)
    say(f"Train on them with: ur4rec train --dataset {shlex.quote(str(out))} --out runs/mine")


def _check(interactions: "Interactions") -> None:
    """Refuse prepared data of which a file is damaged."""
    if interactions.prepared is None:
        raise ConfigurationError(f"--check is for prepared data, got {interactions.source}; leave it out")
    with ShareBar(quiet=False) as bar:
        interactions.prepared.check(lambda share: bar.show("checksums", share))


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

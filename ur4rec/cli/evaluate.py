"""``ur4rec evaluate``, ``recommend`` and ``convert``: what a trained run is good for."""

from pathlib import Path
from typing import Annotated

import typer

from ur4rec.cli.options import AsJson, DataDirectory, Overwrite, Run, one_line_errors
from ur4rec.cli.output import build_table, say, say_json, say_table
from ur4rec.errors import ConfigurationError


def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best (by validation) or latest.")] = "best",
    data_dir: DataDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Rank the whole catalogue for every target with a run's checkpoint, and print Hit@k and NDCG@k."""
    from ur4rec.cli.tables import metrics_table
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.finished import evaluate_run

    with one_line_errors():
        directory = RunDirectory.open_existing(run)
        rows = evaluate_run(directory, split=split, checkpoint=checkpoint, data_dir=data_dir)
        if as_json:
            say_json(rows)
        else:
            say_table(metrics_table(f"{run}, {checkpoint} checkpoint, {split} targets", rows))


def recommend(
    run: Run,
    user: Annotated[str | None, typer.Option(help="A user id of the dataset.")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(
            "--item", help="An item of a history, oldest first: an id, a title, or a part of one. Repeatable."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="The number of items.")] = 10,
    data_dir: DataDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Print what a user, or somebody with a history of your own, is likely to choose next.

    The three columns are the probabilities that SASRec, the retriever and both fused give an item to be the next one.
    A run that excludes repeats (see train --repeats) leaves out the items of the history, and gives the others all.
    """
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.finished import Recommender

    with one_line_errors():
        if (user is None) == (not history):
            raise ConfigurationError("give either --user ID or one or more --item TITLE")
        recommender = Recommender(RunDirectory.open_existing(run), data_dir=data_dir)
        items = recommender.history_of(user) if user is not None else recommender.find_items(history or [])
        found = recommender.recommend(items, top=top, user_id=user)
        if as_json:
            say_json([each._asdict() for each in found])
            return
        titles = [recommender.interactions.titles[item] for item in items[-3:]]
        title = f"after {len(items)} items, the last: {', '.join(titles)}"
        right = {"justify": "right"}
        columns = {"#": right, "title": {}, "SASRec": right, "retriever": right, "fused": right}
        scorers = ("sasrec", "retriever", "fused")
        rows = [
            [str(place), each.title, *(f"{each.probabilities[scorer]:.2%}" for scorer in scorers)]
            for place, each in enumerate(found, 1)
        ]
        say_table(build_table(columns, rows, title=title))
        if len(found) < top:
            say(f"{len(found)} items are all that can be recommended: the others are in the history or do not exist")


def convert(
    run: Run,
    to: Annotated[str, typer.Option(help="The backend of the new run: torch or jax.")],
    out: Annotated[Path, typer.Option(help="The directory of the new run.")],
    overwrite: Overwrite = False,
) -> None:
    """Hand a run to the other backend: weights, optimizer state and schedule, to evaluate or to continue.

    model.safetensors has the same names and layout in both backends, so the file itself can be used elsewhere as it is.
    """
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.finished import convert_run

    with one_line_errors():
        convert_run(RunDirectory.open_existing(run), to, out, overwrite=overwrite)
        say(f"{out} is a {to} run: try ur4rec evaluate {out}")

"""``ur4rec evaluate`` and ``convert``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alternator.checks import cut
from ur4rec.cli.options import AsJson, Checkpoint, DataDirectory, Memory, Overwrite, Run, one_line_errors
from ur4rec.cli.output import say, say_json, say_table
from ur4rec.errors import ConfigurationError

if TYPE_CHECKING:
    from ur4rec.evaluation.popularity import PopularityGroup

EVALUATION_FILES = ("metrics.json", "popularity.csv", "popularity.png")
"""What --out gets."""


def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    checkpoint: Checkpoint = None,
    data_dir: DataDirectory = None,
    memory: Memory = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=f"A directory for {', '.join(EVALUATION_FILES)}, with intervals: a new one, or that of an earlier "
            "evaluation.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank the whole catalogue for every target with a run's checkpoint, and print Hit@k and NDCG@k.

    Below it is NDCG@10 by decile of the target's training interactions: cold are targets that nobody had in training.
    """
    from ur4rec.cli.tables import metrics_table, popularity_table
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.finished import default_checkpoint, evaluate_run

    with one_line_errors():
        if out is not None:
            refuse_other_files(out)
        directory = RunDirectory.open_existing(run)
        checkpoint = checkpoint or default_checkpoint(directory, split)
        found = evaluate_run(directory, split=split, checkpoint=checkpoint, data_dir=data_dir, memory=memory)
        rows, title = found.rows(), f"{run}, {checkpoint} checkpoint, {split} targets"
        if as_json and out is None:
            say_json(rows)
            return
        groups = found.by_popularity()
        if out is not None:
            write_evaluation(out, title, rows, groups)
        if as_json:
            say_json(rows)
        else:
            say_table(metrics_table(title, rows))
            say_table(popularity_table(groups, {scorer: scorer for scorer in found.ranks}))


def refuse_other_files(out: Path) -> None:
    """Refuse a directory with anything but an evaluation: a run has files of the same names.

    Raises:
        ConfigurationError: It is one, or a file.
    """
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"--out must be a directory, {out} is a file; choose another")
    others = {each.name for each in out.iterdir()} - {*EVALUATION_FILES} if out.is_dir() else set()
    if others:
        other = min(others, key=lambda name: (name.startswith("."), name))
        raise ConfigurationError(
            f"--out must be new, empty or the directory of an evaluation, {out} holds {cut(other)!r}; choose another"
        )


def write_evaluation(
    out: Path, title: str, rows: Mapping[str, Mapping[str, float]], groups: "Sequence[PopularityGroup]"
) -> None:
    """Write what was found into a directory, which may be there."""
    from ur4rec.files import in_lines, write_whole
    from ur4rec.runs.popularity import write_popularity

    out.mkdir(parents=True, exist_ok=True)
    content = {"title": title, "metrics": rows, "by_popularity": [each.to_json() for each in groups]}
    write_whole(out / "metrics.json", f"{in_lines(content)}\n".encode())
    write_popularity(out, groups, title)


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

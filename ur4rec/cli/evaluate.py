"""``ur4rec evaluate`` and ``convert``."""

from pathlib import Path
from typing import Annotated

import typer

from ur4rec.cli.options import AsJson, Checkpoint, DataDirectory, Memory, Overwrite, Run, one_line_errors
from ur4rec.cli.output import say, say_json, say_table


def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    checkpoint: Checkpoint = None,
    data_dir: DataDirectory = None,
    memory: Memory = None,
    as_json: AsJson = False,
) -> None:
    """Rank the whole catalogue for every target with a run's checkpoint, and print Hit@k and NDCG@k."""
    from ur4rec.cli.tables import metrics_table
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.finished import default_checkpoint, evaluate_run

    with one_line_errors():
        directory = RunDirectory.open_existing(run)
        checkpoint = checkpoint or default_checkpoint(directory, split)
        rows = evaluate_run(directory, split=split, checkpoint=checkpoint, data_dir=data_dir, memory=memory)
        if as_json:
            say_json(rows)
        else:
            say_table(metrics_table(f"{run}, {checkpoint} checkpoint, {split} targets", rows))


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

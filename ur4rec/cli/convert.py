"""``ur4rec convert``."""

from pathlib import Path
from typing import Annotated

import typer

from ur4rec.cli.errors import one_line_errors
from ur4rec.cli.options import Overwrite, Run, console


def convert(
    run: Run,
    to: Annotated[str, typer.Option(help="The backend of the new run: torch or jax.")],
    out: Annotated[Path, typer.Option(help="The directory of the new run.")],
    overwrite: Overwrite = False,
) -> None:
    """Hand a run to the other backend: weights, optimizer state and schedule, to evaluate or to continue.

    model.safetensors has the same names and layout in both backends, so the file itself can be used elsewhere as it is.
    """
    from ur4rec.runs.convert import convert_run
    from ur4rec.runs.directory import RunDirectory

    with one_line_errors():
        convert_run(RunDirectory.open_existing(run), to, out, overwrite=overwrite)
        console.print(f"{out} is a {to} run: try ur4rec evaluate {out}")

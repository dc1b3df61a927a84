"""``ur4rec serve``."""

from contextlib import suppress
from typing import Annotated

import typer

from ur4rec.cli.options import REFIT_IS_USED, Checkpoint, Memory, Run, one_line_errors
from ur4rec.cli.output import say


def serve(
    run: Run,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 is any that is free.")] = 8000,
    checkpoint: Checkpoint = None,
    memory: Memory = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Open a page of a run on this machine: type a history, see each scorer's list and why, and look at the run.

    The page is served to this machine alone (127.0.0.1) and loads nothing from elsewhere. Ctrl-C ends it. Its address
    holds the history that is shown, so it can be kept or sent to a colleague who serves the same run.
    """
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.serve.server import serve_run

    def ready(address: str, used: str) -> None:
        if used == "refit":
            say(REFIT_IS_USED)
        say(f"{run} is at {address} (Ctrl-C ends it)")
        if open_browser:
            typer.launch(address)

    with one_line_errors(), suppress(KeyboardInterrupt):
        serve_run(RunDirectory.open_existing(run), port, ready, memory=memory, checkpoint=checkpoint)

"""The command `ur4rec`: its commands, put together.

Each command imports what it needs when it runs, so that ``--help`` and mistakes are answered at once.
"""

from typing import Any

import typer
from typer.core import TyperGroup

from alternator.checks import cut
from ur4rec.cli.compare import ManyValues, compare
from ur4rec.cli.data import data
from ur4rec.cli.evaluate import convert, evaluate
from ur4rec.cli.options import say_if_stopped
from ur4rec.cli.recommend import recommend
from ur4rec.cli.serve import serve
from ur4rec.cli.settings import presets, settings
from ur4rec.cli.train import train


class Commands(TyperGroup):
    """Commands that say the value of an option which cannot be read, and that Ctrl-C has stopped them."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; some versions of typer say the rule alone."""
        try:
            with say_if_stopped("stopped; the same command starts again"):
                return super().invoke(ctx)
        except typer.BadParameter as error:
            found: list[Any] = getattr(error.__cause__, "errors", list)()
            if found and (shown := repr(cut(str(found[0]["input"])))) not in error.message:
                error.message += f", got {shown}"
            raise


app = typer.Typer(
    name="ur4rec",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs are filled to the width of the terminal
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train UR4Rec (SASRec + a text preference retriever) with adaptive alternating training.",
    epilog="Start with: ur4rec train --dataset synthetic --preset smoke --out runs/smoke",
)
app.command()(train)
app.add_typer(data)
for command in (evaluate, recommend, serve, convert, settings, presets):
    app.command()(command)
app.command(cls=ManyValues)(compare)
main = app
"""The entry point of the command."""

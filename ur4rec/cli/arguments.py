"""Options of `ur4rec compare` that take several values in a row."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

MANY = ("--arms", "--seeds", "--budgets")


class ManyValues(TyperCommand):
    """A command whose `MANY` options take several values in a row: ``--seeds 0 1 2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat such an option before each of its values, as click reads them."""
        return super().parse_args(ctx, repeat_options(args))


def repeat_options(args: Sequence[str], options: Sequence[str] = MANY) -> list[str]:
    """Each value of an option with the option before it.

    Example:
        >>> repeat_options(["--seeds", "0", "1", "--jobs", "2"])
        ['--seeds', '0', '--seeds', '1', '--jobs', '2']
    """
    repeated: list[str] = []
    option, is_bare = "", False
    for arg in args:
        if arg.startswith("-"):
            option, is_bare = arg if arg in options else "", True
            repeated.append(arg)
        else:
            repeated += [option, arg] if option and not is_bare else [arg]
            is_bare = False
    return repeated

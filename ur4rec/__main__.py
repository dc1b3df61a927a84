"""The command ``ur4rec``, also as ``python -m ur4rec``: asks for its extra before it imports what that holds."""

import sys
from importlib.util import find_spec
from typing import NoReturn

import alternator

REQUIRED = (
    *("numpy", "pyarrow", "pandas", "sklearn", "safetensors", "typer"),
    *("rich", "tqdm", "matplotlib", "PIL", "markdown_it", "filelock"),
)
"""The packages of the extra ``rec``, in its order, by the names under which they are imported."""


def main() -> None:
    """Run the command, or say in one line what is not installed; the exit status is 2 then."""
    missing = [package for package in REQUIRED if find_spec(package) is None]
    if missing:
        _refuse(
            f"the command needs packages that are not installed ({', '.join(missing)}); "
            "run: pip install 'adaptive-alternator[rec,torch]', or [rec,jax] in its place"
        )
    if not hasattr(alternator, "Alternator"):
        _refuse(
            "the package 'alternator' must be adaptive-alternator's, but that in "
            f"{alternator.__path__[0]!a} is found first; use an environment without it"
        )
    try:
        from ur4rec.cli import app
        from ur4rec.cli.together import run
    except KeyboardInterrupt:
        sys.stderr.write("ur4rec: stopped before the command began; the same command starts again\n")
        sys.exit(130)
    run(app)


def _refuse(line: str) -> NoReturn:
    """Write a line, without `alternator.checks.printable`, which may not be there: its own words and `ascii` alone."""
    sys.stderr.write(f"ur4rec: {line}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()

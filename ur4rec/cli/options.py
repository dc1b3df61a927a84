"""What several commands share: options, their values, and errors in one line with exit code 2."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from alternator import AlternatorError
from alternator.checks import cut
from alternator.rules.named import parse_value
from ur4rec.cli.output import say_to_stderr
from ur4rec.errors import ConfigurationError
from ur4rec.options import AUTO_SHARE
from ur4rec.runs.config import MODEL_SETTINGS, TRAINER_SETTINGS
from ur4rec.runs.presets import PRESETS

Dataset = Annotated[
    str | None,
    typer.Option(
        help="ml-100k, ml-1m, synthetic, or a file or directory of your own: CSV, Parquet, JSON lines, RecBole, "
        "public datasets as they are published. Default: the preset's, ml-100k. Try 'ur4rec data FILE' first.",
    ),
]
DataDirectory = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Where to look for a built-in dataset before it is downloaded.", rich_help_panel="Data"
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Which interactions are held out: leave-one-out (of each user the last is tested, the one before it "
        "validates), temporal (what comes after two points in time), given (as the files are split). Default: auto, "
        "given where the data came split, else leave-one-out.",
        rich_help_panel="Evaluation",
    ),
]
Repeats = Annotated[
    str | None,
    typer.Option(
        help="Items that a user had before: allow ranks and recommends them like any other; exclude does neither, and "
        f"evaluates only targets that are new to their user. Default: auto, allow where at least {AUTO_SHARE:.0%} of "
        "the targets are repeated.",
        rich_help_panel="Evaluation",
    ),
]
Run = Annotated[Path, typer.Argument(help="A run directory: the --out of train.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="best (by validation), latest or refit. Default: refit where there is one, trained on validation too, "
        "else best."
    ),
]
REFIT_IS_USED = (
    "scores are the refit's, trained on validation interactions too; --checkpoint best takes the model that validation "
    "chose"
)
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.", rich_help_panel="Run")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel="Run")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting of the model or the trainer, e.g. --set sasrec_lr=0.003; 'ur4rec settings' lists them. "
        "Repeatable.",
        rich_help_panel="Training",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(help="Rows of a training batch. Default: the preset's.", rich_help_panel="Training")
]
Encoder = Annotated[
    str | None,
    typer.Option(
        help="Text encoder: auto, tfidf, the name of a sentence-transformers model, or a path.",
        rich_help_panel="Training",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="BYTES",
        help="What scores (rows times items) may take at once while items are ranked, e.g. 500MB or 4GB: a larger "
        "catalogue is ranked in slices. Default: the run's; of a new run, 1GiB.",
        rich_help_panel="Run",
    ),
]
Backend = Annotated[str | None, typer.Option(help="torch (the default) or jax.")]
PRESET_NAMES = ", ".join(PRESETS)


_MAX_DIGITS = 18
"""Of a number of epochs: more than a run may have, and fewer than Python refuses to read."""


def parse_epochs(pairs: list[str]) -> dict[str, int]:
    """``stage=number`` pairs."""
    epochs = dict(_split_pair(pair, "--epochs") for pair in pairs)
    for stage, number in epochs.items():
        if not number.isdecimal() or len(number) > _MAX_DIGITS:
            raise ConfigurationError(f"--epochs {stage} must be a whole number of at least 0, got {cut(number)!r}")
    return {stage: int(number) for stage, number in epochs.items()}


def sort_settings(pairs: list[str]) -> dict[str, dict[str, Any]]:
    """``name=value`` pairs, sorted into those of the model and those of the trainer."""
    sorted_settings: dict[str, dict[str, Any]] = {"model": {}, "trainer": {}}
    for name, value in (_split_pair(pair, "--set") for pair in pairs):
        if name not in (*MODEL_SETTINGS, *TRAINER_SETTINGS):
            raise ConfigurationError(
                f"unknown setting {name!r}; expected one of {sorted((*MODEL_SETTINGS, *TRAINER_SETTINGS))}"
            )
        sorted_settings["model" if name in MODEL_SETTINGS else "trainer"][name] = parse_value(value)
    return sorted_settings


def _split_pair(pair: str, option: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals:
        raise ConfigurationError(f"{option} must read name=value, got {pair!r}")
    return name.strip(), value.strip()


MAX_LENGTH = 2000
"""The number of characters of an error at most."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors that users can fix into one line on stderr and exit code 2."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the output any more, as in `| head`: click ends the command with exit code 1
        raise
    except AlternatorError as error:
        _fail(str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"a file cannot be read or written: {error.strerror or error}{where}; free space or choose another place")
    except MemoryError as error:
        _fail(f"there must be enough memory, there is not ({error}); choose smaller sizes")


@contextmanager
def say_if_stopped(line: str) -> Iterator[None]:
    """Say one line on stderr after Ctrl-C, what has become of the work and how to continue, and exit with 130."""
    try:
        yield
    except KeyboardInterrupt:
        say_to_stderr(line)
        raise typer.Exit(128 + signal.SIGINT) from None


def _fail(message: str) -> None:
    line = " ".join(message.split())[:MAX_LENGTH]
    say_to_stderr("error: " + line, style="red")
    raise typer.Exit(2)

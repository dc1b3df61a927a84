"""``ur4rec compare``."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from alternator import AlternatorError
from ur4rec.cli.data_options import GivenOptions, command_words, with_data_options
from ur4rec.cli.options import (
    PRESET_NAMES,
    Backend,
    BatchSize,
    DataDirectory,
    Dataset,
    Encoder,
    Memory,
    Quiet,
    Repeats,
    Settings,
    Split,
    one_line_errors,
    sort_settings,
)
from ur4rec.cli.output import log_to_stderr, say, say_markdown
from ur4rec.compare.arms import ARMS_HELP
from ur4rec.errors import ConfigurationError
from ur4rec.runs.config import RunConfig
from ur4rec.training.slices import parse_memory

COMPARISON_ADVICE = (
    "To compare parity, joint and adaptive training on this data (ml-100k: three to five minutes on two cores)"
)


@with_data_options
def compare(
    data_options: GivenOptions,
    study: Annotated[
        Path | None, typer.Argument(help="A study to continue, to extend by --arms and --seeds, or to report on.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of a new study; give it again to continue it.")] = None,
    arms: Annotated[list[str] | None, typer.Option(help=f"What is compared: {ARMS_HELP}. Parity always is.")] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(help="Seeds of weights, data order and dropout. Default: 0 1 2.")
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(
            help="Budget of each run: this number of module updates, or the cost of this number of parity steps."
        ),
    ] = None,
    budgets: Annotated[
        list[str] | None, typer.Option(help="What is equal for all arms: updates, cost. Default: each in turn.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Evaluate after this number of updates. Default: a tenth of the budget.")
    ] = None,
    dataset: Dataset = None,
    split: Split = None,
    repeats: Repeats = None,
    num_users: Annotated[
        int | None, typer.Option(help="Use only this number of users, drawn with a fixed seed.")
    ] = None,
    blank_texts: Annotated[
        bool, typer.Option("--blank-texts", help="The same text for every item: the retriever can learn nothing.")
    ] = False,
    joint_loss: Annotated[
        str | None, typer.Option(help="fused (default), or separate: the modules do not touch, the null control.")
    ] = None,
    backend: Backend = None,
    preset_name: Annotated[
        str | None,
        typer.Option("--preset", help=f"Sizes: {PRESET_NAMES}. Default: smoke for synthetic, else demo."),
    ] = None,
    pretrain: Annotated[int | None, typer.Option(help="Steps of each pretraining stage first. Default: none.")] = None,
    settings: Settings = None,
    batch_size: BatchSize = None,
    encoder: Encoder = None,
    device: Annotated[str | None, typer.Option(help="Where to train. Default: cpu.")] = None,
    memory: Memory = None,
    jobs: Annotated[int | None, typer.Option(help="Processes, of one thread each. Default: 1.")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on the workers of this dask scheduler (tcp://HOST:PORT, or its scheduler file), started with one "
            "thread each: dask worker ADDRESS --nthreads 1 --nworkers auto. They need the same packages, and the data.",
        ),
    ] = None,
    data_dir: DataDirectory = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing; report what is there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Compare schedules from the same weights and data, at equal module updates and at equal cost.

    The cost of each kind of step is timed first, alone, and then charged per step, so that a busy machine does not
    decide. Every arm runs once per seed and budget. Finished runs are kept: stop it with Ctrl-C and give the same
    command to continue, or add arms and seeds later. The report (report.md, report.html, report.json) has the test
    metrics at the best validation point, and intervals of the differences over users and seeds.

    Example: ur4rec compare --dataset synthetic --arms joint 2:1 plateau matched:plateau --updates 200 --out runs/study
    """
    from ur4rec.compare.directory import open_study
    from ur4rec.compare.processes import StudyInterruptedError
    from ur4rec.compare.report import write_report
    from ur4rec.compare.workers import run_study

    with one_line_errors():
        log_to_stderr(quiet)
        if jobs is not None and cluster is not None:
            raise ConfigurationError("give either --jobs or --cluster: a cluster has as many processes as workers")
        given = {
            "dataset": dataset,
            "split": split,
            "repeats": repeats,
            "data": data_options() or None,
            "num_users": num_users,
            "blank_texts": blank_texts or None,
            "updates": updates,
            "eval_every": eval_every,
            "joint_loss": joint_loss,
            "backend": backend,
            "preset": preset_name,
            "pretrain": pretrain,
            "batch_size": batch_size,
            "encoder": encoder,
            "device": device,
            "memory": None if memory is None else parse_memory(memory),
            **{name: values for name, values in sort_settings(settings or []).items() if values},
        }
        was_there = out is None or out.exists()
        directory = open_study(study, out, given, arms=arms or (), seeds=seeds or (), budgets=budgets or ())
        if not report_only:
            try:
                run_study(directory, jobs=jobs or 1, cluster=cluster, data_dir=data_dir, quiet=quiet)
            except (AlternatorError, OSError, MemoryError) as error:
                is_mistaken = not isinstance(error, StudyInterruptedError)
                if is_mistaken and not was_there and directory.read_costs() is None:  # nothing was trained
                    shutil.rmtree(directory.path)
                raise
        text = write_report(directory)
        if not quiet:
            say_markdown(text)
        say(f"the report is {directory.path / 'report.html'}, also as .md and .json")


def comparison_command(config: RunConfig) -> str:
    """The command that compares schedules on the data of a run.

    Example:
        >>> print(comparison_command(RunConfig(dataset="synthetic")))
        ur4rec compare --dataset synthetic --backend torch --arms parity joint payoff --budgets cost --updates 160 --seeds 0 1 --jobs 2 --out runs/compare
        >>> "--set text_encoder=transformer --arms parity joint trial" in comparison_command(
        ...     RunConfig(dataset="synthetic", model={"text_encoder": "transformer"})
        ... )
        True
    """  # noqa: E501
    names = ("text_encoder", "text_encoder_trains")
    encoder = "".join(f" --set {name}={shlex.quote(config.model[name])}" for name in names if name in config.model)
    measured = "trial" if encoder else "payoff"
    held_out = {"split": config.split, "repeats": config.repeats}
    options = "".join(f" --{name} {value}" for name, value in held_out.items() if value != "auto")
    data = "".join(f" {shlex.quote(word)}" for word in command_words(config.data))
    return (
        f"ur4rec compare --dataset {shlex.quote(config.dataset)}{data}{options} --backend {config.backend}{encoder} "
        f"--arms parity joint {measured} --budgets cost --updates 160 --seeds 0 1 --jobs 2 --out runs/compare"
    )


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

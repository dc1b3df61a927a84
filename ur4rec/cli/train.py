"""``ur4rec train``."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from ur4rec.cli.compare import COMPARISON_ADVICE, comparison_command
from ur4rec.cli.data_options import GivenOptions, with_data_options
from ur4rec.cli.options import (
    PRESET_NAMES,
    Backend,
    BatchSize,
    DataDirectory,
    Dataset,
    Encoder,
    Memory,
    Overwrite,
    Quiet,
    Repeats,
    Settings,
    Split,
    one_line_errors,
    parse_epochs,
    say_if_stopped,
    sort_settings,
)
from ur4rec.cli.output import log_to_stderr, say, say_table, say_to_stderr
from ur4rec.cli.together import first_speaks, together
from ur4rec.errors import ConfigurationError, OutOfMemoryError
from ur4rec.runs.config import RunConfig
from ur4rec.runs.presets import preset
from ur4rec.schedule.alternators import SCHEDULE_HELP
from ur4rec.schedule.stages import STAGES
from ur4rec.training.backend import load_backend
from ur4rec.training.processes import Processes, first_on_machine

if TYPE_CHECKING:
    from ur4rec.evaluation.results import Result
    from ur4rec.runs.prepared import PreparedData
    from ur4rec.runs.refit import Refit
    from ur4rec.runs.run import TrainingRun

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
BEFORE = "before the first step"


@with_data_options
def train(
    context: typer.Context,
    data_options: GivenOptions,
    dataset: Dataset = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the new run: config.json, metrics.json, decisions.csv, schedule.png, ..."),
    ] = None,
    preset_name: Annotated[
        str,
        typer.Option("--preset", help=f"Sizes, rates and lengths: {PRESET_NAMES}; 'ur4rec presets' lists them."),
    ] = "default",
    backend: Backend = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help=f"Who trains in the joint stage: {SCHEDULE_HELP}. Default: auto.", rich_help_panel="Training"
        ),
    ] = None,
    epochs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE=N",
            help=f"Epochs of a stage ({', '.join(STAGES)}); 0 leaves it out. Repeatable.",
            rich_help_panel="Training",
        ),
    ] = None,
    early_stopping: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel="Training",
            help="End a stage after N validations in a row without a better NDCG@10 (fused in the joint stages). "
            "Learning rates still fall along a cosine over all its epochs; --set lr_schedule=constant keeps them. "
            "Default: the preset's.",
        ),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="At the end train the model that validation chose again from scratch, on training and validation "
            "interactions, for as many steps, and test it; recommend, serve and evaluate then use it. With --resume: "
            "of a run that had none.",
            rich_help_panel="Training",
        ),
    ] = False,
    split: Split = None,
    repeats: Repeats = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel="Evaluation",
            help="Validate every N-th epoch of a stage, and its last. --early-stopping counts validations. "
            "Default: the preset's.",
        ),
    ] = None,
    eval_users: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel="Evaluation",
            help="Validate on a sample of N users, the same in every run on the data; the test is always on all. "
            "Default: all.",
        ),
    ] = None,
    settings: Settings = None,
    batch_size: BatchSize = None,
    encoder: Encoder = None,
    user_texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON file, user id to preference text: further memory of the retriever.",
            rich_help_panel="Data",
        ),
    ] = None,
    allow_leakage: Annotated[
        bool,
        typer.Option(
            "--allow-leakage", help="Train although the user texts name held-out items.", rich_help_panel="Data"
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and dropout.", rich_help_panel="Training")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel="Run")] = "auto",
    memory: Memory = None,
    data_dir: DataDirectory = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            help="Save every STEPS steps too (default: 500); 0: only at the end of an epoch.",
            rich_help_panel="Run",
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="Log losses, who trains and each module's share of the updates at every step: tensorboard or wandb. "
            "Repeatable.",
            rich_help_panel="Run",
        ),
    ] = None,
    mesh: Annotated[
        str | None,
        typer.Option(
            metavar="data=N,items=N",
            help="How the devices of all processes divide the work: batches and the catalogue. Default: batches alone.",
            rich_help_panel="Run",
        ),
    ] = None,
    shard: Annotated[
        bool | None,
        typer.Option(
            "--shard/--no-shard",
            help="Spread weights and the states of optimizers over the processes (torch).",
            rich_help_panel="Run",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue the run in this directory where it stopped, with its own settings.", rich_help_panel="Run"
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train through the four stages, validate in between, and print the results on the test targets.

    pretrain_sasrec and pretrain_retriever train one module each; joint_finetune trains one of them or both in each
    step, as the schedule decides; end_to_end trains both. What was decided in each step, and why, is in decisions.csv;
    schedule.png shows it. Ctrl-C saves the run; --resume continues it.

    A run is the same to the bit on the same number of CPU threads (OMP_NUM_THREADS for torch, PJRT_NPROC for jax).

    test_ranks.csv has the data's user and item ids as they are: one that begins with =, +, - or @ is a formula to a
    spreadsheet.
    """
    with say_if_stopped(f"stopped {BEFORE}, nothing is changed; the same command starts again"), one_line_errors():
        from ur4rec.runs.directory import RunDirectory
        from ur4rec.runs.event_log import check_event_logs
        from ur4rec.runs.run import read_resumable

        log_to_stderr(quiet)
        with first_speaks():
            if log:
                check_event_logs(log)
            if resume is not None:
                refuse_settings(context)
                config = read_resumable(RunDirectory.open_existing(resume))
                config = replace(config, mesh=mesh or config.mesh, shard=config.shard if shard is None else shard)
                config = replace(config, refit=refit or config.refit or RunDirectory(resume).refit.path.is_dir())
            elif out is None:
                raise ConfigurationError("give --out DIR for a new run, or --resume DIR to continue one")
            else:
                RunDirectory.check_new(out, overwrite=overwrite)
                config = preset(
                    preset_name,
                    dataset=dataset,
                    split=split,
                    repeats=repeats,
                    data=data_options(),
                    backend=backend,
                    schedule=schedule,
                    batch_size=batch_size,
                    encoder=encoder,
                    **user_text_settings(user_texts),
                    allow_leakage=allow_leakage,
                    seed=seed,
                    device=device,
                    memory=memory,
                    checkpoint_every=checkpoint_every,
                    mesh=mesh,
                    shard=shard,
                    refit=refit,
                    early_stopping=early_stopping,
                    eval_every=eval_every,
                    eval_users=eval_users,
                    epochs=parse_epochs(epochs or []),
                    **sort_settings(settings or []),
                )
            load_backend(config.backend)
        with together(config.backend, config.device, config.mesh) as processes:
            progress = False if quiet else None
            if resume is not None:
                run_again(config, resume, processes, data_dir=data_dir, progress=progress, log=log)
            elif out is not None:
                run_anew(config, out, processes, data_dir=data_dir, progress=progress, log=log, overwrite=overwrite)


def run_again(
    config: RunConfig,
    path: Path,
    processes: Processes,
    *,
    data_dir: Path | None,
    progress: bool | None,
    log: list[str] | None,
) -> None:
    """Continue the run in a directory."""
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.prepared import prepare_data, read_data
    from ur4rec.runs.run import TrainingRun

    directory = RunDirectory.open_existing(path)
    prepared = first_on_machine(processes, lambda: prepare_data(config, read_data(directory, config, data_dir)))
    run = TrainingRun(config, prepared, directory, progress=progress, processes=processes)
    with saying_how_to_continue(run):
        train_and_report(run, log, progress=progress, resume=True)


def run_anew(
    config: RunConfig,
    path: Path,
    processes: Processes,
    *,
    data_dir: Path | None,
    progress: bool | None,
    log: list[str] | None,
    overwrite: bool,
) -> None:
    """A new run in a directory; one for whose first step memory does not suffice leaves nothing there."""
    from ur4rec.runs.directory import RunDirectory
    from ur4rec.runs.prepared import prepare
    from ur4rec.runs.run import TrainingRun
    from ur4rec.runs.sizes import explain_choices

    prepared = first_on_machine(processes, lambda: prepare(config, directory=data_dir))
    run = TrainingRun(config, prepared, RunDirectory(path), progress=progress, processes=processes)
    was_there, writes = path.exists(), processes.rank == 0
    with saying_how_to_continue(run):
        if writes:
            RunDirectory.create(path, overwrite=overwrite)  # only now: what was refused above has left nothing
            say_what_is_evaluated(run.prepared, config)
            for line in explain_choices(run.choices):
                say(line)
        try:
            train_and_report(run, log, progress=progress, resume=False)
        except OutOfMemoryError:
            if writes and not run.directory.checkpoint("latest"):
                run.directory.discard(keep_directory=was_there)
            raise


def train_and_report(run: "TrainingRun", log: list[str] | None, *, progress: bool | None = None, resume: bool) -> None:
    """Train, and print the outcome; the first of several processes writes and prints."""
    from ur4rec.runs.refit import Refit

    results, refit = train_logged(run, log, resume=resume), None
    if run.config.refit:
        run.release()
        refit = Refit(run, progress=progress)
        if run.processes.rank == 0:
            say(refit.explain())
        results += train_logged(refit, log, resume=True)
    if run.processes.rank == 0:
        print_outcome(run, results, refit)


def train_logged(run: "TrainingRun", log: list[str] | None, *, resume: bool) -> "list[Result]":
    """Train a run or its refit, and log every step where that is asked for."""
    from ur4rec.runs.event_log import open_event_log

    writes = run.processes.rank == 0
    with (
        open_event_log(log, run.directory.path, run.trainer.modules) if log and writes else nullcontext() as run.events
    ):
        return train_until_stopped(run, resume=resume)


def say_what_is_evaluated(prepared: "PreparedData", config: RunConfig) -> None:
    """Print how much of the data is repeated, and what is done about it."""
    from ur4rec.data.describe import explain_duplicates, explain_repeats

    if duplicates := explain_duplicates(prepared.interactions, bool(config.data.get("deduplicate"))):
        say(duplicates)
    say(explain_repeats(prepared.split, config.repeats))


def user_text_settings(path: Path | None) -> dict[str, str]:
    """Where the user texts are, and what they must stay."""
    if path is None:
        return {}
    from ur4rec.text.users import hash_file

    return {"user_texts": str(path.resolve()), "user_texts_hash": hash_file(path)}


def print_outcome(run: "TrainingRun", results: "list[Result]", refit: "Refit | None" = None) -> None:
    """Print the metrics, which epochs were kept, what was decided and why, where it all is, and what to try next."""
    from ur4rec.cli.tables import popularity_table, results_table
    from ur4rec.runs.kept import explain_epochs
    from ur4rec.runs.popularity import scorer_rows
    from ur4rec.runs.verdict import explain_decisions

    num_validated, num_targets = len(run.validation.targets), len(run.prepared.split.validation)
    sampled = (num_validated, num_targets) if num_validated < num_targets else None
    say_table(results_table(results, run.prepared.split.test.is_repeated, sampled))
    rows = {name: name for name in scorer_rows(run.results).values()}
    say_table(popularity_table(run.by_popularity, rows))
    say(explain_epochs(run.plan, run.epochs, run.results))
    logs = run.logs
    say(explain_decisions(run.config.schedule, logs.decisions.records, logs.payoffs.records, logs.trials.records))
    path = run.directory.path
    if refit is not None:
        say(
            f"evaluate, recommend and serve use the refit in {refit.directory.path}; --checkpoint best is the run's own"
        )
    say(f"Everything is in {path}: look at {path / 'schedule.png'}")
    say(f"{COMPARISON_ADVICE}:")
    as_usual = run.config.repeats == run.prepared.split.usual_repeats
    say(comparison_command(replace(run.config, repeats="auto") if as_usual else run.config))


def refuse_settings(context: typer.Context) -> None:
    """Refuse what --resume cannot respect: a run continues with its own settings."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(str(parameter.name))) is not None
        and source.name == "COMMANDLINE"
        and parameter.name not in ("resume", "data_dir", "quiet", "log", "mesh", "shard", "refit")
    ]
    if given:
        raise ConfigurationError(
            f"--resume continues in its directory with the run's own settings; leave out {', '.join(given)}"
        )


def train_until_stopped(run: "TrainingRun", *, resume: bool) -> "list[Result]":
    """Train; after Ctrl-C or SIGTERM say how to continue, and exit as if the signal had ended the process."""
    from ur4rec.runs.run import Stopped

    with run.locked(), stop_on_signals() as stop:
        try:
            if resume:
                run.resume()
            return run.train(stop=stop)
        except Stopped as stopped:
            if run.processes.rank == 0:
                place = f"after step {stopped.step}, saved" if stopped.step else f"{BEFORE}, nothing to save yet"
                say_to_stderr(f"stopped {place}; continue with: {resume_command(run)}")
            number = signal.SIGTERM if stop.number is None else stop.number  # another process was asked
            raise typer.Exit(128 + number) from None


def resume_command(run: "TrainingRun") -> str:
    """The command that continues a run."""
    return f"ur4rec train --resume {shlex.quote(str(run.resumed_from))}"


@contextmanager
def saying_how_to_continue(run: "TrainingRun") -> Iterator[None]:
    """Say what was saved after a Ctrl-C while no step is trained: before the first one, or when the last has ended."""
    try:
        yield
    except KeyboardInterrupt:
        if run.processes.rank == 0:
            place, remedy = f"{BEFORE}, nothing to save yet", f"continue with: {resume_command(run)}"
            if run.directory.checkpoint("latest") is not None:
                place = "between two steps, all of them saved"
            elif not (run.directory.path / "config.json").exists():
                remedy = "the same command starts again"
            say_to_stderr(f"stopped {place}; {remedy}")
        raise typer.Exit(128 + signal.SIGINT) from None


class StopRequest:
    """Whether somebody has asked to stop.

    Attributes:
        number: The signal that asked; None if none has.
    """

    number: int | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.number is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request; a second one ends the process as if there were no handler.

    Only the main thread may do this.
    """
    request = StopRequest()

    def ask(number: int, frame: FrameType | None) -> None:
        request.number = number
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)

    before = {each: signal.signal(each, ask) for each in _SIGNALS}
    try:
        yield request
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

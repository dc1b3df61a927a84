"""The command `ur4rec`: arguments in, one-line errors out (exit code 2)."""

import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from alternator import AlternatorError
from alternator.checks import one_line
from alternator.rules.named import parse_value
from ur4rec.cli.arguments import ManyValues
from ur4rec.cli.settings import render_settings
from ur4rec.cli.tables import metrics_table, results_table
from ur4rec.compare.arms import ARMS_HELP
from ur4rec.data.describe import describe
from ur4rec.data.sources import load_dataset
from ur4rec.data.splits import leave_one_out
from ur4rec.errors import ConfigurationError
from ur4rec.runs.config import MODEL_SETTINGS, TRAINER_SETTINGS, RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.event_log import check_event_logs, open_event_log
from ur4rec.runs.prepared import prepare
from ur4rec.runs.presets import PRESETS, preset
from ur4rec.runs.signals import Stopped, stop_on_signals
from ur4rec.schedule.names import SCHEDULE_HELP
from ur4rec.schedule.stages import STAGES
from ur4rec.text.users import hash_file, texts_of_prefixes, write_user_texts
from ur4rec.training.backend import load_backend

if TYPE_CHECKING:
    from ur4rec.evaluation.results import Result
    from ur4rec.runs.run import TrainingRun

app = typer.Typer(
    name="ur4rec",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs are filled to the width of the terminal
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train UR4Rec (SASRec + a text preference retriever) with adaptive alternating training.",
    epilog="Start with: ur4rec train --dataset synthetic --preset smoke --out runs/smoke",
)
console = Console()
stderr = Console(stderr=True, soft_wrap=True, highlight=False)

Dataset = Annotated[
    str | None,
    typer.Option(
        help="ml-100k, ml-1m, synthetic, a directory of RecBole atomic files (NAME.inter, NAME.item), or a CSV or "
        "Parquet file with the columns user, item, timestamp. Default: the preset's, ml-100k.",
    ),
]
DataDirectory = Annotated[
    Path | None, typer.Option("--data-dir", help="Where to look for a built-in dataset before it is downloaded.")
]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors that users can mend into one line on stderr and exit code 2."""
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


def _fail(message: str) -> None:
    line = one_line(message, 2000)
    stderr.print("error: " + line, style="red", markup=False)
    raise typer.Exit(2)


@app.command()
def train(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="Run directory to make: config.json, metrics.json, decisions.csv, ...")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this directory, with its own settings, where it stopped.")
    ] = None,
    dataset: Dataset = None,
    backend: Annotated[str | None, typer.Option(help="torch (the default) or jax.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help=f"Who trains in the joint stage: {SCHEDULE_HELP}. Default: auto.")
    ] = None,
    preset_name: Annotated[
        str, typer.Option("--preset", help=f"Sizes and lengths: {', '.join(PRESETS)}; smoke takes seconds.")
    ] = "default",
    epochs: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE=N", help=f"Epochs of a stage ({', '.join(STAGES)}); 0 leaves it out. Repeatable."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the model or the trainer, e.g. --set sasrec_lr=0.003; 'ur4rec settings' lists them. "
            "Repeatable.",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a training batch.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Text encoder: auto, tfidf, a sentence-transformers name, or a path.")
    ] = None,
    user_texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON file, user id to preference text: further memory of the retriever."),
    ] = None,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Train although the user texts name held-out items.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and dropout.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    data_dir: DataDirectory = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", help="Save so often within an epoch too (default: 500); 0: only at the end of an epoch."
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="Log losses, who trains and each module's share of the updates at every step: tensorboard or wandb. "
            "Repeatable."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Train through the four stages, validate after every epoch, and print the results on the test targets.

    pretrain_sasrec and pretrain_retriever train one module each; joint_finetune trains one of them or both in each
    step, as the schedule decides; end_to_end trains both.
    """
    from ur4rec.runs.run import TrainingRun  # loads matplotlib, which the other commands do without

    with one_line_errors():
        _log_to_stderr(quiet)
        check_event_logs(log or [])
        progress = False if quiet else None
        if resume is not None:
            refuse_settings(context)
            directory = RunDirectory.open_existing(resume)
            config = RunConfig.from_json(directory.read_json("config.json"))
            run = TrainingRun(config, prepare(config, directory=data_dir), directory, progress=progress)
        elif out is None:
            raise ConfigurationError("give --out DIR for a new run, or --resume DIR to go on with one")
        else:
            config = preset(
                preset_name,
                dataset=dataset,
                backend=backend,
                schedule=schedule,
                batch_size=batch_size,
                encoder=encoder,
                user_texts=None if user_texts is None else str(user_texts.resolve()),
                user_texts_hash=None if user_texts is None else hash_file(user_texts),
                allow_leakage=allow_leakage,
                seed=seed,
                device=device,
                checkpoint_every=checkpoint_every,
                epochs=parse_epochs(epochs or []),
                **sort_settings(settings or []),
            )
            load_backend(config.backend)
            prepared = prepare(config, directory=data_dir)
            run = TrainingRun(config, prepared, RunDirectory(out), progress=progress)
            RunDirectory.create(out, overwrite=overwrite)  # only now: what was refused above has left nothing
        with open_event_log(log or [], run.directory.path) as run.events:
            results = train_until_stopped(run, resume=resume is not None)
        console.print(results_table(results))
        console.print(f"everything is in {run.directory.path}: look at {run.directory.path / 'schedule.png'}")


@app.command()
def data(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="As --dataset.", show_default=False)] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A dataset as for train. Default: ml-100k.", show_default=False)
    ] = None,
    data_dir: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    texts_file: Annotated[
        Path | None,
        typer.Option(
            "--write-user-texts",
            metavar="FILE",
            help="Write a file for train --user-texts: the last 20 titles of each user's training prefix.",
        ),
    ] = None,
) -> None:
    """Fetch a dataset, check it, and print its counts and hashes."""
    with one_line_errors():
        if name is not None and dataset is not None:
            raise ConfigurationError(
                f"a dataset must be named once, got {name!r} and --dataset {dataset!r}; leave one out"
            )
        interactions = load_dataset(name or dataset or "ml-100k", directory=data_dir)
        if texts_file is not None:
            texts = texts_of_prefixes(leave_one_out(interactions), interactions)
            write_user_texts(texts_file, interactions.user_ids, texts)
        facts: dict[str, Any] = {
            "dataset": interactions.name,
            "source": interactions.source,
            **describe(interactions),
            "interactions_hash": interactions.hash,
            "leave_one_out_hash": leave_one_out(interactions).hash,
        }
        if as_json:
            sys.stdout.write(json.dumps(facts, indent=2) + "\n")
            return
        table = Table(show_header=False)
        table.add_column()
        table.add_column(overflow="fold")  # a hash is of use only whole
        for name, value in facts.items():
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
        console.print(table)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best (by validation) or latest.")] = "best",
    data_dir: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Rank the whole catalogue for every target with a run's checkpoint, and print Hit@k and NDCG@k."""
    from ur4rec.runs.evaluate import evaluate_run

    with one_line_errors():
        directory = RunDirectory.open_existing(run)
        rows = evaluate_run(directory, split=split, checkpoint=checkpoint, data_dir=data_dir)
        if as_json:
            sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        else:
            console.print(metrics_table(f"{run}, {checkpoint} checkpoint, {split} targets", rows))


@app.command()
def recommend(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    user: Annotated[str | None, typer.Option(help="A user id of the dataset.")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(
            "--item", help="An item of a history, oldest first: an id, a title, or a part of one. Repeatable."
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="How many items.")] = 10,
    data_dir: DataDirectory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print what a user, or somebody with a history of your own, is likely to go on with.

    The three columns are the probabilities, among items that are not in the history, that SASRec, the retriever and
    both fused give an item to be the next one.
    """
    from ur4rec.runs.recommend import Recommender

    with one_line_errors():
        if (user is None) == (not history):
            raise ConfigurationError("give either --user ID or one or more --item TITLE")
        recommender = Recommender(RunDirectory.open_existing(run), data_dir=data_dir)
        items = recommender.history_of(user) if user is not None else recommender.find_items(history or [])
        found = recommender.recommend(items, top=top, user_id=user)
        if as_json:
            sys.stdout.write(json.dumps([each._asdict() for each in found], indent=2, ensure_ascii=False) + "\n")
            return
        titles = [recommender.interactions.titles[item] for item in items[-3:]]
        table = Table(title=f"after {len(items)} items, the last: {', '.join(titles)}", box=SIMPLE_HEAD)
        for name, justify in (("#", "right"), ("title", "left"), ("SASRec", "right"), ("retriever", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        table.add_column("fused", justify="right")
        for place, each in enumerate(found, 1):
            shares = [f"{each.probabilities[scorer]:.2%}" for scorer in ("sasrec", "retriever", "fused")]
            table.add_row(str(place), each.title, *shares)
        console.print(table)


@app.command()
def convert(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    to: Annotated[str, typer.Option(help="The backend that takes it over: torch or jax.")],
    out: Annotated[Path, typer.Option(help="The run directory to make.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
) -> None:
    """Hand a run to the other backend: weights, optimizer state and schedule, to evaluate or to go on with.

    model.safetensors has the same names and layout in both backends, so the file itself can be used elsewhere as it is.
    """
    from ur4rec.runs.convert import convert_run

    with one_line_errors():
        convert_run(RunDirectory.open_existing(run), to, out, overwrite=overwrite)
        console.print(f"{out} is a {to} run: try ur4rec evaluate {out}")


@app.command()
def settings(
    preset_name: Annotated[str, typer.Option("--preset", help=f"Show its values: {', '.join(PRESETS)}.")] = "default",
) -> None:
    """List what --set takes: every setting of model and trainer, its value and its meaning."""
    with one_line_errors():
        print(render_settings(preset_name))


@app.command(cls=ManyValues)
def compare(
    study: Annotated[
        Path | None, typer.Argument(help="A study to go on with, to extend by --arms and --seeds, or to report on.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of a new study; give it again to go on with it.")] = None,
    arms: Annotated[list[str] | None, typer.Option(help=f"What is compared: {ARMS_HELP}. Parity always is.")] = None,
    seeds: Annotated[
        list[int] | None, typer.Option(help="Seeds of weights, data order and dropout. Default: 0 1 2.")
    ] = None,
    updates: Annotated[
        int | None, typer.Option(help="Budget: so many module updates, or the cost of so many parity steps.")
    ] = None,
    budgets: Annotated[
        list[str] | None, typer.Option(help="What is held equal: updates, cost. Default: each in turn.")
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Evaluate after so many updates. Default: a tenth of the budget.")
    ] = None,
    dataset: Dataset = None,
    num_users: Annotated[int | None, typer.Option(help="Use so many users, drawn with a fixed seed.")] = None,
    blank_texts: Annotated[
        bool, typer.Option("--blank-texts", help="The same text for every item: the retriever can learn nothing.")
    ] = False,
    joint_loss: Annotated[
        str | None, typer.Option(help="fused (default), or separate: the modules do not touch, the null control.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="torch (the default) or jax.")] = None,
    preset_name: Annotated[
        str | None,
        typer.Option("--preset", help=f"Sizes: {', '.join(PRESETS)}. Default: smoke for synthetic, else demo."),
    ] = None,
    pretrain: Annotated[int | None, typer.Option(help="Steps of each pretraining stage first. Default: none.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of model or trainer. Repeatable.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a training batch.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Text encoder, as for train.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to train. Default: cpu.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 1,
    data_dir: DataDirectory = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing; report what is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Compare schedules from the same weights and data, at equal module updates and at equal cost.

    The cost of each kind of step is timed first, alone, and then charged per step, so that a busy machine does not
    decide. Every arm runs once per seed and budget. Finished runs are kept: stop it with Ctrl-C and give the same
    command to go on, or add arms and seeds later. The report (report.md, report.html, report.json) has the test
    metrics at the best validation point, and intervals of the differences over users and seeds.

    Example: ur4rec compare --dataset synthetic --arms joint 2:1 plateau matched:plateau --updates 200 --out runs/study
    """
    from ur4rec.compare.command import open_study
    from ur4rec.compare.report import write_report
    from ur4rec.compare.workers import run_study

    with one_line_errors():
        _log_to_stderr(quiet)
        given = {
            "dataset": dataset,
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
            **{name: values for name, values in sort_settings(settings or []).items() if values},
        }
        directory = open_study(study, out, given, arms=arms or (), seeds=seeds or (), budgets=budgets or ())
        if not report_only:
            run_study(directory, jobs=jobs, data_dir=data_dir, quiet=quiet)
        text = write_report(directory)
        if not quiet:
            console.print(Markdown(text))
        console.print(f"the report is {directory.path / 'report.html'}, also as .md and .json")


def refuse_settings(context: typer.Context) -> None:
    """Refuse what --resume cannot heed: a run goes on with its own settings."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(str(parameter.name))) is not None
        and source.name == "COMMANDLINE"
        and parameter.name not in ("resume", "data_dir", "quiet", "log")
    ]
    if given:
        raise ConfigurationError(
            f"--resume goes on in its directory with the run's own settings; leave out {', '.join(given)}"
        )


def train_until_stopped(run: "TrainingRun", *, resume: bool) -> "list[Result]":
    """Train; after Ctrl-C or SIGTERM say how to go on, and exit as if the signal had ended the process."""
    with run.directory.locked(), stop_on_signals() as stop:
        try:
            if resume:
                run.resume()
            return run.train(stop=stop)
        except Stopped as stopped:
            assert stop.number is not None
            command = f"ur4rec train --resume {shlex.quote(str(run.directory.path))}"
            stderr.print(f"stopped after step {stopped.step}, saved; go on with: {command}", markup=False)
            raise typer.Exit(128 + stop.number) from None


def parse_epochs(texts: list[str]) -> dict[str, int]:
    """``stage=number`` pairs."""
    pairs = dict(_split_pair(text, "--epochs") for text in texts)
    for stage, number in pairs.items():
        if not number.isdecimal():
            raise ConfigurationError(f"--epochs {stage} must be a whole number of at least 0, got {number!r}")
    return {stage: int(number) for stage, number in pairs.items()}


def sort_settings(texts: list[str]) -> dict[str, dict[str, Any]]:
    """``name=value`` pairs, sorted into those of the model and those of the trainer."""
    sorted_settings: dict[str, dict[str, Any]] = {"model": {}, "trainer": {}}
    for name, value in (_split_pair(text, "--set") for text in texts):
        if name not in (*MODEL_SETTINGS, *TRAINER_SETTINGS):
            raise ConfigurationError(
                f"unknown setting {name!r}; expected one of {sorted((*MODEL_SETTINGS, *TRAINER_SETTINGS))}"
            )
        sorted_settings["model" if name in MODEL_SETTINGS else "trainer"][name] = parse_value(value)
    return sorted_settings


def _split_pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigurationError(f"{option} must read name=value, got {text!r}")
    return name.strip(), value.strip()


def _log_to_stderr(quiet: bool) -> None:
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("alternator").setLevel(logging.WARNING)  # the progress bar and decisions.csv say it better


def main(run: Callable[[], Any] = app) -> None:
    """The entry point of the command."""
    run()

"""How fast and how good is SASRec alone against RecBole's and RecTools'?  `python benchmarks/peers.py --data ml-1m`.

Every system gets the same interactions and the same leave-one-out split, and trains in a process of its own with one
thread, with the settings that its authors recommend (`peers_systems.py`). After every epoch the same function ranks its
scores over the whole catalogue, with and without the items that the user has seen; no peer's metrics are used. Both
clocks of training are kept; scoring and ranking are not counted.

A peer runs in an environment of its own, made on the first call. Finished runs are kept in the cache, so that a call
that was interrupted continues with what is missing; `--fresh` discards them. A run that was interrupted is trained
again from its beginning; `--report-only` reports what there is, with the epochs of such runs. `--limit-seconds` bounds
every run's processor time: no epoch is begun after it, and the report says which runs it ended. `--data sports` needs
the RecBole atomic files of Amazon Sports (5-core; 35,598 users) in `--data-dir`.
"""

import argparse
import datetime
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from overhead import RESULTS, ROOT, machine
from peers_curves import SystemRun
from peers_report import save
from peers_systems import DATA, DEFAULT, ENVIRONMENTS, SYSTEMS, Recipe
from peers_task import Task, write_task
from peers_worker import Job, unfinished

from ur4rec.compare.processes import ONE_THREAD
from ur4rec.data import Interactions, leave_one_out, load_dataset, sample_users
from ur4rec.errors import ConfigurationError, DataError
from ur4rec.files import cache_directory, write_whole


def load(data: str, directory: Path | None, users: int | None) -> Interactions:
    """The data set, or a sample of its users.

    Raises:
        DataError: Its files are not where they should be.
    """
    if data == "sports":
        if directory is None or not (directory / "sports.inter").is_file():
            raise DataError(
                f"--data sports needs the RecBole atomic files sports.inter and sports.item, none in {directory}; "
                "put them into a directory and name it with --data-dir"
            )
        interactions = load_dataset(directory)
    else:
        interactions = load_dataset(data, directory=directory)
    return interactions if users is None else sample_users(interactions, users)


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """A recipe of ours with other values: ``epochs=10``, ``trainer.sasrec_lr=1e-3``.

    Raises:
        ConfigurationError: A change is not of that form, or names no field that there is.

    Example:
        >>> recipe = Recipe(max_seq_len=50, epochs=40, settings={"batch_size": 64, "trainer": {}})
        >>> found = changed(recipe, ["epochs=10", "batch_size=8", "trainer.sasrec_lr=1e-3"])
        >>> found.epochs, dict(found.settings)
        (10, {'batch_size': 8, 'trainer': {'sasrec_lr': 0.001}})
    """
    fields: dict[str, Any] = {"max_seq_len": recipe.max_seq_len, "epochs": recipe.epochs}
    settings = {name: dict(each) if isinstance(each, Mapping) else each for name, each in recipe.settings.items()}
    for change in changes:
        name, equals, text = change.partition("=")
        section, dot, last = name.rpartition(".")
        if not equals or (dot and section not in settings) or (not dot and name not in {*fields, *settings}):
            raise ConfigurationError(
                f"--set must be NAME=VALUE with a name of {', '.join([*fields, *settings])}, or model.FIELD or "
                f"trainer.FIELD, got {change!r}"
            )
        target = fields if name in fields else settings[section] if dot else settings
        target[last] = _value(text)
    return Recipe(**fields, settings=settings)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def environment(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there. It has the torch that we have."""
    python, marker = folder / "bin" / "python", folder / "complete.json"
    wanted = json.dumps(asdict(ENVIRONMENTS[name]))
    if not marker.exists() or marker.read_text() != wanted:
        print(f"making the environment of {name} in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch_here = f"torch=={metadata.version('torch').split('+')[0]}"
        subprocess.run([*install, torch_here], check=True)  # first, so that nothing else chooses one
        subprocess.run([*install, torch_here, *ENVIRONMENTS[name].needed], check=True)
        subprocess.run([*install, "--no-deps", ENVIRONMENTS[name].requirement], check=True)
        marker.write_text(wanted)
    return python


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What is run, and for how long at most."""

    data: str
    """The data set."""
    systems: Sequence[str]
    """Whose runs."""
    seeds: int
    """Seeds of each."""
    limit_seconds: float
    """Processor seconds of a run, after which no epoch is begun."""
    max_epochs: int | None = None
    """Epochs of a run at most, for a look."""
    changes: Sequence[str] = ()
    """Changes to the recipes of ours; see `changed`."""


class Study:
    """Trains what is missing, keeps what is finished.

    Args:
        task: The data.
        budget: What is run.
        folder: Where runs and environments are kept.
    """

    def __init__(self, task: Task, budget: Budget, folder: Path) -> None:
        self._task, self._budget, self._folder = task, budget, folder
        self._sitting = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def run(self, parallel: int) -> tuple[list[SystemRun], list[str]]:
        """Train what is missing, a seed of every system before the next seed.

        Returns:
            The finished runs, and what failed.
        """
        missing = [job for job in self._jobs if not Path(job.out).exists()]
        for name in dict.fromkeys(SYSTEMS[job.system].environment for job in missing):
            if name is not None:
                self._python(name)
        with ThreadPoolExecutor(parallel) as pool:
            failed = [failure for failure in pool.map(self._train, missing) if failure]
        return self._read([Path(job.out) for job in self._jobs]), failed

    def known(self) -> list[SystemRun]:
        """The finished runs, and of others the epochs that were trained before they were interrupted."""
        outs = [Path(job.out) for job in self._jobs]
        return self._read([out if out.exists() else unfinished(out) for out in outs])

    @property
    def _jobs(self) -> list[Job]:
        return [self.job(system, seed) for seed in range(self._budget.seeds) for system in self._budget.systems]

    def _read(self, files: Sequence[Path]) -> list[SystemRun]:
        """Those of the runs that there are, by system and seed."""
        runs = [SystemRun.from_json(json.loads(file.read_text())) for file in files if file.exists()]
        return sorted(runs, key=lambda run: (self._budget.systems.index(run.system), run.seed))

    def job(self, name: str, seed: int) -> Job:
        """A run, whose file is named after all that it depends on."""
        system, budget = SYSTEMS[name], self._budget
        recipe = system.recipes[budget.data]
        if system.is_ours:
            recipe = changed(recipe, budget.changes)
        fields = {
            "system": name,
            "first_seed": system.first_seed,
            "settings": dict(recipe.settings),
            "max_seq_len": recipe.max_seq_len,
            "epochs": min(recipe.epochs, budget.max_epochs or recipe.epochs),
            "patience": system.patience,
            "limit_seconds": budget.limit_seconds,
        }
        requirement = ENVIRONMENTS[system.environment].requirement if system.environment else ""
        about = json.dumps([fields, self._task.split.hash, requirement], sort_keys=True)
        digest = hashlib.sha256(about.encode()).hexdigest()[:12]
        out = self._folder / "runs" / f"{budget.data}-{name.replace(' ', '-')}-{digest}-seed{seed}.json"
        return Job(seed=seed, task=str(self._task.folder), out=str(out), sitting=self._sitting, **fields)

    def _python(self, name: str | None) -> Path:
        return Path(sys.executable) if name is None else environment(name, self._folder / f"{name}-environment")

    def _train(self, job: Job) -> str:
        """Run a job to its end; what went wrong, if anything did."""
        system, out = SYSTEMS[job.system], Path(job.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = out.with_suffix("")  # some libraries write where they are started
        scratch.mkdir(exist_ok=True)
        instructions, messages = scratch / "job.json", scratch / "messages.txt"
        write_whole(instructions, json.dumps(asdict(job)).encode())
        worker = Path(__file__).with_name(system.worker)
        with messages.open("w") as errors:
            code = subprocess.run(
                [self._python(system.environment), worker, instructions],
                stderr=errors,
                stdin=subprocess.DEVNULL,
                cwd=scratch,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)},
            ).returncode
        if not out.exists():
            failure = f"{job.system}, seed {job.seed}: ended with {code} and no run; see {messages}"
            print(failure, flush=True)
            return failure
        shutil.rmtree(scratch)
        return ""


def commit() -> str:
    """The commit that was measured, with a plus if files differ from it."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if found.returncode:
        return "unknown"
    differs = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return found.stdout.strip() + ("+" if differs.stdout.strip() else "")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, default="ml-100k", help="the data set (default: ml-100k)")
    parser.add_argument("--data-dir", type=Path, help="where its files are; needed for sports")
    parser.add_argument("--only", nargs="+", choices=tuple(SYSTEMS), metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every system (default: 3)")
    parser.add_argument("--limit-seconds", type=float, default=7200.0, help="processor time of a run (default: 7200)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of ours")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with one thread (default: 1)")
    parser.add_argument("--users", type=int, help="a sample of the users, for a look")
    parser.add_argument("--max-epochs", type=int, help="of every run, for a look")
    parser.add_argument("--work", type=Path, default=cache_directory() / "peers", help="where runs are kept")
    parser.add_argument(
        "--report-only", action="store_true", help="train nothing, report what there is, interrupted runs too"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the runs that are finished")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    try:
        options.interactions = load(options.data, options.data_dir, options.users)
        for system in options.only or DEFAULT[options.data]:
            if SYSTEMS[system].is_ours:
                changed(SYSTEMS[system].recipes[options.data], options.set)
    except (ConfigurationError, DataError) as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> int:
    """Train, compare, save, and fail if a bar is missed or a run failed."""
    options = parse(arguments)
    interactions = options.interactions
    split = leave_one_out(interactions, repeats="exclude")
    work = options.work.resolve()
    if options.fresh:
        shutil.rmtree(work / "runs", ignore_errors=True)
    task = write_task(interactions, split, work / "tasks" / f"{options.data}-{split.hash[:12]}")
    budget = Budget(
        data=options.data,
        systems=tuple(options.only or DEFAULT[options.data]),
        seeds=options.seeds,
        limit_seconds=options.limit_seconds,
        max_epochs=options.max_epochs,
        changes=options.set,
    )
    study = Study(task, budget, work)
    runs, failed = (study.known(), []) if options.report_only else study.run(options.jobs)
    if not runs:
        print("no run was finished" + " or begun, of these settings" * options.report_only)
        return 1
    about = {
        **machine(),
        "threads": 1,
        "commit": commit(),
        "data": options.data,
        "interactions_hash": interactions.hash,
        "split_hash": split.hash,
        "users": len(split.test),
        "items": split.num_items,
        "interactions": len(interactions),
        "peers": [each.requirement for each in ENVIRONMENTS.values()],
        "failed": failed,
    }
    words = sys.argv[1:] if arguments is None else arguments
    hardware = f"cpu{os.cpu_count()}" + ("-quick" if options.users or options.max_epochs else "")
    text, kept = save(runs, options.out, hardware, about, shlex.join(["python", "benchmarks/peers.py", *words]))
    print(text)
    return int(not kept or bool(failed))


if __name__ == "__main__":
    sys.exit(main())

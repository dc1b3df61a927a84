"""How good does a model get?  `python benchmarks/quality.py --data ml-1m --arms base batch_size=64` trains and asks.

An arm is a line of settings, ``NAME=VALUE,NAME=VALUE``, beside those of the data set; ``base`` has none. It may name
what ``ur4rec train`` takes: settings of the model and the trainer, epochs of a stage, ``batch_size``, ``encoder``,
``schedule``. All arms of a seed share the split, and runs are runs of ``ur4rec train``: each is tested at its best
epoch by validation. Finished runs are kept in the work folder and skipped, stopped ones continue, so that the same
command continues a study. Arms that differ only in what comes after SASRec's own stage share it: it is trained once,
and each continues from there, to the same bits as if it had trained alone. With ``--refit`` each chosen model is
trained once more on validation targets too, as ``ur4rec train --refit`` does, and is a row of its own.
"""

import argparse
import datetime
import json
import logging
import multiprocessing
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quality_report import compare, compare_by_popularity, plot, render

from alternator import AlternatorError
from alternator.rules.named import parse_value
from ur4rec.compare.processes import one_thread_processes
from ur4rec.compare.report import compact_json
from ur4rec.compare.runner import machine_facts, source_commit
from ur4rec.config import NORMAL_INIT
from ur4rec.data.splits import Split
from ur4rec.errors import ConfigurationError
from ur4rec.evaluation.popularity import popularity_deciles
from ur4rec.evaluation.results import Result
from ur4rec.files import hash_bytes, remove, write_file, write_whole
from ur4rec.runs.config import MODEL_SETTINGS, TRAINER_SETTINGS, RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.prepared import prepare, run_facts, with_absolute_paths
from ur4rec.runs.presets import preset
from ur4rec.runs.refit import Refit
from ur4rec.runs.run import TrainingRun
from ur4rec.schedule.stages import STAGES
from ur4rec.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "runs" / "quality"
BASE = "base"
RUN, REFIT = "quality.json", "quality_refit.json"
"""What a job writes into the run's folder."""
ONLY_SASREC = {"pretrain_retriever": 0, "joint_finetune": 0, "end_to_end": 0}
_AFTER_SASREC = ("pretrain_retriever", "retriever_", "joint_", "end_to_end", "fusion", "cascade_", "kd_", "schedule")
"""What no step of SASRec's own stage reads: settings whose names begin so."""
_SHOWN_BY_POPULARITY = ("SASRec alone", "fused")
_RUN_SETTINGS = ("batch_size", "encoder", "schedule", "early_stopping", "eval_every", "eval_users")


def _sasrec_of(name: str) -> dict[str, Any]:
    """What a preset says of SASRec alone."""
    config = preset(name)
    return {
        "batch_size": config.batch_size,
        "eval_every": config.eval_every,
        "epochs": {**config.epochs, **ONLY_SASREC},
        "model": {field: value for field, value in config.model.items() if not field.startswith(_AFTER_SASREC)},
        "trainer": {field: value for field, value in config.trainer.items() if not field.startswith(_AFTER_SASREC)},
    }


BASES: dict[str, dict[str, Any]] = {
    "ml-1m": {**_sasrec_of("ml-1m"), "dataset": "ml-1m"},
    "sports": {**_sasrec_of("amazon"), "dataset": "sports"},
    "ml-100k": {
        "dataset": "ml-100k",
        "batch_size": 64,
        "epochs": {"pretrain_sasrec": 20, **ONLY_SASREC},
        "model": {"max_seq_len": 50, "sasrec_hidden_dim": 64, "sasrec_num_heads": 2, "sasrec_dropout": 0.2},
        "trainer": {"sasrec_lr": 3e-3},
    },
    "quick": {"dataset": "synthetic", "epochs": {"pretrain_sasrec": 2, **ONLY_SASREC}},
}
"""What all arms of a data set share, beside the preset `smoke` of ``quick``."""


def parse_arm(arm: str) -> dict[str, Any]:
    """The changes to a configuration that an arm names.

    Raises:
        ConfigurationError: It is no list of settings, or one of them does not exist.

    Example:
        >>> parse_arm("sasrec_lr=0.003,batch_size=32,joint_finetune=4")
        {'trainer': {'sasrec_lr': 0.003}, 'batch_size': 32, 'epochs': {'joint_finetune': 4}}
    """
    changes: dict[str, Any] = {}
    for each in [] if arm == BASE else arm.split(","):
        name, sign, text = each.partition("=")
        value = parse_value(text)
        kinds = {"model": MODEL_SETTINGS, "trainer": TRAINER_SETTINGS, "epochs": STAGES}
        kind = next((kind for kind, names in kinds.items() if name in names), None)
        if not sign or (kind is None and name not in _RUN_SETTINGS):
            known = [*MODEL_SETTINGS, *TRAINER_SETTINGS, *STAGES, *_RUN_SETTINGS]
            raise ConfigurationError(f"an arm must be NAME=VALUE,..., with a NAME of {known}, got {each!r}")
        if kind is None:
            changes[name] = value
        else:
            changes.setdefault(kind, {})[name] = value
    return changes


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run."""

    data: str
    arm: str
    seed: int
    backend: str = "torch"
    data_dir: Path | None = None
    refit: bool = False

    def config(self) -> RunConfig:
        """The settings of the run."""
        base, changes = BASES[self.data], parse_arm(self.arm)
        merged = {**base, **changes, "backend": self.backend, "seed": self.seed, "device": "cpu"}
        for kind in ("model", "trainer", "epochs"):
            merged[kind] = {**base.get(kind, {}), **changes.get(kind, {})}
        if self.data_dir is not None:
            merged["dataset"] = str(self.data_dir)
        merged = {"encoder": "tfidf", **merged}
        return preset("smoke", **merged) if self.data == "quick" else RunConfig(**merged)

    def first_stage(self) -> "Job | None":
        """The run that ends with SASRec's own stage and has all that the stage depends on; None if this one ends there.

        The texts decide where SASRec begins if its first item embeddings are made of them.
        """
        config = self.config()
        stages = [stage for stage, count in config.epochs.items() if count]
        if stages[:1] != ["pretrain_sasrec"] or len(stages) == 1:
            return None
        has_texts = config.model.get("sasrec_item_init", NORMAL_INIT) != NORMAL_INIT
        later = _AFTER_SASREC if has_texts else (*_AFTER_SASREC, "encoder")
        kept = [each for each in self.arm.split(",") if not each.startswith(later)]
        return replace(self, arm=",".join(kept) or BASE, refit=False)

    def folder(self, work: Path) -> Path:
        """Where the run is kept: a folder for each list of settings."""
        settings = {**self.config().to_json(), "dataset": self.data}
        mark = hash_bytes(json.dumps(settings, sort_keys=True).encode())[:12]
        return work / self.data / f"{mark}_{self.backend}_{self.seed}"


def run_job(job: Job, work: Path) -> Job:
    """Train, or continue, and write what came of it, whole."""
    logging.getLogger("alternator").setLevel(logging.WARNING)
    path, config = job.folder(work), with_absolute_paths(job.config())
    is_begun = (path / "config.json").exists()
    directory = RunDirectory.open_existing(path) if is_begun else RunDirectory.create(path, overwrite=True)
    prepared = prepare(config)
    training = TrainingRun(config, prepared, directory, progress=False)
    if not is_begun and (first := job.first_stage()) is not None:
        take_first_stage(training, RunDirectory.open_existing(first.folder(work)))
        is_begun = True
    if is_begun:
        training.resume()
    training.train()
    content = {
        "arm": job.arm,
        "seed": job.seed,
        "config": config.to_json(),
        "facts": {**run_facts(prepared, job.backend), **machine_facts(), "commit": source_commit()},
        **_outcome(training, training.results),
        **_popularity(prepared.split),
        "epochs": [{name: each[name] for name in ("stage", "validation", "train_seconds")} for each in training.epochs],
    }
    write_whole(path / RUN, (json.dumps(content) + "\n").encode())
    if job.refit:
        training.release()
        refit = Refit(training, progress=False)
        if directory.refit.checkpoint("latest"):
            refit.resume()
        refit.train()
        chosen = {name: result for name, result in training.results.items() if result.epoch >= 0}
        tested = {name: replace(refit.results[name], validation=chosen[name].validation) for name in chosen}
        content = _outcome(refit, {f"{name}{refit.suffix}": result for name, result in tested.items()})
        write_whole(path / REFIT, (json.dumps(content) + "\n").encode())
    return job


def take_first_stage(training: TrainingRun, source: RunDirectory) -> None:
    """Make the directory of a run what it would be after the one stage of another, which has ended."""
    directory = training.directory
    training.write_config()
    shutil.copy(source.path / "decisions.csv", directory.path)
    first = directory.path / "first"
    training.trainer.save_checkpoint(first, metrics={"run": training.identity})
    own = load_checkpoint(first)
    remove(first)
    for which in ("best", "latest"):
        saved = load_checkpoint(source.require_checkpoint(which))
        weights = own.weights | {name: each for name, each in saved.weights.items() if name.startswith("sasrec.")}
        state = {name: part for name, part in saved.state.items() if name != "sha256"}
        state |= {name: own.state[name] for name in ("model", "trainer")}
        state["metrics"] = saved.state["metrics"] | own.state["metrics"]
        with directory.new_checkpoint(state["progress"]["step"], best=which == "best") as new:
            save_checkpoint(new, Checkpoint(weights, own.moments | saved.moments, state))


def _popularity(split: Split) -> dict[str, Any]:
    """How often the item of each test target was used in training, and its decile: 0 never, 10 the most."""
    counts_I, items_T = split.train.count_items(split.num_items), split.test.items_T
    return {"uses": counts_I[items_T].tolist(), "deciles": popularity_deciles(counts_I)[items_T].tolist()}


def _outcome(run: TrainingRun, results: Mapping[str, Result]) -> dict[str, Any]:
    """The results of a run by name, the rank of every test target, and the seconds of training."""
    return {
        "results": {name: result.to_json() for name, result in results.items()},
        "ranks": {name: result.test_ranks.tolist() for name, result in results.items()},
        "seconds": dict.fromkeys(results, sum(each["train_seconds"] for each in run.epochs)),
    }


def read_result(job: Job, work: Path) -> dict[str, Any] | None:
    """The finished run, if there is one, with what its refit adds."""
    files = [job.folder(work) / name for name in (RUN, REFIT)[: 1 + job.refit]]
    if not all(file.is_file() for file in files):
        return None
    found, *refits = (json.loads(file.read_text()) for file in files)
    for refit in refits:
        for part, values in refit.items():
            found[part] |= values
    return found if "deciles" in found else None  # one from before there were any


def run_all(jobs: Sequence[Job], work: Path, processes: int) -> None:
    """Run what is missing, in processes of one thread each, and say what each has come to."""
    missing = [job for job in jobs if read_result(job, work) is None]
    firsts = {first.folder(work): first for job in missing if (first := job.first_stage()) is not None}
    for first in _finished([each for each in firsts.values() if read_result(each, work) is None], work, processes):
        print(f"SASRec's own stage of {first.arm}, seed {first.seed}, is trained", file=sys.stderr)
    for number, job in enumerate(_finished(missing, work, processes), len(jobs) - len(missing) + 1):
        found = read_result(job, work)
        assert found is not None
        trained = {name: each for name, each in found["results"].items() if name != "popularity"}
        said = ", ".join(f"{each['name']} {each['validation']['ndcg@10']:.4f}" for each in trained.values())
        print(f"{number} of {len(jobs)}: {job.arm}, seed {job.seed}: validation NDCG@10 {said}", file=sys.stderr)


def _finished(jobs: Sequence[Job], work: Path, processes: int) -> Iterator[Job]:
    with one_thread_processes(processes) as pool:
        for future in as_completed([pool.submit(run_job, job, work) for job in jobs]):
            yield future.result()


def build_study(options: argparse.Namespace, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Everything that is written."""
    facts = next(iter(runs.values()))[0]["facts"]
    names = ("num_users", "num_items", "num_interactions", "split_hash", "processor", "commit", "versions")
    about = {
        "command": _command(options),
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "data": options.data,
        "base": json.dumps(BASES[options.data]),
        "baseline": options.against,
        **{name: facts[name] for name in names},
    }
    scorers = dict.fromkeys(scorer for found in runs.values() for each in found for scorer in each["ranks"])
    groups = {
        "Chosen by validation": [name for name in scorers if not name.endswith(Refit.suffix) and name != "popularity"],
        "Refit on validation targets too": [name for name in scorers if name.endswith(Refit.suffix)],
    }
    comparisons = {title: compare(runs, names, (options.against, names[0])) for title, names in groups.items() if names}
    shown = [name for name in groups["Chosen by validation"] if name in _SHOWN_BY_POPULARITY]
    by_popularity = compare_by_popularity(runs, shown, (options.against, shown[0])) if shown else []
    curves = {arm: [each["epochs"] for each in found] for arm, found in runs.items()}
    return {"about": about, "comparisons": comparisons, "by_popularity": by_popularity, "curves": curves}


def _command(options: argparse.Namespace) -> str:
    words = ["python", "benchmarks/quality.py", "--data", options.data, "--seeds", *map(str, options.seeds)]
    words += [] if options.backend == "torch" else ["--backend", options.backend]
    words += ["--data-dir", "DIR"] if options.data_dir else []
    words += ["--refit"] if options.refit else []
    return shlex.join([*words, "--arms", *options.arms])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(BASES), default="ml-100k", help="data set (default: ml-100k)")
    parser.add_argument("--data-dir", type=Path, help="files of a data set that ur4rec does not fetch, such as sports")
    parser.add_argument("--arms", nargs="+", default=[BASE], help="what is compared (default: base)")
    parser.add_argument("--against", help="the arm that the others are compared with (default: the first)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--backend", default="torch", help="torch or jax (default: torch)")
    parser.add_argument("--refit", action="store_true", help="train the chosen models on validation targets too")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each (default: 2)")
    parser.add_argument("--report-only", action="store_true", help="report the arms that are finished, run nothing")
    parser.add_argument("--name", help="how the names of the result files begin (default: quality_DATA)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of runs (default: runs/quality)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    options.against = options.against or options.arms[0]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, compare, and write."""
    options = parse(arguments)
    try:
        jobs = {
            arm: [
                Job(
                    data=options.data,
                    arm=arm,
                    seed=seed,
                    backend=options.backend,
                    data_dir=options.data_dir,
                    refit=options.refit,
                )
                for seed in options.seeds
            ]
            for arm in options.arms
        }
        by_seed = [job for each in zip(*jobs.values(), strict=True) for job in each]
        for job in by_seed:
            job.config()
        if not options.report_only:
            run_all(by_seed, options.work, options.jobs)
    except AlternatorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {arm: [read_result(job, options.work) for job in each] for arm, each in jobs.items()}
    runs = {arm: [each for each in results if each is not None] for arm, results in found.items()}
    runs = {arm: results for arm, results in runs.items() if len(results) == len(options.seeds)}
    if not runs:
        print("no arm is finished for all seeds: leave out --report-only", file=sys.stderr)
        return 1
    study = build_study(options, runs)
    name = options.name or f"quality_{options.data}"
    stem = options.out / f"{name}_cpu{multiprocessing.cpu_count()}_{study['about']['date']}"
    text = render(study)
    write_whole(stem.with_suffix(".json"), (compact_json(study) + "\n").encode())
    write_whole(stem.with_suffix(".md"), text.encode())
    write_file(stem.with_suffix(".png"), lambda file: plot(study, file))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

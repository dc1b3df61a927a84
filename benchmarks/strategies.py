"""Do the strategies help?  `python benchmarks/strategies.py` trains with each on and off and compares them in pairs.

The model is that of the preset `demo` (`smoke` in quick mode), joint from the start: both modules train in every step
of one `end_to_end` stage, so that every strategy acts in every step. All runs of a seed share data order and initial
weights; each is tested at its best epoch by validation. Finished runs are kept in the work folder and skipped, so that
the same command continues after a stop. The strategies are run in every backend, the losses and fusions in the first
one: they are the same functions in both, which tests compare.

Shapes: T test targets (users), S runs (seeds of each backend).
"""

import argparse
import datetime
import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ur4rec.compare.plots import to_png
from ur4rec.compare.processes import one_thread_processes
from ur4rec.compare.report import compact_json
from ur4rec.compare.runner import evaluate, machine_facts, source_commit
from ur4rec.compare.statistics import Resamples
from ur4rec.evaluation.metrics import ndcg
from ur4rec.files import write_file, write_whole
from ur4rec.runs.config import RunConfig
from ur4rec.runs.prepared import PreparedData, prepare, run_facts
from ur4rec.runs.presets import preset
from ur4rec.training.backend import BACKENDS, load_backend

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK = ROOT / "runs" / "strategies"
EPOCHS = 6
NUM_RESAMPLES = 10_000
METRICS = ("ndcg@10", "hit@10", "nll")
LABELS = {"ndcg@10": "NDCG@10", "hit@10": "Hit@10", "nll": "mean NLL"}
MARKS = ("<!-- results of benchmarks/strategies.py -->", "<!-- end of results -->")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What is compared: settings beside the preset's, and the arm that it is compared with."""

    name: str
    trainer: dict[str, Any] = field(default_factory=dict)
    fusion: str = "logit"
    baseline: str = "baseline"
    in_all_backends: bool = False
    """Whether it is run in every backend, not only in the first."""

    @property
    def has_likelihood(self) -> bool:
        """Whether the fused scores are logits."""
        return self.fusion in ("logit", "weighted")


def _arms() -> dict[str, Arm]:
    strategies = {
        "curriculum": "use_curriculum_learning",
        "memory bank": "use_memory_bank",
        "distillation": "use_knowledge_distillation",
        "uncertainty": "use_uncertainty_weighting",
    }
    settings = {name: {switch: True} for name, switch in strategies.items()}
    settings["all four"] = dict.fromkeys(strategies.values(), True)
    fused = [Arm(name=name, trainer=trainer, in_all_backends=True) for name, trainer in settings.items()]
    separate = {"joint_loss": "separate"}
    losses = [
        Arm(name=f"separate, {loss}", trainer={**separate, "sasrec_loss": loss}, baseline="separate")
        for loss in ("sampled", "gbce", "bce", "bpr")
    ]
    fusions = [
        Arm(name=f"separate, fusion {fusion}", trainer=separate, fusion=fusion, baseline="separate")
        for fusion in ("weighted", "rank", "cascade")
    ]
    uncertainty = {**separate, "use_uncertainty_weighting": True}
    sampled = [
        Arm(name=f"sampled {num}", trainer={"catalogue_loss": "sampled", "num_negatives": num}) for num in (256, 1024)
    ]
    arms = [
        Arm(name="baseline", in_all_backends=True),
        *fused,
        Arm(name="fusion weighted", fusion="weighted"),
        Arm(name="separate", trainer=separate),
        Arm(name="separate, uncertainty", trainer=uncertainty, baseline="separate"),
        *losses,
        *fusions,
        *sampled,
    ]
    return {arm.name: arm for arm in arms}


ARMS = _arms()


class Job(NamedTuple):
    """One run."""

    arm: str
    backend: str
    seed: int
    quick: bool
    dataset: str | None = None
    """Another than the preset's."""
    num_epochs: int = EPOCHS
    eval_users: int | None = None
    """The number of users whose targets are ranked; None is all."""

    def config(self) -> RunConfig:
        """The settings of the run."""
        arm = ARMS[self.arm]
        return preset(
            "smoke" if self.quick else "demo",
            backend=self.backend,
            seed=self.seed,
            device="cpu",
            dataset=self.dataset,
            eval_users=self.eval_users,
            epochs={"pretrain_sasrec": 0, "pretrain_retriever": 0, "joint_finetune": 0, "end_to_end": self.num_epochs},
            model={"fusion": arm.fusion},
            trainer=arm.trainer,
        )

    def file(self, work: Path) -> Path:
        """Where its result is kept."""
        name = f"{self.arm.replace(', ', '-').replace(' ', '-')}_{self.backend}_{self.seed}.json"
        return work / ("quick" if self.quick else "full") / Path(self.dataset or "").stem / name


def run_job(job: Job) -> dict[str, Any]:
    """Train, and test at the best epoch by validation."""
    config = job.config()
    prepared = prepare(config)
    trainer = _build_trainer(config, prepared)
    validation_batches, test_batches = (
        prepared.evaluation(targets if job.eval_users is None else targets.sample(job.eval_users))
        for targets in (prepared.split.validation, prepared.split.test)
    )
    trainer.set_training_stage("end_to_end", num_steps=job.num_epochs * len(prepared.train))
    best: dict[str, Any] = {"validation": {"ndcg@10": -1.0}}
    epochs = []
    for epoch in range(job.num_epochs):
        metrics = trainer.train_epoch(prepared.train, epoch=epoch)
        validation = evaluate(trainer, validation_batches).summary()
        epochs.append({**metrics, "validation": validation})
        if validation["ndcg@10"] > best["validation"]["ndcg@10"]:
            test = evaluate(trainer, test_batches)
            per_user = {"ranks": test.ranks_T.tolist(), "nll": test.nll_T.astype(float).round(6).tolist()}
            best = {"epoch": epoch, "validation": validation, "test": test.summary(), "per_user": per_user}
    facts = {**run_facts(prepared, job.backend), **machine_facts(), "commit": source_commit()}
    return {**job._asdict(), "config": config.to_json(), "facts": facts, "best": best, "epochs": epochs}


def _build_trainer(config: RunConfig, prepared: PreparedData) -> Any:
    backend = load_backend(config.backend)
    model = backend.UR4Rec(**prepared.model_arguments(), seed=config.seed)
    return backend.JointTrainer(
        model,
        device="cpu",
        seed=config.seed,
        progress=False,
        item_counts=prepared.train.item_counts,
        **config.trainer,
    )


def run_and_keep(job: Job, work: Path) -> Job:
    """Run, and write the result whole."""
    content = json.dumps(run_job(job)) + "\n"
    write_whole(job.file(work), content.encode())
    return job


def read_result(job: Job, work: Path) -> dict[str, Any] | None:
    """The finished run of these very settings, if there is one."""
    file = job.file(work)
    if not file.is_file():
        return None
    result = json.loads(file.read_text())
    same = result["config"] == json.loads(json.dumps(job.config().to_json()))
    return result if same else None


def run_all(jobs: list[Job], work: Path, processes: int) -> None:
    """Run what is missing, in ``processes`` processes of one thread each, or in this one if it is 1."""
    missing = [job for job in jobs if read_result(job, work) is None]
    with tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="run", disable=None) as bar:
        for job in _finished(missing, work, processes):
            bar.set_postfix_str(f"{job.arm}, {job.backend}, seed {job.seed}")
            bar.update()


def _finished(jobs: list[Job], work: Path, processes: int) -> Iterator[Job]:
    if processes == 1:
        yield from (run_and_keep(job, work) for job in jobs)
        return
    with one_thread_processes(processes) as pool:
        for future in as_completed([pool.submit(run_and_keep, job, work) for job in jobs]):
            yield future.result()


def per_user(result: dict[str, Any], metric: str) -> NDArray[np.float64]:
    """The metric of every test target, (T,)."""
    if metric == "nll":
        return np.array(result["best"]["per_user"]["nll"])
    ranks_T = np.array(result["best"]["per_user"]["ranks"], np.float64)
    return ndcg(ranks_T, 10) if metric == "ndcg@10" else (ranks_T <= 10).astype(np.float64)


def compare(results: dict[Job, dict[str, Any]], backends: list[str]) -> list[dict[str, Any]]:
    """A row per arm that was run in all of them: each metric's mean, spread, and difference to the arm's baseline."""
    arms = [arm for arm in ARMS if {job.backend for job in results if job.arm == arm} >= set(backends)]
    runs = {
        arm: [result for job, result in results.items() if job.arm == arm and job.backend in backends] for arm in arms
    }
    num_users = len(per_user(runs[arms[0]][0], "nll"))
    resamples = Resamples(len(runs[arms[0]]), num_users, num_resamples=NUM_RESAMPLES)
    rows = []
    for name in arms:
        arm, row = ARMS[name], {"arm": name, "baseline": ARMS[name].baseline}
        for metric in METRICS if arm.has_likelihood else METRICS[:2]:
            values_ST = np.stack([per_user(result, metric) for result in runs[name]])
            baseline_ST = None
            if name != arm.baseline and arm.baseline in runs:
                baseline_ST = np.stack([per_user(result, metric) for result in runs[arm.baseline]])
            row[metric] = paired_figure(values_ST, baseline_ST, resamples)
        rows.append({**row, "verdict": verdict(row)})
    return rows


def paired_figure(
    values_ST: NDArray[np.float64], baseline_ST: NDArray[np.float64] | None, resamples: Resamples
) -> dict[str, float]:
    """The mean of an arm and its spread over runs; and its difference to another arm with an interval, if there is one.

    Example:
        >>> paired_figure(np.array([[1.0, 2], [2, 3]]), None, Resamples(2, 2))
        {'mean': 2.0, 'spread': 0.7071067811865476}
    """
    means_S = values_ST.mean(axis=1)
    figure = {"mean": float(means_S.mean()), "spread": float(means_S.std(ddof=len(means_S) > 1))}
    return figure if baseline_ST is None else figure | resamples.relative_difference(values_ST, baseline_ST)._asdict()


def verdict(row: dict[str, Any]) -> str:
    """What the intervals allow us to conclude; a lower NLL is better.

    Example:
        >>> verdict({"ndcg@10": {"low": 0.01, "high": 0.2}, "nll": {"low": -0.01, "high": 0.02}})
        'NDCG@10 better'
    """
    said = []
    for metric in METRICS:
        interval = row.get(metric, {})
        if "low" in interval and (interval["low"] > 0 or interval["high"] < 0):
            better = (interval["low"] > 0) == (metric != "nll")
            said.append(f"{LABELS[metric]} {'better' if better else 'worse'}")
    compared = any("low" in row.get(metric, {}) for metric in METRICS)
    return ", ".join(said) or ("no clear effect" if compared else "")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as Markdown."""
    header = ["", "against", *(LABELS[metric] for metric in METRICS), "verdict"]
    lines = [header, ["---"] * len(header)]
    for row in rows:
        against = "" if row["arm"] == row["baseline"] or "low" not in row["ndcg@10"] else row["baseline"]
        lines.append([row["arm"], against, *(figure_cell(row.get(metric)) for metric in METRICS), row["verdict"]])
    return [f"| {' | '.join(line)} |" for line in lines]


def figure_cell(figure: Mapping[str, Any] | None) -> str:
    """A figure as a cell of a table, with the interval of its mean if there is one."""
    if figure is None:
        return "no logits"
    text = f"{figure['mean']:.4f} ± {figure['spread']:.4f}"
    if "interval" in figure:
        text += " [{:.4f}, {:.4f}]".format(*figure["interval"])
    if "low" in figure:
        text += f"; {figure['estimate']:+.1%} [{figure['low']:+.1%}, {figure['high']:+.1%}]"
    return text


def render(study: dict[str, Any]) -> str:
    """The study as Markdown, without a title."""
    about, sections = study["about"], study["comparisons"]
    lines = [
        f"`{about['command']}`, {about['processor']}, {about['date']}; {about['dataset']} (split "
        f"`{about['split_hash'][:12]}`), {about['num_test_users']} test users, seeds {about['seeds']}, "
        f"{about['num_epochs']} epochs of {about['steps_per_epoch']} steps in which both modules train.",
        "",
        "Mean over runs ± their standard deviation; then the difference to the arm it is compared with, in percent of "
        "that, with a 95% interval from a bootstrap over runs and users, in pairs. *No clear effect*: all intervals "
        "contain 0; with so many intervals, one in twenty excludes 0 by chance. A lower NLL is better; it is the least "
        "noisy of the three.",
        "",
    ]
    for name, rows in sections.items():
        lines += [f"**{name}**", "", *table(rows), ""]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Differences to the baseline with their intervals."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(
        1, len(METRICS), figsize=(12, 0.35 * len(rows) + 1.5), sharey=True, layout="constrained"
    )
    shown = [row for row in rows if any("low" in row.get(metric, {}) for metric in METRICS)][::-1]
    for metric, axes in zip(METRICS, all_axes, strict=True):
        for position, row in enumerate(shown):
            interval = row.get(metric, {})
            if "low" in interval:
                clear = interval["low"] > 0 or interval["high"] < 0
                is_better = (interval["low"] > 0) == (metric != "nll")
                color = "tab:grey" if not clear else "tab:green" if is_better else "tab:red"
                axes.plot([100 * interval["low"], 100 * interval["high"]], [position] * 2, color=color)
                axes.plot(100 * interval["estimate"], position, "o", color=color)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel(f"{LABELS[metric]}: difference in %")
        axes.set_yticks(range(len(shown)), [f"{row['arm']} (against {row['baseline']})" for row in shown], fontsize=8)
    file.write_bytes(to_png(figure))
    pyplot.close(figure)


def build_study(results: dict[Job, dict[str, Any]], command: str) -> dict[str, Any]:
    """Everything that is written."""
    first_job, first = next(iter(results.items()))
    backends = list(dict.fromkeys(job.backend for job in results))
    groups = {"both backends together": backends} if len(backends) > 1 else {}
    groups |= {name: [name] for name in backends}
    about = {
        "command": command,
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "processor": first["facts"]["processor"],
        "dataset": first["facts"]["dataset"],
        "split_hash": first["facts"]["split_hash"],
        "num_test_users": len(per_user(first, "nll")),
        "num_epochs": first_job.num_epochs,
        "steps_per_epoch": first["epochs"][0]["steps"],
        "seeds": sorted({job.seed for job in results}),
    }
    comparisons = {name: compare(results, chosen) for name, chosen in groups.items()}
    return {"about": about, "comparisons": comparisons, "runs": [summary(result) for result in results.values()]}


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """A run in short: its settings are those of its arm, and the figures of each user stay in the work folder."""
    best = {name: value for name, value in result["best"].items() if name != "per_user"}
    validation = [epoch["validation"]["ndcg@10"] for epoch in result["epochs"]]
    run = {name: result[name] for name in ("arm", "backend", "seed")}
    return {**run, "best": best, "validation_ndcg@10": validation}


def fill_in(page: Path, text: str) -> None:
    """Put the results between the marks of a page of the documentation."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    if not mark:
        raise SystemExit(f"{page} must hold the lines {MARKS[0]!r} and {MARKS[1]!r}")
    write_whole(page, f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}".encode())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--backend", nargs="+", choices=list(BACKENDS), default=list(BACKENDS), help="default: both")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="default: all")
    parser.add_argument("--dataset", help="another dataset than MovieLens-100K, as for ur4rec train")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"epochs of a run (default: {EPOCHS})")
    parser.add_argument("--eval-users", type=int, help="rank the targets of this number of users (default: all)")
    parser.add_argument("--name", default="strategies", help="how the names of the result files begin")
    parser.add_argument("--title", default="Do the strategies help?", help="of the result file")
    parser.add_argument("--quick", action="store_true", help="synthetic data and one epoch, for a look")
    parser.add_argument("--processes", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of finished runs (default: runs/strategies)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--docs", type=Path, help="a page to put the table into, between its marks")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, compare, and write."""
    options = parse(arguments)
    jobs = [
        Job(
            arm,
            backend,
            seed,
            options.quick,
            options.dataset,
            1 if options.quick else options.epochs,
            options.eval_users,
        )
        for backend in options.backend
        for seed in options.seeds
        for arm in options.arms
        if ARMS[arm].in_all_backends or backend == options.backend[0]
    ]
    run_all(jobs, options.work, options.processes)
    study = build_study({job: read_result(job, options.work) for job in jobs}, _command(options))
    hardware = f"cpu{multiprocessing.cpu_count()}" + ("-quick" if options.quick else "")
    stem = options.out / f"{options.name}_{hardware}_{study['about']['date']}"
    text = render(study)
    write_whole(stem.with_suffix(".json"), (compact_json(study) + "\n").encode())
    write_whole(stem.with_suffix(".md"), f"# {options.title}\n\n{text}".encode())
    first = next(iter(study["comparisons"].values()))
    write_file(stem.with_suffix(".png"), lambda file: plot(first, file))
    if options.docs is not None:
        fill_in(options.docs, text)
    print(text)
    return 0


def _command(options: argparse.Namespace) -> str:
    """The command that gives these results, without the folders of this machine."""
    words = ["python benchmarks/strategies.py", "--seeds", *map(str, options.seeds), "--backend", *options.backend]
    if options.arms != list(ARMS):
        words += ["--arms", *(f"'{arm}'" for arm in options.arms)]
    words += [] if options.dataset is None else ["--dataset", Path(options.dataset).name]
    words += [] if options.epochs == EPOCHS else ["--epochs", str(options.epochs)]
    words += [] if options.eval_users is None else ["--eval-users", str(options.eval_users)]
    return " ".join([*words, *(["--quick"] if options.quick else [])])


if __name__ == "__main__":
    sys.exit(main())

"""Runs what a study lacks, in processes of this machine or of a cluster, resumable at any moment."""

import logging
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ur4rec.compare.arms import original_of
from ur4rec.compare.cluster import cluster_processes
from ur4rec.compare.costs import measure_costs
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.processes import Processes, interruptible, local_processes
from ur4rec.compare.runner import RunKey, prepare_study
from ur4rec.compare.tasks import ArmOutcome, ArmRequest, check_device, pretrain_seed, train_arm
from ur4rec.runs.progress import INTERVAL

logger = logging.getLogger(__name__)


def run_study(
    directory: StudyDirectory,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    data_dir: Path | None = None,
    quiet: bool = False,
) -> None:
    """Run everything that is missing: the costs first, alone; then pretraining; then the arms.

    Args:
        directory: The study.
        jobs: Processes of this machine.
        cluster: The address of a dask scheduler, whose workers run it instead.
        data_dir: Where to look for a built-in dataset before it is downloaded; on a cluster, on each worker's machine.
        quiet: Whether to show no progress.

    Raises:
        StudyInterruptedError: Ctrl-C, or a process died; run it again to continue.
        AlternatorError: A setting does not fit, the data cannot be had, another process runs the study, or its finished
            runs were charged with other costs.
    """
    if not directory.missing():
        return
    study = directory.study
    if cluster is None and study.device not in ("cpu", "auto"):
        with interruptible(), local_processes(1) as processes:  # a framework would take the device for this process
            processes.submit(check_device, study.backend, study.device).result()
    prepared = prepare_study(study, study.seeds[0], data_dir)  # bad data is refused before anything starts
    found = local_processes(jobs) if cluster is None else cluster_processes(cluster, study.backend)
    with directory.locked(), interruptible(), found as processes:
        directory.settle(prepared.counts)
        directory.check_costs()
        if directory.read_costs() is None:
            logger.info("timing each kind of step, alone")
            directory.write_costs(processes.submit(measure_costs, directory.study, data_dir).result())
        _pretrain(processes, directory, data_dir)
        _run_arms(processes, directory, data_dir, quiet)


def run_one(path: Path, key: RunKey, data_dir: Path | None = None) -> dict[str, Any]:
    """Do one run of a study in this process, keep it, and return what it reported.

    Args:
        path: The directory of the study, whose costs are measured.
        key: The run. A control needs its original's.
        data_dir: Where to look for a built-in dataset before it is downloaded.
    """
    directory = StudyDirectory.reopen(path)
    outcome = train_arm(ArmRequest.of(directory, key, data_dir))
    directory.write_run(key, outcome.report, outcome.arrays)
    return outcome.report


def _pretrain(processes: Processes, directory: StudyDirectory, data_dir: Path | None) -> None:
    starts = {seed: directory.start_of(seed) for seed in directory.study.seeds}
    missing = [seed for seed, path in starts.items() if path is not None and not path.exists()]
    futures = {seed: processes.submit(pretrain_seed, directory.study, seed, data_dir) for seed in missing}
    for seed, future in futures.items():
        directory.write_start(seed, future.result())


def _run_arms(processes: Processes, directory: StudyDirectory, data_dir: Path | None, quiet: bool) -> None:
    """In the study's order, but for controls that wait for their originals: a study cut short has whole seeds."""
    waiting = directory.missing()
    running: dict[Future[ArmOutcome], RunKey] = {}
    total, finished = len(waiting), 0
    with tqdm(total=total, desc="runs", unit="run", smoothing=0, disable=quiet or None) as bar:
        while waiting or running:
            ready = [key for key in waiting if _is_ready(directory, key)]
            for key in ready[: max(0, processes.count() - len(running))]:
                waiting.remove(key)
                running[processes.submit(train_arm, ArmRequest.of(directory, key, data_dir))] = key
            done, _ = wait(running, timeout=INTERVAL, return_when=FIRST_COMPLETED)
            if not done and bar.disable:
                logger.info("%d of %d runs are finished, %d under way", finished, total, len(running))
            for future in done:
                key, outcome = running.pop(future), future.result()
                directory.write_run(key, outcome.report, outcome.arrays)
                finished += 1
                bar.update()
                _log(f"{finished} of {total}", key, outcome.report)


def _is_ready(directory: StudyDirectory, key: RunKey) -> bool:
    original = original_of(key.arm)
    return original is None or directory.is_done(directory.key_of(original, key.seed, key.basis))


def _log(place: str, key: RunKey, report: Mapping[str, Any]) -> None:
    if report["best"] is None:
        quality = report["error"]
    else:
        best = report["points"][report["best"]]["validation"]
        quality = f"validation NDCG@10 {best['ndcg@10']:.4f}, NLL {best['nll']:.4f}"
    logger.info("%s: %s, %s, seed %d: %s", place, key.arm, key.basis, key.seed, quality)

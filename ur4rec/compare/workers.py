"""Runs what a study lacks: processes of one thread each, one run at a time in each, resumable at any moment."""

import logging
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ur4rec.compare.arms import original_of
from ur4rec.compare.costs import hash_costs, measure_costs, read_costs
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.runner import ArmRun, RunKey, prepare_study, pretrain
from ur4rec.errors import UR4RecError
from ur4rec.runs.progress import INTERVAL

logger = logging.getLogger(__name__)

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PJRT_NPROC": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}
"""Environment of the workers: a run's time and numbers depend neither on how many run beside it nor on the number of
processors. The flags of XLA alone leave the order of its sums to that number."""


class StudyInterruptedError(UR4RecError):
    """A study that was stopped; what is finished is kept."""


def run_study(directory: StudyDirectory, *, jobs: int = 1, data_dir: Path | None = None, quiet: bool = False) -> None:
    """Run everything that is missing: the costs first, alone; then pretraining; then the arms.

    Args:
        directory: The study.
        jobs: Processes.
        data_dir: Where to look for a built-in dataset before it is downloaded.
        quiet: Whether to show no progress.

    Raises:
        StudyInterruptedError: Ctrl-C, or a process died; run it again to continue.
        AlternatorError: A setting does not fit, the data cannot be had, another process runs the study, or its finished
            runs were charged with other costs.
    """
    if not directory.missing():
        return
    prepare_study(directory.study, directory.study.seeds[0], data_dir)  # bad data is refused before anything starts
    with directory.locked(), one_thread_processes(jobs) as pool:
        directory.check_costs()
        if directory.read_costs() is None:
            logger.info("timing each kind of step, alone")
            pool.submit(_cost_task, directory.path, data_dir).result()
        starts = {seed: directory.start_of(seed) for seed in directory.study.seeds}
        for future in [
            pool.submit(_pretrain_task, directory.path, seed, path, data_dir)
            for seed, path in starts.items()
            if path is not None and not path.exists()
        ]:
            future.result()
        _run_arms(pool, directory, jobs, data_dir, quiet)


def run_one(path: Path, key: RunKey, data_dir: Path | None = None) -> dict[str, Any]:
    """Do one run of a study in this process, keep it, and return what it reported.

    Args:
        path: The directory of the study, whose costs are measured.
        key: The run. A control needs its original's.
        data_dir: Where to look for a built-in dataset before it is downloaded.
    """
    directory = StudyDirectory.reopen(path)
    costs = directory.read_costs()
    assert costs is not None
    original = original_of(key.arm)
    run = ArmRun(
        directory.study,
        key,
        read_costs(costs),
        original=None if original is None else directory.read_run(directory.key_of(original, key.seed, key.basis)),
        start=directory.start_of(key.seed),
        data_dir=data_dir,
    )
    report = {**run.train(), "costs_hash": hash_costs(costs)}
    directory.write_run(key, report, run.arrays())
    return report


def _run_arms(
    pool: ProcessPoolExecutor, directory: StudyDirectory, jobs: int, data_dir: Path | None, quiet: bool
) -> None:
    """In the study's order, but for controls that wait for their originals: a study cut short has whole seeds."""
    waiting = directory.missing()
    running: dict[Future[dict[str, Any]], RunKey] = {}
    total, finished = len(waiting), 0
    with tqdm(total=total, desc="runs", unit="run", smoothing=0, disable=quiet or None) as bar:
        while waiting or running:
            for key in [key for key in waiting if _is_ready(directory, key)][: jobs - len(running)]:
                waiting.remove(key)
                running[pool.submit(run_one, directory.path, key, data_dir)] = key
            done, _ = wait(running, timeout=INTERVAL, return_when=FIRST_COMPLETED)
            if not done and bar.disable:
                logger.info("%d of %d runs are finished, %d under way", finished, total, len(running))
            for future in done:
                finished += 1
                bar.update()
                _log(f"{finished} of {total}", running.pop(future), future.result())


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


def _cost_task(path: Path, data_dir: Path | None) -> None:
    directory = StudyDirectory.reopen(path)
    directory.write_costs(measure_costs(directory.study, data_dir))


def _pretrain_task(path: Path, seed: int, start: Path, data_dir: Path | None) -> None:
    pretrain(StudyDirectory.reopen(path).study, seed, start, data_dir)


@contextmanager
def one_thread_processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes of one thread each, gone at the end, at once if something fails or the user stops it."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupts)
    try:
        yield pool
    except BaseException as error:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, (KeyboardInterrupt, BrokenProcessPool)):
            what = "a process died" if isinstance(error, BrokenProcessPool) else "stopped"
            raise StudyInterruptedError(f"{what}; finished runs are kept: give the same command to continue") from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _ignore_interrupts() -> None:
    """Ctrl-C is for the parent, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

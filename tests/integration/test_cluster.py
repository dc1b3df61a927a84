"""`ur4rec compare --cluster`: a study on the workers of a dask scheduler, one of which is lost on the way."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from tests.unit.ur4rec.compare.tiny_study import tiny_study
from ur4rec.compare.cluster import set_up_worker
from ur4rec.compare.processes import ONE_THREAD, StudyInterruptedError
from ur4rec.compare.runner import RunKey
from ur4rec.compare.workers import run_study
from ur4rec.errors import ConfigurationError

pytest.importorskip("torch")
dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

RULE = "plateau,min_steps=2,window=3,threshold=0.5"
SIZES = {"seeds": (0,), "arms": ("parity", RULE, f"matched:{RULE}"), "budgets": ("updates",), "pretrain": 6}


@pytest.fixture
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", worker_dashboard_address=None
    ) as started:
        yield started


def results(directory):
    """What was found: all but how long it took, and where."""
    return {
        key: ({name: run[name] for name in ("points", "turns", "spent", "costs_hash")}, directory.read_arrays(key))
        for key, run in directory.runs()
    }


def kill_a_busy_worker(cluster, killed):
    """Kill the first worker that is seen at work."""
    with distributed.Client(cluster, set_as_default=False) as client:
        processes = client.run(os.getpid)
        while not killed:
            busy = [address for address, tasks in client.processing().items() if tasks]
            if busy:
                os.kill(processes[busy[0]], signal.SIGKILL)
                killed.append(processes[busy[0]])
            time.sleep(0.01)


def test_results_are_as_on_one_machine_although_a_worker_is_lost(tmp_path, cluster):
    here, there = (tiny_study(tmp_path / name, **SIZES) for name in ("here", "there"))
    run_study(here, jobs=1, quiet=True)
    killed = []
    killer = threading.Thread(target=kill_a_busy_worker, args=(cluster, killed))
    killer.start()
    run_study(there, cluster=cluster.scheduler_address, quiet=True)
    killer.join()
    assert len(killed) == 1
    found, expected = results(there), results(here)
    assert list(found) == list(expected) == [RunKey(arm, 0, "updates") for arm in SIZES["arms"]]
    for key, (report, arrays) in expected.items():
        assert found[key][0] == report
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[key][1][name], array)


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("ur4rec.compare.cluster.ANSWERS_WITHIN", 0.2)
    with pytest.raises(
        ConfigurationError, match=r"none answers at 'tcp://127\.0\.0\.1:9' .*; start one with: dask sch"
    ):
        run_study(tiny_study(tmp_path / "s", **SIZES), cluster="tcp://127.0.0.1:9")


@pytest.mark.parametrize(
    ("workers", "message"),
    [
        ({"n_workers": 0}, "must have a worker, but the scheduler has none; start the workers with: dask worker"),
        ({"n_workers": 1, "threads_per_worker": 3}, r"one run at a time, got \S+ \(3 threads\)"),
    ],
)
def test_workers_that_cannot_do_it_are_refused(tmp_path, workers, message):
    started = distributed.LocalCluster(processes=False, dashboard_address=None, **workers)
    with started, pytest.raises(ConfigurationError, match=message):
        run_study(tiny_study(tmp_path / "s", **SIZES), cluster=started.scheduler_address)


def test_a_worker_that_has_started_with_more_threads_is_refused(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(ConfigurationError, match="one thread from its start, but the worker 3 does not"):
        set_up_worker("the worker 3", 1, {})
    monkeypatch.setattr("os.environ", {**os.environ, **ONE_THREAD})
    set_up_worker("the worker 3", 1, {})
    with pytest.raises(ConfigurationError, match=r"the worker 3 has numpy .* where this one has 0.1; install the same"):
        set_up_worker("the worker 3", 1, {"numpy": "0.1"})


def test_a_scheduler_that_is_lost_leaves_what_is_finished(tmp_path, cluster):
    directory = tiny_study(tmp_path / "s", **{**SIZES, "pretrain": 0})
    closer = threading.Thread(target=lambda: (wait_for_run(directory), cluster.close()))
    closer.start()
    soon = dask.config.set({"distributed.comm.timeouts.connect": "2s"})  # until a lost scheduler is given up
    with soon, pytest.raises(StudyInterruptedError, match="a process was lost; finished runs are kept"):
        run_study(directory, cluster=cluster.scheduler_address, quiet=True)
    closer.join()
    assert 0 < len(directory.missing()) < len(directory.keys())


def wait_for_run(directory):
    while len(directory.missing()) == len(directory.keys()):
        time.sleep(0.01)

"""Processes of one gloo group that run the cases of tests, and are ended if they do not answer."""

import os
import queue
import sys
import time
import traceback
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

MAX_IDLE = 300.0
"""Seconds in which a rank must compute something: one that waits for ever does not, one on a busy machine does."""
WORK = 0.05
"""Seconds of processor time that count as having computed something."""
MAX_WORK = 300.0
"""Seconds of processor time in which all ranks must have answered: one that goes round in circles does not."""


class SeveralRanks:
    """Runs functions of a module on all ranks; started when first used, and again after a case that failed."""

    def __init__(self, folder, num_ranks=2):
        self.folder = folder
        self.num_ranks = num_ranks
        self.num_started = 0
        self.processes = []

    def run(self, case, *args):
        """What the case returns on each rank; fails with the traceback of a rank, or at the timeout."""
        if not self.processes:
            self.start()
        for tasks in self.tasks:
            tasks.put((case, args))
        answers = self.collect()
        failed = [f"rank {rank}: {answers.get(rank, (False, 'no answer'))[1]}" for rank in range(self.num_ranks)]
        if not all(answers.get(rank, (False,))[0] for rank in range(self.num_ranks)):
            self.stop()
            raise AssertionError("\n".join(failed))
        return [answers[rank][1] for rank in range(self.num_ranks)]

    def collect(self):
        answers, watched = {}, [psutil.Process(process.pid) for process in self.processes]
        start = computed = processor_time(watched)
        deadline, is_failing = time.monotonic() + MAX_IDLE, False
        while len(answers) < self.num_ranks and time.monotonic() < deadline and computed - start < MAX_WORK:
            try:
                rank, passed, value = self.answers.get(timeout=0.2)
            except queue.Empty:
                if not all(process.is_alive() for process in self.processes):
                    break
                total = processor_time(watched)
                if total - computed > WORK and not is_failing:
                    computed, deadline = total, time.monotonic() + MAX_IDLE
                continue
            answers[rank] = (passed, value)
            if not passed:  # the others may wait for this one
                deadline, is_failing = min(deadline, time.monotonic() + 5), True
        return answers

    def start(self):
        context = mp.get_context("spawn")
        self.num_started += 1
        meeting = f"file://{self.folder}/meeting{self.num_started}"
        self.answers = context.Queue()
        self.tasks = [context.SimpleQueue() for _ in range(self.num_ranks)]
        self.processes = [
            context.Process(
                target=work, args=(rank, self.num_ranks, meeting, self.tasks[rank], self.answers), daemon=True
            )
            for rank in range(self.num_ranks)
        ]
        for process in self.processes:
            process.start()

    def stop(self):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.processes = []


def processor_time(processes):
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def work(rank, num_ranks, meeting, tasks, answers):
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=num_ranks, timeout=timedelta(days=1))
    while True:
        case, args = tasks.get()
        try:
            answers.put((rank, True, case(rank, *args)))
        except Exception:  # noqa: BLE001 - the parent raises it
            answers.put((rank, False, traceback.format_exc()))

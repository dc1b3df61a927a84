"""How much of two processors do two processes get that train one model? `python benchmarks/scaling_processes.py`.

Two processes train one model together, each on its half of a batch, and two others train a model of their own each, on
as many rows. The pairs take turns in short rounds, so that whatever else the machine does falls on both. Efficiency is
the time of those apart over the time of those together: 1 is two processes that cost nothing to keep together. All have
one thread; a step trains both modules.
"""

import argparse
import json
import os
import socket
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from overhead import machine

RESULTS = Path(__file__).parent / "results"
KINDS = ("apart", "together")
NUM_PROCESSES = 2


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model and the rows of a process."""

    num_items: int
    catalogue_loss: str = "full"
    width: int = 64
    length: int = 50
    rows: int = 64
    num_steps: int = 4
    """Of a round."""


PROBLEMS = (
    Problem(num_items=3_000),
    Problem(num_items=30_000, num_steps=1),
    Problem(num_items=30_000, catalogue_loss="sampled"),
    Problem(num_items=300_000, catalogue_loss="sampled", num_steps=2),
)


def work(kind: str, rank: int, port: int, problem: Problem, pipe: Connection) -> None:
    """Train for as many steps as the pipe asks for; answers with wall and processor seconds."""
    if kind == "together":
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_PROCESSES)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    import numpy as np
    import torch

    from ur4rec.data.batches import Batch
    from ur4rec_torch import JointTrainer, UR4Rec, start_processes

    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    texts_IT = generator.standard_normal((problem.num_items, problem.width), np.float32)
    widths = dict.fromkeys(("sasrec_hidden_dim", "retriever_output_dim", "text_embedding_dim"), problem.width)
    model = UR4Rec(problem.num_items, texts_IT, max_seq_len=problem.length, sasrec_num_heads=2, **widths)
    rows = problem.rows * (NUM_PROCESSES if kind == "together" else 1)
    items_BW = generator.integers(0, problem.num_items, (rows, problem.length + 1)).astype(np.int32)
    batch = Batch(items_BW[:, :-1], items_BW[:, 1:], np.arange(rows, dtype=np.int32))
    with start_processes("cpu") as processes:
        trainer = JointTrainer(
            model,
            device="cpu",
            progress=False,
            processes=processes,
            catalogue_loss=problem.catalogue_loss,
            item_counts=np.ones(problem.num_items, np.int64),
        )
        trainer.set_training_stage("end_to_end")
        while num_steps := pipe.recv():
            started = time.perf_counter(), time.process_time()
            for _ in range(num_steps):
                trainer.train_step(batch)
            trainer.flush()
            pipe.send((time.perf_counter() - started[0], time.process_time() - started[1]))


def measure(problem: Problem, num_rounds: int) -> dict[str, object]:
    """Seconds of a step, wall and processor, of each pair in each round."""
    context, seconds = get_context("spawn"), {kind: [] for kind in KINDS}
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    with ExitStack() as stack:
        pipes: dict[str, list[Connection]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            for rank in range(NUM_PROCESSES):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(kind, rank, port, problem, theirs), daemon=True)
                process.start()
                stack.callback(process.join)
                stack.callback(ours.send, 0)
                pipes[kind].append(ours)
        for index in range(num_rounds + 1):
            for kind in KINDS if index % 2 else KINDS[::-1]:
                for pipe in pipes[kind]:
                    pipe.send(problem.num_steps)
                answers = [pipe.recv() for pipe in pipes[kind]]
                if index:  # the first round allocates and connects
                    wall, processor = max(each[0] for each in answers), sum(each[1] for each in answers)
                    seconds[kind].append((wall / problem.num_steps, processor / problem.num_steps))
    ratios = {
        clock: [apart[at] / together[at] for apart, together in zip(seconds["apart"], seconds["together"], strict=True)]
        for at, clock in enumerate(("wall", "processor"))
    }
    return {**asdict(problem), "seconds": seconds, "efficiency": ratios}


def report(result: dict[str, object]) -> str:
    """The result as a table in Markdown."""
    about = result["about"]
    lines = [
        f"`{result['command']}` on {about['processor']}, {about['cores']} cores, one thread a process.",
        "Medians over rounds, and quartiles of the efficiency.",
        "",
        "| items | losses | a step apart, s | together, s | efficiency, wall | efficiency, processor |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        apart, together = (statistics.median(each[0] for each in row["seconds"][kind]) for kind in KINDS)
        shown = []
        for clock in ("wall", "processor"):
            low, middle, high = statistics.quantiles(row["efficiency"][clock], n=4)
            shown.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        cells = (f"{row['num_items']:,}", row["catalogue_loss"], f"{apart:.2f}", f"{together:.2f}", *shown)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each pair")
    parser.add_argument("--largest", type=int, default=300_000, help="items of the largest catalogue")
    options = parser.parse_args()
    rows = [measure(problem, options.rounds) for problem in PROBLEMS if problem.num_items <= options.largest]
    result = {"command": "python benchmarks/scaling_processes.py", "about": machine(), "rows": rows}
    name = f"scaling_processes_cpu{os.cpu_count()}_{datetime.now(UTC):%Y-%m-%d}"
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(report(result))
    print(report(result))


if __name__ == "__main__":
    main()

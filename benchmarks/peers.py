"""How fast and how good is SASRec alone against RecBole's?  `python benchmarks/peers.py` trains both on MovieLens-100K.

Both get the same interactions, the same leave-one-out split (checked row by row, histories too), width, blocks, heads,
length, dropout and loss; both are scored by the same function over the whole catalogue, with and without filtering what
the user has seen. RecBole keeps its own defaults: batches of 2,048 prefixes, Adam at 1e-3, and it stops by itself. They
train side by side in one process each, with one thread, and both clocks are kept.

RecBole runs in an environment of its own, made on the first call. Finished runs are kept in the cache, so that a call
that was interrupted continues with what is missing; `--fresh` discards them. It takes about an hour.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch
from overhead import RESULTS, machine
from peers_curves import METRICS, Epoch, SystemRun
from peers_report import save

from ur4rec.data import Interactions, Split, Targets, leave_one_out
from ur4rec.data.batches import EvaluationBatches, TrainBatches
from ur4rec.data.interactions import Sequences
from ur4rec.data.sources import load_dataset
from ur4rec.errors import DataError
from ur4rec.evaluation.metrics import rank_batches, summarise
from ur4rec.files import cache_directory, write_whole

MAX_SEQ_LEN = 50
PEER_PATIENCE = 20
"""Epochs without a better validation after which a peer that does not stop by itself is stopped."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run."""

    dropout: float = 0.5
    """Dropout of both, RecBole's default."""
    epochs: int = 40
    """Ours: a plan of this length, over which the learning rate falls to 0."""
    batch_size: int = 64
    """Ours: rows of up to 50 targets."""
    learning_rate: float = 2e-3
    """Ours: its peak."""
    shifted: bool = True
    """Ours: whether windows are cut elsewhere in every epoch."""
    peer_epochs: int = 300
    """RecBole: the maximum; it stops ten epochs after its best."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The data of both, and where runs are kept."""

    interactions: Interactions
    """The data set."""
    split: Split
    """Leave-one-out."""
    folder: Path
    """The work folder."""

    def batches(self, part: str, scoring: str) -> EvaluationBatches:
        """Evaluation batches of ``validation`` or ``test``, with or without items to filter."""
        targets: Targets = getattr(self.split, part)
        if scoring == "unfiltered":
            nothing = Sequences(np.zeros(0, np.int32), np.zeros(len(targets) + 1, np.int64))
            targets = replace(targets, seen=nothing)
        return EvaluationBatches(targets, self.split.num_items, max_seq_len=MAX_SEQ_LEN, batch_size=512)


# --- ours -------------------------------------------------------------------------------------------------------------


def our_epochs(task: Task, plan: Plan, package: Any, seed: int) -> Iterator[Epoch]:
    """SASRec alone: `JointTrainer` in the stage pretrain_sasrec."""
    split = task.split
    no_texts_I1 = np.zeros((split.num_items, 1))
    model = package.UR4Rec(split.num_items, no_texts_I1, seed=seed, **our_model(plan))
    trainer = package.JointTrainer(model, device="cpu", progress=False, seed=seed, sasrec_lr=plan.learning_rate)
    loader = TrainBatches(
        split.train,
        split.num_items,
        max_seq_len=MAX_SEQ_LEN,
        batch_size=plan.batch_size,
        seed=seed,
        shifted=plan.shifted,
    )
    trainer.set_training_stage("pretrain_sasrec", num_steps=plan.epochs * len(loader))
    batches = {
        (part, scoring): task.batches(part, scoring)
        for part in ("validation", "test")
        for scoring in ("unfiltered", "filtered")
    }
    for index in range(plan.epochs):
        start = clocks()
        trainer.train_epoch(loader, index)
        trained = clocks()
        ranks = {("validation", "unfiltered"): trainer.rank(batches["validation", "unfiltered"], "sasrec")}
        validated = clocks()
        ranks |= {name: trainer.rank(each, "sasrec") for name, each in batches.items() if name not in ranks}
        yield build_epoch(ranks, since(start, trained), since(trained, validated))


def our_model(plan: Plan) -> dict[str, Any]:
    """The shape of our model; the retriever, which this stage leaves alone, is as small as can be."""
    return {
        "sasrec_hidden_dim": 64,
        "sasrec_num_blocks": 2,
        "sasrec_num_heads": 2,
        "sasrec_dropout": plan.dropout,
        "max_seq_len": MAX_SEQ_LEN,
        "text_embedding_dim": 1,
        "retriever_output_dim": 1,
        "retriever_num_queries": 1,
    }


def clocks() -> dict[str, float]:
    """Both clocks now."""
    return {"wall": time.perf_counter(), "processor": time.process_time()}


def since(start: dict[str, float], end: dict[str, float]) -> dict[str, float]:
    """Seconds between."""
    return {clock: end[clock] - start[clock] for clock in start}


def build_epoch(ranks: dict[tuple[str, str], Any], train: dict[str, float], validation: dict[str, float]) -> Epoch:
    """An epoch from the ranks by part and scoring."""
    summaries = {scoring: summarise(each, [10]) for (part, scoring), each in ranks.items() if part == "validation"}
    return Epoch(
        train_seconds=train,
        validation_seconds=validation,
        validation={scoring: {name: summary[name] for name in METRICS} for scoring, summary in summaries.items()},
        test_ranks={scoring: each.tolist() for (part, scoring), each in ranks.items() if part == "test"},
    )


# --- the peers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another library, which runs in an environment of its own."""

    requirement: str
    """The library, installed without dependencies."""
    needed: tuple[str, ...]
    """What importing it needs."""
    worker: str
    """The program that trains it, beside this file."""
    first_seed: int
    """Its first seed."""


PEERS = {
    "RecBole": Peer(
        requirement="recbole==1.2.1",
        needed=(
            *("numpy", "pandas<3", "scipy", "scikit-learn", "pyyaml", "tqdm"),
            *("colorlog", "colorama", "texttable", "tensorboard"),
        ),
        worker="peers_recbole.py",
        first_seed=2020,
    ),
    "RecTools": Peer(
        requirement="rectools==0.19.0",
        needed=(
            *("numpy", "pandas<3", "scipy", "tqdm", "attrs", "pydantic", "typeguard", "implicit"),
            *("pytorch-lightning", "torchmetrics"),
        ),
        worker="peers_rectools.py",
        first_seed=0,
    ),
}


def environment(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there. It has the torch that we have."""
    python, marker = folder / "bin" / "python", folder / "complete"
    if not marker.exists():
        print(f"making the environment of {name} in {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        torch_here = f"torch=={metadata.version('torch').split('+')[0]}"
        subprocess.run([*install, torch_here, *PEERS[name].needed], check=True)
        subprocess.run([*install, "--no-deps", PEERS[name].requirement], check=True)
        marker.touch()
    return python


def write_atomic(task: Task, folder: Path) -> None:
    """The interactions as RecBole's atomic file, their time being the place in the user's sequence.

    RecBole holds times in 32 bits, where seconds of different interactions become one; places stay apart.
    """
    sequences = task.interactions.sequences
    (folder / "peers").mkdir(parents=True, exist_ok=True)
    with (folder / "peers" / "peers.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in enumerate(sequences):
            for place, item in enumerate(items):
                file.write(f"u{user}\ti{item}\t{place}\n")
    (folder / "items.json").write_text(json.dumps([f"i{item}" for item in range(task.split.num_items)]))


class PeerRun:
    """A peer's SASRec in a process that trains one epoch whenever it is asked.

    Args:
        name: Which peer.
        task: The data.
        plan: Dropout and the maximum number of epochs.
        seed: Counted from the peer's first.

    Attributes:
        about: Its settings, and what was checked.
    """

    def __init__(self, name: str, task: Task, plan: Plan, seed: int) -> None:
        self._task = task
        self._folder = task.folder / f"{name}-{seed}"
        write_atomic(task, self._folder)
        command: list[Any] = [environment(name, task.folder / f"{name}-environment")]
        command += [Path(__file__).with_name(PEERS[name].worker), self._folder]
        command += ["--seed", seed + PEERS[name].first_seed, "--epochs", plan.peer_epochs, "--dropout", plan.dropout]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self._folder / "messages.txt").open("w"),
            text=True,
            cwd=self._folder,
            env={**variables, "OMP_NUM_THREADS": "1"},
        )
        first = self._receive()
        assert first is not None, f"{name} did not start: see {self._folder / 'messages.txt'}"
        for part, rows in first["tested"].items():
            check_tested(getattr(task.split, part), rows, part)
        self.about: dict[str, Any] = {**first["about"], "own_ndcg@10_differs_by": 0.0}

    def epochs(self) -> Iterator[Epoch]:
        """Its epochs, until it stops by itself."""
        batches = {part: task_batches(self._task, part) for part in ("validation", "test")}
        while True:
            print("", file=self._process.stdin, flush=True)
            message = self._receive()
            if message is None:
                if self._process.wait():
                    raise RuntimeError(f"the peer failed: see {self._folder / 'messages.txt'}")
                return
            file = self._folder / f"epoch-{message['epoch']}.npz"
            ranks = {}
            with np.load(file) as kept:
                for part, scored in kept.items():
                    ranks |= {(part, name): rank_scores(scored, each) for name, each in batches[part].items()}
            file.unlink()
            self._compare(ranks, message["own_ndcg"])
            seconds = {
                part: dict(zip(("wall", "processor"), both, strict=True)) for part, both in message["seconds"].items()
            }
            yield build_epoch(ranks, seconds["train"], seconds["validation"])

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()

    def _receive(self) -> dict[str, Any] | None:
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def _compare(self, ranks: dict[tuple[str, str], Any], own: dict[str, float]) -> None:
        """How far RecBole's own figure is from ours of its scores."""
        for part, value in own.items():
            gap = abs(value - summarise(ranks[part, "unfiltered"], [10])["ndcg@10"])
            self.about["own_ndcg@10_differs_by"] = max(self.about["own_ndcg@10_differs_by"], gap)


def task_batches(task: Task, part: str) -> dict[str, EvaluationBatches]:
    """Evaluation batches of a part, by scoring."""
    return {scoring: task.batches(part, scoring) for scoring in ("unfiltered", "filtered")}


def rank_scores(scores_TI: np.ndarray, batches: EvaluationBatches) -> np.ndarray:
    """Ranks of targets from scores that are at hand, by the function that ranks ours."""
    rows = iter(range(0, len(batches.targets), batches.batch_size))

    def score(batch: Any) -> np.ndarray:
        first = next(rows)
        return scores_TI[first : first + batch.num_valid]

    return rank_batches(score, batches)


def check_tested(targets: Targets, rows: dict[str, list[Any]], part: str) -> None:
    """Refuse anything but the same users, targets and histories, in the same order.

    Raises:
        DataError: They differ.
    """
    expected = {
        "users": [f"u{user}" for user in targets.users_T],
        "targets": [f"i{item}" for item in targets.items_T],
        "histories": [[f"i{item}" for item in row[-MAX_SEQ_LEN:]] for row in targets.histories],
    }
    for name, values in expected.items():
        if values != rows[name]:
            raise DataError(f"the peer's {part} must have the same {name} as ours, but they differ")


# --- the study --------------------------------------------------------------------------------------------------------


class Study:
    """Trains what is missing, ours beside RecBole's, and keeps what is finished.

    Args:
        task: The data and the folder.
        plan: The settings.
    """

    def __init__(self, task: Task, plan: Plan) -> None:
        self._task = task
        self._plan = plan
        self._sitting = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def run(self, systems: dict[str, str], seeds: int, peer_seeds: int) -> list[SystemRun]:
        """All runs: ours one after the other, while RecBole's process trains."""
        wanted = [(system, seed) for system in systems for seed in range(seeds)]
        slow = [("RecBole", seed) for seed in range(peer_seeds)]
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(self._train_missing, [(name, "", seed) for name, seed in slow])
            self._train_missing([(system, systems[system], seed) for system, seed in wanted])
            beside.result()
        return [SystemRun.from_json(json.loads(self._file(*each).read_text())) for each in [*wanted, *slow]]

    def _train_missing(self, runs: list[tuple[str, str, int]]) -> None:
        for system, package, seed in runs:
            if not self._file(system, seed).exists():
                exhaust(self._train(system, package, seed))

    def _train(self, system: str, package: str, seed: int) -> Iterator[Epoch]:
        if system in PEERS:
            yield from self._train_peer(system, seed)
            return
        about = {**vars(self._plan), "model": our_model(self._plan)}
        yield from self._kept(system, seed, our_epochs(self._task, self._plan, import_module(package), seed), about)

    def _train_peer(self, name: str, seed: int) -> Iterator[Epoch]:
        peer = PeerRun(name, self._task, self._plan, seed)
        epochs = peer.epochs() if name == "RecBole" else until_best(peer.epochs(), PEER_PATIENCE)
        try:
            yield from self._kept(name, seed, epochs, peer.about)
        finally:
            peer.close()

    def _kept(self, system: str, seed: int, epochs: Iterable[Epoch], about: dict[str, Any]) -> Iterator[Epoch]:
        """Pass epochs on, and write the run when it is whole."""
        done: list[Epoch] = []
        for epoch in epochs:
            done.append(epoch)
            found = ", ".join(f"{name} {each['ndcg@10']:.4f}" for name, each in epoch.validation.items())
            took = epoch.train_seconds
            print(f"{system}, seed {seed}, epoch {len(done)}: {took['processor']:.1f} s ({took['wall']:.1f}), {found}")
            sys.stdout.flush()
            yield epoch
        run = SystemRun(system=system, seed=seed, sitting=self._sitting, about=about, epochs=done)
        write_whole(self._file(system, seed), json.dumps(run.to_json()).encode())

    def _file(self, system: str, seed: int) -> Path:
        """Where a run is kept; a run with other settings is kept elsewhere."""
        plan = self._plan
        settings = (plan.dropout, plan.peer_epochs) if system in PEERS else tuple(vars(plan).values())
        name = "-".join([system.replace(" ", "-"), *map(str, settings), f"seed{seed}"])
        return self._task.folder / "runs" / f"{name}.json"


def until_best(epochs: Iterable[Epoch], patience: int) -> Iterator[Epoch]:
    """Epochs until neither scoring has improved for ``patience`` of them: for a peer that does not stop by itself."""
    best: dict[str, float] = {}
    waited = 0
    for epoch in epochs:
        yield epoch
        better = [name for name, each in epoch.validation.items() if each["ndcg@10"] > best.get(name, -1.0)]
        best |= {name: epoch.validation[name]["ndcg@10"] for name in better}
        waited = 0 if better else waited + 1
        if waited == patience:
            return


def exhaust(items: Iterable[Any]) -> None:
    """Take everything and keep nothing."""
    for _ in items:
        pass


def main(arguments: list[str] | None = None) -> int:
    """Train, compare, save, and fail if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="seeds of all but RecBole")
    parser.add_argument("--peer-seeds", type=int, default=1, help="seeds of RecBole")
    parser.add_argument("--jax", action="store_true", help="ours in JAX too")
    parser.add_argument("--rectools", action="store_true", help="RecTools' SASRec too")
    parser.add_argument("--dropout", type=float, default=Plan.dropout, help="dropout of both")
    parser.add_argument("--epochs", type=int, default=Plan.epochs, help="epochs of ours")
    parser.add_argument("--learning-rate", type=float, default=Plan.learning_rate, help="peak learning rate of ours")
    parser.add_argument("--peer-epochs", type=int, default=Plan.peer_epochs, help="maximum number of RecBole's epochs")
    parser.add_argument("--work", type=Path, default=cache_directory() / "peers", help="where runs are kept")
    parser.add_argument("--fresh", action="store_true", help="forget the runs that are finished")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.fresh:
        shutil.rmtree(options.work / "runs", ignore_errors=True)
    interactions = load_dataset("ml-100k")
    task = Task(interactions=interactions, split=leave_one_out(interactions), folder=options.work)
    given = {name: getattr(options, name) for name in ("dropout", "epochs", "learning_rate", "peer_epochs")}
    plan = Plan(**given)
    systems = {"ours": "ur4rec_torch", "ours in JAX": "ur4rec_jax", "RecTools": ""}
    left_out = {"ours in JAX": not options.jax, "RecTools": not options.rectools}
    systems = {system: package for system, package in systems.items() if not left_out.get(system)}
    runs = Study(task, plan).run(systems, options.seeds, options.peer_seeds)
    about = {
        **machine(),
        "interactions_hash": interactions.hash,
        "split_hash": task.split.hash,
        "peers": [peer.requirement for peer in PEERS.values()],
    }
    about["users"] = len(task.split.test)
    words = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python benchmarks/peers.py", *words])
    text, kept = save(runs, options.out, f"cpu{os.cpu_count()}", about, command)
    print(text)
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())

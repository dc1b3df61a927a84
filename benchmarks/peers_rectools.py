"""RecTools' SASRec as its users run it, one epoch at a time. `benchmarks/peers.py` starts it in RecTools' environment.

    python benchmarks/peers_rectools.py FOLDER --seed 0 --epochs 200 --dropout 0.5

The same conversation as `peers_recbole.py`: a line of JSON and a file of scores after each epoch, then it waits.
"""

import json
import logging
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from peers_recbole import clocks, parse_arguments, say, timed
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Clock(Callback):
    """Measures the training of each epoch, so that what surrounds it in `fit_partial` does not count."""

    seconds: ClassVar[list[float]] = []
    """Of the last epoch; of the class, because RecTools copies its callbacks."""
    _start = (0.0, 0.0)

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start."""
        self._start = clocks()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop."""
        self.seconds[:] = [now - start for start, now in zip(self._start, clocks(), strict=True)]


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What is fed for validation and for test: each user's interactions but the last two, and but the last."""
    table = pd.read_csv(folder / "peers" / "peers.inter", sep="\t")
    table.columns = [Columns.User, Columns.Item, Columns.Datetime]
    table[Columns.Datetime] = pd.to_datetime(table[Columns.Datetime], unit="s")
    table[Columns.Weight] = 1
    from_end = table.groupby(Columns.User, sort=False).cumcount(ascending=False)
    return table[from_end >= 2], table[from_end >= 1]


def scores(model: SASRecModel, dataset: Dataset, users: list[str], names: list[str]) -> np.ndarray:
    """Scores of every item for every user; an item that training never saw is below all others."""
    found = model.recommend(users, dataset, k=len(names), filter_viewed=False)
    table = found.pivot(index=Columns.User, columns=Columns.Item, values=Columns.Score)
    known = table.reindex(index=users, columns=names).to_numpy(np.float32)
    return np.where(np.isnan(known), np.nanmin(known) - 1, known)


def tested(fed: pd.DataFrame, whole: pd.DataFrame, users: list[str]) -> dict[str, list[Any]]:
    """User, target and history of each evaluated row."""
    histories = fed.groupby(Columns.User, sort=False)[Columns.Item].agg(list)
    following = whole.groupby(Columns.User, sort=False)[Columns.Item].agg(list)
    return {
        "users": users,
        "targets": [following[user][len(histories[user])] for user in users],
        "histories": [histories[user][-50:] for user in users],
    }


def main() -> None:
    """Train epoch by epoch until the benchmark ends the process."""
    options = parse_arguments(__doc__)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(options.seed)
    for_validation, for_test = read(options.folder)
    whole = pd.read_csv(options.folder / "peers" / "peers.inter", sep="\t", names=for_test.columns[:3], header=0)
    datasets = {"validation": Dataset.construct(for_validation), "test": Dataset.construct(for_test)}
    names = json.loads((options.folder / "items.json").read_text())
    users = for_test[Columns.User].unique().tolist()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=64,
        session_max_len=50,
        dropout_rate=options.dropout,
        get_trainer_func=lambda: Trainer(
            accelerator="cpu", callbacks=[Clock()], enable_checkpointing=False, devices=1, **quiet
        ),
    )
    about = {"batch_size": model.batch_size, "learning_rate": model.lr, "loss": model.loss, "dropout": options.dropout}
    rows = {"validation": tested(for_validation, whole, users), "test": tested(for_test, whole, users)}
    say(tested=rows, about=about)
    for epoch in range(options.epochs):
        model.fit_partial(datasets["validation"], min_epochs=1, max_epochs=1)
        validation, seconds = timed(scores, model, datasets["validation"], users, names)
        test = scores(model, datasets["test"], users, names)
        np.savez(options.folder / f"epoch-{epoch}.npz", validation=validation, test=test)
        say(epoch=epoch, seconds={"train": Clock.seconds, "validation": seconds}, own_ndcg={})


if __name__ == "__main__":
    main()

"""RecTools' SASRec as its users run it, an epoch at a time. `peers.py` starts it in RecTools' environment.

With ``layers: LiGR`` and ``loss: sampled_softmax`` it is what Tikhonovich et al. call eSASRec ("eSASRec: Enhancing
Transformer-based Recommendations in a Modular Fashion", RecSys 2025, arXiv:2508.06450), whose authors are RecTools';
with ``in_batch_share`` some of the negatives are drawn from the batch, as in their study of mixed negatives.
"""

import logging
import warnings
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from peers_task import Task
from peers_worker import Job, Recorder, clocks, since, versions, work
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers
from rectools.models.nn.transformers.negative_sampler import CatalogUniformSampler

from ur4rec.data.batches import EvaluationBatch
from ur4rec.errors import DataError

CHECKED = 100
"""Users whose recommendations are compared with our ranking of the same scores, after the first epoch."""
SHOWN = (
    "n_blocks",
    "n_heads",
    "n_factors",
    "dropout_rate",
    "session_max_len",
    "loss",
    "n_negatives",
    "lr",
    "batch_size",
)


class Clock(Callback):
    """Measures the training of each epoch, so that what surrounds it in `fit_partial` does not count."""

    seconds: ClassVar[dict[str, float]] = {}
    """Of the last epoch; of the class, because RecTools copies its callbacks."""
    _start: ClassVar[dict[str, float]] = {}

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start."""
        self._start.update(clocks())

    def on_train_epoch_end(self, *_: Any) -> None:
        """Stop."""
        self.seconds.update(since(self._start))


class MixedSampler(CatalogUniformSampler):
    """Negatives of which a part are targets of the batch, drawn as often as they occur in it; the rest is uniform.

    Args:
        n_negatives: The number of each position.
        in_batch_share: The part from the batch.
    """

    def __init__(self, n_negatives: int, in_batch_share: float) -> None:
        super().__init__(n_negatives)
        self._num_in_batch = round(n_negatives * in_batch_share)

    def get_negatives(self, batch_dict: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        """Sampled negatives, (B, L, K)."""
        negatives_BLK = super().get_negatives(batch_dict, **options)
        targets = batch_dict["y"][batch_dict["y"] > 0]
        shape = (*negatives_BLK.shape[:2], self._num_in_batch)
        negatives_BLK[:, :, : self._num_in_batch] = targets[torch.randint(len(targets), shape)]
        return negatives_BLK


def read(task: Task) -> dict[str, pd.DataFrame]:
    """What is fed for validation, which is what trains, and for test, by part."""
    table = pd.read_csv(task.folder / "peers" / "peers.inter", sep="\t")
    table.columns = [Columns.User, Columns.Item, Columns.Datetime]
    table[Columns.Datetime] = pd.to_datetime(table[Columns.Datetime], unit="s")
    table[Columns.Weight] = 1
    from_end = table.groupby(Columns.User, sort=False).cumcount(ascending=False)
    return {"validation": table[from_end >= 2], "test": table[from_end >= 1]}


def build(job: Job) -> SASRecModel:
    """The model of the job's settings."""
    settings: dict[str, Any] = {"session_max_len": job.max_seq_len, **job.settings}
    if settings.pop("layers", "SASRec") == "LiGR":
        settings["transformer_layers_type"] = LiGRLayers
    if share := settings.pop("in_batch_share", 0.0):
        settings |= {"negative_sampler_type": MixedSampler, "negative_sampler_kwargs": {"in_batch_share": share}}
    return SASRecModel(get_trainer_func=get_trainer, **settings)


def get_trainer() -> Trainer:
    """Lightning's trainer: one processor, no files, no bars."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", devices=1, callbacks=[Clock()], enable_checkpointing=False, **quiet)


class Scores:
    """The model's scores of the users of a part.

    Args:
        model: RecTools', trained.
        dataset: What is fed.
        task: Ours.
    """

    def __init__(self, model: SASRecModel, dataset: Dataset, task: Task) -> None:
        self._users = [f"u{user}" for user in task.split.test.users_T]
        prepared = model.data_preparator.transform_dataset_u2i(dataset, np.array(self._users))
        self.loader = model.data_preparator.get_dataloader_recommend(prepared, model.recommend_batch_size)
        embedded = model.lightning_model._get_user_item_embeddings(self.loader, "cpu")
        self._users_Ud, self._items_Xd = (each.detach().numpy() for each in embedded)
        self._row_of = dict(zip(prepared.user_id_map.external_ids, prepared.user_id_map.internal_ids, strict=True))
        column_of = dict(zip(prepared.item_id_map.external_ids, prepared.item_id_map.internal_ids, strict=True))
        self._columns_I = np.array([column_of.get(name, -1) for name in task.names])
        self.names_X = prepared.item_id_map.get_external_sorted_by_internal()

    def __call__(self, batch: EvaluationBatch) -> np.ndarray:
        """Scores of every item; one that training never saw is below all others."""
        rows_B = [self._row_of[f"u{user}"] for user in batch.users_B[: batch.num_valid]]
        scores_BX = self._users_Ud[rows_B] @ self._items_Xd.T
        return np.where(self._columns_I < 0, scores_BX.min() - 1, scores_BX[:, self._columns_I])

    def histories(self) -> list[list[str]]:
        """What the model is fed for each user, by the names of the file."""
        rows = [self.names_X[row[row > 0]].tolist() for batch in self.loader for row in batch["x"].numpy()]
        return [rows[self._row_of[user]] for user in self._users]


def check_fed(job: Job, task: Task, part: str, scores: Scores) -> None:
    """Refuse other histories than ours, but for items that training never saw, which RecTools leaves out.

    Raises:
        DataError: They differ.
    """
    known = set(scores.names_X)
    ours = [[f"i{item}" for item in row if f"i{item}" in known] for row in getattr(task.split, part).histories]
    if [row[-job.max_seq_len :] for row in ours] != scores.histories():
        raise DataError(f"the peer's {part} must have the same histories as ours, but they differ")


def different_tops(model: SASRecModel, dataset: Dataset, scores: Scores, batch: EvaluationBatch) -> int:
    """Users whose ten best unseen items, as RecTools recommends them, are not those of the scores that we rank."""
    count = min(CHECKED, batch.num_valid)
    users = [f"u{user}" for user in batch.users_B[:count]]
    table = model.recommend(np.array(users), dataset, k=10, filter_viewed=True)
    recommended = table.sort_values(Columns.Rank).groupby(Columns.User)[Columns.Item].agg(list)
    scores_BI = scores(batch)
    scores_BI[batch.seen] = -np.inf
    tops = np.argsort(-scores_BI[:count], kind="stable")[:, :10]
    return sum(recommended[user] != [f"i{item}" for item in top] for user, top in zip(users, tops, strict=True))


def program(job: Job, recorder: Recorder) -> None:
    """Train epoch by epoch until the recorder says that it is enough."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(job.own_seed, verbose=False)
    task, model = recorder.task, build(job)
    datasets = {part: Dataset.construct(table) for part, table in read(task).items()}
    recorder.about |= {name: getattr(model, name) for name in SHOWN}
    recorder.about["versions"] = versions("rectools", "torch", "pytorch-lightning", "numpy")
    for epoch in range(job.epochs):
        model.fit_partial(datasets["validation"], min_epochs=1, max_epochs=1)
        if epoch == 0:
            recorder.about |= checks(job, task, model, datasets)

        def ranks(part: str) -> dict[str, Any]:
            return recorder.ranks(Scores(model, datasets[part], task), part)

        recorder.epoch(Clock.seconds, ranks)


def checks(job: Job, task: Task, model: SASRecModel, datasets: dict[str, Dataset]) -> dict[str, str]:
    """What is fed, and what is recommended, against ours."""
    scores = {part: Scores(model, dataset, task) for part, dataset in datasets.items()}
    for part in datasets:
        check_fed(job, task, part, scores[part])
    batch = task.batches("test", job.max_seq_len).batch(0)
    differ = different_tops(model, datasets["test"], scores["test"], batch)
    return {"users_whose_own_top_10_differs": f"{differ} of {min(CHECKED, batch.num_valid)}"}


if __name__ == "__main__":
    work(program)

"""RecBole's SASRec as its users run it, an epoch at a time. `peers.py` starts it in RecBole's environment.

RecBole makes its own split; it is compared with ours, histories too, before anything trains. Its own figures, which it
stops by, are compared with ours of its scores.
"""

import sys
import types
from typing import Any

import numpy as np
import torch
from peers_task import PARTS, Task, check_tested
from peers_worker import Job, Recorder, clocks, since, versions, work

from ur4rec.data.batches import EvaluationBatch

# RecBole 1.2.1 uses names that NumPy 2 removed, and imports a tuner that no run needs.
REMOVED = {"bool": "bool_", "int": "int_", "float": "float64", "complex": "complex128", "object": "object_"}
REMOVED |= {"str": "str_", "long": "int_", "unicode": "str_", "float_": "float64", "complex_": "complex128"}
REMOVED |= {"unicode_": "str_"}
SHOWN = ("train_batch_size", "learning_rate", "learner", "stopping_step", "hidden_dropout_prob", "attn_dropout_prob")
SHOWN += ("n_layers", "n_heads", "hidden_size", "inner_size", "loss_type", "MAX_ITEM_LIST_LENGTH")


def import_recbole() -> types.SimpleNamespace:
    """What a run needs of RecBole, after NumPy has its old names and `ray.tune` has a stand-in."""
    for old, new in REMOVED.items():
        setattr(np, old, getattr(np, new))
    tune = types.ModuleType("ray.tune")
    sys.modules["ray"] = types.ModuleType("ray")
    sys.modules["ray"].tune = tune
    sys.modules["ray.tune"] = tune
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.data.interaction import Interaction
    from recbole.utils import get_model, get_trainer, init_seed

    return types.SimpleNamespace(
        Config=Config,
        Interaction=Interaction,
        create_dataset=create_dataset,
        data_preparation=data_preparation,
        get_model=get_model,
        get_trainer=get_trainer,
        init_seed=init_seed,
    )


def configuration(job: Job) -> dict[str, Any]:
    """RecBole's defaults but for what is named here: the data, the metric that stops it, the processor."""
    return {
        "data_path": job.task,
        "checkpoint_dir": "saved",
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": job.max_seq_len,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "metrics": ["NDCG", "Hit"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 8,
        "epochs": job.epochs,
        "seed": job.own_seed,
        "use_gpu": False,
        "show_progress": False,
        **job.settings,
    }


def tested(data: Any, dataset: Any) -> dict[str, list[Any]]:
    """User, target and history of each evaluated row, by the names of the file."""
    rows = data.dataset.inter_feat
    names = dataset.field2id_token
    lengths = rows["item_length"].tolist()
    return {
        "users": names["user_id"][rows["user_id"].numpy()].tolist(),
        "targets": names["item_id"][rows["item_id"].numpy()].tolist(),
        "histories": [
            names["item_id"][history[:length]].tolist()
            for history, length in zip(rows["item_id_list"].numpy(), lengths, strict=True)
        ],
    }


class Scores:
    """The model's scores of our batches.

    Args:
        model: RecBole's.
        ids_I: RecBole's number of each of our items; 0, its padding, for one that nobody in a sample of users has.
        width: The positions of a row, of which RecBole wants all.
        interaction: RecBole's class of a batch.
    """

    def __init__(self, model: Any, ids_I: np.ndarray, width: int, interaction: Any) -> None:
        self._model, self._columns_I, self._width, self._interaction = model, ids_I, width, interaction
        self._ids = np.append(ids_I, 0)

    @torch.no_grad()
    def __call__(self, batch: EvaluationBatch) -> np.ndarray:
        """Scores of every item, its columns in canonical order; one that RecBole does not know is below all others."""
        self._model.eval()
        lengths_B = (batch.items_BL < len(self._columns_I)).sum(1)
        items_BL = np.zeros((len(batch.items_BL), self._width), np.int64)
        items_BL[:, : batch.items_BL.shape[1]] = self._ids[batch.items_BL]
        rows = slice(batch.num_valid)
        fed = {"item_id_list": torch.from_numpy(items_BL[rows]), "item_length": torch.from_numpy(lengths_B[rows])}
        found = self._model.full_sort_predict(self._interaction(fed))
        scores_BX = found.view(batch.num_valid, -1).numpy()
        return np.where(self._columns_I == 0, scores_BX.min() - 1, scores_BX[:, self._columns_I])


def check_split(job: Job, task: Task, loaders: dict[str, Any], dataset: Any) -> None:
    """Refuse another split than ours."""
    for part in PARTS:
        check_tested(getattr(task.split, part), job.max_seq_len, part, tested(loaders[part], dataset))


def program(job: Job, recorder: Recorder) -> None:
    """Train until RecBole stops by itself, the epochs are over, or the limit is reached."""
    torch.set_num_threads(1)
    recbole = import_recbole()
    config = recbole.Config(model="SASRec", dataset="peers", config_dict=configuration(job))
    recbole.init_seed(config["seed"], config["reproducibility"])
    dataset = recbole.create_dataset(config)
    train, validation, test = recbole.data_preparation(config, dataset)
    check_split(job, recorder.task, {"validation": validation, "test": test}, dataset)
    recbole.init_seed(config["seed"], config["reproducibility"])
    model = recbole.get_model("SASRec")(config, train.dataset)
    trainer = recbole.get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    ids_I = np.array([dataset.field2token_id["item_id"].get(name, 0) for name in recorder.task.names])
    scores = Scores(model, ids_I, job.max_seq_len, recbole.Interaction)
    recorder.about |= {name: config[name] for name in SHOWN}
    recorder.about["rows_per_epoch"] = len(train.dataset)
    recorder.about["versions"] = versions("recbole", "torch", "numpy")
    train_epoch, seconds = trainer._train_epoch, {}

    def timed_train(*arguments: Any, **options: Any) -> Any:
        start = clocks()
        loss = train_epoch(*arguments, **options)
        seconds.update(since(start))
        return loss

    def after_epoch(_: int, own_ndcg: float) -> None:
        recorder.epoch(seconds, lambda part: recorder.ranks(scores, part), float(own_ndcg))

    trainer._train_epoch = timed_train
    trainer.fit(train, validation, saved=False, verbose=False, callback_fn=after_epoch)


if __name__ == "__main__":
    work(program)

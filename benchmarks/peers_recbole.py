"""RecBole's SASRec as its users run it, one epoch at a time. `benchmarks/peers.py` starts it in RecBole's environment.

    python benchmarks/peers_recbole.py FOLDER --seed 2020 --epochs 300

FOLDER holds `peers/peers.inter` (the interactions as an atomic file) and `items.json` (their names in canonical order).
Each epoch prints a line of JSON and leaves `epoch-N.npz`, the scores of every item for all users; the first line states
what RecBole tests on. After each line the program waits for one on its standard input: a peer may take its turn.
"""

import argparse
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

# RecBole 1.2.1 uses names that NumPy 2 removed, and imports a tuner that no run needs.
REMOVED = {"bool": "bool_", "int": "int_", "float": "float64", "complex": "complex128", "object": "object_"}
REMOVED |= {"str": "str_", "long": "int_", "unicode": "str_", "float_": "float64", "complex_": "complex128"}
REMOVED |= {"unicode_": "str_"}


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
    from recbole.utils import get_model, get_trainer, init_seed

    return types.SimpleNamespace(
        Config=Config,
        create_dataset=create_dataset,
        data_preparation=data_preparation,
        get_model=get_model,
        get_trainer=get_trainer,
        init_seed=init_seed,
    )


def settings(folder: Path, seed: int, epochs: int, dropout: float) -> dict[str, Any]:
    """RecBole's defaults but for what is named here: the data, the metric that stops it, the processor."""
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 50,
        "hidden_dropout_prob": dropout,
        "attn_dropout_prob": dropout,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "metrics": ["NDCG", "Hit"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 8,
        "epochs": epochs,
        "seed": seed,
        "use_gpu": False,
        "show_progress": False,
    }


def clocks() -> tuple[float, float]:
    """Wall and processor seconds."""
    return time.perf_counter(), time.process_time()


def timed(call: Any, *arguments: Any, **options: Any) -> tuple[Any, list[float]]:
    """What a call gives, with its wall and processor seconds."""
    before = clocks()
    result = call(*arguments, **options)
    return result, [after - start for start, after in zip(before, clocks(), strict=True)]


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


@torch.no_grad()
def scores(model: Any, data: Any, columns: np.ndarray) -> np.ndarray:
    """The model's scores of every item for every row, its columns in canonical order."""
    model.eval()
    found = [model.full_sort_predict(batch[0]).view(len(batch[0]), -1) for batch in data]
    return torch.cat(found).numpy()[:, columns]


def say(**message: Any) -> None:
    """Print one line, then wait for our turn."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
    if not sys.stdin.readline():
        sys.exit("the benchmark has ended")


def parse_arguments(documentation: str) -> argparse.Namespace:
    """The command line of a peer."""
    parser = argparse.ArgumentParser(description=documentation.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--dropout", type=float, required=True)
    return parser.parse_args()


def main() -> None:
    """Train until RecBole stops by itself, or the epochs are over."""
    options = parse_arguments(__doc__)
    torch.set_num_threads(1)
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    recbole = import_recbole()
    given = settings(options.folder, options.seed, options.epochs, options.dropout)
    config = recbole.Config(model="SASRec", dataset="peers", config_dict=given)
    recbole.init_seed(config["seed"], config["reproducibility"])
    dataset = recbole.create_dataset(config)
    train, validation, test = recbole.data_preparation(config, dataset)
    names = json.loads((options.folder / "items.json").read_text())
    columns = np.array([dataset.field2token_id["item_id"][name] for name in names])
    recbole.init_seed(config["seed"], config["reproducibility"])
    model = recbole.get_model("SASRec")(config, train.dataset)
    trainer = recbole.get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    train_epoch, valid_epoch = trainer._train_epoch, trainer._valid_epoch
    seconds: dict[str, list[float]] = {}

    def timed_train(*arguments: Any, **options: Any) -> Any:
        loss, seconds["train"] = timed(train_epoch, *arguments, **options)
        return loss

    def timed_validation(*arguments: Any, **options: Any) -> Any:
        (score, result), seconds["validation"] = timed(valid_epoch, *arguments, **options)
        return score, result

    def after_epoch(epoch: int, validation_score: float) -> None:
        kept = {"validation": scores(model, validation, columns), "test": scores(model, test, columns)}
        np.savez(options.folder / f"epoch-{epoch}.npz", **kept)
        own = {"validation": float(validation_score)}
        own["test"] = float(trainer.evaluate(test, load_best_model=False)["ndcg@10"])
        say(epoch=epoch, seconds=seconds, own_ndcg=own, loss=trainer.train_loss_dict[epoch] / len(train))

    trainer._train_epoch, trainer._valid_epoch = timed_train, timed_validation
    shown = (
        "train_batch_size",
        "learning_rate",
        "learner",
        "stopping_step",
        "hidden_dropout_prob",
        "attn_dropout_prob",
    )
    about = {name: config[name] for name in (*shown, "n_layers", "n_heads", "hidden_size", "inner_size", "loss_type")}
    about |= {"rows_per_epoch": len(train.dataset), "parameters": sum(each.numel() for each in model.parameters())}
    say(tested={"validation": tested(validation, dataset), "test": tested(test, dataset)}, about=about)
    trainer.fit(train, validation, saved=False, verbose=False, callback_fn=after_epoch)


if __name__ == "__main__":
    main()

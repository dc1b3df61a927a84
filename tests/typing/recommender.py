"""`ur4rec` as a user writes it: configuration, data, evaluation."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from ur4rec.config import ModelConfig, ModelSettings, TrainerConfig, TrainerSettings
from ur4rec.data import Interactions, Split, Targets, leave_one_out, synthetic
from ur4rec.data.batches import Batch, EvaluationBatch, EvaluationBatches, TrainBatches
from ur4rec.evaluation.metrics import rank_batches, summarise
from ur4rec.evaluation.popularity import popularity_scores
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.recommendations import write_recommendations
from ur4rec.runs.recommender import Recommendation, Recommender


def main() -> None:
    interactions = synthetic(num_users=40, num_items=60)
    assert_type(interactions, Interactions)
    split = leave_one_out(interactions)
    assert_type(split, Split)
    assert_type(split.validation, Targets)
    train = TrainBatches(split.train, split.num_items, max_seq_len=8, batch_size=4, seed=0)
    assert_type(len(train), int)
    assert_type(next(iter(train)), Batch)
    targets = EvaluationBatches(split.validation, split.num_items, max_seq_len=8, batch_size=4)
    scores_I: NDArray[np.float64] = popularity_scores(split.train, split.num_items)

    def score(batch: EvaluationBatch) -> NDArray[Any]:
        return np.broadcast_to(scores_I, (len(batch.targets_B), split.num_items))

    ranks_T = rank_batches(score, targets)
    assert_type(ranks_T, NDArray[np.int64])
    assert_type(summarise(ranks_T, k_list=[10]), dict[str, float])
    settings: ModelSettings = {"fusion": "rank", "sasrec_hidden_dim": 64}
    assert_type(ModelConfig(num_items=split.num_items, **settings).fusion, str)
    rates: TrainerSettings = {"sasrec_lr": 1e-3}
    assert_type(TrainerConfig(**rates).sasrec_lr, float)


def after_training(run: Path) -> None:
    recommender = Recommender(RunDirectory(run), interactions=Path("plays.csv"))
    assert_type(recommender.recommend(recommender.history_of("u1"), top=3), list[Recommendation])
    assert_type(recommender.lists(recommender.find_items(["i1"])), dict[str, list[Recommendation]])
    write_recommendations(
        Path("recs.csv"), recommender.recommend_users(candidates_I=recommender.candidates(only=["i1"]))
    )


def misuse(config: ModelConfig) -> None:
    ModelConfig(num_items="30")  # type: ignore[arg-type]
    ModelConfig(num_items=30, sasrec_hidden=64)  # type: ignore[call-arg]
    ModelConfig(30)  # type: ignore[call-arg]
    TrainerConfig(use_memory_bank="yes")  # type: ignore[arg-type]
    config.num_items = 3  # type: ignore[misc]
    leave_one_out([1, 2, 3])  # type: ignore[arg-type]
    summarise("1 2 3", k_list=10)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

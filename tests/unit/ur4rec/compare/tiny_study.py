"""A study that takes a second: few users, a narrow model, prices as if they had been measured."""

from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.study import StudyConfig

PRICES = {
    "sasrec first": 0.3,
    "sasrec later": 0.2,
    "retriever first": 0.1,
    "retriever later": 0.1,
    "both": 0.35,
    "probe": 0.05,
}
COSTS = {
    "seconds": PRICES,
    "quartiles": {kind: [price, price] for kind, price in PRICES.items()},
    "load_average_before": 0.0,
    "facts": {"load_average": 0.0},
}
TINY = {
    "dataset": "synthetic",
    "data": {"num_users": 40, "num_items": 50, "num_clusters": 5, "mean_length": 10},
    "preset": "smoke",
    "encoder": "tfidf",
    "batch_size": 16,
    "model": {"sasrec_hidden_dim": 8, "retriever_output_dim": 8, "text_embedding_dim": 16, "max_seq_len": 8},
    "seeds": (0, 1),
    "updates": 12,
    "eval_every": 4,
}


def tiny_study(path, **changes):
    """The directory of a study whose costs are known."""
    directory = StudyDirectory.begin(path, StudyConfig(**{**TINY, **changes}))
    directory.write_costs(COSTS)
    return directory

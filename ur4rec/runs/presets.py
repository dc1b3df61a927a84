"""Presets: settings of a run by name."""

from typing import Any

from ur4rec.errors import UnknownNameError
from ur4rec.runs.config import RunConfig

_SMALL = {"sasrec_hidden_dim": 64, "sasrec_num_heads": 2, "retriever_output_dim": 64}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "smoke": {
        "dataset": "synthetic",
        "encoder": "tfidf",
        "epochs": {"pretrain_sasrec": 3, "pretrain_retriever": 2, "joint_finetune": 8, "end_to_end": 1},
        "batch_size": 64,
        "model": {**_SMALL, "max_seq_len": 20, "text_embedding_dim": 64},
        "trainer": {"sasrec_lr": 3e-3, "retriever_lr": 3e-3},
    },
    "demo": {
        "dataset": "ml-100k",
        "encoder": "tfidf",
        "epochs": {"pretrain_sasrec": 5, "pretrain_retriever": 5, "joint_finetune": 10, "end_to_end": 5},
        "batch_size": 64,
        "model": {
            **_SMALL,
            "max_seq_len": 50,
            "sasrec_dropout": 0.2,
            "retriever_num_queries": 2,
            "retriever_temperature": 0.05,
        },
        "trainer": {"sasrec_lr": 3e-3, "retriever_lr": 3e-3},
    },
}
"""Settings by name; a command's own arguments go over them."""


def preset(name: str, **changes: Any) -> RunConfig:
    """A preset with changes; None leaves a setting as the preset has it.

    Raises:
        UnknownNameError: There is no such preset.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    given = {key: value for key, value in changes.items() if value is not None}
    for key in ("model", "trainer", "epochs"):
        if key in given:
            given[key] = {**PRESETS[name].get(key, {}), **given[key]}
    return RunConfig(**{**PRESETS[name], **given})

"""The presets: settings by name. All their values are here; a command's own arguments go over them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ur4rec.config import HELD_OUT, TRAINING, WITH_HELD_OUT, ModelConfig
from ur4rec.errors import UnknownNameError
from ur4rec.runs.config import DEFAULT_EPOCHS, RunConfig
from ur4rec.runs.sizes import FROM_DATA

_GROUPS = ("model", "trainer", "epochs")
_SCALED = {"sasrec_embedding_scale": True}
_SMALL = {"sasrec_hidden_dim": 64, "sasrec_num_heads": 2, "retriever_output_dim": 64}
_WEIGHED_LATER = {"joint_loss": "separate", "fusion_fit": "held_out"}
"""Beside a SASRec that knows its training data by heart: docs/log.md, 2026-11-30 and 2026-12-01."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings with a name."""

    purpose: str
    """For which data, in a line."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `RunConfig` other than its defaults."""
    from_data: tuple[str, ...] = ()
    """Settings that the data decides, unless they are given."""


PRESETS: dict[str, Preset] = {
    "default": Preset(
        purpose="any data: sizes, rates and lengths follow from its counts, and are said when the run begins",
        settings={
            "model": {**_SCALED, "fusion_popularity": True},
            "trainer": {**_WEIGHED_LATER, "joint_lr_scale": 0.3},
        },
        from_data=FROM_DATA,
    ),
    "ml-1m": Preset(
        purpose="dense data of long histories and few thousand items, such as MovieLens-1M",
        settings={
            "dataset": "ml-1m",
            "epochs": {"pretrain_sasrec": 30, "pretrain_retriever": 0, "joint_finetune": 12, "end_to_end": 0},
            "schedule": "retriever",  # SASRec has learnt alone: its learning rate, begun anew, would undo some of it
            "batch_size": 32,
            "early_stopping": 10,
            "eval_every": 2,
            "model": {
                **_SMALL,
                **_SCALED,
                "max_seq_len": 200,
                "sasrec_dropout": 0.2,
                "sasrec_block": "ligr",
                "sasrec_item_init": "whitened",
            },
            "trainer": {"sasrec_lr": 2e-3, "retriever_lr": 3e-3, **_WEIGHED_LATER},
        },
    ),
    "amazon": Preset(
        purpose="sparse data of short histories, ten thousands of items and texts that tell them apart",
        settings={
            "epochs": {"pretrain_sasrec": 40, "pretrain_retriever": 0, "joint_finetune": 12, "end_to_end": 0},
            "schedule": "retriever",
            "batch_size": 128,
            "early_stopping": 10,
            "eval_every": 2,
            "model": {
                **_SMALL,
                **_SCALED,
                "max_seq_len": 50,
                "sasrec_num_blocks": 1,
                "sasrec_num_heads": 1,
                "sasrec_dropout": 0.4,
                "sasrec_item_init": "whitened",
            },
            "trainer": {
                "sasrec_lr": 3e-3,
                "retriever_lr": 3e-3,
                "catalogue_loss": "sampled",
                "num_negatives": 256,
                "num_in_batch": 0,
                **_WEIGHED_LATER,
            },
        },
    ),
    "large-catalogue": Preset(
        purpose="hundreds of thousands of items and more: a step's time does not grow with them",
        settings={
            "epochs": {"pretrain_sasrec": 20, "pretrain_retriever": 3, "joint_finetune": 6, "end_to_end": 0},
            "batch_size": 256,
            "early_stopping": 3,
            "eval_users": 20_000,
            "model": {
                **_SCALED,
                "max_seq_len": 50,
                "sasrec_hidden_dim": 128,
                "sasrec_num_heads": 2,
                "sasrec_dropout": 0.2,
                "retriever_output_dim": 128,
            },
            "trainer": {
                "sasrec_lr": 1e-3,
                "retriever_lr": 1e-3,
                "catalogue_loss": "sampled",
                "num_negatives": 1024,
                "num_in_batch": 1024,
            },
        },
    ),
    "smoke": Preset(
        purpose="a first look in seconds, on synthetic data",
        settings={
            "dataset": "synthetic",
            "encoder": "tfidf",
            "epochs": {"pretrain_sasrec": 3, "pretrain_retriever": 2, "joint_finetune": 8, "end_to_end": 1},
            "batch_size": 64,
            "model": {**_SMALL, "max_seq_len": 20, "text_embedding_dim": 64},
            "trainer": {"sasrec_lr": 3e-3, "retriever_lr": 3e-3},
        },
    ),
    "demo": Preset(
        purpose="MovieLens-100K in minutes on a CPU",
        settings={
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
    ),
}
"""By name."""


def preset(name: str, **changes: Any) -> RunConfig:
    """A preset with changes; None leaves a setting as the preset has it.

    What is changed is no longer left to the data. The rest is decided by `ur4rec.runs.prepared.prepare` and by
    `ur4rec.runs.run.TrainingRun`, and the run keeps it. With another fusion or joint loss than a preset that chooses
    fusion weights on held-out targets has, they learn with the modules, and popularity has none.

    Args:
        name: Of `PRESETS`.
        **changes: Fields of `RunConfig`; those of a mapping go over the preset's.

    Raises:
        UnknownNameError: There is no such preset.
        ConfigurationError: A value is out of range.

    Example:
        >>> preset("demo", model={"max_seq_len": 30}).model["max_seq_len"]
        30
        >>> "batch_size" in preset("default", batch_size=64).from_data
        False
        >>> preset("default", trainer={"joint_loss": "fused"}).trainer
        {'joint_loss': 'fused', 'fusion_fit': 'training', 'joint_lr_scale': 0.3}
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    settings = PRESETS[name].settings
    given = {key: value for key, value in changes.items() if value is not None}
    changed = set(given).union(*(given.get(key, {}) for key in _GROUPS))
    for key in _GROUPS:
        if key in given:
            given[key] = {**settings.get(key, DEFAULT_EPOCHS if key == "epochs" else {}), **given[key]}
    trainer = given.get("trainer", settings.get("trainer", {}))
    chosen = {**given.get("model", {}), **trainer}
    is_ours = "fusion_fit" in trainer and "fusion_fit" not in changed
    if is_ours and (chosen.get("fusion", ModelConfig.fusion), chosen["joint_loss"]) != WITH_HELD_OUT:
        trainer = given["trainer"] = {**trainer, "fusion_fit": TRAINING}
    model = given.get("model", settings.get("model", {}))
    if "fusion_popularity" not in changed and trainer.get("fusion_fit") != HELD_OUT:
        given["model"] = {name: value for name, value in model.items() if name != "fusion_popularity"}
    from_data = tuple(each for each in PRESETS[name].from_data if each not in changed)
    return RunConfig(**{"from_data": from_data, **settings, **given})

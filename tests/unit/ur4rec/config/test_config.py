"""Settings: what is refused, with which words, and what follows from them."""

import json
from dataclasses import asdict
from typing import get_type_hints

import numpy as np
import pytest

from ur4rec.config import (
    SEQUENCE_LOSSES,
    ModelConfig,
    ModelSettings,
    TrainerConfig,
    TrainerSettings,
    check_joint_loss,
)
from ur4rec.errors import ConfigurationError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sasrec_loss": "hinge"}, rf"unknown sasrec_loss 'hinge'; expected one of \({SEQUENCE_LOSSES[0]!r}"),
        ({"num_negatives": 0}, "num_negatives must be an integer of at least 1, got 0"),
        ({"gbce_t": 1.01}, r"gbce_t must be at least 0 and at most 1, got 1\.01"),
        ({"gbce_t": "high"}, "gbce_t must be at least 0 and at most 1, got 'high'"),
        ({"memory_bank_size": 0}, "memory_bank_size must be an integer of at least 1, got 0"),
        ({"memory_bank_temperature": 0}, "memory_bank_temperature must be a finite number above 0, got 0"),
        ({"kd_temperature": -1.0}, r"kd_temperature must be a finite number above 0, got -1\.0"),
        ({"kd_weight": -0.1}, r"kd_weight must be at least 0 and below inf, got -0\.1"),
        ({"use_memory_bank": "false"}, "use_memory_bank must be True or False, got 'false'"),
        ({"uncertainty_lr": float("nan")}, "uncertainty_lr must be a finite number above 0, got nan"),
        ({"label_smoothing": 1}, "label_smoothing must be at least 0 and below 1, got 1"),
        (
            {"label_smoothing": 0.1, "sasrec_loss": "gbce"},
            r"label_smoothing must be 0 with sasrec_loss='gbce', which is no softmax, got 0\.1; leave it out, or",
        ),
    ],
)
def test_trainer_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        TrainerConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": "vote"}, r"unknown fusion 'vote'; expected one of \('logit', 'weighted', 'rank', 'cascade'\)"),
        ({"cascade_size": 0}, "cascade_size must be an integer of at least 1, got 0"),
        (
            {"sasrec_block": "mamba"},
            r"unknown sasrec_block 'mamba'; expected one of \('relu', 'gelu', 'swiglu', 'ligr'\)",
        ),
        (
            {"sasrec_item_init": "zero"},
            r"unknown sasrec_item_init 'zero'; expected one of \('normal', 'pca', 'whitened'\)",
        ),
        ({"sasrec_embedding_dropout": 1.0}, r"sasrec_embedding_dropout must be at least 0 and below 1, got 1\.0"),
        ({"sasrec_embedding_scale": 8}, "sasrec_embedding_scale must be True or False, got 8"),
        (
            {"sasrec_item_init": "pca", "text_encoder": "transformer"},
            "sasrec_item_init must be 'normal' with a text encoder, .* got 'pca'; take that, or text_encoder='none'",
        ),
    ],
)
def test_model_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        ModelConfig(num_items=10, **settings)


def test_numbers_of_numpy_are_saved_as_plain_json():
    trainer = TrainerConfig(num_negatives=np.int64(3), kd_weight=np.float32(0.5), gbce_t=np.int32(1))
    assert trainer == TrainerConfig(num_negatives=3, kd_weight=0.5, gbce_t=1)
    model = ModelConfig(num_items=np.int32(9), sasrec_dropout=np.float64(0.25), retriever_temperature=np.float32(0.5))
    assert model == ModelConfig(num_items=9, sasrec_dropout=0.25, retriever_temperature=0.5)
    assert json.loads(json.dumps([asdict(trainer), asdict(model)])) == [asdict(trainer), asdict(model)]


def test_all_strategies_can_be_on_together():
    switches = ("curriculum_learning", "memory_bank", "knowledge_distillation", "uncertainty_weighting")
    config = TrainerConfig(**{f"use_{name}": True for name in switches}, gbce_t=1, sasrec_loss="gbce")
    assert all(getattr(config, f"use_{name}") for name in switches)


@pytest.mark.parametrize("fusion", ["rank", "cascade"])
def test_a_fusion_without_gradients_needs_separate_losses(fusion):
    check_joint_loss("separate", fusion)
    with pytest.raises(ConfigurationError, match=f"joint_loss='fused' needs a fusion that passes gr.*got '{fusion}'"):
        check_joint_loss("fused", fusion)


@pytest.mark.parametrize("num_negatives", [1, 40, 99, 100, 1000])
def test_gbces_power_is_the_papers_with_a_sampling_rate_of_at_most_one(num_negatives):
    alpha = min(num_negatives / 99, 1)
    for t in (0.0, 0.3, 1.0):
        expected = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
        assert TrainerConfig(num_negatives=num_negatives, gbce_t=t).gbce_beta(100) == pytest.approx(expected)


def test_keyword_arguments_have_the_types_of_the_fields():
    fields = get_type_hints(ModelConfig)
    assert fields.pop("num_items") is fields.pop("num_users") is int
    assert get_type_hints(ModelSettings) == fields
    assert get_type_hints(TrainerSettings) == get_type_hints(TrainerConfig)

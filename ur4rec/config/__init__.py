"""Configuration of the model and of the trainer, the same in both backends."""

from ur4rec.config.model import FUSIONS, FUSIONS_WITH_GRADIENTS, JOINT_LOSSES, SCORERS, SEQUENCE_LOSSES, ModelConfig
from ur4rec.config.settings import ModelSettings, TrainerSettings
from ur4rec.config.trainer import TrainerConfig, check_joint_loss

__all__ = [
    "FUSIONS",
    "FUSIONS_WITH_GRADIENTS",
    "JOINT_LOSSES",
    "SCORERS",
    "SEQUENCE_LOSSES",
    "ModelConfig",
    "ModelSettings",
    "TrainerConfig",
    "TrainerSettings",
    "check_joint_loss",
]

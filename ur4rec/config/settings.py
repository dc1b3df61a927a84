"""Keyword arguments as types, so that a type checker reads ``UR4Rec(..., fusion="rank")`` as it runs.

Their meanings and default values are the fields of `ModelConfig` and `TrainerConfig`; a test holds the two together.
"""

from typing import TypedDict


class ModelSettings(TypedDict, total=False):
    """The fields of `ModelConfig` that `UR4Rec` takes as keyword arguments."""

    sasrec_hidden_dim: int
    sasrec_num_blocks: int
    sasrec_num_heads: int
    sasrec_dropout: float
    text_embedding_dim: int
    retriever_output_dim: int
    retriever_num_queries: int
    retriever_dropout: float
    retriever_temperature: float
    max_seq_len: int
    fusion: str
    cascade_size: int


class TrainerSettings(TypedDict, total=False):
    """The fields of `TrainerConfig`, all of which `JointTrainer` takes as keyword arguments."""

    sasrec_lr: float
    retriever_lr: float
    fusion_lr: float
    weight_decay: float
    clip_norm: float
    warmup: float
    warmup_steps: int
    sasrec_loss: str
    num_negatives: int
    gbce_t: float
    joint_loss: str
    sasrec_loss_weight: float
    retriever_loss_weight: float
    use_adaptive_alternating: bool
    adaptive_switch_threshold: float
    adaptive_min_steps: int
    use_curriculum_learning: bool
    use_memory_bank: bool
    memory_bank_size: int
    memory_bank_temperature: float
    use_knowledge_distillation: bool
    kd_temperature: float
    kd_weight: float
    use_uncertainty_weighting: bool
    uncertainty_lr: float
    loss_delay: int
    max_nonfinite_losses: int
    bf16: bool
    seed: int

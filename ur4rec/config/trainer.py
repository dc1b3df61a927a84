"""The settings of the trainer, the same in both backends. Validated once, when built."""

import math
from dataclasses import dataclass

from alternator.checks import check_choice, check_integer, check_positive, check_range, check_switch, set_fields
from ur4rec.config.model import FUSIONS_WITH_GRADIENTS, JOINT_LOSSES, SEQUENCE_LOSSES
from ur4rec.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Settings of a `JointTrainer`.

    Raises:
        ConfigurationError: A value is out of range; the message states the rule, the value and the remedy.

    Example:
        >>> TrainerConfig(sasrec_lr=3e-3).joint_loss
        'fused'
    """

    sasrec_lr: float = 1e-3
    """Peak learning rate of SASRec."""
    retriever_lr: float = 1e-4
    """Peak learning rate of the retriever."""
    fusion_lr: float = 1e-2
    """Peak learning rate of the fusion weights."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW for both modules; the fusion weights have none."""
    clip_norm: float = 1.0
    """Maximum norm of the gradients of everything that trains, taken together."""
    warmup: float = 0.05
    """Part of a stage over which the learning rate rises from 0 to its peak."""
    warmup_steps: int = 100
    """The length of the warm-up in steps, for a stage whose length is not given."""
    sasrec_loss: str = "ce"
    """Loss of SASRec on its own, so not under `fused`: `ce` (softmax over the whole catalogue), `sampled` (over the
    target and drawn items), `gbce` (calibrated binary cross-entropy), `bce` or `bpr` (one drawn negative)."""
    num_negatives: int = 256
    """Uniformly drawn items of `sampled` and `gbce`, shared by the whole batch."""
    gbce_t: float = 0.75
    """Calibration of `gbce`: 0 is plain binary cross-entropy, 1 gives the probabilities of the whole catalogue."""
    joint_loss: str = "fused"
    """`fused` (cross-entropy of the fused scores) or `separate` (weighted sum of the two modules' losses)."""
    sasrec_loss_weight: float = 1.0
    """Weight of SASRec's loss under `separate`."""
    retriever_loss_weight: float = 1.0
    """Weight of the retriever's loss under `separate`."""
    use_adaptive_alternating: bool = True
    """In joint_finetune, switch by the losses; False means parity: even steps SASRec, odd steps the retriever."""
    adaptive_switch_threshold: float = 0.01
    """Threshold of the original rule, `alternator.Plateau`; a larger one switches more often."""
    adaptive_min_steps: int = 5
    """Minimum length of a tenure under the original rule, in updated steps."""
    use_curriculum_learning: bool = False
    """Losses that shape the retriever's preference vectors, each with a weight that rises over the stage; see
    `ur4rec.schedule.curriculum`."""
    use_memory_bank: bool = False
    """A bank of past text vectors as further negatives of the retriever."""
    memory_bank_size: int = 65536
    """Entries of the memory bank; new ones replace the oldest."""
    memory_bank_temperature: float = 0.07
    """Temperature of the memory bank's loss."""
    use_knowledge_distillation: bool = False
    """Two-way distillation between the modules' scores."""
    kd_temperature: float = 4.0
    """Temperature of the distillation."""
    kd_weight: float = 0.1
    """Weight of the distillation."""
    use_uncertainty_weighting: bool = False
    """Learn the weight of each loss component from its uncertainty; see `ur4rec.training.components`."""
    uncertainty_lr: float = 1e-2
    """Peak learning rate of the uncertainties."""
    loss_delay: int = 1
    """The number of steps after which losses are read: 1 keeps an accelerator busy, 0 is the original order."""
    max_nonfinite_losses: int = 10
    """The number of steps in a row with a non-finite loss that stops the run."""
    bf16: bool = False
    """Run forward passes in bfloat16 where that is safe (autocast)."""
    seed: int = 0
    """Seed of dropout and of sampled negatives, which are functions of (seed, step)."""

    def __post_init__(self) -> None:
        for name in _TRAINER_SCALES:
            set_fields(self, **{name: check_positive(name, getattr(self, name))})
        for name in _TRAINER_SWITCHES:
            check_switch(name, getattr(self, name))
        set_fields(
            self,
            gbce_t=check_range("gbce_t", self.gbce_t, 0, 1, closed=True),
            weight_decay=check_range("weight_decay", self.weight_decay, 0, 1),
            kd_weight=check_range("kd_weight", self.kd_weight, 0, math.inf),
            warmup=check_range("warmup", self.warmup, 0, 1),
        )
        for name, minimum in _TRAINER_COUNTS.items():
            set_fields(self, **{name: check_integer(name, getattr(self, name), minimum)})
        check_choice("sasrec_loss", self.sasrec_loss, SEQUENCE_LOSSES)
        check_choice("joint_loss", self.joint_loss, JOINT_LOSSES)

    def gbce_beta(self, num_items: int) -> float:
        """The power of the target's probability under `gbce` (Petrov & Macdonald, RecSys 2023, equation 10).

        With the sampling rate α, at most 1, it is α · (t · (1 − 1/α) + 1/α).

        Example:
            >>> TrainerConfig(num_negatives=25, gbce_t=1.0).gbce_beta(num_items=101)
            0.25
            >>> TrainerConfig(gbce_t=0.0).gbce_beta(num_items=101)
            1.0
        """
        sampling_rate = min(self.num_negatives / (num_items - 1), 1.0)
        return self.gbce_t * (sampling_rate - 1) + 1


_TRAINER_SCALES = (
    "sasrec_lr",
    "retriever_lr",
    "fusion_lr",
    "uncertainty_lr",
    "clip_norm",
    "sasrec_loss_weight",
    "retriever_loss_weight",
    "adaptive_switch_threshold",
    "memory_bank_temperature",
    "kd_temperature",
)
_TRAINER_COUNTS = {
    "warmup_steps": 0,
    "adaptive_min_steps": 1,
    "num_negatives": 1,
    "memory_bank_size": 1,
    "loss_delay": 0,
    "max_nonfinite_losses": 1,
    "seed": 0,
}
_TRAINER_SWITCHES = (
    "use_adaptive_alternating",
    "use_curriculum_learning",
    "use_memory_bank",
    "use_knowledge_distillation",
    "use_uncertainty_weighting",
    "bf16",
)


def check_joint_loss(joint_loss: str, fusion: str) -> None:
    """Refuse `fused` with a fusion that passes no gradients.

    Raises:
        ConfigurationError: The two do not go together.
    """
    if joint_loss == "fused" and fusion not in FUSIONS_WITH_GRADIENTS:
        raise ConfigurationError(
            f"joint_loss='fused' needs a fusion that passes gradients, one of {FUSIONS_WITH_GRADIENTS}, "
            f"got {fusion!r}; take one of those or joint_loss='separate'"
        )

"""The settings of the model and of the trainer, the same in both backends. Validated once, when built."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypedDict

from alternator.checks import check_choice, check_integer, check_positive, check_range, check_switch, set_fields
from ur4rec.errors import ConfigurationError

MAX_BLOCKS = 1000
"""The number of self-attention blocks at most: each is a dozen objects, however narrow."""
FUSIONS = ("logit", "weighted", "rank", "cascade")
JOINT_LOSSES = ("separate", "fused")
TRAINING, HELD_OUT = FUSION_FITS = ("training", "held_out")
WITH_HELD_OUT = ("logit", "separate")
"""The fusion and the joint loss with which fusion weights may be chosen on held-out targets."""
AUTO = "auto"
CATALOGUE_LOSSES = ("full", "sampled")
LARGE_CATALOGUE = 30_000
"""Of more items than this, `catalogue_loss="auto"` samples: a full step takes ten times as long there, or more."""
LR_SCHEDULES = ("cosine", "constant")
SEQUENCE_LOSSES = ("ce", "sampled", "gbce", "bce", "bpr")
SCORERS = ("fused", "sasrec", "retriever")
SOFTMAX_LOSSES = ("ce", "sampled")
"""The losses of SASRec that are cross-entropies, and so have a distribution of the targets to smooth."""
PLAIN_BLOCKS, LIGR = ("relu", "gelu"), "ligr"
BLOCKS = (*PLAIN_BLOCKS, "swiglu", LIGR)
NORMAL_INIT, PCA_INIT = "normal", "pca"
ITEM_INITS = (NORMAL_INIT, PCA_INIT, "whitened")
FUSIONS_WITH_GRADIENTS = ("logit", "weighted")
NO_TEXT_ENCODER, TRANSFORMER, PRETRAINED = "none", "transformer", "pretrained"
TEXT_ENCODERS = (NO_TEXT_ENCODER, TRANSFORMER, PRETRAINED)
MAX_TOKENS = 512
"""The number of tokens of an item's text at most."""

LARGEST = 2**24
"""Of a width or a length: what has two of them as its shape still has a number of bytes that 64 bits hold."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a UR4Rec model.

    Raises:
        ConfigurationError: A value is out of range; the message states the rule, the value and the remedy.

    Example:
        >>> ModelConfig(num_items=1682, sasrec_hidden_dim=64, sasrec_num_heads=2).retriever_output_dim
        256
    """

    num_items: int
    """Items of the catalogue; they are numbered 0 to num_items - 1, and num_items itself is the padding index."""
    num_users: int = 0
    """Users whose preference texts the retriever knows; 0 for a model without user texts."""
    sasrec_hidden_dim: int = 256
    """Width of SASRec: of item embeddings, positions and blocks. A multiple of sasrec_num_heads."""
    sasrec_num_blocks: int = 2
    """Self-attention blocks of SASRec."""
    sasrec_num_heads: int = 4
    """Attention heads of each block."""
    sasrec_dropout: float = 0.1
    """Dropout of SASRec: on the embedded sequence and on what each block adds to it, while it trains."""
    sasrec_embedding_dropout: float | None = None
    """Dropout on the embedded sequence alone; None is sasrec_dropout."""
    sasrec_embedding_scale: bool = False
    """Multiply item embeddings by the square root of sasrec_hidden_dim before positions are added, as the paper does.
    Scores are compared with the embeddings as they are."""
    sasrec_block: str = "relu"
    """Blocks of SASRec, all pre-norm: `relu` or `gelu` (feed-forward layers four times as wide), `swiglu` (gated ones
    of about as many weights: Shazeer 2020) or `ligr` (these, and a gate on what each half adds: arXiv 2502.03417)."""
    sasrec_item_init: str = NORMAL_INIT
    """First item embeddings: `normal` (drawn), or made of the item text vectors: their principal components (`pca`), or
    these with equal variances (`whitened`; WhitenRec, arXiv 2402.10602). Items without a text are drawn."""
    text_embedding_dim: int = 384
    """Width of the item text vectors, and so of a text encoder. With one, a multiple of text_encoder_heads."""
    text_encoder: str = NO_TEXT_ENCODER
    """Where item text vectors come from: `none` (given once, frozen), or a third module of the model, which can train:
    a `transformer` from scratch, or `pretrained`, the run's sentence encoder, which sets its own width, vocabulary,
    layers and heads."""
    text_encoder_vocab: int = 8192
    """Tokens that the text encoder knows, at most: a run lowers it to what its items' texts need."""
    text_encoder_layers: int = 2
    """Transformer blocks of the text encoder."""
    text_encoder_heads: int = 2
    """Attention heads of each block of the text encoder."""
    text_encoder_tokens: int = 64
    """Tokens of an item's text that the text encoder reads, at most: a run lowers it to its longest text's."""
    text_encoder_trains: str = "all"
    """What of the text encoder can train: `all`, `last:K` (its last K blocks) or `lora:R` (adapters of rank R beside
    the query and value projections of every block: Hu et al., ICLR 2022); the rest keeps its first weights."""
    retriever_output_dim: int = 256
    """Width of the preference space."""
    retriever_num_queries: int = 4
    """Learned queries, and so preference vectors at each position."""
    retriever_dropout: float = 0.1
    """Dropout of the retriever: on the projected text of the history, while it trains."""
    retriever_temperature: float = 0.1
    """Cosines are divided by it: lower is sharper. At least 0.02, so that exponentials stay finite in float32."""
    max_seq_len: int = 50
    """Maximum length of the history that the model reads; of a longer one, the newest items."""
    fusion: str = "logit"
    """How the two modules' scores become one: `logit` (weights on logits), `weighted` (on probabilities), `rank`
    (reciprocal ranks) or `cascade` (the retriever re-orders SASRec's top); the last two pass no gradients."""
    cascade_size: int = 100
    """The number of SASRec's top items that the retriever re-orders under `cascade`."""
    fusion_popularity: bool = False
    """Add the popularity of items to the fused scores, the logarithm of 1 + an item's uses in the training data, with a
    weight of its own that held-out targets choose: it needs `fusion="logit"` and `fusion_fit="held_out"`."""

    def __post_init__(self) -> None:
        ranges = {"sasrec_dropout": (0, 1), "retriever_dropout": (0, 1), "retriever_temperature": (0.02, 10)}
        _check_fields(self, {"num_items": 2, "num_users": 0}, ranges)
        for name in ("sasrec_hidden_dim", "text_embedding_dim", "retriever_output_dim", "max_seq_len"):
            if (size := getattr(self, name)) > LARGEST:
                raise ConfigurationError(f"{name} must be at most {LARGEST}, got {size}; take a smaller one")
        check_integer("sasrec_num_blocks", self.sasrec_num_blocks, 1, MAX_BLOCKS)
        check_choice("fusion", self.fusion, FUSIONS)
        if self.fusion_popularity and self.fusion != "logit":
            raise ConfigurationError(
                f"fusion_popularity=True needs fusion='logit', a weighted sum, got {self.fusion!r}; take that or leave "
                "out fusion_popularity"
            )
        check_choice("text_encoder", self.text_encoder, TEXT_ENCODERS)
        check_choice("sasrec_block", self.sasrec_block, BLOCKS)
        check_choice("sasrec_item_init", self.sasrec_item_init, ITEM_INITS)
        if self.sasrec_embedding_dropout is not None:
            rate = check_range("sasrec_embedding_dropout", self.sasrec_embedding_dropout, 0, 1)
            set_fields(self, sasrec_embedding_dropout=rate)
        if self.has_text_encoder:
            _check_text_encoder(self)
        if self.sasrec_hidden_dim % self.sasrec_num_heads:
            raise ConfigurationError(
                f"sasrec_hidden_dim must be a multiple of sasrec_num_heads ({self.sasrec_num_heads}), "
                f"got {self.sasrec_hidden_dim}"
            )

    @property
    def sasrec_inner_dim(self) -> int:
        """Width between the feed-forward layers of a block of SASRec.

        Gated ones have three matrices in place of two, and so two thirds of the width, up to the next multiple of 8.

        Example:
            >>> [ModelConfig(num_items=5, sasrec_block=block).sasrec_inner_dim for block in ("relu", "swiglu")]
            [1024, 688]
        """
        width = self.sasrec_hidden_dim
        return 4 * width if self.sasrec_block in PLAIN_BLOCKS else 8 * -(-width // 3)

    @property
    def num_fusion_weights(self) -> int:
        """The terms of the fused scores that have weights: SASRec's, the retriever's and maybe popularity's."""
        return 0 if self.fusion not in FUSIONS_WITH_GRADIENTS else 2 + self.fusion_popularity

    @property
    def has_text_encoder(self) -> bool:
        """Whether the model has a third module, which gives the item text vectors."""
        return self.text_encoder != NO_TEXT_ENCODER

    @property
    def trained_text_layers(self) -> range:
        """The blocks of the text encoder whose own weights can train.

        Example:
            >>> encoder = {"text_encoder": "transformer", "text_encoder_layers": 6}
            >>> layers = [
            ...     ModelConfig(num_items=5, text_encoder_trains=trains, **encoder).trained_text_layers
            ...     for trains in ("all", "last:2", "lora:8")
            ... ]
            >>> layers
            [range(0, 6), range(4, 6), range(6, 6)]
        """
        kind, number = parse_trains(self.text_encoder_trains)
        first = {"all": 0, "last": self.text_encoder_layers - number, "lora": self.text_encoder_layers}[kind]
        return range(first, self.text_encoder_layers)

    @property
    def lora_rank(self) -> int:
        """The rank of the text encoder's adapters; 0 is none."""
        kind, number = parse_trains(self.text_encoder_trains)
        return number if kind == "lora" else 0


def parse_trains(text: str) -> tuple[str, int]:
    """What of a text encoder trains: ``all``, ``last`` or ``lora``, and the number behind it.

    Raises:
        ConfigurationError: It is none of these.

    Example:
        >>> parse_trains("lora:8"), parse_trains("all")
        (('lora', 8), ('all', 0))
    """
    found = re.fullmatch(r"(last|lora):([1-9]\d{0,5})", str(text))
    if found is None and text != "all":
        raise ConfigurationError(
            f"text_encoder_trains must be 'all', 'last:K' for the last K blocks, or 'lora:R' for adapters of rank R, "
            f"got {text!r}"
        )
    return ("all", 0) if found is None else (found[1], int(found[2]))


def _check_text_encoder(config: ModelConfig) -> None:
    width, layers, heads = config.text_embedding_dim, config.text_encoder_layers, config.text_encoder_heads
    check_integer("text_encoder_layers", layers, 1, MAX_BLOCKS)
    check_integer("text_encoder_tokens", config.text_encoder_tokens, 2, MAX_TOKENS)
    check_integer("text_encoder_vocab", config.text_encoder_vocab, 5, LARGEST)
    kind, number = parse_trains(config.text_encoder_trains)
    if width % heads:
        raise ConfigurationError(f"text_embedding_dim must be a multiple of text_encoder_heads ({heads}), got {width}")
    if kind == "last" and number > layers:
        raise ConfigurationError(f"text_encoder_trains must name at most {layers} blocks, got 'last:{number}'")
    if kind == "lora" and number > width:
        raise ConfigurationError(f"text_encoder_trains must have a rank of at most {width}, got 'lora:{number}'")
    if config.sasrec_item_init != NORMAL_INIT:
        raise ConfigurationError(
            f"sasrec_item_init must be {NORMAL_INIT!r} with a text encoder, whose vectors change while it trains, got "
            f"{config.sasrec_item_init!r}; take that, or text_encoder={NO_TEXT_ENCODER!r}"
        )
    if config.num_users:
        raise ConfigurationError(
            f"text_encoder must be {NO_TEXT_ENCODER!r} for a model with user texts, got {config.text_encoder!r}: their "
            "vectors would stay where the encoder was; leave out one of the two"
        )


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
    text_encoder_lr: float = 1e-4
    """Peak learning rate of a text encoder."""
    joint_lr_scale: float = 1.0
    """Learning rates of the modules in joint_finetune and end_to_end, as a multiple of those above: below 1, more stays
    of what each has learnt alone."""
    fusion_lr: float = 1e-2
    """Peak learning rate of the fusion weights."""
    fusion_fit: str = TRAINING
    """Where the weights of the fusion `logit` come from: `training`, where they learn with the modules, or `held_out`,
    where `JointTrainer.fit_fusion` chooses the retriever's by the ranking of held-out targets, as a run does with
    validation targets when a joint stage begins and whenever it is validated. Beside a SASRec that has learnt its
    training data by heart the former says little. The latter needs ``joint_loss="separate"``."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW for both modules; the fusion weights have none."""
    clip_norm: float = 1.0
    """Maximum norm of the gradients of everything that trains, taken together."""
    warmup: float = 0.05
    """Part of a stage over which the learning rate rises from 0 to its peak."""
    lr_schedule: str = "cosine"
    """What follows the warm-up: `cosine` (the learning rate falls to 0 at the last of a stage's epochs, whether or not
    the stage ends early) or `constant`."""
    warmup_steps: int = 100
    """The length of the warm-up in steps, for a stage whose length is not given."""
    sasrec_loss: str = "ce"
    """Loss of SASRec on its own, so not under `fused`: `ce` (softmax over the whole catalogue), `sampled` (over the
    target and drawn items), `gbce` (calibrated binary cross-entropy), `bce` or `bpr` (one drawn negative)."""
    num_negatives: int = 256
    """Uniformly drawn items of `sampled` and `gbce`, shared by the whole batch."""
    catalogue_loss: str = AUTO
    """The items under the softmax of every loss, fused or a module's own: `full` (the catalogue), `sampled` (the
    target, `num_negatives` uniformly drawn items and `num_in_batch` targets of the batch, with logQ correction), or
    `auto`: full up to 30,000 items and sampled above, where the other settings allow it. A sampled step does not grow
    with the catalogue, and moves only the item embeddings that it uses."""
    num_in_batch: int = 256
    """Targets drawn from the batch, in proportion to their frequency, as negatives of `catalogue_loss="sampled"`."""
    label_smoothing: float = 0.0
    """The share of each target's probability that all items have in equal parts, in every loss that is a softmax, the
    retriever's too (Szegedy et al., CVPR 2016). Of a sampled one the candidates have it: the target and the negatives,
    so that popular items have more of it where `num_in_batch` draws them."""
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
    `ur4rec.schedule.stages`."""
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
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which evaluation and saved models use in their place; 0 is
    off. A module's t-th update counts at most (1 + t) / (10 + t) for what was before; while it is frozen its average
    stays. Training goes on from the weights, and `Payoff` and `Trial` measure them."""
    length_groups: bool = True
    """Run rows of about one length through the model together where that saves a fifth of the positions or more, on
    one device and without `compile`: only dropout masks change with it. False computes the padding of every row."""
    loss_delay: int = 1
    """The number of steps after which losses are read: 1 keeps an accelerator busy, 0 is the original order."""
    max_nonfinite_losses: int = 10
    """The number of steps in a row with a non-finite loss that stops the run."""
    bf16: bool = False
    """Run forward passes in bfloat16 where that is safe (autocast)."""
    compile: bool = False
    """Compile the modules for training in PyTorch (`torch.compile`), which takes a minute; JAX compiles all anyway."""
    seed: int = 0
    """Seed of dropout and of sampled negatives, which are functions of (seed, step)."""

    def __post_init__(self) -> None:
        unit = ("gbce_t", "weight_decay", "warmup", "label_smoothing", "ema_decay")
        ranges = {**dict.fromkeys(unit, (0.0, 1.0)), "kd_weight": (0, math.inf)}
        _check_fields(self, {"warmup_steps": 0, "loss_delay": 0, "seed": 0, "num_in_batch": 0}, ranges)
        check_choice("sasrec_loss", self.sasrec_loss, SEQUENCE_LOSSES)
        check_choice("joint_loss", self.joint_loss, JOINT_LOSSES)
        check_choice("fusion_fit", self.fusion_fit, FUSION_FITS)
        check_choice("catalogue_loss", self.catalogue_loss, (AUTO, *CATALOGUE_LOSSES))
        check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        if self.catalogue_loss == "sampled" and self.sasrec_loss != "ce":
            raise ConfigurationError(
                "catalogue_loss='sampled' is the sampled form of sasrec_loss='ce' and needs it, "
                f"got sasrec_loss={self.sasrec_loss!r}; leave out one of the two"
            )
        if self.label_smoothing and self.sasrec_loss not in SOFTMAX_LOSSES:
            raise ConfigurationError(
                f"label_smoothing must be 0 with sasrec_loss={self.sasrec_loss!r}, which is no softmax, got "
                f"{self.label_smoothing}; leave it out, or take a sasrec_loss of {SOFTMAX_LOSSES}"
            )

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


def _check_fields(
    config: ModelConfig | TrainerConfig, minima: Mapping[str, int], ranges: Mapping[str, tuple[float, float]]
) -> None:
    """Check each field by its type, and store Python's own numbers.

    An integer without a minimum is at least 1, a number without a range above 0.
    """
    for name, kind in ((each.name, each.type) for each in fields(config)):
        value = getattr(config, name)
        if kind is int:
            set_fields(config, **{name: check_integer(name, value, minima.get(name, 1))})
        elif kind is bool:
            check_switch(name, value)
        elif name in ranges:
            low, high = ranges[name]
            set_fields(config, **{name: check_range(name, value, low, high, closed=name == "gbce_t")})
        elif kind is float:
            set_fields(config, **{name: check_positive(name, value)})


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


def check_fusion_fit(trainer: TrainerConfig, model: ModelConfig) -> None:
    """Refuse `held_out` with a fusion that is no weighted sum of scores, and with a loss that its weights decide.

    Raises:
        ConfigurationError: They do not go together, or popularity has a weight that nothing would choose.
    """
    if trainer.fusion_fit == HELD_OUT and (model.fusion, trainer.joint_loss) != WITH_HELD_OUT:
        raise ConfigurationError(
            f"fusion_fit={HELD_OUT!r} needs fusion='logit' and joint_loss='separate', as it may give the retriever a "
            f"weight of 0, got {model.fusion!r} and {trainer.joint_loss!r}; take those or fusion_fit={TRAINING!r}"
        )
    if model.fusion_popularity and trainer.fusion_fit != HELD_OUT:
        raise ConfigurationError(
            f"fusion_popularity=True needs fusion_fit={HELD_OUT!r}, which chooses popularity's weight, got "
            f"{trainer.fusion_fit!r}; take that, with joint_loss='separate', or leave out fusion_popularity"
        )


def check_catalogue_loss(catalogue_loss: str, fusion: str) -> None:
    """Refuse `sampled` with a fusion of probabilities, each of which needs the whole catalogue.

    Raises:
        ConfigurationError: The two do not go together.
    """
    if catalogue_loss == "sampled" and fusion == "weighted":
        raise ConfigurationError(
            "catalogue_loss='sampled' needs a fusion that does not normalise over the whole catalogue, "
            "got 'weighted'; take fusion='logit' or catalogue_loss='full'"
        )


def check_averages(ema_decay: float, text_encoder: str) -> None:
    """Refuse averages of a text encoder, whose cache is of its weights.

    Raises:
        ConfigurationError: The two do not go together.
    """
    if ema_decay and text_encoder != NO_TEXT_ENCODER:
        raise ConfigurationError(
            f"ema_decay must be 0 with text_encoder={text_encoder!r}, got {ema_decay:g}: its cache holds the vectors "
            "of its weights, not of their averages; leave out one of the two"
        )


def resolve_catalogue_loss(trainer: TrainerConfig, model: ModelConfig, *, has_counts: bool) -> str:
    """What ``catalogue_loss`` stands for with a model: ``full`` or ``sampled``.

    Args:
        trainer: The settings of the trainer.
        model: The shape of the model.
        has_counts: Whether it is known how often each item is a target.

    Example:
        >>> models = [ModelConfig(num_items=num) for num in (30_000, 30_001)]
        >>> [resolve_catalogue_loss(TrainerConfig(), model, has_counts=True) for model in models]
        ['full', 'sampled']
    """
    if trainer.catalogue_loss != AUTO:
        return trainer.catalogue_loss
    allowed = trainer.sasrec_loss == "ce" and model.fusion != "weighted" and has_counts
    return "sampled" if allowed and model.num_items > LARGE_CATALOGUE else "full"


class ModelSettings(TypedDict, total=False):
    """The fields of `ModelConfig` that `UR4Rec` takes as keyword arguments, for type checkers."""

    sasrec_hidden_dim: int
    sasrec_num_blocks: int
    sasrec_num_heads: int
    sasrec_dropout: float
    sasrec_embedding_dropout: float | None
    sasrec_embedding_scale: bool
    sasrec_block: str
    sasrec_item_init: str
    text_embedding_dim: int
    text_encoder: str
    text_encoder_vocab: int
    text_encoder_layers: int
    text_encoder_heads: int
    text_encoder_tokens: int
    text_encoder_trains: str
    retriever_output_dim: int
    retriever_num_queries: int
    retriever_dropout: float
    retriever_temperature: float
    max_seq_len: int
    fusion: str
    cascade_size: int
    fusion_popularity: bool


class TrainerSettings(TypedDict, total=False):
    """The fields of `TrainerConfig`, all of which `JointTrainer` takes as keyword arguments, for type checkers."""

    sasrec_lr: float
    retriever_lr: float
    text_encoder_lr: float
    joint_lr_scale: float
    fusion_lr: float
    fusion_fit: str
    weight_decay: float
    clip_norm: float
    warmup: float
    lr_schedule: str
    warmup_steps: int
    sasrec_loss: str
    num_negatives: int
    catalogue_loss: str
    num_in_batch: int
    label_smoothing: float
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
    ema_decay: float
    length_groups: bool
    loss_delay: int
    max_nonfinite_losses: int
    bf16: bool
    compile: bool
    seed: int

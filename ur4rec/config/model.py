"""The shape of the model, the same in both backends. Validated once, when built."""

from dataclasses import dataclass

from alternator.checks import check_choice, check_integer, check_range, set_fields
from ur4rec.errors import ConfigurationError

FUSIONS = ("logit", "weighted", "rank", "cascade")
JOINT_LOSSES = ("separate", "fused")
SEQUENCE_LOSSES = ("ce", "sampled", "gbce", "bce", "bpr")
SCORERS = ("fused", "sasrec", "retriever")
FUSIONS_WITH_GRADIENTS = ("logit", "weighted")


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
    text_embedding_dim: int = 384
    """Width of the frozen item text vectors."""
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

    def __post_init__(self) -> None:
        for name, minimum in {**dict.fromkeys(_MODEL_COUNTS, 1), "num_items": 2, "num_users": 0}.items():
            set_fields(self, **{name: check_integer(name, getattr(self, name), minimum)})
        for name in ("sasrec_dropout", "retriever_dropout"):
            set_fields(self, **{name: check_range(name, getattr(self, name), 0, 1)})
        set_fields(
            self, retriever_temperature=check_range("retriever_temperature", self.retriever_temperature, 0.02, 10)
        )
        check_choice("fusion", self.fusion, FUSIONS)
        if self.sasrec_hidden_dim % self.sasrec_num_heads:
            raise ConfigurationError(
                f"sasrec_hidden_dim must be a multiple of sasrec_num_heads ({self.sasrec_num_heads}), "
                f"got {self.sasrec_hidden_dim}"
            )


_MODEL_COUNTS = (
    "sasrec_hidden_dim",
    "sasrec_num_blocks",
    "sasrec_num_heads",
    "text_embedding_dim",
    "retriever_output_dim",
    "retriever_num_queries",
    "max_seq_len",
    "cascade_size",
)

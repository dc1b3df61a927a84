"""The arrays that a model of a configuration has, by name, the same in both backends: what a file of weights must hold.

Settings and weights come from files that anybody may have written. They are compared here, name by name, before a model
of the size that the settings ask for is made: it is then never larger than what the files hold.
"""

from collections.abc import Iterator, Mapping

from ur4rec.config import LIGR, PLAIN_BLOCKS, ModelConfig, TrainerConfig
from ur4rec.errors import CheckpointError
from ur4rec.training.components import BANK_CURSOR, BANK_ITEMS, BANK_KEYS, COMPONENTS, LOG_VARIANCES

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
ITEM_EMBEDDING, ITEM_TEXTS = "sasrec.item_embedding.weight", "retriever.item_text_vectors"
ITEM_POPULARITY = "fusion.item_popularity"
"""The weights that have a row per item, and a last one for padding; the last of them where popularity is fused."""
ITEM_TOKENS, ENCODED_TEXTS = "text_encoder.tokens", "text_encoder.vectors"
"""With a text encoder, in place of the vectors: the tokens of each item's text, and its vector as last encoded."""
CACHED = "cached"
"""The array in the optimizer state with the vectors that a text encoder's next steps take from its cache, where they
are older than its weights: ``text_encoder.vectors/cached``."""
AVERAGE = "average"
"""The array in the optimizer state with the average of a weight, with ``ema_decay``: ``fusion.weights/average``."""
USER_TEXTS = "retriever.user_text_vectors"
"""The weights that have a row per user, and a last one for a user without a text."""
_MOMENTS = ("exp_avg", "exp_avg_sq", CACHED, AVERAGE)
_BUFFERS = (ITEM_TEXTS, ITEM_TOKENS, ENCODED_TEXTS, USER_TEXTS, ITEM_POPULARITY)
"""What no optimizer changes."""


def weight_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    """Name and shape of each parameter and buffer, one after the other: there may be many.

    Example:
        >>> next(weight_shapes(ModelConfig(num_items=10, sasrec_hidden_dim=8)))
        ('sasrec.item_embedding.weight', (11, 8))
    """
    width, positions = config.sasrec_hidden_dim, config.max_seq_len
    yield "sasrec.item_embedding.weight", (config.num_items + 1, width)
    yield "sasrec.position_embedding.weight", (positions, width)
    yield from _norm("sasrec.final_norm", width)
    for block in range(config.sasrec_num_blocks):
        yield from _block(f"sasrec.blocks.{block}", width, config.sasrec_inner_dim)
        yield from _gates(f"sasrec.blocks.{block}", config)
    texts, width, queries = config.text_embedding_dim, config.retriever_output_dim, config.retriever_num_queries
    if config.has_text_encoder:
        yield from _text_encoder(config)
    else:
        yield ITEM_TEXTS, (config.num_items + 1, texts)
    if config.num_users:
        yield USER_TEXTS, (config.num_users + 1, texts)
        yield "retriever.user_bias", (queries,)
    for name in ("item", "key", "value"):
        yield from _linear(f"retriever.{name}_projection", texts, width)
    yield from _linear("retriever.preference_projection", width, width)
    yield "retriever.queries.weight", (queries, width)
    yield "retriever.recency.weight", (queries, positions)
    if config.num_fusion_weights:
        yield "fusion.weights", (config.num_fusion_weights,)
    if config.fusion_popularity:
        yield ITEM_POPULARITY, (config.num_items + 1,)


def _text_encoder(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    width, rank = config.text_embedding_dim, config.lora_rank
    yield ITEM_TOKENS, (config.num_items + 1, config.text_encoder_tokens)
    yield ENCODED_TEXTS, (config.num_items + 1, width)
    yield "text_encoder.word_embedding.weight", (config.text_encoder_vocab, width)
    yield "text_encoder.position_embedding.weight", (config.text_encoder_tokens, width)
    yield from _norm("text_encoder.embedding_norm", width)
    for block in range(config.text_encoder_layers):
        yield from _block(f"text_encoder.blocks.{block}", width, 4 * width)
        for part in ("query", "value") if rank else ():
            yield f"text_encoder.blocks.{block}.attention.{part}_adapter.down.weight", (rank, width)
            yield f"text_encoder.blocks.{block}.attention.{part}_adapter.up.weight", (width, rank)


def _block(name: str, width: int, inner: int) -> Iterator[tuple[str, Shape]]:
    for part in ("query", "key", "value", "output"):
        yield from _linear(f"{name}.attention.{part}", width, width)
    yield from _linear(f"{name}.feedforward.inner", width, inner)
    yield from _linear(f"{name}.feedforward.outer", inner, width)
    for part in ("attention_norm", "feedforward_norm"):
        yield from _norm(f"{name}.{part}", width)


def _gates(name: str, config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    width = config.sasrec_hidden_dim
    if config.sasrec_block not in PLAIN_BLOCKS:
        yield from _linear(f"{name}.feedforward.gate", width, config.sasrec_inner_dim)
    if config.sasrec_block == LIGR:
        yield from _linear(f"{name}.attention_gate", width, width)
        yield from _linear(f"{name}.feedforward_gate", width, width)


def _linear(name: str, inputs: int, outputs: int) -> tuple[tuple[str, Shape], ...]:
    return (f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))


def _norm(name: str, width: int) -> tuple[tuple[str, Shape], ...]:
    return (f"{name}.weight", (width,)), (f"{name}.bias", (width,))


def check_weights(config: ModelConfig, found: Shapes) -> None:
    """Refuse weights of another model; the work is bounded by what is found, not by the configuration.

    Raises:
        CheckpointError: A name is missing or unknown, or a shape differs.
    """
    known = set()
    for name, shape in weight_shapes(config):
        _check(name, shape, found)
        known.add(name)
    if unknown := sorted(found.keys() - known):
        raise CheckpointError(f"the weights must be of the same model, but {unknown[0]!r} is not in it")


def check_moments(config: ModelConfig, trainer: TrainerConfig, weights: Shapes, found: Shapes) -> None:
    """Refuse the optimizer state of other weights, and what the strategies do not keep.

    Raises:
        CheckpointError: A shape differs, or what a strategy keeps or the average of a weight is missing.
    """
    for name, shape in found.items():
        weight, _, moment = name.rpartition("/")
        if weight in weights and shape != (weights[weight] if moment in _MOMENTS else ()):
            raise CheckpointError(f"{name} must have the shape of its weight, {weights[weight]}, got {shape}")
    size = trainer.memory_bank_size
    kept = {BANK_ITEMS: (size,), BANK_KEYS: (size, config.retriever_output_dim), BANK_CURSOR: ()}
    if trainer.use_memory_bank:
        for name, shape in kept.items():
            _check(name, shape, found)
    if trainer.use_uncertainty_weighting:
        _check(LOG_VARIANCES, (len(COMPONENTS),), found)
    for name in weights.keys() - {*_BUFFERS} if trainer.ema_decay else ():
        _check(f"{name}/{AVERAGE}", weights[name], found)


def _check(name: str, shape: Shape, found: Shapes) -> None:
    if name not in found:
        raise CheckpointError(f"the weights must be of the same model, but they have no {name!r}")
    if found[name] != shape:
        raise CheckpointError(f"{name} must have the shape {shape}, got {found[name]}")

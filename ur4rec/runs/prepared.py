"""What a run is made of before any framework is loaded: data, split, text vectors and batches."""

import logging
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ur4rec.config import TRANSFORMER, ModelConfig
from ur4rec.data import Interactions, Split, Targets, make_split
from ur4rec.data.batches import EvaluationBatch, EvaluationBatches, TrainBatches
from ur4rec.data.describe import describe_split
from ur4rec.data.kept import hash_contents, read_interactions, write_interactions, write_reference
from ur4rec.data.sources import NAMES, load_dataset
from ur4rec.data.splits import check_trainable
from ur4rec.errors import ConfigurationError, DataError, without_options
from ur4rec.options import DataOptions
from ur4rec.runs.config import RunConfig
from ur4rec.runs.directory import RunDirectory
from ur4rec.runs.sizes import COVERED, Counts
from ur4rec.text.encoders import TextEncoder, encode_users, find_model_folder, fit_encoder
from ur4rec.text.leakage import LeakageTest, describe_leakage, find_leakage, refuse_leakage
from ur4rec.text.pretrained import read_shape, read_weights
from ur4rec.text.tokens import ItemTokens, fit_tokens, read_tokens
from ur4rec.text.users import hash_file, read_user_texts
from ur4rec.training.backend import BACKENDS, load_backend
from ur4rec.training.memory import enough_memory
from ur4rec.training.slices import DEFAULT_MEMORY, WHOLE, count_rows, parse_memory

logger = logging.getLogger(__name__)

MAX_ROWS = 512
"""The rows of an evaluation batch at most; there are fewer where the catalogue is large or the targets are few."""
PROBE_ROWS = 256
"""The validation targets at most on which a schedule may measure."""
FUSION_ROWS, FUSION_SCORES = (1024, 8192), 2**29
"""The validation targets by which a fusion weight is chosen: the most, but of a large catalogue as few as have this
number of scores, and no less than the least."""
DATA, ENCODER, TOKENIZER = "data", "encoder.safetensors", "tokenizer.json"
"""Where a run keeps its data, and in there what encodes the texts of items that come later, or gives their tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedData:
    """Data, split, text vectors and batches of one run."""

    interactions: Interactions
    """The dataset."""
    split: Split
    """Training sequences, validation and test targets."""
    item_text_vectors_IT: NDArray[np.float32] | None
    """One unit vector per item; None where a text encoder of the model gives them."""
    model: ModelConfig
    """The shape of the model that fits the data."""
    train: TrainBatches
    """Training batches."""
    encoder: TextEncoder | ItemTokens
    """What gave the item text vectors, and gives those of items that come later; with a text encoder in the model, the
    tokens of the items' texts and what gives those of later ones."""
    encoder_weights: Mapping[str, NDArray[np.float32]] | None = None
    """The first weights of the model's text encoder, where it is pretrained."""
    user_text_vectors_UT: NDArray[np.float32] | None = None
    """One unit vector per user, zeros for a user without a text; None is a run without user texts."""
    leakage: tuple[LeakageTest, ...] = ()
    """Whether the user texts name what is held out."""
    memory: int = DEFAULT_MEMORY
    """Bytes that scores may take at once."""

    def model_arguments(self) -> dict[str, Any]:
        """The arguments of `UR4Rec` but for its seed."""
        settings = {name: value for name, value in asdict(self.model).items() if name != "num_users"}
        settings["item_counts"] = self.train.item_counts
        if isinstance(self.encoder, ItemTokens):
            return {**settings, "item_tokens": self.encoder.ids_IS, "encoder_weights": self.encoder_weights}
        users_UT = self.user_text_vectors_UT
        return {**settings, "item_text_vectors": self.item_text_vectors_IT, "user_text_vectors": users_UT}

    @property
    def counts(self) -> Counts:
        """What decides the settings that a configuration leaves to the data."""
        return counts_of(self.split)

    @property
    def refresh(self) -> float | None:
        """How many times the texts of a batch, at most, all texts are; None for a model without a text encoder."""
        num_items, batch_items = self.split.num_items, self.train.batch_size * self.model.max_seq_len
        return num_items / min(num_items, batch_items) if self.model.has_text_encoder else None

    def evaluation(self, targets: Targets) -> EvaluationBatches:
        """Batches of targets."""
        return evaluation_batches(targets, self.model, self.memory)

    def fusion_batches(self) -> EvaluationBatches:
        """Validation targets, the same in every run, by which fusion weights may be chosen: see `FUSION_ROWS`."""
        least, most = FUSION_ROWS
        count = min(max(FUSION_SCORES // self.split.num_items, least), most)
        return self.evaluation(self.split.validation.sample(count))

    def probe(self) -> EvaluationBatch:
        """Validation targets of `PROBE_ROWS` users, the same in every run, on which a schedule may measure."""
        targets = self.split.validation.sample(PROBE_ROWS)
        (batch,) = EvaluationBatches(
            targets, self.split.num_items, max_seq_len=self.model.max_seq_len, batch_size=len(targets)
        )
        return batch


def prepare(config: RunConfig, *, directory: Path | None = None, cache_dir: Path | None = None) -> PreparedData:
    """Load the data, split it, encode the texts.

    Args:
        config: The run.
        directory: Where to look for the dataset's files before anything is downloaded.
        cache_dir: Where datasets and text vectors are cached.

    Raises:
        UR4RecError: The data cannot be had or is malformed, or a setting does not fit it.
    """
    return prepare_data(config, load_interactions(config, directory, cache_dir), cache_dir=cache_dir)


def load_interactions(config: RunConfig, directory: Path | None = None, cache_dir: Path | None = None) -> Interactions:
    """The dataset of a run; see `prepare`."""
    return load_dataset(
        config.dataset,
        cache_dir=cache_dir,
        directory=directory,
        min_item_interactions=config.min_item_interactions,
        options=DataOptions.from_json(config.data),
    )


def keep_data(directory: RunDirectory, prepared: PreparedData) -> None:
    """Write what a run keeps of its data, unless it has it already: it never changes.

    Of prepared data that is where it is and its hash, else a copy.
    """
    folder = directory.path / DATA
    if not folder.is_dir():
        encoder = prepared.encoder
        kept = (
            {TOKENIZER: encoder.tokenizer.encode()}
            if isinstance(encoder, ItemTokens)
            else {ENCODER: encoder.to_bytes()}
        )
        interactions, extra = prepared.interactions, kept
        if interactions.prepared is not None:
            write_reference(folder, interactions.prepared, extra)
        else:
            write_interactions(folder, interactions, extra)


def read_data(directory: RunDirectory, config: RunConfig, data_dir: Path | None = None) -> Interactions:
    """The data of a run: what it has kept; of a run that keeps none, the dataset that it names.

    Args:
        directory: The run.
        config: Its configuration.
        data_dir: Where to look for the files of a dataset that was not kept before anything is downloaded.

    Raises:
        UR4RecError: What was kept is damaged or another run's, or a dataset cannot be had.
    """
    folder = directory.path / DATA
    if not folder.is_dir():
        with without_options("restore the data as it was when the run was trained"):
            return load_interactions(config, data_dir)
    interactions = read_interactions(folder)
    directory.check_fact("interactions_hash", interactions.hash)
    directory.check_fact("data_hash", hash_contents(interactions))
    return interactions


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with paths that hold from any working directory."""
    changed: dict[str, Any] = {}
    for name, known in (("dataset", NAMES), ("encoder", ("auto", "tfidf"))):
        path = os.path.expanduser(getattr(config, name))
        if path not in known and os.path.exists(path):  # of a name that can be no path it says no
            changed[name] = os.path.realpath(path)
    return replace(config, **changed)


def split_of(config: RunConfig, interactions: Interactions) -> Split:
    """The split of a run: what it is trained on, evaluated on, and whether it recommends what a user had before.

    Raises:
        DataError: The data does not go with the run's ``split`` or ``repeats``.
    """
    return make_split(interactions, config.split, config.repeats)


def counts_of(split: Split) -> Counts:
    """The counts of the training interactions of a split.

    Example:
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> counts_of(leave_one_out(synthetic(num_users=50, num_items=60)))
        Counts(num_interactions=917, num_items=60, num_users=50, typical_length=27)
    """
    lengths = split.train.lengths
    lengths = lengths[lengths >= 2]
    distinct, users = np.unique(lengths, return_counts=True)
    return Counts(
        num_interactions=max(int(lengths.sum()), 1),
        num_items=split.num_items,
        num_users=max(len(lengths), 1),
        typical_length=int(np.quantile(lengths, COVERED, method="higher")) if len(lengths) else 1,
        lengths=dict(zip(distinct.tolist(), users.tolist(), strict=True)),
    )


def evaluation_batches(targets: Targets, model: ModelConfig, memory: int = DEFAULT_MEMORY) -> EvaluationBatches:
    """Batches of targets for a model, of at most `MAX_ROWS` rows, and fewer where scores would exceed the memory.

    Example:
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> targets = leave_one_out(synthetic(num_users=1000, num_items=50)).test
        >>> [evaluation_batches(targets, ModelConfig(num_items=num)).batch_size for num in (50, 3000, 10**9)]
        [500, 500, 250]
    """
    num_rows = count_rows(model, len(targets), memory, max_rows=MAX_ROWS, blocks=WHOLE)
    return EvaluationBatches(targets, model.num_items, max_seq_len=model.max_seq_len, batch_size=num_rows)


def prepare_data(config: RunConfig, interactions: Interactions, *, cache_dir: Path | None = None) -> PreparedData:
    """Split loaded data and encode its texts.

    Args:
        config: The run; what it leaves to the data is decided by its counts, here and in `TrainingRun` alike.
        interactions: The data, in place of the dataset that the run names.
        cache_dir: Where text vectors are cached.

    Raises:
        UR4RecError: A setting does not fit the data.
    """
    with enough_memory(f"{interactions.num_items} text vectors and the batches", "text_embedding_dim or max_seq_len"):
        return _prepare_data(config, interactions, cache_dir)


def _prepare_data(config: RunConfig, interactions: Interactions, cache_dir: Path | None) -> PreparedData:
    split = split_of(config, interactions)
    check_trainable(split, interactions.name)
    config, _ = config.settled(counts_of(split))
    model = config.model_config(interactions.num_items)
    vectors_IT: NDArray[np.float32] | None = None
    encoder: TextEncoder | ItemTokens
    weights = None
    if model.has_text_encoder:
        model, encoder, weights = _prepare_text_encoder(config, model, interactions.texts)
    else:
        vectors_IT, encoder = fit_encoder(
            interactions.texts, encoder=config.encoder, dim=model.text_embedding_dim, cache_dir=cache_dir
        )
    leakage: tuple[LeakageTest, ...] = ()
    users_UT = None
    if config.user_texts is not None:
        texts = _read_user_texts(config, interactions)
        leakage = _check_leakage(config, texts, interactions, split)
        users_UT = encode_users(
            *(texts, interactions.texts), encoder=config.encoder, dim=model.text_embedding_dim, cache_dir=cache_dir
        )
    train = TrainBatches(
        split.train,
        split.num_items,
        max_seq_len=model.max_seq_len,
        batch_size=config.batch_size,
        seed=config.seed,
        shifted=True,
    )
    return PreparedData(
        interactions=interactions,
        split=split,
        item_text_vectors_IT=vectors_IT,
        model=model,
        train=train,
        encoder=encoder,
        encoder_weights=weights,
        user_text_vectors_UT=users_UT,
        leakage=leakage,
        memory=parse_memory(config.memory),
    )


def _prepare_text_encoder(
    config: RunConfig, model: ModelConfig, texts: Sequence[str]
) -> tuple[ModelConfig, ItemTokens, dict[str, NDArray[np.float32]] | None]:
    """The model with the sizes of its text encoder, the tokens of its items, and the encoder's first weights."""
    if config.user_texts is not None:
        raise ConfigurationError(
            f"user_texts must be left out with text_encoder={model.text_encoder!r}, got {config.user_texts!r}: their "
            "vectors would stay where the encoder was"
        )
    if model.text_encoder == TRANSFORMER:
        tokens = fit_tokens(texts, max_tokens=model.text_encoder_tokens, max_vocab=model.text_encoder_vocab)
        sizes = {"text_encoder_vocab": tokens.vocab_size, "text_encoder_tokens": tokens.ids_IS.shape[1]}
        return replace(model, **sizes), tokens, None
    folder = find_model_folder(config.encoder)
    shape = read_shape(folder)
    tokens = read_tokens(folder, texts, max_tokens=min(model.text_encoder_tokens, shape["text_encoder_tokens"]))
    num_tokens = tokens.ids_IS.shape[1]
    return (
        replace(model, **{**shape, "text_encoder_tokens": num_tokens}),
        tokens,
        read_weights(folder, shape, num_tokens),
    )


def _read_user_texts(config: RunConfig, interactions: Interactions) -> list[str]:
    """The text of each user, from the file that the run began with."""
    assert config.user_texts is not None
    path = Path(config.user_texts)
    if config.user_texts_hash not in (None, found := hash_file(path)):
        raise DataError(
            f"the user texts must be those that the run began with (SHA-256 {config.user_texts_hash}), but {path} "
            f"has {found}; restore the file"
        )
    return read_user_texts(path, interactions.user_ids)


def _check_leakage(
    config: RunConfig, texts: list[str], interactions: Interactions, split: Split
) -> tuple[LeakageTest, ...]:
    tests = tuple(find_leakage(texts, interactions, split))
    if not config.allow_leakage:
        refuse_leakage(str(config.user_texts), tests)
    for test in tests:
        if test.leaks:
            logger.warning("the user texts leak, metrics will be too good: they name %s", describe_leakage(test))
    return tests


def run_facts(prepared: PreparedData, backend: str) -> dict[str, Any]:
    """Data, split, versions and the number of threads of a run."""
    interactions, split = prepared.interactions, prepared.split
    users_UT = prepared.user_text_vectors_UT
    leakage = {test.targets: {**test._asdict(), "leaks": test.leaks} for test in prepared.leakage}
    texts = {} if users_UT is None else {"user_texts": {"num_users": int(users_UT.any(1).sum()), "leakage": leakage}}
    return {
        "dataset": interactions.name,
        "source": interactions.source,
        "interactions_hash": interactions.hash,
        **describe_split(split),
        "num_users": interactions.num_users,
        "num_items": interactions.num_items,
        "num_interactions": len(interactions),
        **texts,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": load_backend(backend).count_threads(),
        "versions": {
            package: metadata.version(package) for package in ("adaptive-alternator", "numpy", *BACKENDS[backend][1])
        },
    }

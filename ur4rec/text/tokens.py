"""Texts as tokens, for a text encoder that can train, as BERT-class encoders read them.

The tokenizers library does the work, without any framework. A text is ``[CLS] tokens [SEP]``, filled up with padding.

Shapes: I items, N texts, S tokens of a text.
"""

import importlib.util
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ur4rec.config import ModelConfig
from ur4rec.errors import ConfigurationError, DataError, EncoderError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING = 0
"""The number of the token ``[PAD]``."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True, eq=False)
class ItemTokens:
    """The texts of a catalogue as tokens, and what turns later texts into tokens of the same numbers."""

    ids_IS: NDArray[np.int32]
    """The tokens of each text; S is the longest text's number of them, within the limit."""
    vocab_size: int
    """The number of tokens that there are."""
    tokenizer: str
    """The tokenizer, as the JSON of the tokenizers library."""


def fit_tokens(texts: Sequence[str], *, max_tokens: int, max_vocab: int) -> ItemTokens:
    """Learn a vocabulary from texts by byte-pair encoding, lower-cased and without accents, and encode them.

    Equal texts give equal tokens, in every process: so a run can be repeated. (The library's trainer of WordPiece,
    which BERT has, chooses at random among pairs that are equally frequent.)

    Args:
        texts: The text of each item.
        max_tokens: The number of tokens of a text at most, with ``[CLS]`` and ``[SEP]``.
        max_vocab: The number of tokens of the vocabulary at most.

    Raises:
        ConfigurationError: The tokenizers library is missing.
        DataError: There are no texts.

    Example:
        >>> tokens = fit_tokens(["a fox", "a red fox", ""], max_tokens=8, max_vocab=50)
        >>> tokens.ids_IS.shape, (tokens.ids_IS != PADDING).sum(axis=1).tolist()
        ((3, 5), [4, 5, 2])
    """
    if not texts:
        raise DataError("tokens need at least one text, got none")
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(map(tokenizer.normalizer.normalize_str, texts), max_vocab - len(_SPECIAL))
    trainer = library.trainers.BpeTrainer(
        vocab_size=max_vocab,
        special_tokens=list(_SPECIAL),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = library.processors.BertProcessing(*ends)
    return tokens_of(tokenizer, texts, max_tokens)


def read_tokens(folder: Path, texts: Sequence[str], *, max_tokens: int) -> ItemTokens:
    """Encode texts with the tokenizer of a sentence encoder.

    Args:
        folder: The sentence encoder, with a ``tokenizer.json``.
        texts: The text of each item.
        max_tokens: As for `fit_tokens`.

    Raises:
        ConfigurationError: The tokenizers library is missing.
        EncoderError: The file is missing, is no tokenizer, or its padding is not token 0.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = read_tokenizer(path.read_text("utf-8"))
    except OSError as error:
        raise EncoderError(f"a text encoder must have a tokenizer.json, {folder} has none that can be read") from error
    if tokenizer.token_to_id("[PAD]") != PADDING:
        raise EncoderError(
            f"the padding of a text encoder must be its token {PADDING}, {path} has {tokenizer.token_to_id('[PAD]')}; "
            "choose a BERT-class encoder"
        )
    return tokens_of(tokenizer, texts, max_tokens)


def encode_tokens(path: Path, texts: Sequence[str], num_tokens: int) -> NDArray[np.int32]:
    """Further texts as tokens, (N, S), with the tokenizer of a file; longer ones are cut off.

    Args:
        path: The tokenizer.
        texts: The texts.
        num_tokens: S.

    Raises:
        DataError: The file cannot be read.
        EncoderError: It is no tokenizer.

    Example:
        >>> import tempfile
        >>> tokens = fit_tokens(["a red fox", "a blue hen"], max_tokens=8, max_vocab=50)
        >>> with tempfile.TemporaryDirectory() as scratch:
        ...     _ = (path := Path(scratch) / "tokenizer.json").write_text(tokens.tokenizer)
        ...     bool((encode_tokens(path, ["a red fox"], tokens.ids_IS.shape[1]) == tokens.ids_IS[:1]).all())
        True
    """
    try:
        content = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}); restore it") from error
    return _encode(read_tokenizer(content), texts, num_tokens)


def tokens_of(tokenizer: "Tokenizer", texts: Sequence[str], max_tokens: int) -> ItemTokens:
    """Texts as tokens, as wide as the longest text within the limit."""
    ids_IS = _encode(tokenizer, texts, max_tokens)
    width = max(int((ids_IS != PADDING).sum(axis=1).max()), 2)
    return ItemTokens(ids_IS[:, :width], tokenizer.get_vocab_size(), tokenizer.to_str())


def read_tokenizer(content: str) -> "Tokenizer":
    """The tokenizer of its JSON.

    Raises:
        ConfigurationError: The tokenizers library is missing.
        EncoderError: It is not one.
    """
    library = _library()
    try:
        tokenizer: Tokenizer = library.Tokenizer.from_str(content)
    except Exception as error:  # the library raises nothing narrower
        raise EncoderError(
            f"a tokenizer must be JSON of the tokenizers library, got something else ({error})"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def check_tokens(tokens: ArrayLike, model: ModelConfig, *, count: int) -> NDArray[np.int32]:
    """Tokens of items' texts as an array of int32, one row each.

    Args:
        tokens: The tokens.
        model: The shape of the model that reads them.
        count: The number of rows that there must be.

    Raises:
        ConfigurationError: Their shape is another, or one is not in the vocabulary.

    Example:
        >>> model = ModelConfig(num_items=2, text_encoder="transformer", text_encoder_tokens=3, text_encoder_vocab=9)
        >>> check_tokens([[2, 8, 3], [2, 3, 0]], model, count=2).dtype
        dtype('int32')
    """
    given, expected = np.asarray(tokens), (count, model.text_encoder_tokens)
    if given.shape != expected or not np.issubdtype(given.dtype, np.integer):
        raise ConfigurationError(
            f"item_tokens must be integers of the shape (num_items, text_encoder_tokens) = {expected}, got "
            f"{given.dtype} of {given.shape}; give tokens of these items or set text_encoder_tokens"
        )
    if given.size and not 0 <= int(given.min()) <= int(given.max()) < model.text_encoder_vocab:
        raise ConfigurationError(
            f"item_tokens must be from 0 to text_encoder_vocab - 1 = {model.text_encoder_vocab - 1}, got "
            f"{int(given.min())} to {int(given.max())}; set text_encoder_vocab"
        )
    return given.astype(np.int32)


def _alphabet(texts: Iterable[str], size: int) -> list[str]:
    """The most frequent characters but for spaces; of equally frequent ones the first in the order of code points."""
    counts = Counter(character for text in texts for character in text if not character.isspace())
    return sorted(counts, key=lambda character: (-counts[character], character))[: max(size, 0)]


def _encode(tokenizer: "Tokenizer", texts: Sequence[str], max_tokens: int) -> NDArray[np.int32]:
    tokenizer.enable_truncation(max_tokens)
    tokenizer.enable_padding(length=max_tokens, pad_id=PADDING)
    found = tokenizer.encode_batch_fast(list(texts))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.array([each.ids for each in found], np.int32).reshape(len(texts), max_tokens)


def _library() -> Any:
    """The tokenizers library, which few runs need."""
    if importlib.util.find_spec("tokenizers") is None:
        raise ConfigurationError(
            "a text encoder that trains needs tokenizers, which is not installed; run: "
            "pip install 'adaptive-alternator[encoder]'"
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns in every process that forks later
    import tokenizers

    return tokenizers

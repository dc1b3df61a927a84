"""Texts as tokens for a text encoder: of a vocabulary of one's own, and that of a sentence encoder."""

import json

import numpy as np
import pytest

from ur4rec.config import ModelConfig
from ur4rec.errors import ConfigurationError, DataError, EncoderError
from ur4rec.text.tokens import PADDING, check_tokens, encode_tokens, fit_tokens, read_tokens

TEXTS = ["A red fox", "a Blue hén", "the red hen and the blue fox", ""]


@pytest.fixture
def folder(tmp_path):
    """A folder with the tokenizer of a sentence encoder, which cuts off and fills up in its own way."""
    fitted = json.loads(fit_tokens(TEXTS, max_tokens=12, max_vocab=60).tokenizer)
    fitted["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fitted))
    return tmp_path


def test_texts_have_ends_and_are_filled_up_to_the_longest():
    tokens = fit_tokens(TEXTS, max_tokens=12, max_vocab=60)
    lengths = (tokens.ids_IS != PADDING).sum(1)
    assert tokens.ids_IS.dtype == np.int32
    assert tokens.ids_IS.shape == (4, lengths.max())
    assert lengths[3] == 2
    assert len({row[0] for row in tokens.ids_IS.tolist()}) == 1  # [CLS]
    ends = {row[length - 1] for row, length in zip(tokens.ids_IS.tolist(), lengths, strict=True)}
    assert len(ends) == 1  # [SEP]
    assert tokens.ids_IS.max() < tokens.vocab_size <= 60


@pytest.mark.parametrize("max_vocab", [8, 20, 30, 500])
def test_equal_texts_have_equal_tokens(max_vocab):
    texts = [f"{first}{second}{first}" for first in "abcdefgh" for second in "uvwxyz"]  # no pair is more frequent
    found = [fit_tokens(texts, max_tokens=12, max_vocab=max_vocab) for _ in range(5)]
    assert len({tokens.tokenizer for tokens in found}) == 1
    assert len({tokens.ids_IS.tobytes() for tokens in found}) == 1
    assert found[0].vocab_size <= max_vocab
    assert found[0].ids_IS.max() < found[0].vocab_size


def test_case_and_accents_do_not_matter_and_long_texts_are_cut_off():
    tokens = fit_tokens(["a hen", "A HÉN"], max_tokens=12, max_vocab=60)
    np.testing.assert_array_equal(tokens.ids_IS[0], tokens.ids_IS[1])
    assert fit_tokens(TEXTS, max_tokens=4, max_vocab=60).ids_IS.shape == (4, 4)


def test_a_kept_tokenizer_gives_later_texts_the_same_tokens(tmp_path):
    tokens = fit_tokens(TEXTS, max_tokens=12, max_vocab=60)
    (tmp_path / "tokenizer.json").write_text(tokens.tokenizer)
    again_IS = encode_tokens(tmp_path / "tokenizer.json", TEXTS, tokens.ids_IS.shape[1])
    np.testing.assert_array_equal(again_IS, tokens.ids_IS)
    assert encode_tokens(tmp_path / "tokenizer.json", [], 5).shape == (0, 5)


def test_the_tokenizer_of_a_sentence_encoder_is_cut_off_where_the_model_says(folder):
    tokens = read_tokens(folder, TEXTS, max_tokens=12)
    np.testing.assert_array_equal(tokens.ids_IS, fit_tokens(TEXTS, max_tokens=12, max_vocab=60).ids_IS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a text encoder must have a tokenizer.json"),
        ("{}", "a tokenizer must be JSON of the tokenizers library"),
        ("nothing", "a tokenizer must be JSON of the tokenizers library"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(EncoderError, match=message):
        read_tokens(tmp_path, TEXTS, max_tokens=8)


def test_another_padding_is_refused(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("[PAD]", "[END]"))
    with pytest.raises(EncoderError, match="the padding of a text encoder must be its token 0"):
        read_tokens(folder, TEXTS, max_tokens=8)


def test_a_kept_tokenizer_that_is_gone_or_damaged_is_named(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer.json cannot be read \(FileNotFoundError\); restore it"):
        encode_tokens(tmp_path / "tokenizer.json", TEXTS, 8)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        encode_tokens(tmp_path / "tokenizer.json", TEXTS, 8)


def test_no_texts_are_refused():
    with pytest.raises(DataError, match="tokens need at least one text, got none"):
        fit_tokens([], max_tokens=8, max_vocab=20)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("ur4rec.text.tokens.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'adaptive-alternator\[encoder\]'"):
        fit_tokens(TEXTS, max_tokens=8, max_vocab=20)


@pytest.mark.parametrize("tokens", [[[1, 2]], [[1.0, 2, 3]], [1, 2, 3], [[1, 2, 9]], [[1, 2, -1]], [["a", "b", "c"]]])
def test_tokens_that_do_not_fit_the_model_are_refused(tokens):
    model = ModelConfig(num_items=2, text_encoder="transformer", text_encoder_tokens=3, text_encoder_vocab=9)
    with pytest.raises(ConfigurationError, match="item_tokens must be"):
        check_tokens(tokens, model, count=1)

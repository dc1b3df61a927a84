"""Code in a folder with a text encoder is never run: not with any version of sentence-transformers, not without it.

The stand-in loads what sentence-transformers 3 to 5 load of a local folder: the Python files that modules.json names.
Where sentence-transformers is installed, the same folders are given to it too.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from ur4rec.errors import EncoderError
from ur4rec.text.encoders import encode_items
from ur4rec.text.model_folder import check_model_folder

TEXTS = ["red fox", "blue whale"]
OWN = "sentence_transformers.models"
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{OWN}.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": f"{OWN}.Dense"},
]
CODE = """
import pathlib
pathlib.Path({marker!r}).write_text("code of the folder has run")

class Evil:
    def __init__(self, *args, **kwargs): ...
    @classmethod
    def load(cls, *args, **kwargs):
        return cls()
"""
STAND_IN = """
import importlib.util, json, pathlib, sys
import numpy as np

class SentenceTransformer:
    def __init__(self, model, **options):
        for module in json.loads((pathlib.Path(model) / "modules.json").read_text()):
            file = pathlib.Path(model) / (module["type"].split(".")[0] + ".py")
            if file.exists():
                spec = importlib.util.spec_from_file_location("local", file)
                spec.loader.exec_module(importlib.util.module_from_spec(spec))

    def encode(self, texts, **options):
        return np.ones((len(texts), 4))
"""


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """A folder of the usual files, which may be loaded."""
    folder = tmp_path / "run" / "model"
    write(folder / "modules.json", MODULES)
    write(folder / "config.json", {"model_type": "bert", "auto_map": {}})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False, "model_args": {}})
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write(folder / "2_Dense" / "config.json", {"activation_function": "torch.nn.modules.activation.Tanh"})
    write(folder / "model.safetensors.index.json", {"weight_map": {"w": "model-1.safetensors"}})
    write(folder / "tokenizer.json", "[" * 100)
    for name in ("model.safetensors", "vocab.txt", "README.md", ".gitattributes"):
        write(folder / name, "")
    return folder


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    write(tmp_path / "packages" / "sentence_transformers" / "__init__.py", STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))


def with_code(folder: Path) -> Path:
    """A module of the folder's own; returns the file that appears when it runs."""
    marker = folder.parent.parent / "marker"
    write(folder / "evil.py", CODE.format(marker=str(marker)))
    write(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}])
    return marker


def test_the_stand_in_runs_code_of_a_folder(folder, stand_in, monkeypatch, tmp_path):
    marker = with_code(folder)
    monkeypatch.setattr("ur4rec.text.encoders.check_model_folder", lambda folder: None)
    encode_items(TEXTS, encoder=str(folder), dim=4, cache_dir=tmp_path / "cache")
    assert marker.exists()


def test_code_of_a_folder_is_not_run(folder, stand_in, tmp_path):
    marker = with_code(folder)
    with pytest.raises(EncoderError, match=r"no code and no pickles, got .*evil\.py"):
        encode_items(TEXTS, encoder=str(folder), dim=4, cache_dir=tmp_path / "cache")
    (folder / "evil.py").rename(folder / "evil.txt")
    with pytest.raises(
        EncoderError, match=r"must not choose what code runs, .*modules\.json has a module of type 'evil"
    ):
        encode_items(TEXTS, encoder=str(folder), dim=4, cache_dir=tmp_path / "cache")
    assert not marker.exists()


def test_code_of_a_folder_is_not_run_without_the_stand_in(folder, tmp_path):
    """With sentence-transformers as it is installed, or without it: the answer is the same."""
    marker = with_code(folder)
    with pytest.raises(EncoderError, match="no code and no pickles"):
        encode_items(TEXTS, encoder=str(folder), dim=4, cache_dir=tmp_path / "cache")
    assert not marker.exists()


def test_a_folder_of_the_usual_files_is_encoded_with(folder, stand_in, tmp_path):
    vectors = encode_items(TEXTS, encoder=str(folder), dim=4, cache_dir=tmp_path / "cache")
    np.testing.assert_allclose(vectors, 0.5)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("evil.pyc", "", "no code"),
        ("native.so", "", "no code"),
        ("pytorch_model.bin", "", "no pickles"),
        ("1_Pooling/vocab.pkl", "", "no pickles"),
        ("adapter_config.json", {"auto_mapping": {"parent_library": "evil"}}, "is an adapter of another model"),
        ("config.json", {"auto_map": {"AutoModel": "other/repository--evil.Model"}}, "sets auto_map"),
        ("config.json", {"text_config": [{"auto_map": {"AutoModel": "evil.Model"}}]}, "sets auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "sets auto_map"),
        ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}}, "sets model_args"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "../other"}, "sets tokenizer_name_or_path"),
        ("2_Dense/config.json", {"activation_function": "os.abort"}, "activation_function='os.abort'"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.module.torch.hub.load"}, "not of torch.nn"),
        ("2_Dense/config.json", {"activation_function": ["x"]}, "not of torch.nn"),
        ("model.safetensors.index.json", {"weight_map": {"w": "vocab.txt"}}, "weights that are not safetensors"),
        ("model.safetensors.index.json", {"weight_map": {"w": "../../x.safetensors"}}, "weights that are not"),
        ("model.safetensors.index.json", {"weight_map": ["w"]}, "weights that are not"),
        ("modules.json", [{"path": "", "type": "os.path"}], "type 'os.path'"),
        ("modules.json", [{"path": "", "type": "sentence_transformers.util.torch"}], "has a module of type"),
        ("modules.json", [{"path": "", "type": f"{OWN}.WordEmbeddings"}], "has a module of type"),
        ("modules.json", [{"path": "../../evil", "type": f"{OWN}.Pooling"}], r"module in '\.\./\.\./evil'"),
        ("modules.json", [{"path": "/evil", "type": f"{OWN}.Pooling"}], "module in '/evil'"),
        ("modules.json", ["evil"], "type ''"),
        ("modules.json", {"type": "evil.Evil"}, "type 'evil.Evil'"),
        ("config.json", "{", "must be JSON"),
        ("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000, "must be JSON"),
    ],
)
def test_what_may_hold_or_choose_code_is_refused(folder, name, content, match):
    check_model_folder(folder)
    write(folder / name, content)
    with pytest.raises(EncoderError, match=match):
        check_model_folder(folder)


def test_a_folder_needs_safetensors_and_no_links_to_folders(folder, tmp_path):
    (folder / "linked.json").symlink_to(folder / "config.json")  # as in the cache of Hugging Face
    check_model_folder(folder)
    (folder / "3_Evil").symlink_to(tmp_path)
    with pytest.raises(EncoderError, match="must not be a link"):
        check_model_folder(folder)
    (folder / "3_Evil").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="must have its weights as safetensors"):
        check_model_folder(folder)

"""Which folders with a sentence-transformers model may be loaded: those that can hold no code.

sentence-transformers 3 to 5 import Python files of a local model that its ``modules.json`` names, whatever
``trust_remote_code`` is; activations are imported by name, other classes unpickle. So a folder is judged by its files
before any library opens it, and the rules are the same for every version of the library.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ur4rec.errors import EncoderError

SUFFIXES = ("", ".json", ".md", ".model", ".safetensors", ".txt")
"""The endings of files that a folder may hold."""
_VOCABULARIES = ("tokenizer.json", "vocab.json")
"""Large, and read by the tokenizers library alone, in Rust."""
_CLASSES = ("Transformer", "Pooling", "Normalize", "Dense", "StaticEmbedding", "LayerNorm", "Dropout")
"""The classes of sentence-transformers that import nothing by a name from their files but `_ACTIVATION`."""
_MODULE = re.compile(rf"sentence_transformers(\.\w+)*\.({'|'.join(_CLASSES)})")
_ACTIVATION = re.compile(r"torch\.nn(\.modules\.\w+)?\.[A-Z]\w*")
_ARGUMENTS = tuple(
    f"{what}_{kind}" for what in ("model", "tokenizer", "processor", "config") for kind in ("args", "kwargs")
)
_REFUSED = (
    "auto_map",
    "auto_mapping",
    "trust_remote_code",
    "tokenizer_name_or_path",
    "quantization_config",
    *_ARGUMENTS,
)
"""Keys whose values choose code, further files, or arguments that do."""


def check_model_folder(folder: Path) -> None:
    """Refuse a folder with anything but safetensors, texts, and JSON that names classes of sentence-transformers.

    Nothing is imported, and no file but JSON is opened.

    Args:
        folder: The folder. Its files may be links, as in the cache of Hugging Face; folders in it may not.

    Raises:
        EncoderError: It holds a Python file, pickled weights, or a configuration that chooses code; the message names
            the file.
    """
    weights = False
    for file in _files(folder):
        if file.suffix not in SUFFIXES:
            raise EncoderError(
                f"a text encoder may hold only safetensors, JSON and texts, no code and no pickles, got {file}; remove "
                "that file if nothing needs it, or choose another encoder"
            )
        weights = weights or file.suffix == ".safetensors"
        if file.suffix == ".json" and file.name not in _VOCABULARIES:
            _check_json(file)
    if not weights:
        raise EncoderError(f"a text encoder must have its weights as safetensors, {folder} has none; convert them")


def _files(folder: Path) -> Iterator[Path]:
    """All files below, in order."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            yield path
        elif path.is_symlink():
            raise EncoderError(f"a folder in a text encoder must not be a link, {path} is; copy what it points to")
        else:
            yield from _files(path)


def _check_json(path: Path) -> None:
    try:
        content = json.loads(path.read_bytes())
        reason = _find_code(path, content)
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} must be JSON, it cannot be read ({type(error).__name__}); restore it") from error
    if reason:
        raise EncoderError(f"a text encoder must not choose what code runs, {path} {reason}; choose another encoder")


def _find_code(path: Path, content: Any) -> str | None:
    """What in a configuration chooses code; None if nothing does."""
    if path.name == "adapter_config.json":
        return "is an adapter of another model"
    if path.name == "modules.json":
        return _find_module(content)
    for key, value in _settings(content):
        if key in _REFUSED and value:
            return f"sets {key}"
        if key == "activation_function" and not (isinstance(value, str) and _ACTIVATION.fullmatch(value)):
            return f"has activation_function={value!r}, which is not of torch.nn"
        if key == "weight_map" and not _is_safe_map(value):
            return "names weights that are not safetensors beside it"
    return None


def _find_module(modules: Any) -> str | None:
    for module in modules if isinstance(modules, list) else [modules]:
        kind, place = (str(module.get(key)) for key in ("type", "path")) if isinstance(module, dict) else ("", "")
        if not _MODULE.fullmatch(kind):
            return f"has a module of type {kind!r}, expected one of {_CLASSES} of sentence_transformers"
        if PurePosixPath(place).is_absolute() or not re.fullmatch(r"[\w./ -]*", place) or ".." in place:
            return f"has a module in {place!r}, which is not a folder beside it"
    return None


def _settings(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value, at any depth."""
    if isinstance(content, dict):
        yield from content.items()
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _settings(value)


def _is_safe_map(files: Any) -> bool:
    names = files.values() if isinstance(files, dict) else [None]
    return all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names)

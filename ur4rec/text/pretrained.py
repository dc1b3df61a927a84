"""The weights and the shape of a sentence encoder of BERT's class, from its folder, without any framework.

Such an encoder (all-MiniLM, E5, GTE and others) is BERT (Devlin et al., NAACL 2019), the mean over its tokens, and a
unit vector. Files are opened as `ur4rec.text.model_folder` allows.

Shapes: S tokens, T width, V vocabulary, B layers.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ur4rec.errors import EncoderError, refuse_malformed
from ur4rec.text.model_folder import check_model_folder

_EXPECTED = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0}
_PARTS = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feedforward.inner": "intermediate.dense",
    "feedforward.outer": "output.dense",
    "feedforward_norm": "output.LayerNorm",
}
"""The parts of a block by our names and by BERT's."""


def read_shape(folder: Path) -> dict[str, int]:
    """The settings of `ModelConfig` that a sentence encoder determines, and the tokens that it reads at most.

    Args:
        folder: The encoder.

    Raises:
        EncoderError: It may not be loaded, or is not of BERT's class.
    """
    check_model_folder(folder)
    config = _read_json(folder / "config.json")
    for name, expected in _EXPECTED.items():
        if (found := config.get(name, expected)) != expected:
            raise EncoderError(
                f"a text encoder that trains must be of BERT's class, with {name} {expected!r}, {folder} has "
                f"{found!r}; choose another, or text_encoder=none"
            )
    with refuse_malformed(folder / "config.json", "restore it", EncoderError):
        width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        shape = {
            "text_embedding_dim": width,
            "text_encoder_layers": int(config["num_hidden_layers"]),
            "text_encoder_heads": int(config["num_attention_heads"]),
            "text_encoder_vocab": int(config["vocab_size"]),
            "text_encoder_tokens": int(config["max_position_embeddings"]),
        }
    if inner != 4 * width:
        raise EncoderError(
            f"a text encoder that trains must have an intermediate_size of 4 · hidden_size = {4 * width}, {folder} has "
            f"{inner}; choose another"
        )
    _check_pooling(folder)
    return shape


def read_weights(folder: Path, shape: Mapping[str, int], num_tokens: int) -> dict[str, NDArray[np.float32]]:
    """The weights of a sentence encoder by the names in `ur4rec.training.shapes`, without ``text_encoder.``.

    What BERT adds to every token for the first of its two texts is in the positions.

    Args:
        folder: The encoder.
        shape: From `read_shape`.
        num_tokens: The number of positions that are needed.

    Raises:
        EncoderError: A weight is missing, has another shape, or is not finite.
    """
    arrays = _read_arrays(folder)
    width = shape["text_embedding_dim"]

    def take(name: str, *expected: int) -> NDArray[np.float32]:
        found = arrays.get(name, arrays.get(f"bert.{name}"))
        if found is None or found.shape != expected or not np.isfinite(found).all():
            state = "none" if found is None else f"{found.shape}" if found.shape != expected else "one not finite"
            raise EncoderError(f"{folder} must have the weights {name!r} of the shape {expected}, got {state}")
        return found.astype(np.float32)

    vocab, positions = shape["text_encoder_vocab"], shape["text_encoder_tokens"]
    first_T = take("embeddings.token_type_embeddings.weight", 2, width)[0]
    weights = {
        "word_embedding.weight": take("embeddings.word_embeddings.weight", vocab, width),
        "position_embedding.weight": take("embeddings.position_embeddings.weight", positions, width)[:num_tokens]
        + first_T,
        "embedding_norm.weight": take("embeddings.LayerNorm.weight", width),
        "embedding_norm.bias": take("embeddings.LayerNorm.bias", width),
    }
    for block in range(shape["text_encoder_layers"]):
        for ours, theirs, size in _block(width):
            weights[f"blocks.{block}.{ours}"] = take(f"encoder.layer.{block}.{theirs}", *size)
    return weights


def _block(width: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Our name, BERT's name and the shape of each weight of a block."""
    sizes = {"feedforward.inner": (4 * width, width), "feedforward.outer": (width, 4 * width)}
    for ours, theirs in _PARTS.items():
        outputs, inputs = sizes.get(ours, (width, width))
        is_norm = ours.endswith("norm")
        yield f"{ours}.weight", f"{theirs}.weight", (width,) if is_norm else (outputs, inputs)
        yield f"{ours}.bias", f"{theirs}.bias", (outputs,)


def _check_pooling(folder: Path) -> None:
    """Refuse what is not the mean over tokens, or has further layers after it."""
    path = folder / "modules.json"
    modules = json.loads(path.read_bytes()) if path.is_file() else []  # it is JSON: the folder was checked
    kinds = [str(each["type"]).rpartition(".")[2] for each in modules]
    if kinds not in ([], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise EncoderError(
            f"a text encoder that trains must be a transformer and a pooling, {path} has {kinds}; choose another"
        )
    for module, kind in zip(modules, kinds, strict=True):
        if kind == "Pooling":
            pooling = _read_json(folder / str(module["path"]) / "config.json")
            if {name for name in pooling if re.match("pooling_mode_", name) and pooling[name]} != {
                "pooling_mode_mean_tokens"
            }:
                raise EncoderError(f"a text encoder that trains must take the mean of its tokens, {folder} does not")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} must be JSON, it cannot be read ({type(error).__name__}); restore it") from error
    if not isinstance(content, dict):
        raise EncoderError(f"{path} must be a JSON object, got {type(content).__name__}; restore it")
    return content


def _read_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "np") as file:
                arrays |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise EncoderError(f"{path} must hold safetensors, got something else ({error}); restore it") from error
    return arrays

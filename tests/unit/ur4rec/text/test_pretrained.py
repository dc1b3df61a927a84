"""A sentence encoder's folder as the first weights of a text encoder: what is read, what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ur4rec.config import ModelConfig
from ur4rec.errors import EncoderError
from ur4rec.text.pretrained import read_shape, read_weights
from ur4rec.training.item_texts import encoder_shapes

CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "hidden_size": 4,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 11,
    "max_position_embeddings": 7,
}
BLOCK = {
    **{f"attention.self.{part}": (4, 4) for part in ("query", "key", "value")},
    "attention.output.dense": (4, 4),
    "attention.output.LayerNorm": (4,),
    "intermediate.dense": (16, 4),
    "output.dense": (4, 16),
    "output.LayerNorm": (4,),
}


@pytest.fixture
def folder(tmp_path):
    """A BERT without any framework."""
    draw = np.random.default_rng(0)
    shapes = {f"embeddings.{name}_embeddings.weight": (size, 4) for name, size in (("word", 11), ("position", 7))}
    shapes |= {"embeddings.token_type_embeddings.weight": (2, 4)}
    for name, shape in {"embeddings.LayerNorm": (4,), **layers()}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    save_file(
        {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def layers():
    return {f"encoder.layer.{block}.{name}": shape for block in range(2) for name, shape in BLOCK.items()}


def change(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def test_the_weights_have_the_names_and_shapes_of_the_text_encoder(folder):
    shape = read_shape(folder)
    weights = read_weights(folder, shape, 5)
    sizes: dict[str, Any] = {**shape, "text_encoder_tokens": 5}
    assert encoder_shapes(ModelConfig(num_items=2, text_encoder="pretrained", **sizes)) == {
        name: array.shape for name, array in weights.items()
    }
    arrays = load_file(folder / "model.safetensors")
    positions = (
        arrays["embeddings.position_embeddings.weight"][:5] + arrays["embeddings.token_type_embeddings.weight"][0]
    )
    np.testing.assert_array_equal(weights["position_embedding.weight"], positions)
    np.testing.assert_array_equal(
        weights["blocks.1.feedforward.outer.weight"], arrays["encoder.layer.1.output.dense.weight"]
    )


def test_weights_behind_a_prefix_and_of_half_precision_are_read(folder):
    arrays = load_file(folder / "model.safetensors")
    save_file(
        {f"bert.{name}": array.astype(np.float16) for name, array in arrays.items()}, folder / "model.safetensors"
    )
    weights = read_weights(folder, read_shape(folder), 7)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mpnet"}, "must be of BERT's class, with model_type 'bert'"),
        ({"hidden_act": "relu"}, "with hidden_act 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "with layer_norm_eps"),
        ({"pad_token_id": 1}, "with pad_token_id 0"),
        ({"intermediate_size": 8}, r"an intermediate_size of 4 · hidden_size = 16, .* has 8"),
        ({"hidden_size": "wide"}, "is damaged"),
        ({"hidden_size": None}, "is damaged"),
    ],
)
def test_another_class_of_model_is_refused(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(EncoderError, match=message):
        read_shape(folder)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], {}, "must be a transformer and a pooling"),
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": True}, "must take the mean of its tokens"),
        (["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True}, None),
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode_mean_tokens": True}, None),
    ],
)
def test_only_the_mean_of_the_tokens_is_taken(folder, modules, pooling, message):
    described = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{number}_{kind}"}
        for number, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(described))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if message is None:
        assert read_shape(folder)["text_embedding_dim"] == 4
        return
    with pytest.raises(EncoderError, match=message):
        read_shape(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda array: array[:-1], r"of the shape \(4, 4\), got \(3, 4\)"),
        (lambda array: array * np.nan, "got one not finite"),
        (None, "got none"),
    ],
)
def test_weights_that_are_missing_or_damaged_are_named(folder, damage, message):
    name = "encoder.layer.1.attention.self.key.weight"
    arrays = load_file(folder / "model.safetensors")
    array = arrays.pop(name)
    save_file({**arrays, **({} if damage is None else {name: damage(array)})}, folder / "model.safetensors")
    with pytest.raises(EncoderError, match=f"must have the weights '{name}' .*{message}"):
        read_weights(folder, read_shape(folder), 7)


def test_a_folder_with_code_is_refused(folder):
    (folder / "modeling.py").write_text("raise SystemExit")
    with pytest.raises(EncoderError, match="no code and no pickles"):
        read_shape(folder)


def test_files_that_are_no_safetensors_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(EncoderError, match="must hold safetensors, got something else"):
        read_weights(folder, read_shape(folder), 7)

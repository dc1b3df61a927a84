"""The arrays that a configuration asks for are those of the model: in both backends, in every fusion, with users."""

import numpy as np
import pytest

from ur4rec.config import BLOCKS, FUSIONS, ModelConfig, TrainerConfig
from ur4rec.errors import CheckpointError
from ur4rec.training.checkpoint import load_checkpoint
from ur4rec.training.shapes import check_moments, check_weights, weight_shapes

SIZES = {
    "sasrec_hidden_dim": 8,
    "sasrec_num_blocks": 3,
    "sasrec_num_heads": 2,
    "text_embedding_dim": 5,
    "retriever_output_dim": 6,
    "retriever_num_queries": 2,
    "max_seq_len": 7,
}


@pytest.mark.parametrize("num_users", [0, 4])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_shapes_are_those_of_the_model(backend, tmp_path, fusion, num_users):
    texts_IT, texts_UT = np.ones((9, 5), np.float32), np.ones((num_users, 5), np.float32)
    package = backend.package
    model = package.UR4Rec(9, texts_IT, user_text_vectors=texts_UT if num_users else None, fusion=fusion, **SIZES)
    joint_loss = "fused" if fusion in ("logit", "weighted") else "separate"
    trainer = package.JointTrainer(model, device="cpu", joint_loss=joint_loss)
    trainer.save_checkpoint(tmp_path / "saved")
    weights = load_checkpoint(tmp_path / "saved").weights
    expected = dict(weight_shapes(ModelConfig(num_items=9, num_users=num_users, fusion=fusion, **SIZES)))
    assert expected == {name: array.shape for name, array in weights.items()}


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_the_weights_of_a_block_have_the_same_names_and_shapes_in_both_backends(backend, block):
    settings = {**SIZES, "sasrec_block": block}
    found = backend.weights(backend.package.UR4Rec(9, np.ones((9, 5), np.float32), **settings))
    expected = dict(weight_shapes(ModelConfig(num_items=9, **settings)))
    assert expected == {name: array.shape for name, array in found.items()}


@pytest.mark.parametrize("width", [8, 64, 256])
def test_gated_layers_have_about_as_many_weights_as_plain_ones(width):
    counts = {}
    for block in BLOCKS[:3]:
        shapes = weight_shapes(ModelConfig(num_items=9, sasrec_hidden_dim=width, sasrec_block=block))
        counts[block] = sum(int(np.prod(shape)) for name, shape in shapes if ".blocks.0.feedforward." in name)
    assert counts["gelu"] == counts["relu"]
    assert abs(counts["swiglu"] - counts["relu"]) < 24 * width + 2 * 8 + 2 * width


CONFIG = ModelConfig(num_items=9, **SIZES)
SHAPES = dict(weight_shapes(CONFIG))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sasrec.final_norm.bias": None}, "they have no 'sasrec.final_norm.bias'"),
        ({"retriever.queries.weight": (3, 6)}, r"retriever.queries.weight must have the shape \(2, 6\), got \(3, 6\)"),
        ({"sasrec.blocks.3.attention.key.bias": (8,)}, "'sasrec.blocks.3.attention.key.bias' is not in it"),
    ],
)
def test_other_weights_are_refused(change, message):
    found = {name: shape for name, shape in {**SHAPES, **change}.items() if shape is not None}
    with pytest.raises(CheckpointError, match=message):
        check_weights(CONFIG, found)


def test_the_moments_of_other_weights_are_refused():
    name = "retriever.queries.weight"
    good = {f"{name}/exp_avg": (2, 6), f"{name}/step": (), "payoff.position": (2,)}
    check_moments(CONFIG, TrainerConfig(), SHAPES, good)
    for key in ("exp_avg", "step"):
        with pytest.raises(CheckpointError, match="must have the shape"):
            check_moments(CONFIG, TrainerConfig(), SHAPES, {**good, f"{name}/{key}": (5,)})
    for strategy in ("use_memory_bank", "use_uncertainty_weighting"):
        with pytest.raises(CheckpointError, match="they have no"):
            check_moments(CONFIG, TrainerConfig(**{strategy: True}), SHAPES, good)

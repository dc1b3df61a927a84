"""SASRec's variants: each kind of block against plain NumPy, what embeddings begin with, their scale and dropout."""

import math

import numpy as np
import pytest

from ur4rec.config import BLOCKS
from ur4rec.training.item_init import item_embeddings
from ur4rec.training.shapes import weight_shapes


def states(weights, items_L, *, block, num_heads, scale=1.0):
    """What SASRec of these weights says after each item of one history, (L, d), in float64."""

    def linear(name, inputs):
        return inputs @ weights[f"{name}.weight"].T.astype(float) + weights[f"{name}.bias"]

    def norm(name, inputs):
        centred = inputs - inputs.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attend(name, inputs):
        query, key, value = (np.split(linear(f"{name}.{part}", inputs), num_heads, axis=1) for part in QUERY_KEY_VALUE)
        mixed = []
        for head in range(num_heads):
            logits = query[head] @ key[head].T / math.sqrt(query[head].shape[1])
            logits[np.triu_indices(len(logits), 1)] = -np.inf
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            mixed.append(shares / shares.sum(axis=1, keepdims=True) @ value[head])
        return linear(f"{name}.output", np.concatenate(mixed, axis=1))

    def feed_forward(name, inputs):
        inner = linear(f"{name}.inner", inputs)
        if block == "relu":
            return linear(f"{name}.outer", np.maximum(inner, 0))
        if block == "gelu":
            return linear(f"{name}.outer", inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2)
        gate = linear(f"{name}.gate", inputs)
        return linear(f"{name}.outer", gate * sigmoid(gate) * inner)

    hidden = scale * weights["item_embedding.weight"][items_L].astype(float)
    hidden = hidden + weights["position_embedding.weight"][: len(items_L)]
    for number in range(sum(name.endswith("attention_norm.bias") for name in weights)):
        name = f"blocks.{number}"
        for half, add in (("attention", attend), ("feedforward", feed_forward)):
            normed = norm(f"{name}.{half}_norm", hidden)
            gate = sigmoid(linear(f"{name}.{half}_gate", normed)) if block == "ligr" else 1.0
            hidden = hidden + gate * add(f"{name}.{half}", normed)
    return norm("final_norm", hidden)


QUERY_KEY_VALUE = ("query", "key", "value")


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def drawn(model):
    """Weights of its shapes that are large enough for every part to show, biases too."""
    random = np.random.default_rng(1)
    shapes = ((name, shape) for name, shape in weight_shapes(model.config) if name.startswith("sasrec."))
    weights = {name: random.normal(scale=0.5, size=shape).astype(np.float32) for name, shape in shapes}
    weights["sasrec.item_embedding.weight"][-1] = 0
    return weights


@pytest.mark.parametrize("settings", [{}, {"sasrec_embedding_scale": True}], ids=["", "scaled"])
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_their_formulas_at_every_position_and_at_one(backend, make_model, block, settings):
    model = backend.inference(make_model(sasrec_block=block, sasrec_num_blocks=2, **settings))
    weights = drawn(model)
    backend.set_weights(model, weights)
    lengths, padding = [3, 8, 1], model.config.num_items
    items_BL = np.random.default_rng(2).integers(padding, size=(3, 8))
    items_BL[np.arange(8) >= np.array(lengths)[:, None]] = padding
    last_B = np.array(lengths) - 1
    everywhere, at_last = backend.call(
        lambda items_BL, last_B: (model.sasrec(items_BL), model.sasrec(items_BL, at_B=last_B)), items_BL, last_B
    )
    own = {name.removeprefix("sasrec."): each for name, each in weights.items()}
    for row, length in enumerate(lengths):
        scale = 4.0 if settings else 1.0  # the root of 16
        expected = states(own, items_BL[row, :length], block=block, num_heads=2, scale=scale)
        np.testing.assert_allclose(everywhere[row, :length], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(at_last[row, 0], expected[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_weight_of_a_block_trains_and_what_is_frozen_does_not(backend, make_model, make_trainer, loader, block):
    trainer = make_trainer(model=make_model(sasrec_block=block))
    trainer.set_training_stage("pretrain_sasrec")
    before = {name: each.copy() for name, each in backend.weights(trainer.model).items()}
    for step in range(3):
        trainer.train_step(loader.batch(0, step))
    after = backend.weights(trainer.model)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved >= {name for name in before if ".blocks.0." in name and "attention.key.bias" not in name}
    assert not any(name.startswith("retriever.") for name in moved)


@pytest.mark.parametrize(("init", "width"), [("pca", 16), ("whitened", 16), ("whitened", 8)])
def test_the_table_begins_as_the_texts_say_and_all_else_as_without_them(backend, make_model, init, width):
    """So both backends begin with equal tables."""
    made = [make_model(sasrec_item_init=each, sasrec_hidden_dim=width, seed=4) for each in (init, "normal")]
    (model, _), (found, plain) = made, map(backend.weights, made)
    table, texts_IT = found.pop("sasrec.item_embedding.weight"), found["retriever.item_text_vectors"][:-1]
    np.testing.assert_array_equal(table[:-1], item_embeddings(model.config, texts_IT, seed=4))
    assert not table[-1].any()
    assert not np.array_equal(table, plain.pop("sasrec.item_embedding.weight"))
    for name, array in found.items():
        np.testing.assert_array_equal(array, plain[name])


def test_a_variant_is_loaded_as_it_was_saved(backend, make_model, make_trainer, tmp_path):
    variants = {"sasrec_block": "ligr", "sasrec_item_init": "pca", "sasrec_embedding_scale": True}
    trainer = make_trainer(model=make_model(**variants, sasrec_embedding_dropout=0.4))
    backend.set_weights(trainer.model, drawn(trainer.model))
    trainer.save_checkpoint(tmp_path / "saved")
    loaded = backend.package.load_model(tmp_path / "saved")
    assert loaded.config == trainer.model.config
    found, expected = backend.weights(loaded), backend.weights(trainer.model)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name])


def trained(backend, make_trainer, model, batch):
    """The table after two steps."""
    trainer = make_trainer(model=model)
    trainer.set_training_stage("pretrain_sasrec")
    for _ in range(2):  # the first one's learning rate is 0
        trainer.train_step(batch)
    return backend.weights(trainer.model)["sasrec.item_embedding.weight"]


def test_the_dropout_of_embeddings_is_sasrecs_unless_it_is_set(backend, make_model, make_trainer, loader):
    batch, tables = loader.batch(0, 0), {}
    for rate in (None, 0.2, 0.0, 0.9):
        model = make_model(sasrec_dropout=0.2, sasrec_embedding_dropout=rate)
        tables[rate] = trained(backend, make_trainer, model, batch)
    np.testing.assert_array_equal(tables[None], tables[0.2])
    assert not np.array_equal(tables[0.0], tables[0.2])
    assert not np.array_equal(tables[0.9], tables[0.2])

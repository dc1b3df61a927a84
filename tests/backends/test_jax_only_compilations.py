"""What is compiled: how often, how much work it is, and how precise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alternator import Cycle
from ur4rec.config import TrainerConfig
from ur4rec_jax.compiled import functions_of
from ur4rec_jax.device import to_inputs
from ur4rec_jax.losses import separate_loss
from ur4rec_jax.step import PARTS, Step


@pytest.fixture
def traces(monkeypatch):
    """The turns that the step has been traced for."""
    seen, loss = [], Step._loss
    monkeypatch.setattr(Step, "_loss", lambda self, turn: seen.append(turn) or loss(self, turn))
    return seen


def test_two_modules_are_two_compilations_however_many_epochs_and_trainers(make_model, make_trainer, loader, traces):
    for seed in range(2):
        settings = {"seed": seed, "sasrec_lr": 1e-3 * (1 + seed), "clip_norm": 0.7}  # for which nothing is compiled yet
        trainer = make_trainer(model=make_model(seed=seed), rule=Cycle(2), **settings)
        trainer.set_training_stage("joint_finetune", num_steps=20)
        for epoch in range(3):
            trainer.train_epoch(loader, epoch)
        assert sorted(traces) == ["retriever", "sasrec"]
        assert trainer._functions.compiled_steps[True]._cache_size() == 2


def test_on_device_an_epoch_of_two_modules_is_one_compilation(make_trainer, loader, traces):
    for seed in range(2):
        trainer = make_trainer(rule=Cycle(2), on_device=True, clip_norm=0.8, seed=seed)
        for epoch in range(3):
            trainer.train_epoch(loader, epoch)
    assert sorted(traces) == ["retriever", "sasrec"]  # the branches of one program
    assert trainer._epoch()._run._cache_size() == 1
    assert trainer._functions.compiled_steps[True]._cache_size() == 0


def test_a_step_of_the_retriever_costs_what_a_step_written_for_it_alone_costs(make_model, make_trainer, loader):
    model = make_model(sasrec_num_blocks=2, sasrec_dropout=0.0, retriever_dropout=0.0)
    trainer = make_trainer(model=model)
    inputs, key, step = to_inputs(loader.batch(0, 0), loader.num_items), jax.random.key(0), np.int32(0)
    rates = dict.fromkeys(PARTS, np.float32(1e-3))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.01))

    def alone(retriever, opt_state, rest, key):
        def loss(retriever):
            whole = nnx.merge(trainer._graphdef, {**rest, "retriever": retriever}, trainer._buffers)
            catalogue, rngs = whole.retriever.catalogue(), nnx.Rngs(dropout=key)
            return separate_loss(whole, trainer.config, inputs, ("retriever",), catalogue, rngs).total

        value, gradients = jax.value_and_grad(loss)(retriever)
        updates, opt_state = optimizer.update(gradients, opt_state, retriever)
        return optax.apply_updates(retriever, updates), opt_state, value

    params = trainer._state.params
    flops = {}
    hand = jax.jit(alone).lower(params["retriever"], optimizer.init(params["retriever"]), params, key)
    flops["by hand"] = hand.compile().cost_analysis()["flops"]
    for turn in ("retriever", "both"):
        lowered = trainer._functions.compiled_steps[False].lower(
            trainer._state, trainer._buffers, None, inputs, key, step, rates, turn=turn
        )
        flops[turn] = lowered.compile().cost_analysis()["flops"]
    assert flops["retriever"] <= 1.05 * flops["by hand"]
    assert flops["both"] > 1.5 * flops["by hand"]


def test_a_fused_step_of_one_module_costs_less_than_a_joint_one(make_trainer, loader):
    trainer = make_trainer()
    inputs, rates = to_inputs(loader.batch(0, 0), loader.num_items), dict.fromkeys(PARTS, np.float32(1e-3))
    flops = {}
    for turn in ("sasrec", "retriever", "both"):
        catalogue = trainer._catalogue() if turn == "sasrec" else None
        lowered = trainer._functions.compiled_steps[True].lower(
            trainer._state, trainer._buffers, catalogue, inputs, jax.random.key(0), np.int32(0), rates, turn=turn
        )
        flops[turn] = lowered.compile().cost_analysis()["flops"]
    assert max(flops["sasrec"], flops["retriever"]) < 0.85 * flops["both"]


def test_matrix_products_are_in_full_float32(make_model):
    graphdef, params, buffers = nnx.split(make_model(), nnx.Param, ...)
    functions = functions_of(graphdef, TrainerConfig())
    lowered = functions.project.lower(params, buffers).as_text()
    plain = jax.jit(partial(jnp.dot)).lower(jnp.ones((2, 2)), jnp.ones((2, 2))).as_text()
    assert "HIGHEST" in lowered
    assert "HIGHEST" not in plain

"""PyTorch alone: modes, ``requires_grad``, backward passes, the optimizers' rates and the global random state."""

import numpy as np
import pytest
import torch

from alternator import Cycle
from tests.backends.harness import equal, snapshot, train
from tests.backends.torch_harness import applied_rates
from ur4rec.errors import ConfigurationError
from ur4rec.schedule.stages import MODULES
from ur4rec_torch import Scorer, load_model

STAGES = ("pretrain_sasrec", "pretrain_retriever", "joint_finetune", "end_to_end")


def test_what_the_user_froze_stays_frozen_in_every_stage(make_model, make_trainer, batch_stream):
    model = make_model()
    model.sasrec.position_embedding.weight.requires_grad_(False)
    trainer = make_trainer(model=model)
    before = model.sasrec.position_embedding.weight.clone()
    for stage in STAGES:
        trainer.set_training_stage(stage)
        train(trainer, batch_stream(0, 3))
        assert not model.sasrec.position_embedding.weight.requires_grad
    assert torch.equal(model.sasrec.position_embedding.weight, before)


def test_reported_learning_rates_are_those_of_the_optimizers(make_trainer, loader):
    trainer = make_trainer(rule=Cycle((1, 3)), sasrec_lr=1e-2, retriever_lr=1e-3, warmup=0.25)
    trainer.set_training_stage("joint_finetune", num_steps=8)
    for step in range(8):
        metrics = trainer.train_epoch(list(loader) * 2, start=step, max_steps=1)
        rates = applied_rates(trainer)
        assert {name: metrics[f"{name}_lr"] for name in MODULES} == {name: rates[name] for name in MODULES}


@pytest.mark.parametrize(
    ("stage", "active", "joint_loss", "forwards"),
    [
        ("pretrain_sasrec", None, "fused", (1, 0)),
        ("pretrain_retriever", None, "fused", (0, 1)),
        ("joint_finetune", "sasrec", "separate", (1, 0)),
        ("joint_finetune", "retriever", "separate", (0, 1)),
        ("joint_finetune", "sasrec", "fused", (1, 1)),
        ("end_to_end", None, "separate", (1, 1)),
    ],
)
def test_a_frozen_module_costs_no_backward_and_no_needless_forward(
    make_trainer, batch_stream, stage, active, joint_loss, forwards
):
    trainer = make_trainer(joint_loss=joint_loss, rule=Cycle((1, 100) if active == "retriever" else 100))
    trainer.set_training_stage(stage)
    if active == "retriever":
        train(trainer, batch_stream(0, 1))
    assert active in (None, trainer.alternator.active)
    ran, had_gradients = [], []

    def watch(name, output):
        ran.append(name)
        if output.requires_grad:
            output.register_hook(lambda gradient: had_gradients.append(name))

    for name in MODULES:
        module = getattr(trainer.model, name)
        module.register_forward_hook(lambda _module, _inputs, output, name=name: watch(name, output))
    train(trainer, batch_stream(0, 1))
    assert (ran.count("sasrec"), ran.count("retriever")) == forwards
    pretrained = stage.removeprefix("pretrain_")
    trained = {active} if active else {pretrained} & set(MODULES) or set(MODULES)
    assert set(had_gradients) == trained


def test_a_retriever_that_trains_computes_its_catalogue_in_each_of_its_steps(make_trainer, batch_stream):
    trainer = make_trainer(rule=Cycle((6, 2)))
    calls, compute = [], trainer.model.retriever.catalogue

    def watched(**options):
        calls.append(trainer.alternator.active)
        return compute(**options)

    trainer.model.retriever.catalogue = watched
    train(trainer, batch_stream(0, 16))
    assert calls.count("retriever") == 4
    assert calls.count("sasrec") == 2  # once in each of its tenures


def test_a_change_of_the_weights_from_outside_reaches_the_kept_catalogue(
    make_trainer, make_model, batch_stream, targets
):
    trainer, other = make_trainer(rule=Cycle(100)), make_model(seed=9)
    train(trainer, batch_stream(0, 1))
    trainer.rank(targets)
    trainer.model.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(trainer.score([[1, 2]]), other.eval().score(torch.tensor([[1, 2]])).detach().numpy())


def test_a_step_leaves_the_callers_randomness_alone(make_trainer, loader):
    trainer = make_trainer()
    torch.manual_seed(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    trainer.train_step(loader.batch(0, 0))
    assert torch.equal(torch.rand(1), drawn)


def test_dropout_does_not_depend_on_the_callers_randomness(make_trainer, loader):
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer = make_trainer()
        trainer.train_step(loader.batch(0, 0))
        models.append(trainer.model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_evaluation_changes_neither_modes_nor_training(make_trainer, batch_stream, targets):
    trainer = make_trainer(rule=Cycle(3))
    for batch in batch_stream(0, 8):
        trainer.train_step(batch)
        trainer.evaluate(targets)
    assert trainer.alternator.active == "sasrec"
    assert trainer.model.sasrec.training
    assert not trainer.model.retriever.training


def test_a_device_that_is_not_there_is_refused(make_trainer):
    with pytest.raises(ConfigurationError, match="device must be auto, cpu, cuda or cuda:N, got 'quantum'"):
        make_trainer(device="quantum")


def compiled(model, part):
    """The model, compiled as a whole or in one part; nothing is traced before it is called."""
    if part is None:
        return torch.compile(model, backend="eager")
    setattr(model, part, torch.compile(getattr(model, part), backend="eager"))
    return model


@pytest.mark.parametrize("part", [None, "sasrec", "retriever"])
def test_a_compiled_model_is_saved_under_plain_names_and_loaded_into_both(
    make_model, make_trainer, batch_stream, tmp_path, part
):
    plain, trainer = make_trainer(), make_trainer(model=compiled(make_model(), part))
    with torch.compiler.set_stance("force_eager"):  # what is compiled does not matter here, and takes long
        for each in (plain, trainer):
            train(each, batch_stream(0, 3))
    expected = snapshot(plain)
    assert equal(snapshot(trainer), expected)
    trainer.save_checkpoint(tmp_path / "compiled")
    assert load_model(tmp_path / "compiled").state_dict().keys() == plain.model.state_dict().keys()
    for model in (make_model(seed=5), compiled(make_model(seed=5), part)):
        again = make_trainer(model=model)
        again.load_checkpoint(tmp_path / "compiled")
        assert equal(snapshot(again), expected)


def test_a_wrapper_whose_effect_would_be_lost_is_refused(make_model, make_trainer):
    averaged = torch.optim.swa_utils.AveragedModel(make_model())
    for make in (lambda: make_trainer(model=averaged), lambda: Scorer(averaged)):
        with pytest.raises(ConfigurationError, match=r"must be a UR4Rec, got AveragedModel; give the model inside it"):
            make()
    Scorer(averaged.module)


@pytest.mark.parametrize("change", ["parametrized", "pruned"])
def test_a_model_whose_weights_have_other_names_is_refused_before_it_is_trained(make_model, make_trainer, change):
    model = make_model()
    layer = model.retriever.key_projection
    if change == "pruned":
        torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    else:
        torch.nn.utils.parametrizations.weight_norm(layer)
    with pytest.raises(ConfigurationError, match=r"but retriever\.key_projection is parametrized or pruned"):
        make_trainer(model=model)

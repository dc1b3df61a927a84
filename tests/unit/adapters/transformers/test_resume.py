"""A training that stops and continues from the Trainer's own checkpoint equals one that never stopped."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from alternator import ConfigurationError, Cycle, StateError
from tests.conformance.freeze_contract_torch import same_bits
from tests.conformance.torch_host import MarkedHost
from tests.unit.adapters.transformers.trainer_runs import Counts, Recorded, Run, arguments, bert

SAVING = {"save_strategy": "steps", "save_steps": 5}


class Stop(TrainerCallback):
    """Ends the training after some steps; the learning rates are those of the whole."""

    def __init__(self, num_steps):
        self.num_steps = num_steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.num_steps


@pytest.mark.parametrize(
    ("stop", "options", "how"),
    [
        (11, {}, "path"),  # in the second epoch, after the checkpoint of step 10
        (7, {"gradient_accumulation_steps": 3, "num_train_epochs": 4, "save_steps": 2}, "path"),
        (9, {"save_strategy": "epoch"}, True),
    ],
    ids=["steps", "accumulated", "epochs"],
)
def test_it_equals_one_that_never_stopped(tmp_path, stop, options, how):
    options = SAVING | options
    whole = Run(tmp_path / "whole", **options).train()
    Run(tmp_path / "parts", callbacks=[Stop(stop)], **options).train()
    checkpoints = sorted((tmp_path / "parts").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    second = Run(tmp_path / "parts", **options)
    second.train(resume_from_checkpoint=True if how is True else str(checkpoints[-1]))
    start = int(checkpoints[-1].name.split("-")[1])
    assert 0 < start < whole.trainer.state.global_step
    assert second.alternator.step == second.trainer.state.global_step == whole.alternator.step
    assert second.alternator.decisions == whole.alternator.decisions[start:]
    assert any(decision.switched for decision in second.alternator.decisions)
    assert same_bits(second.outcome(), whole.outcome())


@pytest.mark.parametrize("frozen_state", ["offload", "drop"])
def test_with_the_state_of_what_is_frozen_elsewhere(tmp_path, frozen_state, monkeypatch):
    kept = Run(tmp_path / "kept").train()
    monkeypatch.setattr("adapters.torch.parked.Host", MarkedHost)
    options = SAVING | {"given": {"frozen_state": frozen_state}}
    whole = Run(tmp_path / "whole", **options).train()
    Run(tmp_path / "parts", callbacks=[Stop(11)], **options).train()
    second = Run(tmp_path / "parts", **options)
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-10"))
    assert same_bits(second.outcome(), whole.outcome())
    assert same_bits(whole.outcome(), kept.outcome()) == (frozen_state == "offload")


def test_the_schedule_is_in_the_trainers_own_state(tmp_path):
    Run(tmp_path, **SAVING).train()
    saved = json.loads((tmp_path / "checkpoint-5/trainer_state.json").read_text())
    schedule = saved["stateful_callbacks"]["AlternatingCallback"]["attributes"]["schedule"]
    assert schedule["alternator"]["counts"]["step"] == saved["global_step"] == 5


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path):
    Run(tmp_path, **SAVING).train()
    with pytest.raises(StateError):
        Run(tmp_path, alternator=Recorded(rule=Cycle(2)), **SAVING).train(resume_from_checkpoint=True)


def test_a_checkpoint_without_a_schedule_starts_one(tmp_path):
    trainer = Trainer(model=bert(), args=arguments(tmp_path, **SAVING), train_dataset=Counts())
    trainer.train()
    run = Run(tmp_path, num_train_epochs=3, **SAVING)
    with pytest.warns(UserWarning, match="was saved without an AlternatingCallback"):
        run.train(resume_from_checkpoint=True)
    assert run.alternator.step == 24 - 16
    assert (tmp_path / "checkpoint-20").is_dir()


def test_restoring_callbacks_is_refused_with_the_reason(tmp_path):
    Run(tmp_path, **SAVING).train()
    run = Run(tmp_path, restore_callback_states_from_checkpoint=True, **SAVING)
    with pytest.raises(ConfigurationError, match="restore_callback_states_from_checkpoint must be False"):
        run.train(resume_from_checkpoint=True)


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    run = Run(
        tmp_path,
        eval_strategy="steps",
        eval_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        **SAVING,
    ).train()
    best = run.trainer.state.best_model_checkpoint
    loaded = load_file(f"{best}/model.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in run.model.state_dict().items() if name in loaded)
    assert all(parameter.requires_grad for parameter in run.model.parameters())

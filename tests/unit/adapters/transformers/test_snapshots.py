"""Snapshots within Transformers' Trainer: what was tried leaves no trace, and trials find what to train."""

import pytest
import torch
from transformers import TrainerCallback

from adapters.transformers import AlternatingCallback
from alternator import Alternator, ConfigurationError, Cycle, Trial, Trials
from tests.conformance.freeze_contract_torch import same_bits
from tests.unit.adapters.transformers.trainer_runs import MODULES, NAMES, Run


class Undoes(TrainerCallback):
    """Takes a snapshot before the third step, and goes back to it before the eighth."""

    def everything(self):
        rates = [group["lr"] for group in self.run.trainer.optimizer.param_groups]
        return self.run.outcome(), rates, torch.get_rng_state()

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.before, self.saved = self.everything(), self.run.callback.snapshot()
        if state.global_step == 7:
            assert not same_bits(self.everything(), self.before)
            self.run.callback.rollback(self.saved)
            assert same_bits(self.everything(), self.before)


@pytest.mark.parametrize("num_micro", [1, 2])
def test_what_was_tried_leaves_no_trace(tmp_path, num_micro):
    undoes = Undoes()
    alternator = Alternator(NAMES, rule=Cycle((2, 3)))
    options = {"gradient_accumulation_steps": num_micro, "per_device_train_batch_size": 4}
    run = undoes.run = Run(tmp_path, alternator=alternator, callbacks=[undoes], **options)
    run.train()
    assert alternator.step == 32 // num_micro
    assert hasattr(undoes, "saved")


class Tries(TrainerCallback):
    """By a loss that likes the backbone to stay as it is."""

    def on_step_begin(self, args, state, control, model, **kwargs):
        if not hasattr(self, "trials"):
            made, start = self.made, model.bert.embeddings.word_embeddings.weight.detach().clone()

            def losses():
                model.eval()
                moved = (model.bert.embeddings.word_embeddings.weight.detach() - start).abs().sum()
                return [float(moved) + group for group in range(4)]

            self.trials = Trials(made.alternator, snapshot=made.snapshot, restore=made.rollback, losses=losses)
        self.trials.before_step()


def test_trials_find_the_module_whose_training_helps(tmp_path):
    tries, turns = Tries(), {"both": NAMES, "backbone": ("backbone",), "head": ("head",)}
    alternator = Alternator(turns, rule=Trial(candidates=((0,), (2,)), steps=3, start=1, hold=4, halvings=9, groups=4))
    run = Run(tmp_path, alternator=alternator, given={"turns": turns}, callbacks=[tries])
    tries.made = run.callback
    run.train()
    assert alternator.rule_state.incumbent == 1  # the head alone
    assert tries.trials.num_returned > 0


def test_it_is_refused_outside_of_training():
    with pytest.raises(ConfigurationError, match=r"snapshot\(\) must be called while the Trainer trains"):
        AlternatingCallback(Alternator(NAMES), MODULES).snapshot()

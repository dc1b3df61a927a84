"""The callback within Transformers' Trainer: counts, frozen bits, a loop by hand, losses, precision, refusals."""

import copy

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from adapters.torch import FreezeError
from adapters.transformers import AlternatingCallback
from alternator import Alternator, ConfigurationError, Cycle, LossError, Payoff, Plateau
from tests.conformance.freeze_contract_torch import optimizer_state, same_bits
from tests.unit.adapters.transformers.trainer_runs import MODULES, NAMES, Recorded, Run, bert


class Audit(TrainerCallback):
    """What is frozen, from the start of each step until the optimizer has had its step."""

    def __init__(self):
        self.num_moved = self.num_steps = 0

    def frozen(self, model, optimizer):
        parts = [getattr(model, path) for path in MODULES.values()]
        frozen = [part for part in parts if not any(parameter.requires_grad for parameter in part.parameters())]
        assert len(frozen) == 1
        return copy.deepcopy([frozen[0].state_dict(), optimizer_state(optimizer.optimizer, frozen[0])])

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.before = self.frozen(model, optimizer)

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.num_steps += 1
        self.num_moved += not same_bits(self.before, self.frozen(model, optimizer))


@pytest.mark.parametrize(
    ("num_steps", "options"),
    [
        (96, {"per_device_train_batch_size": 4, "num_train_epochs": 6}),
        (21, {"per_device_train_batch_size": 4, "num_train_epochs": 7, "gradient_accumulation_steps": 6}),
        (10, {"max_steps": 10, "gradient_accumulation_steps": 3}),
    ],
    ids=["96", "21 with partial windows", "max_steps"],
)
def test_steps_are_the_trainers_and_what_is_frozen_keeps_every_bit(tmp_path, num_steps, options):
    audit = Audit()
    run = Run(tmp_path, callbacks=[audit], **options).train()
    stats = run.alternator.stats()
    assert stats.total_steps == run.trainer.state.global_step == audit.num_steps == num_steps
    assert audit.num_moved == 0
    assert stats.switch_count >= 2
    assert sum(module.training_steps for module in stats.modules.values()) == num_steps


class Kept(TrainerCallback):
    """Keeps what each batch was."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.batches = []
        model.register_forward_pre_hook(self.keep, with_kwargs=True)

    def keep(self, model, args, kwargs):
        self.batches.append({key: kwargs[key] for key in ("input_ids", "labels")})


def by_hand(batches, num_micro, cycle, learning_rate=0.01, max_norm=1.0):
    """The same schedule as people write it: an optimizer for each module, and the other one frozen."""
    model = bert(dropout=0)
    parts = {name: getattr(model, path) for name, path in MODULES.items()}
    made = {name: torch.optim.AdamW(p.parameters(), weight_decay=0, fused=True) for name, p in parts.items()}
    windows = [batches[start : start + num_micro] for start in range(0, len(batches), num_micro)]
    for step, window in enumerate(windows):
        name = NAMES[step // cycle % 2]
        for other, part in parts.items():
            part.requires_grad_(other == name).train(other == name)
        for batch in window:
            model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        made[name].param_groups[0]["lr"] = learning_rate * (1 - step / len(windows))
        made[name].step()
        made[name].zero_grad()
    return copy.deepcopy([model.state_dict(), *(optimizer_state(made[name], parts[name]) for name in NAMES)])


@pytest.mark.parametrize("num_micro", [1, 4])
def test_it_trains_as_a_loop_by_hand(tmp_path, num_micro):
    kept = Kept()
    options = {"gradient_accumulation_steps": num_micro, "lr_scheduler_type": "linear", "max_grad_norm": 0.05}
    run = Run(tmp_path, model=bert(dropout=0), alternator=Recorded(rule=Cycle(3)), callbacks=[kept], **options).train()
    optimizer = run.trainer.optimizer.optimizer
    parts = [getattr(run.model, path) for path in MODULES.values()]
    trained = [run.model.state_dict(), *(optimizer_state(optimizer, part) for part in parts)]
    assert same_bits(trained, by_hand(kept.batches, num_micro, cycle=3, max_norm=0.05))


def test_modules_are_as_before_when_training_has_ended(tmp_path):
    run = Run(tmp_path)
    run.model.bert.embeddings.requires_grad_(False)
    run.train()
    frozen = [name for name, parameter in run.model.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(name.startswith("bert.embeddings.") for name in frozen)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.model.modules())
    steps = run.alternator.step
    run.trainer.train()
    assert run.alternator.step == 2 * steps


def test_what_is_recorded_is_what_the_trainer_logs(tmp_path):
    options = {"gradient_accumulation_steps": 3, "logging_strategy": "steps", "logging_steps": 1}
    run = Run(tmp_path, **options).train()
    logged = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
    assert [loss for _, _, loss in run.alternator.losses] == pytest.approx(logged, rel=1e-5)
    trained = [module for _, module, _ in run.alternator.losses]
    assert trained == [decision.previous for decision in run.alternator.decisions]


class Averaging(Trainer):
    """Of a model whose loss is the mean of its batch, whatever it is given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False


def test_losses_of_a_model_that_returns_means_are_averaged(tmp_path):
    options = {"gradient_accumulation_steps": 3, "logging_strategy": "steps", "logging_steps": 1}
    run = Run(tmp_path, kind=Averaging, **options).train()
    logged = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
    assert [loss for _, _, loss in run.alternator.losses] == pytest.approx(logged, rel=1e-5)
    assert min(logged) > 0.3
    assert max(logged) < 1.5


def test_who_trains_is_logged(tmp_path):
    run = Run(tmp_path, alternator=Recorded(rule=Cycle((2, 1))), logging_strategy="steps", logging_steps=1).train()
    logged = [entry for entry in run.trainer.state.log_history if "loss" in entry]
    assert [entry["active/backbone"] for entry in logged[:6]] == [1, 1, 0, 1, 1, 0]
    assert [entry["share/head"] for entry in logged[:4]] == pytest.approx([0, 0, 1 / 3, 1 / 4])
    silent = Run(tmp_path, given={"log": False}, logging_strategy="steps", logging_steps=1).train()
    assert not any(key.startswith("active") for entry in silent.trainer.state.log_history for key in entry)


def test_evaluation_changes_nothing(tmp_path):
    without = Run(tmp_path / "without", model=bert(dropout=0)).train()  # an evaluation draws a random number
    evaluated = Run(tmp_path / "with", model=bert(dropout=0), eval_strategy="steps", eval_steps=2).train()
    assert any("eval_loss" in entry for entry in evaluated.trainer.state.log_history)
    assert evaluated.alternator.decisions == without.alternator.decisions
    assert same_bits(evaluated.outcome(), without.outcome())


def test_bfloat16(tmp_path):
    audit = Audit()
    run = Run(tmp_path, callbacks=[audit], bf16=True).train()
    assert run.alternator.step == audit.num_steps == 16
    assert audit.num_moved == 0


class Scaling(Trainer):
    """Under a GradScaler, as for float16 on a GPU; the loss of the third step overflows."""

    def create_optimizer(self, *args):
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        return super().create_optimizer(*args)

    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) * (float("inf") if self.state.global_step == 2 else 1)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_a_step_that_the_scaler_skips_is_counted_apart(tmp_path, optim):
    audit = Audit()
    alternator = Recorded(rule=Cycle(3))
    run = Run(tmp_path, alternator=alternator, kind=Scaling, callbacks=[audit], optim=optim, max_grad_norm=0).train()
    assert alternator.step == run.trainer.state.global_step == 16
    assert alternator.stats().modules["backbone"].skipped_steps == 1
    assert [decision.step for decision in alternator.decisions if decision.switched][:2] == [4, 7]
    assert run.trainer.accelerator.scaler.get_scale() == 2.0
    assert audit.num_moved == 0


def test_a_compiled_model(tmp_path):
    torch._dynamo.reset()
    plain = Run(tmp_path / "plain", max_steps=6, alternator=Recorded(rule=Cycle(2))).train()
    compiled = Run(
        tmp_path / "compiled",
        max_steps=6,
        alternator=Recorded(rule=Cycle(2)),
        torch_compile=True,
        torch_compile_backend="eager",
    ).train()
    assert compiled.alternator.step == 6
    assert [loss for _, _, loss in compiled.alternator.losses] == [loss for _, _, loss in plain.alternator.losses]
    assert same_bits(compiled.outcome(), plain.outcome())


class OwnLoss(Trainer):
    """Minimises something else than what the model returns."""

    alternating = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = 2 * outputs.loss
        self.alternating.record(loss)
        return (loss, outputs) if return_outputs else loss


def test_a_loss_of_your_own_is_recorded(tmp_path):
    run = Run(tmp_path, kind=OwnLoss, max_steps=3, logging_strategy="steps", logging_steps=1)
    run.trainer.alternating = run.callback
    run.train()
    logged = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
    assert [loss for _, _, loss in run.alternator.losses] == pytest.approx(logged, rel=1e-5)


def test_losses_can_be_made_of_the_models_outputs(tmp_path):
    def losses(outputs):
        return {"backbone": outputs.loss, "head": outputs.logits.square().mean()}

    run = Run(tmp_path, given={"losses": losses}, max_steps=3).train()
    assert {module for _, module, _ in run.alternator.losses} == set(NAMES)


class Tuples(nn.Module):
    """A model that returns tuples."""

    def __init__(self):
        super().__init__()
        self.inside = bert()

    def forward(self, input_ids, labels):
        return self.inside(input_ids=input_ids, labels=labels, return_dict=False)


def test_a_model_that_returns_tuples(tmp_path):
    modules = {name: f"inside.{path}" for name, path in MODULES.items()}
    run = Run(tmp_path, model=Tuples(), given={"modules": modules}, max_steps=3).train()
    assert len(run.alternator.losses) == 3


def smoothed(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs.logits, labels)


class OnlyLoss(Trainer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs, compute_loss_func=smoothed)


class Twice(Trainer):
    def compute_loss(self, model, inputs, **kwargs):
        return super().compute_loss(model, inputs, **kwargs) + model(**inputs).loss


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Trainer, {"label_smoothing_factor": 0.1}, "has returned none"),
        (OnlyLoss, {}, "has returned none"),
        (Twice, {}, "has run 2 times in one step"),
    ],
    ids=["label smoothing", "compute_loss_func", "two passes"],
)
def test_a_loss_that_cannot_be_seen_is_asked_for(tmp_path, kind, options, said):
    run = Run(tmp_path, kind=kind, **options)
    with pytest.raises(LossError, match=rf"Plateau must see the loss that is minimised, but the model {said}"):
        run.train()
    needless = Run(tmp_path, kind=kind, alternator=Recorded(rule=Cycle(2)), **options).train()
    assert needless.alternator.step == 16


def test_payoffs_are_recorded_by_others(tmp_path):
    turns = {"both": NAMES, "backbone": "backbone", "head": "head"}
    alternator = Recorded(turns, rule=Payoff(costs=(1.0, 0.9, 0.1)))
    run = Run(tmp_path, alternator=alternator, given={"turns": turns}, max_steps=2).train()
    assert run.alternator.losses == []


class Failing(TrainerCallback):
    """Fails once, in the fourth step, as for want of memory."""

    has_failed = False

    def on_substep_end(self, *args, **kwargs):
        raise AssertionError

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and not self.has_failed:
            self.has_failed = True
            raise RuntimeError("no memory")


def test_a_training_that_starts_again_counts_from_where_it_began(tmp_path):
    run = Run(tmp_path, callbacks=[Failing()])
    with pytest.raises(RuntimeError, match="no memory"):
        run.train()
    assert run.alternator.step == 3
    run.train()
    assert run.alternator.step == run.trainer.state.global_step == 16


def test_a_training_that_failed_can_be_closed(tmp_path):
    run = Run(tmp_path, callbacks=[Failing()])
    with pytest.raises(RuntimeError, match="no memory"):
        run.train()
    run.callback.close()
    assert all(parameter.requires_grad for parameter in run.model.parameters())


class Forcing(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            self.alternator.force("head")


def test_a_switch_by_hand(tmp_path):
    forcing = Forcing()
    run = Run(tmp_path, alternator=Recorded(rule=Cycle(1000)), callbacks=[forcing])
    forcing.alternator = run.alternator
    run.train()
    assert [module.training_steps for module in run.alternator.stats().modules.values()] == [4, 12]


class Thawing(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            model.classifier.weight.add_(1)


def test_writing_what_is_frozen_is_noticed(tmp_path):
    run = Run(tmp_path, callbacks=[Thawing()])
    with pytest.raises(FreezeError, match="a frozen module must not be written"):
        run.train()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modules": {"backbone": "bert"}}, "must be the names of the modules"),
        ({"modules": {"backbone": "bert.encoder", "head": "classifier"}}, "must belong to a module"),
    ],
)
def test_wrong_modules_are_refused(tmp_path, given, message):
    with pytest.raises(ConfigurationError, match=message):
        Run(tmp_path, given=given).train()


@pytest.mark.parametrize(("name", "value"), [("fsdp", ["full_shard"]), ("deepspeed", "zero2.json")])
def test_what_shards_the_model_is_refused(tmp_path, name, value):
    run = Run(tmp_path)
    setattr(run.trainer.args, name, value)
    with pytest.raises(ConfigurationError, match=f"one process on one device for now, got '{name}'"):
        run.train()


def test_data_parallel_is_refused(tmp_path):
    run = Run(tmp_path)
    run.trainer.args._n_gpu = 2
    with pytest.raises(ConfigurationError, match="one process on one device for now, got 'not_distributed'"):
        run.callback.on_train_begin(run.trainer.args, run.trainer.state, run.trainer.control, model=run.model)


def test_a_negative_delay_is_refused():
    with pytest.raises(ConfigurationError, match="delay must be"):
        AlternatingCallback(Alternator(NAMES, rule=Plateau()), MODULES, delay=-1)

"""Lightning's loop with the callback: the contract to the bit, and the same as a plain loop."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from adapters.lightning import AlternatingCallback, FreezeError
from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError, Cycle, LossError, Payoff, UnknownModuleError
from tests.conformance.freeze_contract_torch import adamw, batch, optimizer_state, same_bits, tower_loss
from tests.unit.adapters.lightning.lightning_runs import (
    NAMES,
    NUM_STEPS,
    ManualTowers,
    Recorded,
    Steps,
    Towers,
    callback,
    fit,
    plain,
    trainer,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def same_runs(left, right):
    assert left[1] == right[1]
    assert sum(decision.switched for decision in left[1]) >= 2
    return same_bits(left[0], right[0])


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_a_run_equals_a_plain_loop(delay):
    assert same_runs(fit(given={"delay": delay}), plain(delay=delay))


def test_only_active_gradients_are_clipped():
    clipped = plain(clip_norm=0.05)
    assert same_runs(fit(gradient_clip_val=0.05), clipped)
    assert not same_bits(clipped[0], plain()[0])


def test_accumulation_decides_once_per_update():
    def alternator():
        return Recorded(rule=Cycle(1))

    run = fit(alternator=alternator(), accumulate_grad_batches=4)
    assert len(run[1]) == 4
    assert same_runs(run, plain(alternator(), accumulate=4))


def test_accumulated_losses_are_means_of_what_the_step_returned():
    """Lightning divides the loss by the number of batches; the last update of an epoch has fewer of them."""

    class One(Towers):
        def training_step(self, batch, batch_idx):
            return self.towers["a"](torch.zeros(2, 6)).sum() * 0 + 3.0 * (batch + 1)

    alternator = Recorded(rule=Cycle(1000))
    fit(One(), alternator, accumulate_grad_batches=2, steps=Steps(5), given={"delay": 0})
    assert len(alternator.decisions) == 3
    assert alternator.stats().modules["a"].recent_loss == 15.0
    alternator = Alternator(NAMES)
    trainer(callback(alternator, model := One()), accumulate_grad_batches=2).fit(model, Steps(5))
    assert alternator.loss_history("a") == [4.5, 10.5, 15.0]


def test_bfloat16():
    assert same_runs(fit(precision="bf16-mixed"), plain(autocast=True))


def test_several_epochs_with_validation_in_between():
    run = fit(val=Steps(2), max_epochs=3, val_check_interval=5, num_sanity_val_steps=1)
    assert same_runs(run, plain(epochs=3))


class Unruly(Towers):
    """Puts everything into training mode, as many do."""

    def on_train_epoch_start(self):
        self.train()

    def on_validation_model_train(self):
        self.train()


def test_hooks_that_put_everything_in_training_mode_change_nothing():
    assert same_runs(fit(Unruly(), val=Steps(2), max_epochs=3, val_check_interval=5), plain(epochs=3))


def test_turns_and_always():
    turns = {"a": ("a",), "both": ("a", "b")}

    def run(by):
        model = Towers((*NAMES, "c"))
        alternator = Recorded(turns, Cycle(3))
        if by == "callback":
            made = AlternatingCallback(
                alternator, {name: f"towers.{name}" for name in NAMES}, turns=turns, always=model.towers["c"]
            )

            def step(batch, batch_idx):
                return sum(model.losses(batch).values())

            model.training_step = step
            run = trainer(made)
            run.fit(model, Steps())
            return model.state_dict(), alternator.decisions
        optimizer = adamw(model.parameters())
        modules = {name: model.towers[name] for name in NAMES}
        alternating = AlternatingOptimizer(alternator, modules, optimizer, turns=turns, always=model.towers["c"])
        for step in range(NUM_STEPS):
            alternating.step(sum(model.losses(step).values()))
        return model.state_dict(), alternator.decisions

    assert same_runs(run("callback"), run("loop"))


class Watch(Callback):
    """Whether the frozen tower stayed as it was, bit by bit, in each step."""

    def __init__(self, alternator):
        self.alternator = alternator
        self.watched = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.frozen = "b" if self.alternator.active == "a" else "a"
        module = pl_module.towers[self.frozen]
        assert not any(submodule.training for submodule in module.modules())
        assert all(submodule.training for submodule in pl_module.towers[self.alternator.active].modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
        self.kept = self.what_stays(trainer, module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        assert all(parameter.grad is None for parameter in pl_module.towers[self.frozen].parameters())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert same_bits(self.kept, self.what_stays(trainer, pl_module.towers[self.frozen]))
        self.watched += 1

    def what_stays(self, trainer, module):
        states = [optimizer_state(optimizer, module) for optimizer in trainer.optimizers]
        return copy.deepcopy([module.state_dict(), states])


@pytest.mark.parametrize("model", [Towers, Unruly, ManualTowers])
def test_the_contract_holds_in_every_step(model):
    alternator = Recorded(rule=Cycle((3, 5)))
    watch = Watch(alternator)
    fit(model(), alternator, [watch], val=Steps(2), max_epochs=2, val_check_interval=3)
    assert watch.watched == 2 * NUM_STEPS
    assert alternator.stats().switch_count == 8


def test_modules_are_as_the_user_had_them_after_the_end():
    model = Towers()
    model.towers["a"][0].weight.requires_grad_(False)
    model.towers["b"][1].eval()
    before = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    made = callback(Recorded(rule=Cycle(3)), model)
    run = trainer(made)
    with pytest.warns(UserWarning, match=r"Found 1 module\(s\) in eval mode"):
        run.fit(model, Steps())
    assert [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()] == before
    assert [module.training for module in model.modules()] == modes
    assert made.active == "b"
    assert not run.optimizers[0]._optimizer_step_post_hooks


def test_modules_are_as_the_user_had_them_after_an_error():
    class Failing(Towers):
        def training_step(self, batch, batch_idx):
            if batch == 5:
                raise RuntimeError("out of memory")
            return super().training_step(batch, batch_idx)

    model = Failing()
    alternator = Recorded(rule=Cycle(1))
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(model, alternator)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_the_last_losses_are_told_at_the_end():
    alternator = Recorded()
    fit(alternator=alternator, steps=Steps(3))
    assert len(alternator.loss_history("a")) == 3


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_that_returns_nothing_counts_as_skipped():
    class Sparse(Towers):
        def training_step(self, batch, batch_idx):
            return None if batch % 3 == 1 else super().training_step(batch, batch_idx)

    model = Sparse()
    alternator = Recorded(rule=Cycle(2))
    watch = Watch(alternator)
    fit(model, alternator, [watch])
    assert [alternator.stats().modules[name].skipped_steps for name in NAMES] == [3, 2]
    assert [alternator.stats().modules[name].training_steps for name in NAMES] == [6, 5]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_counts_as_skipped(fused):
    class Overflowing(Towers):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            output["loss"] = output["loss"] * (float("inf") if batch in (2, 3) else 1.0)
            return output

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.01, fused=fused)

    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    alternator = Recorded(rule=Cycle(3))
    watch = Watch(alternator)
    fit(Overflowing(), alternator, [watch], plugins=[precision])
    assert [decision.step for decision in alternator.decisions if decision.switched] == [5, 8, 11, 14]
    assert alternator.stats().modules["a"].skipped_steps == 2
    assert precision.scaler.get_scale() == 2.0


def test_a_switch_that_the_user_forces_between_steps_is_applied():
    class Forcing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch == 4:
                alternator.force("b")

    alternator = Recorded(rule=Cycle(1000))
    model = Towers()
    before = copy.deepcopy(model.towers["b"].state_dict())
    fit(model, alternator, [Forcing()])
    assert [alternator.stats().modules[name].training_steps for name in NAMES] == [5, NUM_STEPS - 5]
    assert not same_bits(before, model.towers["b"].state_dict())


def test_a_switch_in_the_middle_of_an_accumulation_is_refused():
    class Forcing(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch == 4:
                alternator.force("b")

    alternator = Recorded(rule=Cycle(1000))
    with pytest.raises(FreezeError, match="the alternator says 'b', but 'a' is applied"):
        fit(Towers(), alternator, [Forcing()], accumulate_grad_batches=2)


@pytest.mark.parametrize(("kind", "is_refused"), [(Towers, False), (ManualTowers, True)])
def test_a_module_that_a_training_step_puts_in_training_mode(kind, is_refused):
    class Training(kind):
        def training_step(self, batch, batch_idx):
            self.train()
            return super().training_step(batch, batch_idx)

    if is_refused:
        with pytest.raises(FreezeError, match="a frozen module must be in its frozen mode"):
            fit(Training())
    else:
        assert same_bits(fit(Training()), fit(Towers()))


class Kept(Logger):
    """Keeps what it is given."""

    name = version = "kept"

    def __init__(self):
        super().__init__()
        self.metrics = []

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass


@pytest.mark.parametrize("model", [Towers, ManualTowers])
def test_who_trains_is_logged(model):
    logger = Kept()
    fit(model(), Recorded(rule=Cycle((2, 1))), logger=logger, log_every_n_steps=1)
    assert [step for step, _ in logger.metrics] == list(range(NUM_STEPS))
    assert [metrics["active/a"] for _, metrics in logger.metrics[:6]] == [1, 1, 0, 1, 1, 0]
    assert [metrics["share/b"] for _, metrics in logger.metrics[:4]] == pytest.approx([0, 0, 1 / 3, 1 / 4])
    seldom = Kept()
    fit(model(), Recorded(rule=Cycle((7, 2))), logger=seldom, log_every_n_steps=5)
    assert [step + 1 for step, _ in seldom.metrics] == [5, 7, 9, 10, 15, 16]
    silent = Kept()
    fit(model(), logger=silent, log_every_n_steps=1, given={"log": False})
    assert not silent.metrics


class Chain(LightningModule):
    """Two modules in a row, without what the compiler stumbles on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.b = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))

    def training_step(self, x_BD, batch_idx):
        return self.b(self.a(x_BD)).square().mean()

    def configure_optimizers(self):
        return adamw(self.parameters())


class Tensors(Steps):
    """Batches."""

    def __iter__(self):
        return map(batch, range(self.num_steps))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor is being accessed")
@pytest.mark.parametrize("frozen_mode", ["inference", "batch"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model_equals_eager_with_one_graph_per_active_set(whole, frozen_mode):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def run(prepare):
        model = Chain()
        alternator = Recorded(rule=Cycle(2))
        trainer(AlternatingCallback(alternator, frozen_mode=frozen_mode)).fit(prepare(model), Tensors())
        return list(model.state_dict().values()), alternator.decisions

    def parts(model):
        model.a = torch.compile(model.a, backend=backend)
        model.b = torch.compile(model.b, backend=backend)
        return model

    torch._dynamo.reset()
    compiled = run((lambda model: torch.compile(model, backend=backend)) if whole else parts)
    assert len(graphs) == (2 if whole else 4)
    assert same_runs(compiled, run(lambda model: model))
    torch._dynamo.reset()


def returning(output):
    class Returning(Towers):
        def training_step(self, batch, batch_idx):
            return {"loss": sum(self.losses(batch).values()), "losses": output}

    return Returning()


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [
        (1.0, LossError, r"'losses' of training_step must be a mapping by name, got 1\.0; return \{'loss': loss"),
        ({"b": 1.0}, LossError, "the loss of the active module 'a' is missing"),
        ({"a": 1.0, "c": 1.0}, UnknownModuleError, "unknown module 'c'; expected one of"),
        ({"a": torch.zeros(2)}, LossError, "a loss must be a real scalar"),
    ],
)
def test_losses_that_are_none(output, kind, message):
    with pytest.raises(kind, match=message):
        fit(returning(output))


def test_payoff_takes_joint_turns_and_no_losses():
    turns = {"both": NAMES, NAMES[0]: NAMES[:1]}
    sources = {name: f"towers.{name}" for name in NAMES}
    made = AlternatingCallback(Alternator(turns, Payoff(costs=(3, 2))), sources, turns=turns)
    with pytest.raises(LossError, match="Payoff must be given payoffs, got the loss of a step"):
        trainer(made).fit(returning(None), Steps())
    made = AlternatingCallback(Alternator(turns, Payoff(costs=(3, 2))), sources, turns=turns)
    trainer(made).fit(returning({}), Steps())
    assert made.alternator.step > 0
    refused(
        "Payoff must have a first turn that trains all",
        AlternatingCallback(Alternator(NAMES, Payoff(costs=(3, 2))), sources),
    )


def test_a_loss_that_reaches_only_the_always_group():
    class Always(Towers):
        def training_step(self, batch, batch_idx):
            return tower_loss(self.towers["c"], "c", batch)

    model = Always((*NAMES, "c"))
    made = AlternatingCallback(Alternator(NAMES), {name: f"towers.{name}" for name in NAMES}, always="towers.c")
    with pytest.raises(LossError, match="the loss reaches no parameter of 'a', which is active"):
        trainer(made).fit(model, Steps())


def refused(message, made, model=None, **options):
    with pytest.raises(ConfigurationError, match=message) as error:
        trainer(made, **options).fit(model or Towers(), Steps())
    assert "\n" not in str(error.value)


def towers_callback(**options):
    return AlternatingCallback(Alternator(NAMES), {name: f"towers.{name}" for name in NAMES}, **options)


def test_several_processes():
    made = towers_callback()
    run = trainer(made, strategy="ddp", devices=2)
    with pytest.raises(ConfigurationError, match="must run in one process for now, got DDPStrategy over 2"):
        made.setup(run, Towers(), "fit")


def test_two_callbacks():
    class Other(AlternatingCallback):
        pass

    other = Other(Alternator(NAMES), {name: f"towers.{name}" for name in NAMES})
    with pytest.raises(ConfigurationError, match="a Trainer must have one AlternatingCallback, got 2"):
        trainer(towers_callback(), other).fit(Towers(), Steps())


def test_settings_that_do_not_fit_the_optimization():
    refused(r"clip_norm must be None .*use Trainer\(gradient_clip_val=1.0\)", towers_callback(clip_norm=1.0))
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    refused("manual optimization must do without a GradScaler", towers_callback(), ManualTowers(), plugins=[precision])
    with pytest.raises(ConfigurationError, match="delay must be"):
        towers_callback(delay=-1)


@pytest.mark.parametrize(("path", "near"), [("b", "towers.b"), ("towers.c", "towers"), ("names", "towers")])
def test_modules_that_are_not_there(path, near):
    made = AlternatingCallback(Alternator(NAMES), {"a": path, "b": "towers.b"})
    refused(f"must name parameters of the model, but '{path}' of 'a' names none; there is '{near}", made)


def test_parameters_that_belong_to_no_module():
    made = AlternatingCallback(Alternator(NAMES), {"a": "towers.a.0", "b": "towers.b"})
    refused(r"must belong to a module, but none has 'towers.a.1.weight'", made)


def test_step_with_automatic_optimization():
    class Stepping(Towers):
        def training_step(self, batch, batch_idx):
            made.step(sum(self.losses(batch).values()))

    made = towers_callback()
    refused("must be called in training_step with automatic_optimization=False", made, Stepping())


def test_names_are_attributes_by_default_and_parameters_are_modules():
    class Scaled(Towers):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def training_step(self, batch, batch_idx):
            return sum(self.losses(batch).values()) * self.scale

    for modules in (None, ("towers", "scale"), {"towers": "towers", "scale": iter([])}):
        model = Scaled()
        if isinstance(modules, dict):
            modules["scale"] = iter([model.scale])
        alternator = Recorded(("towers", "scale"), Cycle(3))
        trainer(AlternatingCallback(alternator, modules)).fit(model, Steps(6))
        assert model.scale != 1
        assert alternator.active == "towers"
    turns = {"towers": "towers", "all": ("towers", "scale")}
    alternator = Recorded(turns, Cycle(3))
    trainer(AlternatingCallback(alternator, turns=turns)).fit(Scaled(), Steps(6))
    assert alternator.active == "towers"


@pytest.mark.parametrize(
    ("options", "given", "num_steps"),
    [
        ({"max_epochs": 3}, None, 48),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, None, 18),
        ({"max_epochs": 3, "max_steps": 20}, None, 20),
        ({"max_epochs": 1000, "max_steps": 7}, None, 7),
        ({"max_epochs": -1, "max_steps": 7}, None, 7),
        ({"max_epochs": 1}, 500, 500),
    ],
)
def test_the_alternator_is_told_how_long_the_run_is(options, given, num_steps):
    alternator = Alternator(NAMES, Cycle(3), num_steps=given)
    model = Towers()
    trainer(callback(alternator, model), **options).fit(model, Steps())
    assert alternator.num_steps == num_steps
    assert given is not None or alternator.step == num_steps


def test_an_endless_run_has_no_length():
    class Ends(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    alternator, model = Alternator(NAMES, Cycle(3)), Towers()
    trainer(callback(alternator, model), Ends(), max_epochs=-1).fit(model, Steps())
    assert alternator.num_steps is None


def test_a_module_that_starves_is_named():
    model = Towers()
    made = callback(Alternator(NAMES, Cycle(400)), model)
    with (
        pytest.warns(UserWarning, match="steps of Cycle should be at most a tenth of the run's 256 planned steps"),
        pytest.warns(UserWarning, match="'b' has not trained for 26 of 256 planned steps"),
    ):
        trainer(made, max_epochs=16).fit(model, Steps())

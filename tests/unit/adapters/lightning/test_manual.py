"""Manual optimization: the callback's step is that of AlternatingOptimizer, with Lightning counting."""

from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from adapters.lightning import AlternatingCallback
from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError, Cycle, LossError
from tests.conformance.freeze_contract_torch import adamw, same_bits, tower_loss
from tests.unit.adapters.lightning.lightning_runs import (
    NAMES,
    NUM_STEPS,
    ManualTowers,
    Recorded,
    Steps,
    Towers,
    callback,
    fit,
    outcome,
    trainer,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def plain(alternator, scheduled=NAMES, **options):
    """The same by a loop of one's own."""
    model = Towers()
    optimizers = {name: adamw(module.parameters()) for name, module in model.towers.items()}
    schedulers = {name: ExponentialLR(optimizers[name], 0.9) for name in scheduled}
    modules = dict(model.towers.items())
    alternating = AlternatingOptimizer(alternator, modules, optimizers, schedulers=schedulers, **options)
    for step in range(NUM_STEPS):
        losses = model.losses(step)
        alternating.step(sum(losses.values()), losses)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers.values()]
    return outcome(model, optimizers.values()), alternator.decisions, rates


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.05}, {"delay": 0}])
def test_a_run_equals_a_plain_loop_with_an_optimizer_and_a_scheduler_per_module(options, precision):
    model, alternator = ManualTowers(), Recorded()
    run = trainer(callback(alternator, model, **options), precision=precision)
    run.fit(model, Steps())
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true", cache_enabled=False):
        expected = plain(Recorded(), **options)
    assert sum(decision.switched for decision in alternator.decisions) >= 2
    assert alternator.decisions == expected[1]
    assert same_bits(outcome(model, run.optimizers), expected[0])
    assert [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers] == expected[2]
    assert run.global_step == NUM_STEPS  # one per step, whatever the number of optimizers (Lightning 17958)


def test_one_optimizer_over_all():
    class One(ManualTowers):
        def configure_optimizers(self):
            return adamw(self.parameters())

    assert same_bits(fit(One()), fit())


def test_several_optimizers_and_schedulers_per_module():
    class Parts(ManualTowers):
        def configure_optimizers(self):
            parts = [
                [p for p in tower.parameters() if (p.ndim > 1) == dim]
                for tower in self.towers.values()
                for dim in (0, 1)
            ]
            optimizers = [adamw(part) for part in parts]
            return optimizers, [{"scheduler": ExponentialLR(each, 0.9), "interval": "step"} for each in optimizers]

    models = [Parts(), ManualTowers()]
    for model in models:
        run = trainer(callback(Recorded(), model))
        run.fit(model, Steps())
        rates = [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers]
        assert set(rates) == set(plain(Recorded())[2])
    assert same_bits(*(model.state_dict() for model in models))


def test_a_leaf_tensor_as_a_module():
    class Temperature(ManualTowers):
        def __init__(self):
            super().__init__(("a",))
            self.log_alpha = torch.zeros(1, requires_grad=True)

        def training_step(self, batch, batch_idx):
            name = self.alternating.active
            before.append((name, self.log_alpha.item(), self.towers["a"][0].weight.sum().item()))
            self.alternating.step(self.losses(batch)["a"] * self.log_alpha.exp().sum())

        def configure_optimizers(self):
            return [adamw(self.towers["a"].parameters()), adamw([self.log_alpha])]

    before = []
    model = Temperature()
    model.alternating = AlternatingCallback(
        Alternator(("a", "alpha"), rule=Cycle(1)), {"a": "towers.a", "alpha": "log_alpha"}
    )
    trainer(model.alternating).fit(model, Steps())
    for (name, *now), (_, *after) in pairwise(before):
        assert [one != two for one, two in zip(now, after, strict=True)] == [name == "alpha", name == "a"]


class ByEpochs(ManualTowers):
    """One scheduler per tower, as Lightning has them by default."""

    def configure_optimizers(self):
        optimizers, _ = super().configure_optimizers()
        return optimizers, [ExponentialLR(optimizers[0], 0.5), {"scheduler": ExponentialLR(optimizers[1], 0.1)}]


def test_a_scheduler_by_epochs_counts_those_in_which_its_module_trained():
    model = ByEpochs()  # 16 steps are an epoch: a trains in the first two and the fourth, b in the third and the fourth
    run = trainer(callback(Recorded(rule=Cycle((32, 20))), model), max_epochs=4)
    run.fit(model, Steps())
    rates = [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers]
    assert rates == pytest.approx([0.01 * 0.5**3, 0.01 * 0.1**2])


def test_a_run_resumed_in_the_middle_of_an_epoch_knows_who_trained_in_it(tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 9:
                trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def fit_some(ckpt_path, *callbacks):
        model, alternator = ByEpochs(), Recorded(rule=Cycle((20, 3)))
        run = trainer(callback(alternator, model), *callbacks, max_epochs=2)
        run.fit(model, Steps(), ckpt_path=ckpt_path)
        return [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers]

    whole = fit_some(None, Saves())  # b trains in steps 20 to 22, the second epoch's 4 to 6: before the checkpoint only
    assert whole == pytest.approx([0.01 * 0.5**2, 0.01 * 0.1])
    assert fit_some(tmp_path / "1.ckpt") == whole


def test_a_frequency_is_refused():
    class Rare(ManualTowers):
        def configure_optimizers(self):
            optimizers, (first, second) = super().configure_optimizers()
            return optimizers, [first, {**second, "frequency": 3}]

    model = Rare()
    with pytest.raises(ConfigurationError, match="the scheduler of 'b' must have frequency 1, got 3"):
        trainer(callback(Recorded(), model)).fit(model, Steps())


def test_a_scheduler_that_needs_a_metric_or_drives_several_modules_is_the_users():
    class Plateau(ManualTowers):
        def configure_optimizers(self):
            optimizers, (first, _) = super().configure_optimizers()
            return optimizers, [first, ReduceLROnPlateau(optimizers[1])]

    class Shared(ManualTowers):
        def configure_optimizers(self):
            optimizer = adamw(self.parameters())
            return [optimizer], [ExponentialLR(optimizer, 0.9)]

    model, alternator = Plateau(), Recorded()
    run = trainer(callback(alternator, model))
    run.fit(model, Steps())
    assert [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers] == plain(Recorded(), scheduled=("a",))[2]
    model = Shared()
    run = trainer(callback(Recorded(), model))
    run.fit(model, Steps())
    assert run.optimizers[0].param_groups[0]["lr"] == 0.01


class Always(ManualTowers):
    """Three towers, of which the last trains in every step, with its own optimizer."""

    def __init__(self):
        super().__init__((*NAMES, "c"))

    def configure_optimizers(self):
        return [adamw(module.parameters()) for module in reversed(self.towers.values())]


def always(alternator, **options):
    return AlternatingCallback(alternator, {name: f"towers.{name}" for name in NAMES}, **options)


def test_an_always_group_with_an_optimizer_of_its_own():
    model, alternator = Always(), Recorded(rule=Cycle(2))
    made = model.alternating = always(alternator, always="towers.c")
    model.training_step = lambda batch, batch_idx: made.step(sum(model.losses(batch).values())) and None
    run = trainer(made)
    run.fit(model, Steps(6))
    steps = {optimizer.state[optimizer.param_groups[0]["params"][0]]["step"].item() for optimizer in run.optimizers}
    assert steps == {6, 4, 2}
    assert run.global_step == 12  # Lightning counts the steps of optimizers, and two step at a time here


def test_an_optimizer_that_holds_no_module():
    class Leftover(ManualTowers):
        def configure_optimizers(self):
            return [*super().configure_optimizers()[0], adamw([torch.nn.Parameter(torch.zeros(1))])]

    with pytest.raises(ConfigurationError, match="must hold parameters of a module, but 1 of 3 hold none; leave"):
        fit(Leftover())


def test_a_module_without_an_optimizer():
    class Missing(Always):
        def configure_optimizers(self):
            return super().configure_optimizers()[:2]

    model = Missing()
    model.alternating = callback(Alternator(model.names), model)
    with pytest.raises(ConfigurationError, match="every module must have an optimizer, but 'a' has none"):
        trainer(model.alternating).fit(model, Steps())


def test_a_loss_that_does_not_reach_what_is_active():
    class Astray(ManualTowers):
        def training_step(self, batch, batch_idx):
            self.alternating.step(tower_loss(self.towers["c"], "c", batch))

    model = Astray((*NAMES, "c"))
    model.configure_optimizers = lambda: adamw(model.parameters())
    model.alternating = always(Alternator(NAMES), always="towers.c")
    with pytest.raises(LossError, match="reaches no parameter of 'a', which is active"):
        trainer(model.alternating).fit(model, Steps())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (1.0, "must be a tensor, got 1.0"),
        (torch.ones(()), "reaches no parameter of 'a', which is active: it requires no"),
    ],
)
def test_a_loss_without_a_gradient(loss, message):
    class Constant(ManualTowers):
        def training_step(self, batch, batch_idx):
            self.alternating.step(loss)

    class Returned(Towers):
        def training_step(self, batch, batch_idx):
            return loss

    with pytest.raises(LossError, match=message):
        fit(Constant())
    if isinstance(loss, torch.Tensor):  # Lightning itself refuses others
        with pytest.raises(LossError, match=message):
            fit(Returned())


def test_an_optimizer_that_needs_a_closure():
    class Search(torch.optim.SGD):
        def step(self, closure):
            return super().step(closure)

    class Searching(ManualTowers):
        def configure_optimizers(self):
            return Search(self.parameters(), lr=0.1)

    with pytest.raises(ConfigurationError, match="without a closure, got one that needs it: 'Search'"):
        fit(Searching())


def test_step_after_training():
    model = ManualTowers()
    made = callback(Alternator(NAMES), model)
    trainer(made).fit(model, Steps(2))
    with pytest.raises(ConfigurationError, match="must be called in training_step"):
        made.step(torch.zeros(()))

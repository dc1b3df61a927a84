"""Training two towers with Lightning, and the same by a plain loop: what tests of the callback compare."""

import copy
from contextlib import nullcontext

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from adapters.lightning import AlternatingCallback
from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Plateau
from tests.conformance.freeze_contract_torch import adamw, optimizer_state, tower, tower_loss

NAMES = ("a", "b")
NUM_STEPS = 16


class Recorded(Alternator):
    """Keeps its decisions."""

    def __init__(self, modules=NAMES, rule=None):
        self.decisions = []
        super().__init__(modules, rule=rule or Plateau(threshold=0.4, min_steps=2, window=3))

    def advance(self, *, updated=True):
        self.decisions.append(super().advance(updated=updated))
        return self.decisions[-1]


class Towers(LightningModule):
    """Two towers with batch normalisation and dropout; a batch is the number of a step, on which all depends."""

    def __init__(self, names=NAMES):
        super().__init__()
        self.names = names
        self.towers = nn.ModuleDict({name: tower(seed) for seed, name in enumerate(names)})

    def losses(self, step):
        return {name: tower_loss(self.towers[name], name, step) for name in self.names}

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        return {"loss": sum(losses.values()), "losses": losses}

    def validation_step(self, batch, batch_idx):
        assert not any(module.training for module in self.modules())
        self.losses(batch)

    def configure_optimizers(self):
        return adamw(self.parameters())


class ManualTowers(Towers):
    """The same with manual optimization, an optimizer and a scheduler per tower."""

    def __init__(self, names=NAMES):
        super().__init__(names)
        self.automatic_optimization = False
        self.alternating = None

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        self.alternating.step(sum(losses.values()), losses)

    def configure_optimizers(self):
        optimizers = [adamw(module.parameters()) for module in self.towers.values()]
        return optimizers, [{"scheduler": ExponentialLR(each, 0.9), "interval": "step"} for each in optimizers]


class Steps:
    """A loader of step numbers that Lightning can resume in the middle of an epoch."""

    def __init__(self, num_steps=NUM_STEPS):
        self.num_steps = num_steps
        self.start = self.done = 0

    def __len__(self):
        return self.num_steps

    def __iter__(self):
        start, self.start = self.start, 0
        for step in range(start, self.num_steps):
            self.done = step + 1
            yield step

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.start = state["done"] % self.num_steps


def trainer(*callbacks, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "num_sanity_val_steps": 0, "max_epochs": 1}
    return Trainer(callbacks=list(callbacks), **(quiet | options))


def callback(alternator, model, **options):
    """The callback for a model, which gets it too."""
    made = AlternatingCallback(alternator, {name: f"towers.{name}" for name in model.names}, **options)
    if isinstance(model, ManualTowers):
        model.alternating = made
    return made


def fit(model=None, alternator=None, callbacks=(), val=None, steps=None, ckpt_path=None, given=None, **options):
    """Train with Lightning; the model's parameters and buffers, the optimizers' states, and the decisions."""
    model = model or Towers()
    alternator = alternator or Recorded()
    made = callback(alternator, model, **(given or {}))
    run = trainer(made, *callbacks, **options)
    run.fit(model, steps or Steps(), val, ckpt_path=ckpt_path)
    return outcome(model, run.optimizers), alternator.decisions


def plain(alternator=None, num_steps=NUM_STEPS, epochs=1, autocast=False, **options):
    """The same by a loop that uses AlternatingOptimizer with one optimizer over all."""
    model = Towers()
    alternator = alternator or Recorded()
    optimizer = adamw(model.parameters())
    alternating = AlternatingOptimizer(alternator, dict(model.towers.items()), optimizer, **options)
    for step in [*range(num_steps)] * epochs:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            losses = model.losses(step)
            loss = sum(losses.values())
        alternating.step(loss, losses)
    return outcome(model, [optimizer]), alternator.decisions


def outcome(model, optimizers):
    states = [optimizer_state(optimizer, model) for optimizer in optimizers]
    return copy.deepcopy({"model": model.state_dict(), "optimizers": states})

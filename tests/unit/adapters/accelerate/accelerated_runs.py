"""Two modules in a row that a plain Accelerate loop trains in turns: what tests compare."""

import copy
import os

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from adapters.accelerate import Follower
from alternator import Alternator, Plateau
from tests.conformance.freeze_contract_torch import adamw, optimizer_state, same_bits

NAMES = ("a", "b")
RULE = Plateau(threshold=0.3, min_steps=2, window=3)
NUM_ROWS = 80


class Model(nn.Module):
    """With normalisation and dropout, so that a mode that is wrong shows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.b = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x_BD):
        return self.b(self.a(x_BD))


def rows():
    generator = torch.Generator().manual_seed(3)
    x_ND = torch.randn(NUM_ROWS, 4, generator=generator)
    return TensorDataset(x_ND, x_ND.sum(1, keepdim=True))


class Run:
    """A loop as people write it with Accelerate; everything is put in training mode in every batch."""

    def __init__(self, rule=RULE, num_micro=1, several=False, find_unused=True, scaler=None, **options):
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if find_unused else []
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=num_micro, kwargs_handlers=handlers)
        self.accelerator.scaler = scaler
        plain = Model()
        parts = [getattr(plain, name).parameters() for name in NAMES] if several else [plain.parameters()]
        given = [adamw(part) for part in parts]
        schedulers = [LambdaLR(optimizer, lambda step: 0.99**step) for optimizer in given]
        loader = DataLoader(rows(), batch_size=8)
        self.model, self.loader, *prepared = self.accelerator.prepare(plain, loader, *given, *schedulers)
        self.optimizers, self.schedulers = prepared[: len(given)], prepared[len(given) :]
        optimizers = dict(zip(NAMES, self.optimizers, strict=True)) if several else self.optimizers[0]
        self.plain = plain
        self.modules = {name: getattr(plain, name) for name in NAMES}
        self.alternator = Alternator(NAMES, rule=rule)
        self.follower = Follower(
            self.accelerator,
            self.alternator,
            self.modules,
            optimizers,
            model=self.model,
            frozen_mode="inference",
            **options,
        )
        self.decisions, self.losses, self.num_moved = [], [], 0

    def epoch(self, number, factor=1.0):
        torch.manual_seed(100 + number)
        for x_BD, y_B1 in self.loader:
            self.batch(x_BD, y_B1, factor)

    def train(self, start=0, stop=3):
        for number in range(start, stop):
            self.epoch(number)
        return self

    def batch(self, x_BD, y_B1, factor=1.0):
        before = self.frozen()
        with self.accelerator.accumulate(self.model):
            self.model.train()
            loss = nn.functional.mse_loss(self.model(x_BD), y_B1) * factor
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
            for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            self.num_moved += not same_bits(before, self.frozen())
            decision = self.follower.after_step(loss)
        self.losses.append(loss.item())
        if decision is not None:
            self.decisions.append(decision)

    def frozen(self):
        (name,) = set(NAMES) - {self.follower.active}
        optimizers = [optimizer.optimizer for optimizer in self.optimizers]
        holder = optimizers[NAMES.index(name)] if len(optimizers) > 1 else optimizers[0]
        return copy.deepcopy([self.modules[name].state_dict(), optimizer_state(holder, self.modules[name])])

    def outcome(self):
        states = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        return copy.deepcopy([self.plain.state_dict(), states])


def forget():
    """Undo what Accelerate keeps for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def as_rank(rank, num_ranks):
    """What ``accelerate launch`` would set."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "OMP_NUM_THREADS": "1"}
    os.environ |= {"LOCAL_WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}

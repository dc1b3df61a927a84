"""A run of two modules that take turns, wrapped for several processes in one of several ways."""

import copy
import re

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, Plateau
from tests.conformance.freeze_contract_torch import adamw, optimizer_state, same_bits

NAMES = ("a", "b")
NUM_STEPS = 30
RULE = Plateau(threshold=0.3, min_steps=2, window=3)
SHARDINGS = {"shard each": NAMES, "shard root": ("",), "shard all": (*NAMES, "")}
"""Per way the names of what is sharded by itself."""


class Model(nn.Module):
    """Two modules in a row, so that gradients of the first flow through the second."""

    def __init__(self, norm=True):
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Tanh(), nn.ReLU())
        self.b = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6) if norm else nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x_BD):
        return self.b(self.a(x_BD))


class Run:
    """A run whose data depend on rank and step alone."""

    def __init__(self, rank, wrapping="whole", norm=True, rule=RULE, ddp=None, named=None, **options):
        self.rank = rank
        self.model = Model(norm)
        modules = {name: getattr(self.model, name) for name in NAMES}
        if wrapping == "whole":
            self.wrapped = options["model"] = DistributedDataParallel(
                self.model, find_unused_parameters=True, **(ddp or {})
            )
        elif wrapping == "each":
            modules = {name: DistributedDataParallel(module, **(ddp or {})) for name, module in modules.items()}
            self.wrapped = nn.Sequential(*modules.values())
        else:
            self.wrapped = self.model
            if wrapping in SHARDINGS:
                options["model"] = self.model
            for sharded in SHARDINGS.get(wrapping, ()):
                fully_shard(self.model.get_submodule(sharded))
        self.optimizers = {name: adamw(module.parameters()) for name, module in modules.items()}
        self.alternating = AlternatingOptimizer(
            Alternator(NAMES, rule=rule),
            named or modules,
            self.optimizers,
            **{"clip_norm": 0.5, "frozen_mode": "inference", **options},
        )
        self.decisions = []
        self.losses = []

    def loss(self, step, rank=None):
        x_BD = batch(self.rank if rank is None else rank, step)
        return (self.wrapped(x_BD) - x_BD.sum(1, keepdim=True)).square().mean()

    def train(self, start=0, stop=NUM_STEPS):
        for step in range(start, stop):
            loss = self.loss(step)
            self.losses.append(loss.item())
            self.decisions.append(self.alternating.step(loss))
        return self

    def stays(self, name):
        """What must not change while a module is frozen."""
        module = getattr(self.model, name)
        return copy.deepcopy([module.state_dict(), optimizer_state(self.optimizers[name], module)])

    def state(self):
        return copy.deepcopy([self.model.state_dict(), self.alternating.state_dict(include_optimizers=True)])

    def parameters(self):
        return [parameter.detach().clone() for parameter in self.model.parameters()]


def batch(rank, step):
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * step + rank)) * (1 + rank)


def other(name):
    return NAMES[1 - NAMES.index(name)]


def frozen_stays(run, num_steps=NUM_STEPS):
    """Train; returns whether each frozen module stayed as it was from one switch to the next."""
    stayed = True
    frozen, kept = "", None
    for step in range(num_steps):
        if frozen != other(run.alternating.active):
            frozen = other(run.alternating.active)
            kept = run.stays(frozen)
        run.train(step, step + 1)
        module = getattr(run.model, frozen)
        stayed &= same_bits(kept, run.stays(frozen)) and all(each.grad is None for each in module.parameters())
    return stayed


def refusal_of(rank, case):
    try:
        case(rank)
    except ValueError as error:
        return str(error)
    return "nothing"


def check_refusal(ranks, case, pattern):
    """Every rank refuses it, in one line that says so."""
    for message in ranks.run(refusal_of, case):
        assert "\n" not in message
        assert re.search(pattern, message), message

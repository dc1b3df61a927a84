"""Modules that users bring to PyTorch, measured as in `torch_optimizers`: norms of weights, LoRA, averages."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim import Optimizer
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from adapters.torch import AlternatingOptimizer
from alternator import Alternator, ConfigurationError, Cycle
from tests.conformance.freeze_contract_torch import Build, Measured, batch, same_bits, tower, tower_loss
from tests.conformance.kept import KEPT, REFUSED, Cell, Row, Table
from tests.conformance.naive_torch import HandWritten
from tests.conformance.torch_optimizers import APART, ONE, SHORT, kept

Average = Callable[[nn.Module], AveragedModel]


def changed(change: Callable[[nn.Linear], nn.Module], seed: int) -> nn.Sequential:
    """A tower whose layers are changed in place."""
    module = tower(seed)
    for layer in module:
        if isinstance(layer, nn.Linear):
            change(layer)
    return module


def with_old_weight_norm(layer: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed: nn.Module = nn.utils.weight_norm(layer)
        return normed


def with_lora(seed: int) -> nn.Module:
    """A tower of which only matrices of low rank train, and its norm."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["0", "4"], modules_to_save=["1"], lora_dropout=0.1)
    module: nn.Module = peft.get_peft_model(tower(seed), config)
    return module


def row(make: Callable[[int], nn.Module], remark: str = "") -> Row:
    measured = replace(SHORT, make_towers=lambda: {"a": make(0), "b": make(1)})
    over_all = replace(measured, one_optimizer=True)
    return Row({APART: Cell(KEPT, partial(kept, measured)), ONE: Cell(KEPT, partial(kept, over_all))}, remark)


def averaged(make: Average, remark: str, *, swa: bool = False) -> Row:
    over_all = replace(SHORT, one_optimizer=True)
    one = (
        Cell(REFUSED, partial(one_schedule, make, over_all))
        if swa
        else Cell(KEPT, partial(averages, make, over_all, swa))
    )
    return Row({APART: Cell(KEPT, partial(averages, make, SHORT, swa)), ONE: one}, remark)


def one_schedule(make: Average, measured: Measured) -> None:
    """The schedule of SWA is that of an optimizer, which must not be that of several modules."""
    with pytest.raises(ConfigurationError, match="must move the learning rate of its own module only"):
        train(AlternatingOptimizer, make, measured, swa=True)


def averages(make: Average, measured: Measured, swa: bool) -> None:
    """One average per module, updated after the module's steps: it stays with its module, and equals that by hand."""
    ours = train(AlternatingOptimizer, make, measured, swa)
    assert same_bits(ours, train(HandWritten, make, replace(measured, one_optimizer=False), swa))


def train(build: Build, make: Average, measured: Measured, swa: bool) -> Any:
    modules = measured.make_towers()
    means = {name: make(module) for name, module in modules.items()}
    optimizers, _ = measured.make_optimizers(modules)
    schedulers = {name: SWALR(each, 0.05, anneal_epochs=3) for name, each in optimizers.items()} if swa else {}
    alternator = Alternator(modules, rule=Cycle(tuple(measured.tenures.values())))
    given = optimizers["a"] if measured.one_optimizer else optimizers
    alternating = build(alternator, modules, given, schedulers=schedulers)
    for step, trained in enumerate(measured.turns()):
        other = "b" if trained == "a" else "a"
        before, mean = copy.deepcopy([modules[other].state_dict(), means[other].state_dict()]), means[trained]
        old = copy.deepcopy(list(mean.parameters()))
        losses = {name: tower_loss(module, name, step) for name, module in modules.items()}
        alternating.step(losses["a"] + losses["b"], losses)
        mean.update_parameters(modules[trained])
        assert step == 0 or not same_bits(old, list(mean.parameters()))
        assert same_bits(before, [modules[other].state_dict(), means[other].state_dict()])
    for mean in means.values():
        update_bn([batch(100), batch(101)], mean)
    return [[each.state_dict() for each in (*means.values(), *modules.values())], list(map(rates, optimizers.values()))]


def rates(optimizer: Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


EMA = partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(0.9))
TABLE = Table(
    "modules in PyTorch",
    (APART, ONE),
    {
        "weight norm (`parametrizations.weight_norm`)": row(partial(changed, parametrizations.weight_norm)),
        "weight norm of old (`nn.utils.weight_norm`)": row(partial(changed, with_old_weight_norm)),
        "spectral norm (`parametrizations.spectral_norm`)": row(
            partial(changed, parametrizations.spectral_norm), "its vectors are buffers, and stay too"
        ),
        "spectral norm of old (`nn.utils.spectral_norm`)": row(partial(changed, nn.utils.spectral_norm)),
        "orthogonal (`parametrizations.orthogonal`)": row(partial(changed, parametrizations.orthogonal)),
        "LoRA (`peft`)": row(with_lora, "what `peft` froze stays frozen"),
        "EMA (`AveragedModel`)": averaged(EMA, "one average per module, updated after its steps"),
        "SWA (`AveragedModel`, `SWALR`, `update_bn`)": averaged(
            AveragedModel, "likewise; the schedule needs an optimizer per module", swa=True
        ),
    },
)

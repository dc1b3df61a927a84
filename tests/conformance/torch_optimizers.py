"""Optimizers that users bring to PyTorch, each in turns against a loop by hand that steps one module only."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adapters.torch import AlternatingOptimizer
from alternator import ConfigurationError
from tests.conformance.freeze_contract_torch import MakeOptimizer, Measured, measure, same_bits
from tests.conformance.kept import ELSEWHERE, KEPT, REFUSED, Cell, Row, Table

SHORT = Measured(tenures={"a": 3, "b": 4}, num_steps=11)
APART, GROUPED, ONE = "one per module", "one, a group per module", "one over all"


class Matrices(nn.Sequential):
    """A tower of matrices alone."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False))


class Sparse(nn.Module):
    """A tower of one table with sparse gradients."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(7, 1, sparse=True)

    def forward(self, x_BD: Tensor) -> Tensor:
        rows_BD: Tensor = self.table((10 * x_BD).long() % 7)
        return rows_BD.sum(1)


def kept(measured: Measured) -> None:
    """Nothing of the contract is broken, and each parameter has moved."""
    built: list[dict[str, nn.Module]] = []

    def make_towers() -> dict[str, nn.Module]:
        built.append(measured.make_towers())
        return built[-1]

    assert measure(AlternatingOptimizer, replace(measured, make_towers=make_towers)) == set()
    before = measured.make_towers()
    for name, module in built[0].items():
        pairs = zip(before[name].parameters(), module.parameters(), strict=True)
        assert all(not same_bits(one, two) for one, two in pairs if one.requires_grad), name


def refused(message: str, measured: Measured) -> None:
    """Refused when built, in one line."""
    with pytest.raises(ConfigurationError, match=message) as error:
        measure(AlternatingOptimizer, measured)
    assert "\n" not in str(error.value)


def on_a_gpu(measured: Measured) -> None:
    """What a CPU cannot run."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    kept(replace(measured, make_towers=lambda: {name: m.cuda() for name, m in measured.make_towers().items()}))


def row(make: MakeOptimizer, remark: str = "", *, one: Callable[[Measured], None] = kept, **options: Any) -> Row:
    """Kept with one optimizer per module, and with one over all unless said otherwise."""
    apart = replace(SHORT, make_optimizer=make, **options)
    over_all = replace(apart, one_optimizer=True)
    cells = {
        APART: Cell(KEPT, partial(kept, apart)),
        GROUPED: Cell(KEPT, partial(kept, replace(over_all, grouped=True))),
    }
    cells[ONE] = Cell(KEPT if one is kept else REFUSED, partial(one, over_all))
    kind = make.func if isinstance(make, partial) else None
    for variant in ("foreach", "fused", "capturable"):
        if kind is not None and variant in inspect.signature(kind).parameters and kind.__module__.startswith("torch."):
            varied = replace(over_all, make_optimizer=partial(make, **{variant: True}))
            is_elsewhere = variant == "capturable"
            cells[variant] = Cell(
                *((ELSEWHERE, partial(on_a_gpu, varied)) if is_elsewhere else (KEPT, partial(kept, varied)))
            )
    return Row(cells, remark)


def of_package(package: str, kind: str, parameters: Any, **options: Any) -> Optimizer:
    """An optimizer from a package, which those who run the suite for an adapter of their own need not have."""
    optimizer: Any = getattr(pytest.importorskip(package), kind)(parameters, **options)
    if package == "schedulefree":
        optimizer.train()
    return optimizer  # type: ignore[no-any-return]


def muon_of_package(parameters: list[Any]) -> Optimizer:
    """The Muon that asks which of its groups are matrices."""
    groups = parameters if isinstance(parameters[0], dict) else [{"params": parameters}]
    return of_package("pytorch_optimizer", "Muon", [{**group, "use_muon": True, **DECAY} for group in groups])


MATRICES = {"make_towers": lambda: {"a": Matrices(0), "b": Matrices(1)}}
SPARSE = {"make_towers": lambda: {"a": Sparse(0), "b": Sparse(1)}, "clip_norm": None}
DECAY = {"lr": 0.01, "weight_decay": 0.1}


def refusal(message: str, make: MakeOptimizer, remark: str) -> Row:
    measured = replace(SHORT, make_optimizer=make)
    over_all = replace(measured, one_optimizer=True)
    return Row(
        {
            APART: Cell(REFUSED, partial(refused, message, measured)),
            ONE: Cell(REFUSED, partial(refused, message, over_all)),
        },
        remark,
    )


def lookahead(parameters: Any) -> Optimizer:
    return of_package("pytorch_optimizer", "Lookahead", torch.optim.AdamW(parameters, **DECAY))


def packaged(package: str, kind: str, **options: Any) -> Row:
    remark = "takes matrices only" if "make_towers" in options else "counts per group" if "one" in options else ""
    return row(partial(of_package, package, kind, **DECAY), remark, **options)


COUNTS = partial(refused, "counts .* give each module a group, or an optimizer, of its own")
TORCH = {
    "Adadelta": row(partial(torch.optim.Adadelta, lr=0.5, weight_decay=0.1)),
    "Adafactor": row(partial(torch.optim.Adafactor, **DECAY)),
    "Adagrad": row(partial(torch.optim.Adagrad, lr_decay=0.01, **DECAY)),
    "Adam": row(partial(torch.optim.Adam, amsgrad=True, **DECAY)),
    "Adamax": row(partial(torch.optim.Adamax, **DECAY)),
    "AdamW": row(partial(torch.optim.AdamW, **DECAY)),
    "ASGD": row(partial(torch.optim.ASGD, t0=2, **DECAY)),
    "LBFGS": refusal("must step without a closure", torch.optim.LBFGS, "needs a closure"),
    "Muon": row(partial(torch.optim.Muon, **DECAY), "takes matrices only", **MATRICES),
    "NAdam": row(partial(torch.optim.NAdam, **DECAY)),
    "RAdam": row(partial(torch.optim.RAdam, **DECAY)),
    "RMSprop": row(partial(torch.optim.RMSprop, momentum=0.9, **DECAY)),
    "Rprop": row(partial(torch.optim.Rprop, lr=0.01)),
    "SGD": row(partial(torch.optim.SGD, momentum=0.9, nesterov=True, **DECAY)),
    "SparseAdam": row(partial(torch.optim.SparseAdam, lr=0.01), "sparse gradients only", **SPARSE),
}
TABLE = Table(
    "`torch.optim`, and optimizers from packages",
    (APART, GROUPED, ONE, "foreach", "fused", "capturable"),
    {
        **{f"`{name}`": each for name, each in TORCH.items()},
        "`SingleDeviceMuon` of `muon-optimizer`": packaged("muon", "SingleDeviceMuon", **MATRICES),
        "`Muon` of `pytorch_optimizer`": row(
            muon_of_package, "takes matrices only, counts per group", one=COUNTS, **MATRICES
        ),
        "`AdaFactor` of `pytorch_optimizer`": packaged("pytorch_optimizer", "AdaFactor", one=COUNTS),
        "`AdamWScheduleFree` of `schedulefree`": packaged("schedulefree", "AdamWScheduleFree", one=COUNTS),
        "`SGDScheduleFree` of `schedulefree`": packaged("schedulefree", "SGDScheduleFree", one=COUNTS),
        "`Lookahead` of `pytorch_optimizer`, and other wrappers": refusal(
            r"wraps another: give that one \(its \.optimizer\)", lookahead, "give the optimizer inside"
        ),
    },
)

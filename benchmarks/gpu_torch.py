"""The parts of `gpu.py` in PyTorch."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from frozen_state import HostBesideItself
from gpu_measures import KINDS, SAMPLED, Context, add_times, count_changed, milliseconds, times_of
from gpu_results import Record, Skipped
from random_data import STEPS, RandomData, Step
from rates import torch_rates
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from work import Rates, Shape, step_work

import ur4rec_torch
from adapters.contract import FrozenState
from adapters.torch import AlternatingOptimizer, LateScalar
from adapters.torch.host import Host
from alternator import Alternator, Cycle
from ur4rec.schedule.stages import MODULES
from ur4rec_torch.device import to_device

JOINT = {turn: Step(stage="joint_finetune", turn=turn) for turn in MODULES}


def synchronise(context: Context) -> None:
    """Wait for the device."""
    if context.is_accelerator:
        torch.cuda.synchronize()


# --- the freeze contract ----------------------------------------------------------------------------------------------


def contract(context: Context, record: Record) -> None:
    """What is frozen keeps its bits; states that are offloaded come back to the bit; scores are those of the CPU."""
    data = RandomData(next(iter(context.shapes.values())), context.device)
    for kind, settings in KINDS.items():
        for frozen, active in (MODULES, MODULES[::-1]):
            changed, total = frozen_bits(context, data, frozen, active, settings)
            name = f"arrays of the frozen {frozen} and its moments that changed{kind}"
            record.figure(name, changed, bar=0, detail=f"of {total}, in {context.steps} steps of the {active}")
    blocks(context, record)
    scores = [
        data.trainer("torch", STEPS[-1], device=device).score(data.histories_BL) for device in (context.device, "cpu")
    ]
    distance = float(np.abs(scores[0] - scores[1]).max() / np.abs(scores[1]).max())
    record.figure("scores, largest difference from the CPU's by the largest", distance, bar=1e-4, detail="float32")


def frozen_bits(
    context: Context, data: RandomData, frozen: str, active: str, settings: dict[str, Any]
) -> tuple[int, int]:
    """Arrays of a frozen module, moments too, that changed while the other one trained; and how many there are."""
    trainer = data.trainer("torch", JOINT[frozen], **settings)
    for batch in data.batches(3):  # so that it has moments
        trainer.train_step(batch)
    trainer._alternating.force(active)
    before = module_bits(trainer, frozen)
    for batch in data.batches(context.steps):
        trainer.train_step(batch)
    return count_changed(before, module_bits(trainer, frozen)), len(before)


def module_bits(trainer: Any, name: str) -> list[bytes]:
    """Weights, buffers and moments of a module."""
    tensors = [*getattr(trainer.model, name).state_dict().values()]
    state = trainer._optimizers[name].state
    for parameter in getattr(trainer.model, name).parameters():
        tensors += [each for each in state.get(parameter, {}).values() if isinstance(each, Tensor)]
    return [as_bits(tensor) for tensor in tensors]


def as_bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor, on the host."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else bits_of(tensor)


def bits_of(tensor: Tensor) -> bytes:
    """The bytes of a scalar."""
    return tensor.detach().cpu().numpy().tobytes()


class Blocks:
    """Blocks in a row that train in turns, with one choice of what becomes of frozen states.

    Args:
        context: Where.
        choice: ``keep``, ``offload`` or ``drop``.
    """

    def __init__(self, context: Context, choice: FrozenState) -> None:
        torch.manual_seed(0)
        width, count = (16, 3) if context.quick else (2048, 6)
        layers = {f"block{number}": nn.Linear(width, width, device=context.device) for number in range(count)}
        self.layers = layers
        self.model = nn.Sequential(*layers.values())
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.host = Host() if context.is_accelerator else HostBesideItself()
        with patch("adapters.torch.parked.Host", lambda: self.host):
            self.alternating = AlternatingOptimizer(
                Alternator(layers, rule=Cycle(2)), layers, self.optimizer, frozen_state=choice
            )
        self.x_BD = torch.randn(64, width, device=context.device)
        self.most = 0

    def train(self, num_steps: int) -> None:
        """Steps, after each of which the moments on the device are counted."""
        for _ in range(num_steps):
            self.step()
            self.most = max(self.most, sum(each.nbytes for each in self.moments() if not self.host.has(each)))

    def step(self) -> None:
        """One step."""
        self.alternating.step((self.model(self.x_BD) - 1).square().mean())

    def moments(self) -> list[Tensor]:
        """All that the optimizer keeps, but for counts."""
        return [each for state in self.optimizer.state.values() for each in state.values() if each.dim()]

    def bits(self) -> list[bytes]:
        """Weights and moments."""
        self.host.wait()
        states = [self.optimizer.state[each] for each in self.model.parameters() if each in self.optimizer.state]
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq") if name in state]
        return [as_bits(each) for each in (*self.model.parameters(), *moments)]


def blocks(context: Context, record: Record) -> None:
    """Offloaded states against kept ones, to the bit and in bytes; where they are; and what dropping leaves."""
    runs = {choice: Blocks(context, choice) for choice in ("keep", "offload", "drop")}
    steps = 2 * 2 * len(runs["keep"].model) + 1
    for run in runs.values():
        run.train(steps)
    kept, offloaded = runs["keep"].bits(), runs["offload"].bits()
    differ = count_changed(kept, offloaded)
    record.figure(f"arrays that offloading changed in {steps} steps", differ, bar=0, detail=f"of {len(kept)}")
    away = [each for each in runs["offload"].moments() if runs["offload"].host.has(each)]
    record.figure("moments that are away while frozen", len(away), bar=1, at_least=True, detail="of one optimizer")
    if context.is_accelerator:
        unpinned = sum(not each.is_pinned() for each in away)
        record.figure("moments away that are not in pinned memory", unpinned, bar=0, detail=f"of {len(away)}")
    for choice in ("offload", "drop"):
        part = runs[choice].most / runs["keep"].most
        record.figure(f"moments on the device at most, {choice} by keep", part, bar=0.75, detail="by bytes")
    dropped = runs["drop"]
    frozen = [each for name, each in dropped.layers.items() if name != dropped.alternating.alternator.active]
    before = [as_bits(each) for layer in frozen for each in layer.parameters()]
    dropped.step()
    after = [as_bits(each) for layer in frozen for each in layer.parameters()]
    record.figure("weights of dropped blocks that a step changed", count_changed(before, after), bar=0)


# --- waits of the host ------------------------------------------------------------------------------------------------

READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_coalesce", "_unique2"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class FakeAccelerator(TorchDispatchMode):
    """Raises at what would make the host wait for an accelerator, on the CPU, but for reads of losses that are late."""

    is_late: ClassVar[bool] = False
    """Whether a late loss is being read."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [each for each in args[1] if each is not None] if name in INDEXING else []
        if not self.is_late and (name in READS or any(each.dtype in (torch.bool, torch.uint8) for each in masks)):
            raise RuntimeError(f"{name} would make the host wait")
        return func(*args, **(kwargs or {}))


@contextmanager
def late_reads_are_known() -> Iterator[None]:
    """Within it `FakeAccelerator` can tell a loss that is read late, and has arrived, from one that is waited for."""
    read = LateScalar.read

    def read_late(late: LateScalar) -> float:
        FakeAccelerator.is_late = True
        try:
            return read(late)
        finally:
            FakeAccelerator.is_late = False

    with patch.object(LateScalar, "read", read_late):
        yield


@contextmanager
def waits_are_errors(context: Context) -> Iterator[None]:
    """Within it an operation that waits for the device raises; on the CPU, one that would."""
    if not context.is_accelerator:
        with FakeAccelerator():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def first_wait(context: Context, step: Callable[[], object], *, warm_up: int = 6, num_steps: int = 6) -> str:
    """What first made the host wait in some steps after the first few, or nothing."""
    with nullcontext() if context.is_accelerator else late_reads_are_known():
        for _ in range(warm_up):
            step()
        try:
            with waits_are_errors(context):
                for _ in range(num_steps):
                    step()
        except RuntimeError as error:
            if "wait" not in str(error) and "synchroniz" not in str(error):
                raise
            return str(error).splitlines()[0]
    return ""


def waits(context: Context, record: Record) -> None:
    """No step makes the host wait for the device: any turn and kind, across switches, with frozen states away."""
    data = RandomData(next(iter(context.shapes.values())), context.device)
    for kind, settings in KINDS.items():
        for step in STEPS:
            trainer = data.trainer("torch", step, **settings)
            add_wait(context, record, f"{step.name}{kind}", partial(train_next, trainer, data))
        trainer = data.trainer("torch", STEPS[-1], rule=Cycle(2), **settings)
        trainer.set_training_stage("joint_finetune")
        add_wait(context, record, f"joint_finetune by a rule that switches{kind}", partial(train_next, trainer, data))
    choices: tuple[FrozenState, ...] = ("keep", "offload", "drop")
    for choice in choices:
        run = Blocks(context, choice)
        if context.is_accelerator:  # elsewhere every loss is read at once, on purpose
            add_wait(context, record, f"blocks that switch, frozen_state={choice}", run.step)


def train_next(trainer: Any, data: RandomData) -> None:
    """A step of a trainer, as on a device that computes while the host goes on."""
    trainer._loss_at_hand = False
    trainer.train_step(data.loader.batch(0, trainer.step % len(data.loader)))


def add_wait(context: Context, record: Record, name: str, step: Callable[[], object]) -> None:
    """Whether a step waits."""
    found = first_wait(context, step)
    record.figure(f"waits of the host, {name}", bool(found), bar=0, detail=found or "in 6 steps")


# --- time against the roofline ----------------------------------------------------------------------------------------


def roofline(context: Context, record: Record) -> None:
    """Steps against what the device can do, and against a plain loop over whole logits."""
    rates = torch_rates(context.device, context.kind, rounds=context.rounds)
    half = torch_rates(context.device, context.kind, rounds=context.rounds, dtype="bfloat16")
    add_rates(record, rates, half)
    for name, shape in context.shapes.items():
        data = RandomData(shape, context.device)
        batches = data.batches(context.steps)
        for step in STEPS:
            trainer = data.trainer("torch", step)
            wait = partial(synchronise, context)
            times = times_of(context, data, trainer, wait)
            plain = milliseconds(partial(each, by_hand(data, step), batches), wait, len(batches), context.rounds)
            detail = f"plain loop over whole logits: {statistics.median(plain):.2f} ms"
            median = add_times(record, f"{name}, {step.name}", times, detail)
            add_part(record, f"{name}, {step.name}", median, data, step, batches, trainer.model.config, rates)
            if context.left < 5:
                record.fact("left out", "what comes after, for lack of time")
                return


def add_rates(record: Record, rates: Rates, half: Rates) -> None:
    """What the device does in a second."""
    record.figure("products of float32", rates.flops / 1e12, unit="TFLOP/s")
    record.figure("products of bfloat16", half.flops / 1e12, unit="TFLOP/s")
    record.figure("copy, read and written", rates.bytes / 1e9, unit="GB/s")
    record.figure("exponentials", rates.exponentials / 1e9, unit="billions/s")


def add_part(
    record: Record,
    name: str,
    median: float,
    data: RandomData,
    step: Step,
    batches: Sequence[Any],
    config: Any,
    rates: Rates,
) -> None:
    """The least time of a step at the rates of the device, as percent of its time."""
    works = [step_work(Shape.needed(batch, data.shape.items, config), step.trained, step.run) for batch in batches]
    least = [work.seconds(rates) for work in works]
    kinds = {kind: statistics.mean(each[kind] for each in least) * 1000 for kind in least[0]}
    percent = 100 * max(kinds["products"], kinds["memory"]) / median
    detail = ", ".join(f"{kind} {value:.3f} ms" for kind, value in kinds.items())
    record.figure(f"{name}: roofline", percent, unit="%", detail=f"at least: {detail}")


def each(step: Callable[[Any], object], batches: Sequence[Any]) -> None:
    """A step for each batch."""
    for batch in batches:
        step(batch)


def by_hand(data: RandomData, step: Step) -> Callable[[Any], None]:
    """The step in plain PyTorch: whole logits of whole rows, one optimizer for what trains."""
    device = torch.device(data.device)
    model = ur4rec_torch.UR4Rec(data.shape.items, data.texts_IT, **data.model).to(device)
    active = [*step.trained, *(["fusion"] if len(step.run) == 2 else [])]
    for name, part in model.named_children():
        part.requires_grad_(name in active).train(name in active)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, fused=True)

    def take(batch: Any) -> None:
        inputs = to_device(batch, data.shape.items, device)
        scores = []
        if "sasrec" in step.run:
            hidden_Nd = model.sasrec(inputs.items_BL).flatten(0, 1)[inputs.positions_N]
            scores.append(model.sasrec.score(hidden_Nd, model.sasrec.item_table()))
        if "retriever" in step.run:
            catalogue = model.retriever.catalogue()
            preferences_NKd = model.retriever(inputs.items_BL, catalogue).flatten(0, 1)[inputs.positions_N]
            scores.append(model.retriever.score(preferences_NKd, catalogue.keys_Id))
        cross_entropy(scores[0] if len(scores) == 1 else model.fusion(*scores), inputs.targets_N).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return take


# --- precision, compilation, memory -----------------------------------------------------------------------------------


def bf16(context: Context, record: Record) -> None:
    """Steps in bfloat16, and with sampled losses, beside those in float32."""
    for name, shape in context.shapes.items():
        data = RandomData(shape, context.device)
        for step in (STEPS[0], STEPS[-1]):
            medians = {}
            for kind, settings in KINDS.items():
                trainer = data.trainer("torch", step, **settings)
                times = times_of(context, data, trainer, partial(synchronise, context))
                medians[kind] = add_times(record, f"torch, {name}, {step.name}{kind}", times)
            for kind in (", bf16", ", sampled"):
                figure = medians[""] / medians[kind]
                record.figure(f"torch, {name}, {step.name}{kind}: times faster", figure, unit="×")


def compile_modules(context: Context, record: Record) -> None:
    """Compiled steps beside those that are not, and how long compiling takes.

    Raises:
        Skipped: It takes a compiler and a minute that a look does not have.
    """
    if context.quick:
        raise Skipped("torch.compile takes a minute; a look leaves it out")
    data = RandomData(next(iter(context.shapes.values())), context.device)
    for step in (STEPS[0], STEPS[-1]):
        for precision, settings in (("", {}), (", bf16", {"bf16": True})):
            medians = []
            for compiles in (False, True):
                trainer = data.trainer("torch", step, compile=compiles, **settings)
                started = time.perf_counter()
                trainer.train_step(data.batches(1)[0])
                synchronise(context)
                first = time.perf_counter() - started
                times = times_of(context, data, trainer, partial(synchronise, context))
                name = f"{step.name}{precision}{', compiled' if compiles else ''}"
                medians.append(add_times(record, name, times, f"first step {first:.1f} s"))
            record.figure(f"{step.name}{precision}: compiled, times faster", medians[0] / medians[1], unit="×")


def memory(context: Context, record: Record) -> None:
    """The peak of memory of a step, beside a plain loop over whole logits; moments of frozen blocks."""
    for name, shape in context.shapes.items():
        data = RandomData(shape, context.device)
        batch = data.batches(1)[0]
        for step in (STEPS[0], STEPS[-1]):
            for kind, settings in {"": {}, ", sampled": SAMPLED}.items():
                trainer = data.trainer("torch", step, **settings)
                ours = peak_mebibytes(context, trainer.train_step, batch)
                record.figure(f"{name}, {step.name}{kind}: peak", ours, unit="MiB")
                del trainer
            plain = peak_mebibytes(context, by_hand(data, step), batch)
            record.figure(f"{name}, {step.name}: peak of a plain loop over whole logits", plain, unit="MiB")
    for choice in ("keep", "offload", "drop"):
        run = Blocks(context, choice)
        run.train(2 * 2 * len(run.model))
        record.figure(f"moments of blocks on the device at most, {choice}", run.most / 2**20, unit="MiB")


def peak_mebibytes(context: Context, step: Callable[[Any], object], batch: Any) -> float:
    """Peak memory of a step with all that it trains; on the CPU, the most that its tensors took beside that."""
    step(batch)
    if not context.is_accelerator:
        return host_peak(step, batch)
    synchronise(context)
    torch.cuda.reset_peak_memory_stats()
    step(batch)
    synchronise(context)
    return torch.cuda.max_memory_allocated() / 2**20


def host_peak(step: Callable[[Any], object], batch: Any) -> float:
    """The most mebibytes that a step's tensors took at once, by PyTorch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(batch)
    taken, most = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            taken += event.nbytes()
            most = max(most, taken)
    return most / 2**20

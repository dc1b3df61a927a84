"""PyTorch: train the module that the alternator chose, and leave every other one untouched to the bit.

The freeze contract: while a module is frozen its parameters, its optimizer state, its scheduler and its normalisation
buffers do not change by a single bit; its gradients are neither computed nor counted in clipping; and when it is active
again it continues exactly as if the frozen steps had not happened. See docs/freezing.md.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, Literal, cast, overload

from torch import Tensor, float64, nn, tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from typing_extensions import TypeVar  # with a default, as in Python 3.13; PyTorch requires it

from adapters.contract import FreezeError, FrozenMode, FrozenState
from adapters.torch.checks import Optimizers
from adapters.torch.decisions import Decisions, refusing_damage
from adapters.torch.freezer import Freezer
from adapters.torch.losses import Loss, check_differentiable
from adapters.torch.modules import Parameters
from adapters.torch.schedules import Schedulers, list_schedulers
from adapters.torch.snapshots import Snapshot, Snapshots, Stateful
from adapters.torch.states import States
from adapters.torch.stepping import Stepper, forget_unscaled
from adapters.torch.unfrozen import unfrozen
from alternator import Alternator, Decision
from alternator.checks import check_integer, to_float

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Decided = TypeVar("Decided", bound=Decision | None, default=Decision, covariant=True)
"""What `AlternatingOptimizer.step` returns: a Decision, or with ``accumulate`` a Decision or None."""


class AlternatingOptimizer(Generic[Decided]):
    """Steps the optimizers of the active modules; the freeze contract holds for all others.

    Build it once, after the optimizers; from then on call `step` where you would call ``loss.backward()`` and
    ``optimizer.step()``, and `train` and `eval` where you would call them on the model. You run the forward passes.

    Args:
        alternator: Decides who trains.
        modules: Per module name what belongs to it: an ``nn.Module``, a parameter, a leaf tensor that requires
            gradients, a path or pattern within ``model`` (``"head"``, ``"*.lora_A"``; ``"*"`` is the rest), or an
            iterable that mixes these. What another names more closely is that one's: ``{"backbone": model, "head":
            model.fc}``. Parameters alone have modes and buffers only where a submodule of ``model``, or of what another
            names, has no other parameters.
        optimizers: One optimizer per module name, or a list of several that each hold a part of it (SparseAdam for a
            table, Muon for matrices, and AdamW for the rest); or one over all.
        model: The model that holds them all: names are looked up in it, parameters that belong to none are refused, and
            `train` and `eval` reach what lies between the modules (dropout, the model's own flag).
        turns: Per name of the alternator the modules that train together; by default each name is a module.
        always: What trains in every step (fusion or uncertainty weights, a shared embedding), named as in ``modules``
            and covered by one of the optimizers; or a pair of this and an optimizer of its own.
        schedulers: Per module name (or ``"always"``) a scheduler, or a list of several, stepped after each update of
            that module only. ``(scheduler, "epoch")`` in place of one: stepped by `end_epoch`, if the module trained.
        clip_norm: Clip the gradients of what trains in the step, the always group included, to this total norm.
        scaler: A GradScaler for float16. A step that it skips counts as skipped (``updated=False``).
        accumulate: Micro-steps per update. Gradients and recorded losses are their means.
        delay: How many steps later losses are read: 1 lets the device run ahead, 0 is the original order.
        frozen_mode: How modules run while they are frozen, for all or by name: ``"inference"``, or ``"batch"`` for
            players such as those of a GAN: BatchNorm normalises by the batch and dropout is on, as in training, but
            nothing that the module holds changes. None is inference mode, with a warning where that may not be meant
            (docs/freezing.md).
        frozen_state: What becomes of the optimizer state of modules while they are frozen, for all or by name: it is
            kept where it is (``"keep"``), ``"offload"`` moves it to the host until they are active again, and
            ``"drop"`` frees it: it then starts again from nothing (docs/freezing.md).
        process_group: The processes that train this model together: losses are averaged over them, so that all decide
            the same. By default that of the DistributedDataParallel in ``model`` or ``modules`` (docs/distributed.md).
        check_ranks_every: For debugging: compare decisions and parameters across ranks after this many decisions each.

    Raises:
        ConfigurationError: Names, ownership or coverage are wrong; the message says which and what to do.

    Example:
        >>> import torch
        >>> from alternator import Alternator, Cycle
        >>> encoder, head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)
        >>> modules = {"encoder": encoder, "head": head}
        >>> optimizers = {name: torch.optim.AdamW(module.parameters()) for name, module in modules.items()}
        >>> alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(2)), modules, optimizers)
        >>> for step in range(3):
        ...     loss = head(encoder(torch.ones(8, 4))).square().mean()
        ...     decision = alternating.step(loss)
        >>> decision.active, encoder.weight.requires_grad, encoder.training
        ('head', False, False)
    """

    @overload
    def __init__(
        self: "AlternatingOptimizer[Decision]",
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        optimizers: Optimizers,
        *,
        model: nn.Module | None = None,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | tuple[Parameters, Optimizer] | None = None,
        schedulers: Schedulers | None = None,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
        accumulate: Literal[1] = 1,
        delay: int = 1,
        frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None = None,
        frozen_state: FrozenState | Mapping[str, FrozenState] = "keep",
        process_group: "ProcessGroup | None" = None,
        check_ranks_every: int | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self: "AlternatingOptimizer[Decision | None]",
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        optimizers: Optimizers,
        *,
        model: nn.Module | None = None,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | tuple[Parameters, Optimizer] | None = None,
        schedulers: Schedulers | None = None,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
        accumulate: int,
        delay: int = 1,
        frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None = None,
        frozen_state: FrozenState | Mapping[str, FrozenState] = "keep",
        process_group: "ProcessGroup | None" = None,
        check_ranks_every: int | None = None,
    ) -> None: ...

    def __init__(
        self,
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        optimizers: Optimizers,
        *,
        model: nn.Module | None = None,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | tuple[Parameters, Optimizer] | None = None,
        schedulers: Schedulers | None = None,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
        accumulate: int = 1,
        delay: int = 1,
        frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None = None,
        frozen_state: FrozenState | Mapping[str, FrozenState] = "keep",
        process_group: "ProcessGroup | None" = None,
        check_ranks_every: int | None = None,
    ) -> None:
        check_integer("accumulate", accumulate, 1)
        check_integer("delay", delay, 0)
        if check_ranks_every is not None:
            check_integer("check_ranks_every", check_ranks_every, 1)
        if scaler is not None and not scaler.is_enabled():
            scaler = None
        self._freezer = Freezer(
            alternator.modules,
            modules,
            optimizers,
            model=model,
            turns=turns,
            always=always,
            frozen_mode=frozen_mode,
            frozen_state=frozen_state,
            process_group=process_group,
            check_ranks_every=check_ranks_every,
            rule=alternator.rule,
        )
        self._stepper = Stepper(self._freezer, schedulers=schedulers, clip_norm=clip_norm, scaler=scaler)
        self._states = States(self._freezer, schedulers, scaler)
        self._snapshots = Snapshots(self._freezer)
        self._others: list[Stateful] = [each.scheduler for each in list_schedulers(schedulers)]
        self._others += [] if scaler is None else [scaler]
        self._scaler = scaler
        self._accumulate = accumulate
        self._micro_step = 0
        self._decisions = Decisions(alternator, self._freezer, delay, self._stepper.epochs)

    @property
    def alternator(self) -> Alternator:
        """The alternator that decides."""
        return self._decisions.alternator

    @property
    def active(self) -> str:
        """The name that trains next: a module's, or a turn's."""
        return self.alternator.active

    @property
    def active_modules(self) -> tuple[str, ...]:
        """The modules that train next, the always group aside."""
        return self._freezer.turns[self.active].modules

    @property
    def grad_norm(self) -> Tensor | None:
        """Total norm of the last update's gradients before clipping, on its device; None without ``clip_norm``."""
        return self._stepper.grad_norm

    def step(self, loss: Tensor | None = None, losses: Mapping[str, Loss] | None = None) -> Decided:
        """Backward, update of what is active, decision and switch: all that follows the forward pass.

        Args:
            loss: What to minimise. None if you have called `backward` yourself.
            losses: What to record: losses by name, the active name's among them. By default ``loss``; with an empty
                mapping nothing is recorded (you record what the rule needs).

        Returns:
            The decision; with ``accumulate`` above 1, None after a micro-step that updates nothing.

        Raises:
            LossError: The active name's loss is missing, a loss is not a scalar, or ``loss`` reaches no active
                parameter.
            ConfigurationError: An optimizer asks for a closure.
            UnknownModuleError: ``losses`` has a name that the alternator does not have.
            FreezeError: A frozen module is in training mode, or the alternator was switched outside the adapter.
        """
        named = self._decisions.check_losses(loss, losses)
        self._decisions.check_applied()
        if loss is not None:
            self.backward(loss)
        if self._micro_step + 1 < self._accumulate:
            self._micro_step += 1
            self._decisions.add(named)
            return cast(Decided, None)
        self._freezer.prepare_update()
        updated = self._stepper.update(self._freezer.applied)
        self._decisions.add(named)
        return cast(Decided, self._close_step(updated))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss / accumulate``, scaled by the scaler; then call `step` without ``loss``.

        Raises:
            LossError: ``loss`` is not a scalar tensor, or requires no gradient.
        """
        check_differentiable(self.active, loss)
        self._freezer.frozen_states.prepare()
        if self._accumulate > 1:
            loss = loss / self._accumulate
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def skip(self, losses: Loss | Mapping[str, Loss] | None = None) -> Decision:
        """End the step without an update, for a loss that is not finite: it counts as skipped.

        Gradients of the step are dropped, those of its earlier micro-steps included. If you had the scaler unscale
        them, its scale is updated by what it found.

        Args:
            losses: What to record: the active name's loss, or losses by name; None records nothing.
        """
        if losses is not None:
            named = losses if isinstance(losses, Mapping) else {self.active: losses}
            self._decisions.add(self._decisions.check_losses(None, named))
        self._forget_unscaled()
        return self._close_step(updated=False)

    def end_epoch(self, values: Loss | Mapping[str, Loss] | None = None) -> None:
        """Advance the schedulers given with ``"epoch"``, each if its module was updated since the last `end_epoch`.

        Call it once at the end of each epoch, between updates; it decides nothing. A module that was frozen throughout,
        or whose every update the scaler skipped, keeps its learning rate: its ``last_epoch`` counts its own epochs.

        Args:
            values: What ReduceLROnPlateau compares: a module's own value by module, or one for all; averaged over the
                processes that train together. A module that did not train needs none.

        Raises:
            LossError: The value of a ReduceLROnPlateau whose module trained is missing, or is not a scalar. No
                scheduler has moved then.
            UnknownModuleError: ``values`` has a name that is no module.
            FreezeError: In the middle of an accumulation.

        Example:
            >>> import torch
            >>> from alternator import Alternator, Cycle
            >>> modules = {"encoder": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 1)}
            >>> optimizers = {name: torch.optim.SGD(module.parameters(), lr=1.0) for name, module in modules.items()}
            >>> halve = {
            ...     name: (torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "epoch")
            ...     for name, optimizer in optimizers.items()
            ... }
            >>> alternating = AlternatingOptimizer(
            ...     Alternator(modules, rule=Cycle(5)), modules, optimizers, schedulers=halve
            ... )
            >>> for step in range(3):  # an epoch in which the encoder trains
            ...     decision = alternating.step(modules["head"](modules["encoder"](torch.ones(1, 2))).sum())
            >>> alternating.end_epoch()
            >>> {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
            {'encoder': 0.5, 'head': 1.0}
        """
        self._check_boundary("end_epoch")
        self._decisions.end_epoch(values, self.mean_over_ranks)

    def mean_over_ranks(self, value: Loss) -> Tensor:
        """The mean of a scalar over all processes, which must all call this; the scalar itself if there is only one.

        For what all processes must decide alike: whether to `skip` a loss that is not finite, or a held-out loss for
        the alternator.
        """
        if self._freezer.ranks is not None:
            return self._freezer.ranks.mean(value)
        return value.detach() if isinstance(value, Tensor) else tensor(to_float(value), dtype=float64)

    def zero_grad(self) -> None:
        """Set all gradients to None, as `step` does after each update."""
        self._forget_unscaled()
        self._freezer.zero_grad()

    def train(self) -> None:
        """Training mode for what is active, its frozen mode for what is not: call it where you called model.train()."""
        self._freezer.train()

    def eval(self) -> None:
        """Inference mode for all modules: call it where you called model.eval()."""
        self._freezer.eval()

    def force(self, name: str) -> Decision:
        """Start a new tenure of a name now, as `Alternator.force` does."""
        self._check_boundary("force")
        self._forget_unscaled()
        return self._decisions.force(name)

    def apply(self) -> None:
        """Set gradients and modes to what the alternator says, for the modules and optimizers as they are now.

        Needed if you switch the alternator yourself, or have written something frozen. What you have added to a module
        or an optimizer is found at the next switch too.

        Raises:
            ConfigurationError: As when this was built, if modules or optimizers have changed since.
        """
        self._check_boundary("apply")
        self._forget_unscaled()
        self._decisions.apply()

    def release(self) -> None:
        """Unfreeze what the user had not frozen, so that another AlternatingOptimizer can take the modules over."""
        self._check_boundary("release")
        self._forget_unscaled()
        self._freezer.release()

    def unfrozen(self) -> AbstractContextManager[None]:
        """Within it everything that trains in some turn requires gradients: for PyTorch's distributed checkpoint.

        ``get_optimizer_state_dict``, ``set_optimizer_state_dict`` and the like leave out what does not require
        gradients. What is written meanwhile, as by ``torch.distributed.checkpoint.load``, is accepted; modes stay as
        they are. A module that has never trained is shown with moments of zero, and has none again afterwards unless
        they were loaded.

        Raises:
            FreezeError: In the middle of an accumulation, or a frozen module has been written before.

        Example:
            >>> import torch
            >>> from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
            >>> from alternator import Alternator, Cycle
            >>> model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 1)})
            >>> optimizer = torch.optim.AdamW(model.parameters())
            >>> alternating = AlternatingOptimizer(Alternator(tuple(model)), dict(model.items()), optimizer)
            >>> with alternating.unfrozen():
            ...     saved = get_optimizer_state_dict(model, optimizer)
            >>> sorted(saved["state"])
            ['encoder.bias', 'encoder.weight', 'head.bias', 'head.weight']
        """
        self._check_boundary("unfrozen")
        return unfrozen(self._freezer)

    def snapshot(self) -> Snapshot:
        """Copies of all that training changes, for `rollback`: to try turns and undo them, as `alternator.Trials` does.

        Parameters, buffers (those of ``model`` too), the states and options of optimizers, schedulers and scaler, and
        PyTorch's random state, each on its device: as large as a checkpoint. The schedule is not part of it: an
        alternator counts what was tried.

        Raises:
            FreezeError: In the middle of an accumulation.

        Example:
            >>> import torch
            >>> from alternator import Alternator, Cycle
            >>> modules = {"encoder": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 1)}
            >>> optimizers = {name: torch.optim.AdamW(module.parameters()) for name, module in modules.items()}
            >>> alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(2)), modules, optimizers)
            >>> before, saved = modules["encoder"].weight.clone(), alternating.snapshot()
            >>> decision = alternating.step(modules["head"](modules["encoder"](torch.ones(8, 4))).square().mean())
            >>> torch.equal(modules["encoder"].weight, before)
            False
            >>> alternating.rollback(saved)
            >>> torch.equal(modules["encoder"].weight, before)
            True
        """
        self._check_boundary("snapshot")
        return self._snapshots.take(self._others)

    def rollback(self, snapshot: Snapshot) -> None:
        """Go back to a `snapshot`, to the bit; it may be used again. Whoever is active now stays active.

        Raises:
            FreezeError: In the middle of an accumulation.
            StateError: Modules or optimizers are others now; nothing has been changed then.
        """
        self._check_boundary("rollback")
        self._forget_unscaled()
        self._snapshots.restore(snapshot)
        self._decisions.apply(tentative=True)  # which takes what frozen modules hold now for what stays

    def flush(self) -> None:
        """Record the losses that are still pending; call it at the end of training to see them all."""
        self._decisions.flush()

    def state_dict(self, *, include_optimizers: bool = False) -> dict[str, Any]:
        """Everything of the schedule: alternator, pending losses, what the user froze. JSON-safe.

        Args:
            include_optimizers: Add the states of optimizers, schedulers and scaler by name (tensors, so not JSON).

        Raises:
            FreezeError: In the middle of an accumulation, whose gradients are not saved.
        """
        self._check_boundary("state_dict")
        return {**self._decisions.state_dict(), **(self._states.state_dict() if include_optimizers else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; loading the model's own state is up to you.

        Raises:
            StateError: The state is damaged, of another configuration, or does not have the same optimizers, schedulers
                and scaler; nothing has been changed then.
        """
        with self._states.undone_on_error():
            with refusing_damage():
                self._decisions.check_state(state)
                if "optimizers" in state:
                    self._states.load_state_dict(state)
            self._decisions.load_state_dict(state)
        self._micro_step = 0
        self._forget_unscaled()

    def _check_boundary(self, what: str) -> None:
        if self._micro_step:
            raise FreezeError(
                f"{what}() must be called between updates, got micro-step {self._micro_step} of {self._accumulate}; "
                "finish the step or call skip()"
            )

    def _forget_unscaled(self) -> None:
        """Wherever gradients are dropped."""
        if self._scaler is not None:
            forget_unscaled(self._scaler)

    def _close_step(self, updated: bool) -> Decision:
        self._micro_step = 0
        return self._decisions.close_step(updated=updated)

"""PyTorch, in loops that own the optimizer: they call backward and ``optimizer.step()``, this freezes and decides.

Design constraints:

1. One step of the alternator per window of the optimizer, however many micro-steps it has, and whatever is skipped.
2. Whatever calls ``model.train()``, what is frozen is back in its frozen mode before the next forward pass uses it, and
   in training mode in its turns, though it may have been loaded in inference mode (as pretrained models are).
3. Nothing of the loop is replaced: all is done by hooks, which `close` removes.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from warnings import warn

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from adapters.contract import FreezeError, FrozenMode, FrozenState, watches_losses
from adapters.torch.checks import Optimizers
from adapters.torch.decisions import Decisions
from adapters.torch.freezer import Freezer
from adapters.torch.losses import Loss, check_differentiable
from adapters.torch.modules import Freezable, Parameters
from adapters.torch.shares import ShownSteps
from adapters.torch.snapshots import Snapshot, Snapshots, Stateful
from adapters.torch.stepping import skips_in_kernel
from alternator import Alternator, Decision, LossError
from alternator.checks import check_integer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Follower:
    """Freezes and decides in a loop that calls backward and steps the optimizer itself; the freeze contract holds.

    Build it once, after the optimizers, and call `after_step` at the end of every micro-step. It sees by hooks when an
    optimizer has stepped, and when a forward pass begins. For loops of your own `AlternatingOptimizer` is the shorter
    way; for Lightning, Transformers and Accelerate see `adapters.lightning`, `adapters.transformers` and
    `adapters.accelerate`.

    Args:
        alternator: Decides who trains.
        modules: Per module name what it is, as `AlternatingOptimizer` has it.
        optimizers: One over all, or one per module name, or several for each.
        model: The model that holds them all: parameters that belong to none are refused, and every forward pass begins
            with it, or else with one of the modules.
        turns: Per name of the alternator the modules that train together; by default each name is a module.
        always: What trains in every step.
        delay: How many steps later losses are read: 1 lets the device run ahead, 0 is the original order.
        scaler: The loop's GradScaler, if it has one.
        frozen_mode: How modules run while they are frozen, as `AlternatingOptimizer` has it.
        frozen_state: What becomes of the optimizer state of what is frozen, as `AlternatingOptimizer` has it.
        process_group: The processes that train this model together, as `AlternatingOptimizer` has it.
        check_ranks_every: For debugging: compare decisions and parameters across ranks after this many decisions each.

    Raises:
        ConfigurationError: Names, ownership or coverage are wrong; the message says which and what to do.

    Example:
        >>> import torch
        >>> from alternator import Alternator, Cycle
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 1)})
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> follower = Follower(Alternator(tuple(model), rule=Cycle(2)), dict(model.items()), optimizer, model=model)
        >>> for step in range(3):
        ...     loss = model["head"](model["encoder"](torch.ones(8, 4))).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     decision = follower.after_step(loss)
        >>> decision.active, model["encoder"].weight.requires_grad, model["encoder"].training
        ('head', False, False)
    """

    def __init__(
        self,
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        optimizers: Optimizers,
        *,
        model: nn.Module | None = None,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | tuple[Parameters, Optimizer] | None = None,
        delay: int = 1,
        scaler: GradScaler | None = None,
        frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None = None,
        frozen_state: FrozenState | Mapping[str, FrozenState] = "keep",
        process_group: "ProcessGroup | None" = None,
        check_ranks_every: int | None = None,
    ) -> None:
        check_integer("delay", delay, 0)
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
            with_closure=True,
        )
        self._decisions = Decisions(alternator, self._freezer, delay)
        self._snapshots = Snapshots(self._freezer)
        self._scalers = [scaler] if scaler is not None and scaler.is_enabled() else []
        fused = any(skips_in_kernel(optimizer) for optimizer in self._freezer.optimizers)
        self._watched_scaler = scaler if fused and scaler is not None and scaler.is_enabled() else None
        self._scale = 0.0
        self._open_window()
        self._hooks: list[Any] = [
            optimizer.register_step_pre_hook(self._before) for optimizer in self._freezer.optimizers
        ]
        self._shown = {optimizer: ShownSteps(optimizer, self._freezer) for optimizer in self._freezer.optimizers}
        self._hooks += [optimizer.register_step_post_hook(self._note_step) for optimizer in self._freezer.optimizers]
        self._hooks += _watch_forward(model, self._freezer)

    @property
    def alternator(self) -> Alternator:
        """The alternator that decides."""
        return self._decisions.alternator

    @property
    def active(self) -> str:
        """The name that trains next: a module's, or a turn's."""
        return self.alternator.active

    @property
    def is_accumulating(self) -> bool:
        """Whether losses or gradients wait for the rest of a window."""
        gradients = (parameter.grad is not None for parameter in self._freezer.turn.active_parameters)
        return self._has_losses or any(gradients)

    def before_step(self) -> None:
        """Before the forward pass, if your loop has a place for it: apply a switch of the alternator, set modes again.

        Without it a switch that you made with ``alternator.force`` is refused (use `force`), and modes are set where
        the forward pass begins.
        """
        for shown in self._shown.values():
            shown.reset()  # the last step may have failed
        if self.alternator.active != self._freezer.applied and not self.is_accumulating:
            self._decisions.apply()
        self._freezer.set_frozen_modes()

    def before_backward(self, loss: object) -> None:
        """Before the backward pass, if your loop has a place for it: refuse what that would refuse in other words.

        Raises:
            LossError: The loss requires no gradient, or is not a scalar.
            FreezeError: A frozen module is in training mode, or the alternator was switched outside this follower.
        """
        self._decisions.check_applied()
        check_differentiable(self._freezer.applied, loss)
        self._freezer.frozen_states.prepare()

    def before_update(self) -> None:
        """After the backward pass and before clipping, if your loop has a place for it, or else as the optimizer steps.

        From here on only what trains has gradients, and the window ends with the next `after_step`, whether or not a
        GradScaler lets the optimizer step.

        Raises:
            LossError: Nothing that is active has a gradient.
            FreezeError: A frozen module is in training mode, or the alternator was switched outside this follower.
        """
        self._reached = True
        self._decisions.check_applied()
        self._freezer.prepare_update()
        if self._watched_scaler is not None:
            self._scale = self._watched_scaler.get_scale()

    def after_step(
        self,
        losses: Loss | Mapping[str, Loss] | None = None,
        *,
        ended: bool | None = None,
        updated: bool | None = None,
        summed: bool = False,
    ) -> Decision | None:
        """After a micro-step, when the optimizer may have stepped: record its losses; at the end of a window, decide.

        Args:
            losses: What to record: the active name's loss, or losses by name. Of several micro-steps the mean is
                recorded. With an empty mapping nothing is (you record what the rule needs).
            ended: Whether the window ends here. By default if the optimizer has stepped, or `before_update` was called.
                Say so where a step may have been skipped.
            updated: Whether the update took place. By default if the optimizer has stepped, and a GradScaler did not
                skip it in a fused kernel.
            summed: The losses of micro-steps are divided by the window's size already, so their sum is recorded.

        Returns:
            The decision at the end of a window, else None.

        Raises:
            LossError: The active name's loss is missing though the rule needs it, or a loss is not a scalar.
            UnknownModuleError: ``losses`` has a name that the alternator does not have.
            FreezeError: What is frozen has been written.
        """
        self._add(losses, summed)
        if not (self._reached if ended is None else ended):
            return None
        if updated is None:
            updated = self._stepped and not self._was_skipped_in_kernel()
        if updated and not self._has_losses:
            self._check_seen()
        self._open_window()
        return self._decisions.close_step(updated=updated)

    def force(self, name: str) -> Decision:
        """Start a new tenure of a name now, between two windows, as `Alternator.force` does.

        Raises:
            FreezeError: In the middle of a window.
        """
        self._check_boundary("force")
        return self._decisions.force(name)

    def apply(self) -> None:
        """Accept what you have written to frozen modules, and apply a switch of the alternator, between two windows.

        Raises:
            FreezeError: In the middle of a window.
        """
        self._check_boundary("apply")
        self._decisions.apply()

    def snapshot(self, *others: Stateful) -> Snapshot:
        """Copies of all that training changes, as `AlternatingOptimizer.snapshot` has it, between two windows.

        Args:
            *others: What the loop owns besides modules, optimizers and scaler: its learning-rate schedulers. The
                positions of its data and its counts of steps are not undone: what is tried is charged.

        Raises:
            FreezeError: In the middle of a window.
        """
        self._check_boundary("snapshot")
        return self._snapshots.take([*others, *self._scalers])

    def rollback(self, snapshot: Snapshot) -> None:
        """Go back to a `snapshot`, to the bit; it may be used again. Whoever is active now stays active.

        Raises:
            FreezeError: In the middle of a window.
            StateError: Modules or optimizers are others now; nothing has been changed then.
        """
        self._check_boundary("rollback")
        self._snapshots.restore(snapshot)
        self._decisions.apply(tentative=True)  # which takes what frozen modules hold now for what stays

    def flush(self) -> None:
        """Record the losses that are still pending; call it at the end of training to see them all."""
        self._decisions.flush()

    def close(self) -> None:
        """Stop watching, and unfreeze what you had not frozen."""
        for hook in self._hooks:
            hook.remove()
        for shown in self._shown.values():
            shown.close()
        self._freezer.release()
        self._open_window()

    def state_dict(self) -> dict[str, Any]:
        """Everything of the schedule: alternator, pending losses, what you froze. JSON-safe.

        Warns in the middle of a window: its gradients and losses are not saved.
        """
        if self.is_accumulating:
            warn(
                "a state should be saved between updates, but this one is in the middle of an accumulation, whose "
                "gradients are not saved: a run resumed from it differs from one never stopped; save after an update "
                "(let Lightning's val_check_interval and every_n_train_steps end with one)",
                stacklevel=2,
            )
        return self._decisions.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; models, optimizers and scaler are the loop's to load.

        Raises:
            StateError: The state is damaged or of another configuration; nothing has been changed then.
        """
        self._decisions.load_state_dict(state)
        self._open_window()

    def _add(self, losses: Loss | Mapping[str, Loss] | None, summed: bool) -> None:
        if losses is None:
            return
        loss, by_name = (None, losses) if isinstance(losses, Mapping) else (losses, None)
        self._decisions.add(self._decisions.check_losses(loss, by_name), summed=summed)
        self._has_losses = True

    def _check_seen(self) -> None:
        """Refuse an update of which a rule that watches losses has seen none."""
        rule = self.alternator.rule
        if watches_losses(rule):
            raise LossError(
                f"{type(rule).__name__} must see the loss of {self.active!r}, got none in this window: give it to "
                "after_step(), or an empty mapping if you record losses yourself"
            )

    def _check_boundary(self, what: str) -> None:
        if self.is_accumulating:
            raise FreezeError(
                f"{what}() must be called between updates, but gradients or losses of an unfinished one are there; "
                "call it right after the after_step() that returned a decision"
            )

    def _was_skipped_in_kernel(self) -> bool:
        return self._watched_scaler is not None and self._watched_scaler.get_scale() < self._scale

    def _open_window(self) -> None:
        self._has_losses = self._reached = self._stepped = False

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(given) for given in (*args[1:], *kwargs.values())):
            return  # the backward pass is yet to come, in the closure
        if not self._shown[optimizer].trains:
            optimizer.zero_grad()  # whoever computed them
        elif not self._reached:
            self._before_plain_update()

    def _before_plain_update(self) -> None:
        """In a loop that does not call `before_update`."""
        try:
            self.before_update()
        except LossError as error:
            raise LossError(
                f"nothing of {self.active!r}, which is active, has a gradient as the optimizer steps: give a loss that "
                "depends on it, do not step where there is none, and call after_step() after optimizer.step(), not "
                "before"
            ) from error

    def _note_step(self, optimizer: Optimizer, *_: object) -> None:
        if self._shown[optimizer].trains:
            self._reached = self._stepped = True


def _watch_forward(model: nn.Module | None, freezer: Freezer) -> Iterator[Any]:
    """Hooks that set frozen modes where a forward pass begins in training mode: at the model, or else at a module."""

    def set_modes(module: nn.Module, _: object) -> None:
        if module.training:
            freezer.take_training_modes()
            freezer.set_frozen_modes()

    def set_modes_unless_compiled(module: nn.Module, _: object) -> None:
        if not torch.compiler.is_compiling():
            set_modes(module, _)

    outside = torch.compiler.disable(set_modes)  # type: ignore[no-untyped-call]
    if model is not None:
        yield model.register_forward_pre_hook(outside)
    within = set_modes_unless_compiled if model is not None else outside
    for group in freezer.groups.values():
        for submodule in _outermost(group):
            if submodule is not model:
                yield submodule.register_forward_pre_hook(within)


def _outermost(group: Freezable) -> list[nn.Module]:
    """Those of its submodules that are in no other one of them."""
    inside = {id(child) for submodule in group.submodules.values() for child in submodule.children()}
    return [submodule for submodule in group.submodules.values() if id(submodule) not in inside]

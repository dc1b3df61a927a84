"""Transformers: `AlternatingCallback` keeps the freeze contract within ``Trainer.train``.

The Trainer runs backward, clips, steps the optimizer and its scheduler, evaluates and saves; the callback follows with
an `adapters.torch.Follower`. See docs/other-loops.md.

Design constraints:

1. One step of the alternator per ``global_step`` of the Trainer, also for what is left over at the end of an epoch.
2. Decisions are made in ``on_step_end``, before the Trainer logs, evaluates or saves: a checkpoint holds whole steps.
3. The schedule is in the Trainer's own ``trainer_state.json``: saved, kept and deleted with its checkpoint.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from warnings import warn

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.training_args import ParallelMode

from adapters.contract import FrozenMode, FrozenState, watches_losses
from adapters.torch import Follower
from adapters.torch.losses import Loss
from adapters.torch.modules import Parameters
from adapters.torch.naming import kept
from adapters.torch.snapshots import Snapshot
from alternator import Alternator, ConfigurationError, Decision, LossError, Payoff, Trial
from alternator.checks import check_integer, names_in

Losses = Loss | Mapping[str, Loss]
"""The active name's loss, or losses by name."""


@dataclass
class Seen:
    """The losses of one batch."""

    recorded: Losses | None = None
    """What the user recorded."""
    returned: Losses | None = None
    """What the model returned."""
    num_passes: int = 0
    """How often the model ran."""
    summed: bool = False
    """Whether the losses of accumulated batches are parts of a sum."""


class AlternatingCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Trains the module that the alternator chose within the Trainer's loop; the freeze contract holds for all others.

    Hand it to the Trainer as one of its ``callbacks``; nothing else changes. What the model returns as its loss is
    recorded. Modules are as you had them before training starts and after it ends.

    Args:
        alternator: Decides who trains.
        modules: Per module name what it is: names within the model (``"bert"``, ``"*.lora_A"``, ``"*"`` for the rest,
            see `adapters.parts`), a module or parameters.
        turns: Per name of the alternator the modules that train together; by default each name is a module.
        always: What trains in every step.
        frozen_mode: How modules run while they are frozen, for all or by name: ``"inference"`` or ``"batch"``, as
            `adapters.torch.AlternatingOptimizer` has it.
        frozen_state: What becomes of the optimizer state of what is frozen, for all or by name: ``"keep"``,
            ``"offload"`` or ``"drop"``, likewise.
        losses: What to record of the model's outputs: a function of these that returns a loss, or losses by name. By
            default the ``loss`` among them. If the loss is computed outside of the model see `record`.
        delay: How many steps later losses are read: 1 lets the device run ahead, 0 is the original order.
        log: Add ``active/NAME`` (1 where it trained) and ``share/NAME``, its part of the steps, to what is logged.

    Raises:
        ConfigurationError: At the start of training: names, ownership, coverage or the Trainer's settings are wrong;
            the message says which and what to do.

    Example:
        >>> from adapters.transformers import AlternatingCallback
        >>> from alternator import Alternator, Trend
        >>> alternator = Alternator(("backbone", "head"), rule=Trend())
        >>> callback = AlternatingCallback(alternator, {"backbone": "bert", "head": "classifier"})
        >>> callback.active  # Trainer(model, arguments, callbacks=[callback], ...).train()
        'backbone'
    """

    def __init__(
        self,
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        *,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | None = None,
        frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None = None,
        frozen_state: FrozenState | Mapping[str, FrozenState] = "keep",
        losses: Callable[[Any], Losses] | None = None,
        delay: int = 1,
        log: bool = True,
    ) -> None:
        if alternator is None:  # what the Trainer builds from `state`
            raise ConfigurationError(
                "restore_callback_states_from_checkpoint must be False, got True: the Trainer would build another "
                "callback in place of this one, which continues from a checkpoint by itself"
            )
        check_integer("delay", delay, 0)
        self._alternator = alternator
        self._given: dict[str, Any] = {
            "modules": {name: kept(given) for name, given in modules.items()},
            "turns": turns and {name: names_in(turn) for name, turn in turns.items()},
            "always": None if always is None else kept(always),
            "delay": delay,
            "frozen_mode": frozen_mode,
            "frozen_state": frozen_state,
        }
        self._losses_of = losses
        self._log = log
        self._follower: Follower | None = None
        self._schedulers: list[Any] = []
        self._hook: Any = None
        self._started_from: dict[str, Any] = {}
        self._decision: Decision | None = None
        self._seen = Seen()

    @property
    def alternator(self) -> Alternator:
        """The alternator that decides."""
        return self._alternator

    @property
    def active(self) -> str:
        """The name that trains next: a module's, or a turn's."""
        return self._alternator.active

    def record(self, losses: Losses, *, summed: bool = False) -> None:
        """Record this in place of what the model returns: call it in ``compute_loss`` or ``compute_loss_func``.

        Args:
            losses: The active name's loss, or losses by name.
            summed: Whether they are divided by ``num_items_in_batch``, so that those of accumulated batches are summed.
        """
        self._seen.recorded, self._seen.summed = losses, summed

    def snapshot(self) -> Snapshot:
        """Copies of all that training changes, for `rollback`: to try turns and undo them, as `alternator.Trials` does.

        The model, its optimizer, learning-rate scheduler and GradScaler, and PyTorch's random state, each on its
        device. The Trainer's counts and the position in the data are not part of it: what is tried is charged. Call
        ``Trials.before_step()`` in ``on_step_begin`` of another callback.

        Raises:
            ConfigurationError: Outside of training.
            FreezeError: In the middle of an accumulation.
        """
        return self._running("snapshot").snapshot(*self._schedulers)

    def rollback(self, snapshot: Snapshot) -> None:
        """Go back to a `snapshot`, to the bit; it may be used again. Whoever is active now stays active.

        Raises:
            ConfigurationError: Outside of training.
            FreezeError: In the middle of an accumulation.
            StateError: The model or its optimizer are others now; nothing has been changed then.
        """
        self._running("rollback").rollback(snapshot)

    def close(self) -> None:
        """Unfreeze what you had not frozen, if training has failed; after training it is so."""
        if self._follower is not None:
            self._follower.close()
            self._hook.remove()
        self._follower = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Freeze and activate; continue from the checkpoint if the Trainer does."""
        if self._follower is not None:  # it has failed and starts again, perhaps with a smaller batch
            self.close()
            self._alternator.load_state_dict(self._started_from)
        assert model is not None
        _check_arguments(args)
        self._started_from = self._alternator.state_dict()
        if self._alternator.num_steps is None and state.max_steps > 0:
            self._alternator.expect(num_steps=state.max_steps)
        self._follower = self._build(model, optimizer)
        self._schedulers = [] if lr_scheduler is None else [lr_scheduler]
        watch_losses = torch.compiler.disable(self._watch_losses)  # type: ignore[no-untyped-call]
        self._hook = model.register_forward_hook(watch_losses, with_kwargs=True)
        self._seen = Seen()
        if state.global_step:
            self._resume(state, self._follower)
        state.stateful_callbacks.setdefault(type(self).__name__, {})  # which the Trainer fills when it saves

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Apply a switch that you forced."""
        if self._follower is not None:
            self._follower.before_step()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear the gradients of what is frozen."""
        if self._follower is not None:
            self._follower.before_update()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the losses of a batch that updates nothing."""
        if self._follower is not None:
            seen, self._seen = self._seen, Seen()
            self._follower.after_step(self._losses_in(seen), ended=False, summed=seen.summed)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the losses of the batch; decide and switch."""
        if self._follower is not None:
            seen, self._seen = self._seen, Seen()
            self._decision = self._follower.after_step(self._losses_in(seen), ended=True, summed=seen.summed)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add who trained, and each name's share of the steps, to what the Trainer logs of a step."""
        if not self._log or logs is None or "loss" not in logs or self._decision is None:
            return
        for name, module in self._alternator.stats().modules.items():
            logs[f"active/{name}"] = float(name == self._decision.previous)
            logs[f"share/{name}"] = module.training_ratio
        state.log_history[-1].update({key: value for key, value in logs.items() if key not in state.log_history[-1]})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the last losses; unfreeze what you had not frozen."""
        if self._follower is not None:
            self._follower.flush()
        self.close()

    def state(self) -> dict[str, Any]:
        """What ``trainer_state.json`` holds of the schedule."""
        schedule = {} if self._follower is None else {"schedule": self._follower.state_dict()}
        return {"args": {"alternator": None, "modules": {}}, "attributes": schedule}

    def _running(self, what: str) -> Follower:
        if self._follower is None:
            raise ConfigurationError(
                f"{what}() must be called while the Trainer trains, such as in on_step_begin of another callback, got "
                "it before or after"
            )
        return self._follower

    def _build(self, model: nn.Module, optimizer: Any) -> Follower:
        wrapped = isinstance(optimizer, AcceleratedOptimizer)
        inside: Optimizer = optimizer.optimizer if wrapped else optimizer
        scaler = optimizer.scaler if wrapped else None
        return Follower(self._alternator, optimizers=inside, model=model, scaler=scaler, **self._given)

    def _resume(self, state: TrainerState, follower: Follower) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__, {})
        schedule = saved.get("attributes", {}).get("schedule")
        if schedule is None:
            warn(
                f"the checkpoint of step {state.global_step} was saved without an AlternatingCallback, so the schedule "
                "starts from its beginning",
                stacklevel=2,
            )
        else:
            follower.load_state_dict(schedule)

    def _watch_losses(self, model: nn.Module, args: Any, kwargs: Mapping[str, Any], outputs: Any) -> None:
        """Keep the losses of a forward pass that trains."""
        if not torch.is_grad_enabled() or not any(module.training for module in model.modules()):
            return  # an evaluation; the model itself may be frozen
        self._seen.num_passes += 1
        self._seen.returned = _loss_in(outputs) if self._losses_of is None else self._losses_of(outputs)
        if self._seen.recorded is None:
            self._seen.summed = kwargs.get("num_items_in_batch") is not None

    def _losses_in(self, seen: Seen) -> Losses:
        """What to record of a batch.

        Raises:
            LossError: The rule needs losses and there is none, or it is not known which of several is minimised.
        """
        if seen.recorded is not None:
            return seen.recorded
        rule = self._alternator.rule
        if isinstance(rule, Payoff | Trial) and self._losses_of is None:
            return {}
        if watches_losses(rule) and (seen.returned is None or seen.num_passes > 1):
            said = "has returned none" if seen.returned is None else f"has run {seen.num_passes} times in one step"
            raise LossError(
                f"{type(rule).__name__} must see the loss that is minimised, but the model {said} (label smoothing and "
                "compute_loss_func take the labels from it): call record(loss) of the AlternatingCallback where you "
                "compute it, in compute_loss or compute_loss_func"
            )
        return {} if seen.returned is None else seen.returned


def _loss_in(outputs: Any) -> Tensor | None:
    """The loss where the Trainer finds it; None if there is none."""
    if isinstance(outputs, Mapping):
        return outputs.get("loss")
    first = outputs[0] if isinstance(outputs, tuple | list) and outputs else None
    return first if isinstance(first, Tensor) and first.ndim == 0 else None


def _check_arguments(args: TrainingArguments) -> None:
    """Refuse several devices and processes, and what steps the optimizer elsewhere."""
    used = [name for name in ("deepspeed", "fsdp") if getattr(args, name, None)]
    if args.parallel_mode != ParallelMode.NOT_PARALLEL or used:
        mode = used[0] if used else args.parallel_mode.value
        raise ConfigurationError(
            f"the Trainer must run in one process on one device for now, got {mode!r}: frozen modules are not known to "
            "stay as they are; set CUDA_VISIBLE_DEVICES to one device, or write the loop with adapters.accelerate, "
            "which trains in several processes"
        )

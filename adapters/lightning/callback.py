"""Lightning: `AlternatingCallback` keeps the freeze contract within ``Trainer.fit``.

With automatic optimization Lightning runs backward, clips and steps the optimizer, and the callback follows: between
updates it freezes and activates, so that Lightning sees gradients only where something trains. With manual optimization
`AlternatingCallback.step` does a whole step. See docs/training-loop.md.

Design constraints:

1. One step of the alternator per update, whatever Lightning accumulates, skips or validates in between.
2. Decisions are made in ``on_train_batch_end``, before Lightning saves or validates: a checkpoint holds whole steps.
3. What a training step returns is what the alternator records; nothing is read from the device before it has arrived.
"""

from collections.abc import Iterable, Mapping
from math import ceil, inf, isfinite
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer

from adapters.contract import FrozenMode, FrozenState, refuse_loss
from adapters.lightning.loops import FollowedOptimizer, ManualOptimizer
from adapters.torch.follower import Follower
from adapters.torch.losses import Loss
from adapters.torch.modules import Parameters
from adapters.torch.naming import kept
from adapters.torch.snapshots import Snapshot
from alternator import Alternator, ConfigurationError, Decision, LossError
from alternator.checks import check_integer, names_in


class AlternatingCallback(Callback):
    """Trains the module that the alternator chose within Lightning's loop; the freeze contract holds for all others.

    Hand it to the Trainer, before other callbacks that save checkpoints of their own, or return it from
    ``configure_callbacks``. What ``training_step`` returns is recorded: its loss, or a dict with ``loss`` and
    ``losses``, a mapping by name. Who trains next is ``alternator.active``.

    Automatic optimization takes one optimizer over all (its groups may differ); manual optimization takes any number,
    and its ``training_step`` calls `step`; one that steps an optimizer itself is refused. Modules are as you had them
    before training starts and after it ends.

    Args:
        alternator: Decides who trains.
        modules: Names of attributes of the LightningModule, or per module name what belongs to it: a path or pattern
            within the LightningModule (``"net.encoder"``, ``"*.lora_A"``, ``"*"`` for the rest), a module, a parameter,
            or several of these, as in `adapters.torch.AlternatingOptimizer`. By default the names that the alternator,
            or ``turns``, has.
        turns: Per name of the alternator the modules that train together; by default each name is a module.
        always: What trains in every step, named likewise.
        frozen_mode: How modules run while they are frozen, for all or by name: ``"inference"``, or ``"batch"`` for
            players such as those of a GAN, as in `adapters.torch.AlternatingOptimizer`.
        frozen_state: What becomes of the optimizer state of what is frozen, for all or by name: ``"keep"``,
            ``"offload"`` or ``"drop"``, likewise.
        clip_norm: Clip what trains to this total norm, with manual optimization. With automatic optimization use the
            Trainer's ``gradient_clip_val``.
        delay: How many steps later losses are read: 1 lets the device run ahead, 0 is the original order.
        log: Log ``active/NAME`` (1 where it trained) and ``share/NAME``, its part of the steps, at each switch and
            every ``log_every_n_steps`` updates.

    Raises:
        ConfigurationError: At the start of ``fit``: names, ownership, coverage or the Trainer's settings are wrong; the
            message says which and what to do.

    Example:
        >>> import torch
        >>> from alternator import Alternator, Cycle
        >>> class Regression(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.encoder, self.head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)
        ...     def training_step(self, batch, batch_idx):
        ...         return self.head(self.encoder(torch.ones(8, 4))).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(self.parameters())
        >>> alternator = Alternator(("encoder", "head"), rule=Cycle(2))
        >>> callback = AlternatingCallback(alternator)
        >>> trainer = Trainer(accelerator="cpu", max_steps=6, callbacks=[callback], barebones=True)
        >>> trainer.fit(Regression(), range(10))
        >>> [module.training_steps for module in alternator.stats().modules.values()]
        [4, 2]
    """

    def __init__(
        self,
        alternator: Alternator,
        modules: Iterable[str] | Mapping[str, Parameters] | None = None,
        *,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | None = None,
        frozen_mode: FrozenMode | Mapping[str, FrozenMode] | None = None,
        frozen_state: FrozenState | Mapping[str, FrozenState] = "keep",
        clip_norm: float | None = None,
        delay: int = 1,
        log: bool = True,
    ) -> None:
        check_integer("delay", delay, 0)
        self._alternator = alternator
        self._turns = None if turns is None else {name: names_in(turn) for name, turn in turns.items()}
        self._modules = _sources(modules, self._turns or {name: (name,) for name in alternator.modules})
        self._always = None if always is None else kept(always)
        self._frozen_mode = frozen_mode
        self._frozen_state = frozen_state
        self._clip_norm = clip_norm
        self._delay = delay
        self._log = log
        self._loaded: dict[str, Any] | None = None
        self._loop: FollowedOptimizer | ManualOptimizer | None = None
        self._is_training = False

    @property
    def alternator(self) -> Alternator:
        """The alternator that decides."""
        return self._alternator

    @property
    def active(self) -> str:
        """The name that trains next: a module's, or a turn's."""
        return self._alternator.active

    def step(self, loss: Tensor, losses: Mapping[str, Loss] | None = None) -> Decision:
        """Backward, update of what is active, decision and switch; in a training step with manual optimization.

        Schedulers of optimizers that hold one module move with it: with ``"interval": "step"`` after its updates, with
        ``"epoch"``, Lightning's default, at the end of epochs in which it trained. You step all others, and those that
        need a metric.

        Args:
            loss: What to minimise.
            losses: What to record, as in `adapters.torch.AlternatingOptimizer.step`; by default ``loss``.

        Raises:
            ConfigurationError: With automatic optimization, or outside of training.
            LossError: The active name's loss is missing, a loss is not a scalar, or ``loss`` reaches no active
                parameter.
            FreezeError: A frozen module is in training mode, or the alternator was switched outside the adapter.
        """
        if not isinstance(self._loop, ManualOptimizer) or not self._is_training:
            raise ConfigurationError(
                "step() must be called in training_step with automatic_optimization=False; with automatic optimization "
                "return the loss, Lightning then makes the step"
            )
        decision = self._loop.step(loss, losses)
        self._log_decision(self._loop.pl_module.trainer, decision)
        return decision

    def apply(self) -> None:
        """Accept what you have written to frozen modules, and apply a switch of the alternator, between two batches."""
        if self._loop is not None and self._is_training and not self._is_accumulating:
            self._loop.schedule.apply()

    def snapshot(self) -> Snapshot:
        """Copies of all that training changes, for `rollback`: to try turns and undo them, as `alternator.Trials` does.

        Parameters and buffers of the LightningModule, the states of its optimizers and schedulers, of the precision's
        GradScaler, and PyTorch's random state, each on its device. Lightning's counts and the position in the data are
        not part of it: what is tried is charged. Call ``Trials.before_step()`` in ``on_train_batch_start`` of a
        callback that comes before this one, which puts frozen modules back in their modes.

        Raises:
            ConfigurationError: Outside of training.
            FreezeError: In the middle of an accumulation.
        """
        loop = self._running("snapshot")
        return loop.snapshot(*(config.scheduler for config in self._trainer.lr_scheduler_configs))

    def rollback(self, snapshot: Snapshot) -> None:
        """Go back to a `snapshot`, to the bit; it may be used again. Whoever is active now stays active.

        Raises:
            ConfigurationError: Outside of training.
            FreezeError: In the middle of an accumulation.
            StateError: Modules or optimizers are others now; nothing has been changed then.
        """
        self._running("rollback").rollback(snapshot)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything is built."""
        if stage == "fit":
            _check_trainer(trainer)
            self._check_optimization(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze and activate; continue from a checkpoint if one was loaded."""
        self._trainer = trainer
        self._loop = self._build(trainer, pl_module)
        if self._alternator.num_steps is None:
            self._alternator.expect(num_steps=_planned_steps(trainer))
        self._is_training = True
        if self._loaded is not None:
            state, self._loaded = self._loaded, None
            self._loop.schedule.load_state_dict(state)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put frozen modules back in their frozen mode, in case a hook or the end of a validation changed that."""
        if self._loop is not None:
            self._loop.before_batch()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Check that what is frozen still is."""
        if isinstance(self._loop, FollowedOptimizer):
            self._loop.before_backward(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clear the gradients of what is frozen; Lightning clips after this."""
        if isinstance(self._loop, FollowedOptimizer):
            self._loop.before_update()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the losses of the batch; decide and switch after an update."""
        if isinstance(self._loop, ManualOptimizer):
            self._loop.after_batch()
        if not isinstance(self._loop, FollowedOptimizer):
            return
        decision = self._loop.after_batch(_losses_of(outputs, self._alternator, trainer.accumulate_grad_batches))
        if decision is not None:
            self._log_decision(trainer, decision)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance the schedulers of modules that move by epochs, with manual optimization."""
        if isinstance(self._loop, ManualOptimizer):
            self._loop.end_epoch()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the last losses; unfreeze what you had not frozen."""
        if self._loop is not None:
            self._loop.schedule.flush()
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Unfreeze what you had not frozen."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a checkpoint that was loaded for an evaluation: training does not continue from it."""
        if stage != "fit":
            self._loaded = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of Lightning holds of the schedule; JSON-safe. Empty before the first training."""
        if self._loop is None:
            return self._loaded or {}
        return self._loop.schedule.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from this state at the next start of training, which refuses that of another configuration."""
        self._loaded = state_dict

    def _running(self, what: str) -> FollowedOptimizer | ManualOptimizer:
        if self._loop is None or not self._is_training:
            raise ConfigurationError(
                f"{what}() must be called while the Trainer trains, such as in on_train_batch_start of a "
                "callback, got it before or after"
            )
        return self._loop

    @property
    def _is_accumulating(self) -> bool:
        return isinstance(self._loop, FollowedOptimizer) and self._loop.schedule.is_accumulating

    def _check_optimization(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.automatic_optimization and self._clip_norm is not None:
            raise ConfigurationError(
                f"clip_norm must be None with automatic optimization, got {self._clip_norm!r}; use "
                f"Trainer(gradient_clip_val={self._clip_norm!r}), which sees the gradients of what trains only"
            )
        if not pl_module.automatic_optimization and getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise ConfigurationError(
                f"manual optimization must do without a GradScaler, got precision={trainer.precision!r}, whose scale "
                "Lightning moves between two optimizers of one step; use 'bf16-mixed' or automatic optimization"
            )

    def _build(self, trainer: Trainer, pl_module: LightningModule) -> FollowedOptimizer | ManualOptimizer:
        options: dict[str, Any] = {
            "delay": self._delay,
            "model": pl_module,
            "turns": self._turns,
            "always": self._always,
            "frozen_mode": self._frozen_mode,
            "frozen_state": self._frozen_state,
        }
        if not pl_module.automatic_optimization:
            return ManualOptimizer(self._alternator, self._modules, pl_module, clip_norm=self._clip_norm, **options)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        follower = Follower(self._alternator, self._modules, trainer.optimizers[0], scaler=scaler, **options)
        return FollowedOptimizer(follower)

    def _release(self) -> None:
        if self._loop is not None and self._is_training:
            self._is_training = False
            self._loop.close()

    def _log_decision(self, trainer: Trainer, decision: Decision) -> None:
        """Log who trained in this step and each name's share, at switches and as often as the Trainer logs.

        It goes to the loggers directly: ``self.log`` in every step took longer than the rest of the callback.
        """
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self._log or not trainer.loggers or not every or (not decision.switched and decision.step % every):
            return
        metrics: dict[str, float] = {}
        for name, module in self._alternator.stats().modules.items():
            metrics[f"active/{name}"] = float(name == decision.previous)
            metrics[f"share/{name}"] = module.training_ratio
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=decision.step - 1)  # Lightning counts from 0


def _planned_steps(trainer: Trainer) -> int | None:
    """The number of updates of the fit, as far as the Trainer's settings tell; its own estimate may load data."""
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    planned = [float(trainer.max_steps)] if trainer.max_steps > 0 else []
    if epochs is not None and epochs > 0:
        planned.append(epochs * ceil(batches / trainer.accumulate_grad_batches) if isfinite(batches) else inf)
    steps = min(planned, default=inf)
    return int(steps) if 0 < steps < inf else None


def _sources(
    modules: Iterable[str] | Mapping[str, Parameters] | None, turns: Mapping[str, tuple[str, ...]]
) -> dict[str, Parameters]:
    """Per module name what belongs to it; by default the attribute of that name."""
    if isinstance(modules, Mapping):
        return {name: kept(given) for name, given in modules.items()}
    names = modules if modules is not None else (name for turn in turns.values() for name in turn)
    return {name: name for name in names}


def _check_trainer(trainer: Trainer) -> None:
    """Refuse several processes, and two callbacks of this kind."""
    if isinstance(trainer.strategy, ParallelStrategy) or trainer.world_size > 1:
        raise ConfigurationError(
            f"training must run in one process for now, got {type(trainer.strategy).__name__} over {trainer.world_size}"
            ": it would wait for the gradients of frozen modules, and each process would decide by its own losses; use "
            "Trainer(devices=1, strategy='auto')"
        )
    num_callbacks = sum(isinstance(callback, AlternatingCallback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if num_callbacks > 1:
        raise ConfigurationError(
            f"a Trainer must have one AlternatingCallback, got {num_callbacks}: each would freeze what the other "
            "trains; give one alternator all modules"
        )


def _losses_of(outputs: Any, alternator: Alternator, num_batches: int) -> Mapping[str, Loss]:
    """What to record of a training step: its ``losses``, or its loss, which Lightning has divided."""
    if not outputs:
        return {}
    active = alternator.active
    losses = outputs.get("losses")
    if losses is None:
        refuse_loss(alternator.rule)
        return {active: outputs["loss"] * num_batches if num_batches > 1 else outputs["loss"]}
    if not isinstance(losses, Mapping):
        raise LossError(
            f"'losses' of training_step must be a mapping by name, got {losses!r}; return {{'loss': loss, 'losses': "
            f"{{{active!r}: loss}}}}"
        )
    return losses

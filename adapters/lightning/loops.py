"""AlternatingOptimizer where Lightning steps the optimizer, and where a training step of the user's does."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from adapters.torch import AlternatingOptimizer
from adapters.torch.losses import Loss
from adapters.torch.modules import Parameters
from adapters.torch.stepping import parameters_of
from alternator import Alternator, ConfigurationError, Decision


class _WithinLightning(AlternatingOptimizer):
    """What both have in common."""

    @property
    def is_accumulating(self) -> bool:
        """Whether losses or gradients wait for the rest of an update."""
        return False

    def before_batch(self) -> None:
        """Frozen modules to inference mode, whoever put them in training mode; and a switch that the user forced."""
        if not self.is_accumulating and self._alternator.active != self._applied:
            self.apply()
        for module in self._turns[self._applied].frozen:
            module.set_inference_mode()

    def close(self) -> None:
        """Unfreeze what the user had not frozen."""
        self.release()


class FollowedOptimizer(_WithinLightning):
    """One optimizer that another loop calls backward for and steps: this one watches, counts and decides.

    The loop calls, in this order, `before_batch`, `before_backward` (unless the batch has no loss), `before_update`
    (where the optimizer is to step) and `after_batch`.

    Args:
        alternator: Decides who trains.
        modules: Per module name an ``nn.Module``, or an iterable of parameters.
        optimizer: The one over all.
        loop_scaler: The loop's GradScaler, if it has one.
        options: As `AlternatingOptimizer` has them.
    """

    def __init__(
        self,
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        optimizer: Optimizer,
        *,
        loop_scaler: GradScaler | None,
        **options: Any,
    ) -> None:
        super().__init__(alternator, modules, optimizer, **options)
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        self._telling_scaler = loop_scaler if fused else None  # a fused optimizer skips inside its kernel
        self._scale = 0.0
        self._hook = optimizer.register_step_post_hook(lambda *_: self._note_step())
        self._open_window()

    @property
    def is_accumulating(self) -> bool:
        """Whether losses or gradients wait for the rest of an update."""
        return self._has_losses or self._has_gradients

    def before_backward(self) -> None:
        """Refuse gradients for a frozen module in training mode."""
        self._check_frozen()
        self._has_gradients = True

    def before_update(self) -> None:
        """Only what trains has gradients from here on, before they are clipped."""
        self._reached = True
        if self._has_gradients:
            self._prepare_update()
        if self._telling_scaler is not None:
            self._scale = self._telling_scaler.get_scale()

    def after_batch(self, losses: Mapping[str, Loss]) -> Decision | None:
        """Tell the losses of the batch (none is fine); decide and switch if the optimizer has had its step."""
        self._pending.add(self._check_losses(None, losses))
        self._has_losses = True
        if not self._reached:
            return None
        skipped = self._telling_scaler is not None and self._telling_scaler.get_scale() < self._scale
        updated = self._has_gradients and self._stepped and not skipped
        self._open_window()
        return self._advance(updated)

    def close(self) -> None:
        """Unfreeze what the user had not frozen, and watch the optimizer no longer."""
        self._hook.remove()
        super().close()

    def _open_window(self) -> None:
        self._has_losses = self._has_gradients = self._reached = self._stepped = False

    def _note_step(self) -> None:
        self._stepped = True


class ManualOptimizer(_WithinLightning):
    """Backward and the optimizers' steps go through Lightning, which counts them and sets the precision.

    Args:
        alternator: Decides who trains.
        modules: Per module name an ``nn.Module``, or an iterable of parameters.
        pl_module: Its optimizers and schedulers are found by the parameters that they hold.
        always: What trains in every step.
        options: As `AlternatingOptimizer` has them.
    """

    def __init__(
        self,
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        pl_module: LightningModule,
        *,
        always: Parameters | None,
        **options: Any,
    ) -> None:
        self.pl_module = pl_module
        found = pl_module.optimizers()
        wrapped = found if isinstance(found, list) else [found]
        self._wrapped = {id(each.optimizer): each for each in wrapped}
        optimizers = [each.optimizer for each in wrapped]
        if len(optimizers) == 1:
            super().__init__(alternator, modules, optimizers[0], always=always, **options)
            return
        shared = [] if always is None else _parameters(always)
        owned = {name: _holder(optimizers, _parameters(module), shared) for name, module in modules.items()}
        extra = [each for each in optimizers if not any(each is optimizer for optimizer in owned.values())]
        if len(extra) > (always is not None):
            raise ConfigurationError(
                f"every optimizer must hold parameters of a module, but {len(extra)} of {len(optimizers)} hold none; "
                "leave them out, or declare what one of them trains with always="
            )
        super().__init__(
            alternator,
            modules,
            {name: optimizer for name, optimizer in owned.items() if optimizer is not None},
            always=(always, extra[0]) if always is not None and extra else always,
            schedulers=_own_schedulers(pl_module, owned),
            **options,
        )

    def backward(self, loss: Tensor) -> None:
        """As Lightning does it."""
        self.pl_module.manual_backward(loss)

    def _step_optimizers(self, optimizers: list[Optimizer]) -> list[Optimizer]:
        for optimizer in optimizers:
            self._wrapped[id(optimizer)].step()
        return optimizers


def _parameters(module: Parameters) -> list[nn.Parameter]:
    return list(module.parameters() if isinstance(module, nn.Module) else module)


def _holder(
    optimizers: list[Optimizer], parameters: list[nn.Parameter], shared: list[nn.Parameter]
) -> Optimizer | None:
    """The first optimizer that holds one of these parameters, the shared ones aside."""
    own = {id(parameter) for parameter in parameters} - {id(parameter) for parameter in shared}
    return next((each for each in optimizers if any(id(parameter) in own for parameter in parameters_of(each))), None)


def _own_schedulers(pl_module: LightningModule, owned: Mapping[str, Optimizer | None]) -> dict[str, LRScheduler]:
    """Per module the scheduler of its optimizer; one that needs a metric, or drives several modules, is the user's."""
    schedulers: dict[str, LRScheduler] = {}
    for config in pl_module.trainer.lr_scheduler_configs:
        driven = [name for name, optimizer in owned.items() if optimizer is config.scheduler.optimizer]
        if len(driven) == 1 and not isinstance(config.scheduler, ReduceLROnPlateau):
            schedulers[driven[0]] = config.scheduler
    return schedulers

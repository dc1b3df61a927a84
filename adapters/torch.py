"""PyTorch: train the module that the alternator chose, and leave every other one untouched to the bit.

The freeze contract: while a module is frozen its parameters, its optimizer state, its scheduler and its normalisation
buffers do not change by a single bit; its gradients are neither computed nor counted in clipping; and when it is active
again it goes on exactly as if the frozen steps had not happened. See docs/freezing.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adapters._ownership import ALWAYS, FreezeError, check_disjoint, check_turns, listed
from adapters._torch_checks import (
    check_coverage,
    check_none_left_out,
    check_optimizers,
    check_schedulers,
    parameters_of,
)
from adapters._torch_freezing import Freezable
from adapters._torch_losses import Loss, PendingLosses, check_scalar
from alternator import Alternator, ConfigurationError, Decision, LossError, StateError, UnknownModuleError

__all__ = ["AlternatingOptimizer", "FreezeError"]

VERSION = 1

Parameters = nn.Module | Iterable[nn.Parameter]
"""A module, or parameters alone."""


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """What one name of the alternator trains."""

    modules: tuple[Freezable, ...]
    active: tuple[Freezable, ...]  # the modules and the always group
    frozen: tuple[Freezable, ...]
    optimizers: tuple[tuple[Optimizer, tuple[nn.Parameter, ...]], ...]  # each with its parameters that train
    schedulers: tuple[tuple[Optimizer, LRScheduler], ...]


class AlternatingOptimizer:
    """Steps the optimizers of the active modules; the freeze contract holds for all others.

    Build it once, after the optimizers; from then on call `step` where you would call ``loss.backward()`` and
    ``optimizer.step()``, and `train` and `eval` where you would call them on the model. Forward passes are yours.

    Args:
        alternator: Decides who trains.
        modules: Per module name an ``nn.Module``, or an iterable of parameters (which has no mode and no buffers).
        optimizers: One optimizer per module name, or one over all.
        model: The model that holds them all, to find parameters that belong to none.
        turns: Per name of the alternator the modules that train together; by default each name is a module.
        always: What trains in every step (fusion or uncertainty weights, a shared embedding): a module or parameters
            that one of the optimizers covers, or a pair of these and an optimizer of their own.
        schedulers: Per module name (or ``"always"``) a scheduler, stepped after each update of that module only.
        clip_norm: Clip the gradients of all that trains in the step, the always group included, to this total norm.
        scaler: A GradScaler for float16. A step that it skips counts as skipped (``updated=False``).
        accumulate: Micro-steps per update. Gradients and recorded losses are their means.
        delay: How many steps later losses are read: 1 lets the device run ahead, 0 is the original order.

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

    def __init__(
        self,
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        optimizers: Mapping[str, Optimizer] | Optimizer,
        *,
        model: nn.Module | None = None,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | tuple[Parameters, Optimizer] | None = None,
        schedulers: Mapping[str, LRScheduler] | None = None,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
        accumulate: int = 1,
        delay: int = 1,
    ) -> None:
        _check_count("accumulate", accumulate, 1)
        _check_count("delay", delay, 0)
        if clip_norm is not None and not clip_norm > 0:
            raise ConfigurationError(f"clip_norm must be above 0 or None, got {clip_norm!r}")
        self._alternator = alternator
        self._clip_norm = clip_norm
        self._scaler = scaler
        self._accumulate = accumulate
        turn_names = check_turns(alternator.modules, modules, turns)
        group, extra = _split_pair(always)
        self._always = None if group is None else Freezable(ALWAYS, group)
        excluded = {id(parameter) for parameter in self._always.parameters.values()} if self._always else set()
        self._modules = {name: Freezable(name, module, excluded) for name, module in modules.items()}
        groups = self._groups()
        check_disjoint(
            {name: {id(value): key for key, value in group.parameters.items()} for name, group in groups.items()}
        )
        if model is not None:
            check_none_left_out(model, groups)
        self._optimizers = check_optimizers(self._modules, optimizers, extra)
        self._uncovered = check_coverage(groups, optimizers, self._optimizers)
        self._schedulers = check_schedulers(groups, schedulers or {}, self._optimizers)
        self._turns = {name: self._plan(members) for name, members in turn_names.items()}
        self._pending = PendingLosses(delay)
        self._micro_step = 0
        self._evaluating = False
        self._grad_norm: Tensor | None = None
        self._apply()

    @property
    def alternator(self) -> Alternator:
        """The alternator that decides."""
        return self._alternator

    @property
    def active(self) -> str:
        """The name that trains next: a module's, or a turn's."""
        return self._alternator.active

    @property
    def active_modules(self) -> tuple[str, ...]:
        """The modules that train next, the always group aside."""
        return tuple(module.name for module in self._turns[self.active].modules)

    @property
    def grad_norm(self) -> Tensor | None:
        """Total norm of the last update's gradients before clipping, on its device; None without ``clip_norm``."""
        return self._grad_norm

    def step(self, loss: Tensor | None = None, losses: Mapping[str, Loss] | None = None) -> Decision | None:
        """Backward, update of what is active, decision and switch: all that follows the forward pass.

        Args:
            loss: What to minimise. None if you have called `backward` (or ``loss.backward()``) yourself.
            losses: What the alternator is told: losses by name, the active name's among them. By default ``loss``.

        Returns:
            The decision; None after a micro-step that updates nothing (``accumulate`` above 1).

        Raises:
            LossError: The active name's loss is missing, a loss is no scalar, or ``loss`` reaches no active parameter.
            UnknownModuleError: ``losses`` has a name that the alternator has not.
            FreezeError: A frozen module is in training mode, or the alternator was switched behind our back.
        """
        named = self._check_losses(loss, losses)
        self._check_frozen()
        if loss is not None:
            self.backward(loss)
        if self._micro_step + 1 < self._accumulate:
            self._micro_step += 1
            self._pending.add(named)
            return None
        updated = self._update()
        self._pending.add(named)
        self.zero_grad()
        return self._advance(updated)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss / accumulate``, scaled if there is a scaler. `step` without ``loss`` goes on."""
        if self._accumulate > 1:
            loss = loss / self._accumulate
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def skip(self, losses: Tensor | float | Mapping[str, Loss] | None = None) -> Decision:
        """End the step without an update, for a loss that is not finite: it counts as skipped.

        Gradients of the step are dropped, those of its earlier micro-steps included.

        Args:
            losses: What the alternator is told, as for `step`; None tells it nothing.
        """
        if losses is not None:
            self._pending.add(
                self._check_losses(None, losses if isinstance(losses, Mapping) else {self.active: losses})
            )
        self.zero_grad()
        return self._advance(updated=False)

    def zero_grad(self) -> None:
        """Set all gradients to None. `step` does so after each update."""
        for group in self._groups().values():
            for parameter in group.parameters.values():
                parameter.grad = None

    def train(self) -> None:
        """Training mode for what is active, inference for what is frozen: call it where you called model.train()."""
        self._evaluating = False
        turn = self._turns[self._applied]
        for module in turn.frozen:
            module.set_inference_mode()
        for module in turn.active:
            module.set_training_mode()

    def eval(self) -> None:
        """Inference mode for all modules: call it where you called model.eval()."""
        self._evaluating = True
        for group in self._groups().values():
            group.set_inference_mode()

    def force(self, name: str) -> Decision:
        """Start a new tenure of a name now, as `Alternator.force` does."""
        self._check_boundary("force")
        decision = self._alternator.force(name)
        self.apply()
        return decision

    def apply(self) -> None:
        """Set gradients and modes to what the alternator says. Needed only if you switch the alternator yourself."""
        self._check_boundary("apply")
        self._remember()
        self._apply()

    def state_dict(self, *, include_optimizers: bool = False) -> dict[str, Any]:
        """Everything of the schedule: alternator, losses under way, what the user froze. JSON-safe.

        Args:
            include_optimizers: Add the states of optimizers, schedulers and scaler (tensors, so no JSON).

        Raises:
            FreezeError: In the middle of an accumulation, whose gradients are not saved.
        """
        self._check_boundary("state_dict")
        self._remember()
        groups = self._groups().values()
        state: dict[str, Any] = {
            "version": VERSION,
            "alternator": self._alternator.state_dict(),
            "pending_losses": self._pending.state(),
            "user_frozen": sorted(key for group in groups for key in group.user_frozen),
            "inference": sorted(key for group in groups for key in group.inference),
        }
        if include_optimizers:
            state["optimizers"] = [optimizer.state_dict() for optimizer in self._optimizers]
            state["schedulers"] = {name: scheduler.state_dict() for name, scheduler in self._schedulers.items()}
            state["scaler"] = None if self._scaler is None else self._scaler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; the model's own state is yours to load.

        Raises:
            StateError: The state is damaged or of another configuration; nothing of the schedule has been changed then.
        """
        self._check_boundary("load_state_dict")
        choices = self._check_state(state)
        self._alternator.load_state_dict(state["alternator"])
        self._pending.load(state["pending_losses"])
        for group in self._groups().values():
            group.user_frozen = choices["user_frozen"] & set(group.parameters)
            group.inference = choices["inference"] & set(group.submodules)
        if "optimizers" in state:
            self._load_optimizers(state)
        self._apply()

    def flush(self) -> None:
        """Record the losses that are still under way; call it at the end of training to see them all."""
        for name, value in self._pending.flush():
            self._alternator.record(name, value)

    def _remember(self) -> None:
        """Keep what the user froze, or put in inference mode, while the active modules trained."""
        for group in self._turns[self._applied].active:
            group.remember(modes=not self._evaluating)

    def _apply(self) -> None:
        turn = self._turns[self._alternator.active]
        for module in turn.frozen:
            module.freeze()
        for module in turn.active:
            module.activate()
        self._applied = self._alternator.active
        if self._evaluating:
            self.eval()

    def _check_state(self, state: Mapping[str, Any]) -> dict[str, set[str]]:
        """The user's choices in a saved state, once it is known to be whole."""
        try:
            if state["version"] != VERSION:
                raise StateError(f"state version must be {VERSION}, got {state['version']!r}; save it anew")
            for name in (name for step in state["pending_losses"] for name in step):
                if name not in self._turns:
                    raise StateError(f"the state has losses under way of {name!r}; expected {tuple(self._turns)}")
            choices = {what: set(state[what]) for what in ("user_frozen", "inference")}
        except (KeyError, TypeError) as error:
            raise StateError(f"the state is damaged ({type(error).__name__}: {error}); load an intact one") from error
        groups = self._groups().values()
        known = {key for group in groups for key in (*group.parameters, *group.submodules)}
        unknown = sorted((choices["user_frozen"] | choices["inference"]) - known)
        if unknown:
            raise StateError(f"the state belongs to another model: it has {listed(unknown)}, which this one has not")
        return choices

    def _load_optimizers(self, state: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for name, scheduler in self._schedulers.items():
            scheduler.load_state_dict(state["schedulers"][name])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])

    def _groups(self) -> dict[str, Freezable]:
        return {**self._modules, **({ALWAYS: self._always} if self._always else {})}

    def _plan(self, members: tuple[str, ...]) -> _Turn:
        always = (self._always,) if self._always else ()
        modules = tuple(self._modules[name] for name in members)
        active = (*modules, *always)
        training = {id(parameter) for module in active for parameter in module.parameters.values()}
        shares = [
            (optimizer, tuple(p for p in parameters_of(optimizer) if id(p) in training))
            for optimizer in self._optimizers
        ]
        return _Turn(
            modules=modules,
            active=active,
            frozen=tuple(module for name, module in self._modules.items() if name not in members),
            optimizers=tuple(share for share in shares if share[1]),
            schedulers=tuple(
                (scheduler.optimizer, scheduler)
                for name, scheduler in self._schedulers.items()
                if name in (*members, ALWAYS)
            ),
        )

    def _check_losses(self, loss: Tensor | None, losses: Mapping[str, Loss] | None) -> dict[str, Loss]:
        if losses is None:
            if loss is None:
                raise LossError("step() needs a loss: give the loss, or losses= if you have called backward() yourself")
            losses = {self.active: loss}
        for name, value in losses.items():
            if name not in self._turns:
                raise UnknownModuleError(name, self._alternator.modules)
            check_scalar(name, value)
        if self.active not in losses:
            raise LossError(f"the loss of the active module {self.active!r} is missing; got only {tuple(losses)}")
        return dict(losses)

    def _check_frozen(self) -> None:
        if self._alternator.active != self._applied:
            raise FreezeError(
                f"the alternator says {self._alternator.active!r}, but {self._applied!r} is applied: switch with "
                "force() of the AlternatingOptimizer, or call its apply() before the forward pass"
            )
        for module in self._turns[self._applied].frozen:
            training = module.in_training_mode()
            if training:
                raise FreezeError(
                    f"a frozen module must be in inference mode, but {listed(training)} is in training mode: call "
                    "train() of the AlternatingOptimizer where you call model.train()"
                )

    def _check_boundary(self, what: str) -> None:
        if self._micro_step:
            raise FreezeError(
                f"{what}() must be called between updates, got micro-step {self._micro_step} of {self._accumulate}; "
                "finish the step or call skip()"
            )

    def _update(self) -> bool:
        """Clip, step the optimizers that have gradients, and their schedulers; False if the scaler skipped it."""
        turn = self._turns[self._applied]
        for group in self._groups().values():
            group.drop_stray_gradients()
        self._check_uncovered()
        stepping = [share for share in turn.optimizers if any(p.grad is not None for p in share[1])]
        if not any(p.grad is not None for module in turn.modules for p in module.parameters.values()):
            raise LossError(
                f"the loss reaches no parameter of {self._applied!r}, which is active: give a loss that depends on it, "
                "or call skip() if this step has nothing for it"
            )
        if self._scaler is not None:
            for optimizer, _ in stepping:
                self._scaler.unscale_(optimizer)
        if self._clip_norm is not None:
            parameters = [parameter for _, share in stepping for parameter in share]
            self._grad_norm = nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        updated = self._step_optimizers([optimizer for optimizer, _ in stepping])
        if updated:
            for optimizer, scheduler in turn.schedulers:
                if any(optimizer is other for other, _ in stepping):
                    scheduler.step()
        return updated

    def _step_optimizers(self, optimizers: list[Optimizer]) -> bool:
        if self._scaler is None:
            for optimizer in optimizers:
                optimizer.step()
            return True
        scale = self._scaler.get_scale()
        for optimizer in optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= scale

    def _check_uncovered(self) -> None:
        unfrozen = [name for name, parameter in self._uncovered.items() if parameter.requires_grad]
        if unfrozen:
            raise ConfigurationError(
                f"a parameter that trains must be in an optimizer, but {listed(unfrozen)} was unfrozen and is in none: "
                "build the optimizer over all parameters, frozen ones too"
            )

    def _advance(self, updated: bool) -> Decision:
        self._micro_step = 0
        for name, value in self._pending.close_step():
            self._alternator.record(name, value)
        decision = self._alternator.advance(updated=updated)
        if decision.switched:
            self.apply()
        return decision


def _check_count(name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigurationError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def _split_pair(always: Parameters | tuple[Parameters, Optimizer] | None) -> tuple[Parameters | None, Optimizer | None]:
    if isinstance(always, tuple) and len(always) == 2 and isinstance(always[1], Optimizer):
        return always
    return always, None

"""PyTorch: train the module that the alternator chose, and leave every other one untouched to the bit.

The freeze contract: while a module is frozen its parameters, its optimizer state, its scheduler and its normalisation
buffers do not change by a single bit; its gradients are neither computed nor counted in clipping; and when it is active
again it goes on exactly as if the frozen steps had not happened. See docs/freezing.md.

Design constraints:

1. An optimizer skips a parameter whose gradient is None, and only then. So frozen means ``requires_grad=False``, no
   gradient left over, and an optimizer that is not stepped where it has nothing else to train.
2. Modes and ``requires_grad`` change between steps only, never inside a forward pass or a compiled region.
3. What the user froze, or put in inference mode, is the user's and stays.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, float64, nn, tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from adapters.contract import ALWAYS, FreezeError, check_turns
from adapters.torch.checks import (
    Optimizers,
    check_coverage,
    check_optimizers,
    check_ownership,
    check_schedulers,
    warn_of_recompiles,
)
from adapters.torch.losses import LocalLosses, Loss, PendingLosses, check_scalar
from adapters.torch.modules import Between, Freezable, Parameters
from adapters.torch.parallel.ddp import check_reduced, check_wrappers, find_wrappers
from adapters.torch.parallel.fsdp import check_sharded, find_sharded, reshard, whole
from adapters.torch.parallel.ranks import Ranks, check_single, group_of
from adapters.torch.stepping import clip, parameters_of, step
from alternator import Alternator, ConfigurationError, Decision, LossError, StateError, UnknownModuleError
from alternator.checks import check_integer, listed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.nn.parallel import DistributedDataParallel

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """What one name of the alternator trains."""

    modules: tuple[Freezable, ...]
    active: tuple[Freezable, ...]  # the modules and the always group
    frozen: tuple[Freezable, ...]
    own_parameters: tuple[nn.Parameter, ...]  # of the modules, the always group aside
    active_parameters: tuple[nn.Parameter, ...]  # of the modules and the always group
    frozen_parameters: tuple[nn.Parameter, ...]
    frozen_submodules: tuple[tuple[str, nn.Module], ...]
    optimizers: tuple[tuple[Optimizer, tuple[nn.Parameter, ...]], ...]  # each with its parameters that train
    schedulers: tuple[LRScheduler, ...]


class AlternatingOptimizer:
    """Steps the optimizers of the active modules; the freeze contract holds for all others.

    Build it once, after the optimizers; from then on call `step` where you would call ``loss.backward()`` and
    ``optimizer.step()``, and `train` and `eval` where you would call them on the model. Forward passes are yours.

    Args:
        alternator: Decides who trains.
        modules: Per module name an ``nn.Module``, or an iterable of parameters (which has no mode and no buffers).
        optimizers: One optimizer per module name, or one over all.
        model: The model that holds them all: parameters that belong to none are refused, and `train` and `eval` reach
            what lies between the modules (dropout, the model's own flag).
        turns: Per name of the alternator the modules that train together; by default each name is a module.
        always: What trains in every step (fusion or uncertainty weights, a shared embedding): a module or parameters
            that one of the optimizers covers, or a pair of these and an optimizer of their own.
        schedulers: Per module name (or ``"always"``) a scheduler, stepped after each update of that module only.
        clip_norm: Clip the gradients of all that trains in the step, the always group included, to this total norm.
        scaler: A GradScaler for float16. A step that it skips counts as skipped (``updated=False``).
        accumulate: Micro-steps per update. Gradients and recorded losses are their means.
        delay: How many steps later losses are read: 1 lets the device run ahead, 0 is the original order.
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

    def __init__(
        self,
        alternator: Alternator,
        modules: Mapping[str, Parameters],
        optimizers: Optimizers,
        *,
        model: nn.Module | None = None,
        turns: Mapping[str, str | Iterable[str]] | None = None,
        always: Parameters | tuple[Parameters, Optimizer] | None = None,
        schedulers: Mapping[str, LRScheduler] | None = None,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
        accumulate: int = 1,
        delay: int = 1,
        process_group: "ProcessGroup | None" = None,
        check_ranks_every: int | None = None,
    ) -> None:
        check_integer("accumulate", accumulate, 1)
        check_integer("delay", delay, 0)
        if check_ranks_every is not None:
            check_integer("check_ranks_every", check_ranks_every, 1)
        if clip_norm is not None and not clip_norm > 0:
            raise ConfigurationError(f"clip_norm must be above 0 or None, got {clip_norm!r}")
        self._alternator = alternator
        self._clip_norm = clip_norm
        self._scaler = scaler
        self._accumulate = accumulate
        self._schedulers = dict(schedulers or {})
        members = check_turns(alternator.modules, modules, turns)
        group, extra = _split_pair(always)
        self._sharded = find_sharded([model, *modules.values(), group])
        reshard(self._sharded)
        self._groups = _gather(modules, group)
        check_ownership(self._groups, model)
        self._between = Between(model, self._groups.values())
        self._optimizers = check_optimizers(modules, optimizers, extra)
        self._uncovered = check_coverage(self._groups, optimizers, self._optimizers)
        check_schedulers(self._groups, self._schedulers, self._optimizers)
        warn_of_recompiles([model, *modules.values()], len({frozenset(turn) for turn in members.values()}))
        self._parameters = _parameters_of(self._groups.values())
        self._turns = {name: self._plan(turn) for name, turn in members.items()}
        wrappers = find_wrappers([model, *modules.values(), group])
        parameters = {key: value for group in self._groups.values() for key, value in group.parameters.items()}
        if self._sharded:
            self._unreduced = whole(self._sharded, parameters)
            process_group = check_sharded(self._sharded, parameters, process_group, with_ddp=bool(wrappers))
        else:
            self._unreduced = check_wrappers(wrappers, parameters, self._trained()) if wrappers else {}
            process_group = group_of(wrappers, process_group)
        self._ranks = self._build_ranks(wrappers, process_group, check_ranks_every)
        self._pending = PendingLosses(delay, LocalLosses if self._ranks is None else self._ranks.send)
        self._micro_step = 0
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
            loss: What to minimise. None if you have called `backward` yourself.
            losses: What the alternator is told: losses by name, the active name's among them. By default ``loss``; an
                empty mapping tells it nothing (you record what it needs).

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
        return self._advance(updated)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss / accumulate``, scaled if there is a scaler; `step` without ``loss`` goes on."""
        if self._accumulate > 1:
            loss = loss / self._accumulate
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def skip(self, losses: Loss | Mapping[str, Loss] | None = None) -> Decision:
        """End the step without an update, for a loss that is not finite: it counts as skipped.

        Gradients of the step are dropped, those of its earlier micro-steps included.

        Args:
            losses: What the alternator is told: the active name's loss, or losses by name; None tells it nothing.
        """
        if losses is not None:
            named = losses if isinstance(losses, Mapping) else {self.active: losses}
            self._pending.add(self._check_losses(None, named))
        return self._advance(updated=False)

    def mean_over_ranks(self, value: Loss) -> Tensor:
        """The mean of a scalar over all processes, which must all call this; the scalar itself if there is one alone.

        For what all must decide alike: whether to `skip` a loss that is not finite, a held-out loss for the alternator.
        """
        if self._ranks is not None:
            return self._ranks.mean(value)
        return value.detach() if isinstance(value, Tensor) else tensor(float(value), dtype=float64)

    def zero_grad(self) -> None:
        """Set all gradients to None, as `step` does after each update."""
        for parameter in self._parameters:
            parameter.grad = None

    def train(self) -> None:
        """Training mode for what is active, inference for what is frozen: call it where you called model.train()."""
        turn = self._turns[self._applied]
        self._between.set_training_mode()
        for module in turn.frozen:
            module.set_inference_mode()
        for module in turn.active:
            module.set_training_mode()

    def eval(self) -> None:
        """Inference mode for all modules: call it where you called model.eval()."""
        self._between.set_inference_mode()
        for group in self._groups.values():
            group.set_inference_mode()

    def force(self, name: str) -> Decision:
        """Start a new tenure of a name now, as `Alternator.force` does."""
        self._check_boundary("force")
        decision = self._alternator.force(name)
        if self._ranks is not None:
            self._ranks.check_decision(decision)
        self.apply()
        return decision

    def apply(self) -> None:
        """Set gradients and modes to what the alternator says. Needed only if you switch the alternator yourself."""
        self._check_boundary("apply")
        self._remember()
        self._apply()

    def release(self) -> None:
        """Unfreeze what the user had not frozen, so that another AlternatingOptimizer can take the modules over."""
        self._check_boundary("release")
        self._remember()
        reshard(self._sharded)
        for group in self._groups.values():
            group.activate()

    def flush(self) -> None:
        """Record the losses that are still under way; call it at the end of training to see them all."""
        for computed_in, name, value in self._pending.flush():
            self._alternator.record(name, value, step=computed_in)

    def state_dict(self, *, include_optimizers: bool = False) -> dict[str, Any]:
        """Everything of the schedule: alternator, losses under way, what the user froze. JSON-safe.

        Args:
            include_optimizers: Add the states of optimizers, schedulers and scaler (tensors, so no JSON).

        Raises:
            FreezeError: In the middle of an accumulation, whose gradients are not saved.
        """
        self._check_boundary("state_dict")
        self._remember()
        groups = self._groups.values()
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
            StateError: The state is damaged or of another configuration; nothing has been changed then.
        """
        pending, user_frozen, inference = self._check_state(state)
        self._alternator.load_state_dict(state["alternator"])
        self._micro_step = 0
        self._pending.load(pending, self._alternator.step)
        for group in self._groups.values():
            group.user_frozen = user_frozen & set(group.parameters)
            group.inference = inference & set(group.submodules)
        self._apply()
        if "optimizers" in state:
            for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            for name, scheduler in self._schedulers.items():
                scheduler.load_state_dict(state["schedulers"][name])
            if self._scaler is not None:
                self._scaler.load_state_dict(state["scaler"])

    def _plan(self, members: tuple[str, ...]) -> _Turn:
        active = tuple(group for name, group in self._groups.items() if name in (*members, ALWAYS))
        frozen = tuple(group for name, group in self._groups.items() if name not in (*members, ALWAYS))
        training = {id(parameter) for parameter in _parameters_of(active)}
        shares = [(each, tuple(p for p in parameters_of(each) if id(p) in training)) for each in self._optimizers]
        modules = tuple(self._groups[name] for name in members)
        return _Turn(
            modules=modules,
            active=active,
            frozen=frozen,
            own_parameters=_parameters_of(modules),
            active_parameters=_parameters_of(active),
            frozen_parameters=_parameters_of(frozen),
            frozen_submodules=tuple(item for group in frozen for item in group.submodules.items()),
            optimizers=tuple(share for share in shares if share[1]),
            schedulers=tuple(each for name, each in self._schedulers.items() if name in (*members, ALWAYS)),
        )

    def _trained(self) -> dict[str, set[str]]:
        """Per turn the names of the parameters that train in it."""
        return {
            name: {key for group in turn.active for key in group.parameters if key not in group.user_frozen}
            for name, turn in self._turns.items()
        }

    def _build_ranks(
        self, wrappers: list["DistributedDataParallel"], group: "ProcessGroup | None", check_every: int | None
    ) -> Ranks | None:
        parameters = {name: tuple(module.parameters.values()) for name, module in self._groups.items()}
        return None if group is None else Ranks(group, wrappers, self._turns, parameters, check_every)

    def _remember(self) -> None:
        """Keep what the user froze, unfroze, or put in inference mode since the last switch."""
        for group in self._turns[self._applied].active:
            group.remember_active()
        for group in self._turns[self._applied].frozen:
            group.remember_frozen()

    def _apply(self) -> None:
        self._applied = self._alternator.active
        turn = self._turns[self._applied]
        reshard(self._sharded)
        for group in turn.frozen:
            group.freeze()
        for group in turn.active:
            group.activate()
        if self._ranks is not None:
            self._ranks.align_buffers(submodule for _, submodule in turn.frozen_submodules)

    def _check_losses(self, loss: Tensor | None, losses: Mapping[str, Loss] | None) -> dict[str, Loss]:
        if losses is None:
            if loss is None:
                raise LossError("step() needs a loss: give the loss, or losses= if you have called backward() yourself")
            losses = {self.active: loss}
        for name, value in losses.items():
            if name not in self._turns:
                raise UnknownModuleError(name, self._alternator.modules)
            check_scalar(name, value)
        if losses and self.active not in losses:
            raise LossError(f"the loss of the active module {self.active!r} is missing; got only {tuple(losses)}")
        return dict(losses)

    def _check_frozen(self) -> None:
        if self._ranks is None:
            check_single()
        if self._alternator.active != self._applied:
            raise FreezeError(
                f"the alternator says {self._alternator.active!r}, but {self._applied!r} is applied: switch with "
                "force() of the AlternatingOptimizer, or call its apply() before the forward pass"
            )
        training = [key for key, submodule in self._turns[self._applied].frozen_submodules if submodule.training]
        if training:
            raise FreezeError(
                f"a frozen module must be in inference mode, but {listed(training)} is in training mode: call train() "
                "of the AlternatingOptimizer where you call model.train()"
            )

    def _check_boundary(self, what: str) -> None:
        if self._micro_step:
            raise FreezeError(
                f"{what}() must be called between updates, got micro-step {self._micro_step} of {self._accumulate}; "
                "finish the step or call skip()"
            )

    def _check_state(self, state: Mapping[str, Any]) -> tuple[list[dict[str, float]], set[str], set[str]]:
        """The losses under way and the user's choices in a saved state, once it is known to be whole."""
        try:
            if state["version"] != VERSION:
                raise StateError(f"state version must be {VERSION}, got {state['version']!r}; save it anew")
            pending = [{name: float(text) for name, text in step.items()} for step in state["pending_losses"]]
            user_frozen, inference = set(state.get("user_frozen", ())), set(state.get("inference", ()))
            if "optimizers" in state and len(state["optimizers"]) != len(self._optimizers):
                saved, here = len(state["optimizers"]), len(self._optimizers)
                raise StateError(f"the state has {saved} optimizers, but here are {here}; build the same ones")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"the state is damaged ({type(error).__name__}: {error}); load an intact one") from error
        groups = self._groups.values()
        known = {*self._turns, *(key for group in groups for key in (*group.parameters, *group.submodules))}
        unknown = sorted({*user_frozen, *inference, *(name for losses in pending for name in losses)} - known)
        if unknown:
            raise StateError(f"the state belongs to another model: it names {listed(unknown)}, which this one has not")
        return pending, user_frozen, inference

    def _update(self) -> bool:
        """Clip, step the optimizers that have gradients, and their schedulers; False if the scaler skipped one."""
        self._prepare_update()
        turn = self._turns[self._applied]
        stepping = [each for each, share in turn.optimizers if any(p.grad is not None for p in share)]
        if self._clip_norm is not None:
            self._grad_norm = clip(stepping, self._clip_norm, self._scaler)
        updated = self._step_optimizers(stepping)
        for scheduler in turn.schedulers:
            if any(scheduler.optimizer is optimizer for optimizer in updated):
                scheduler.step()
        return len(updated) == len(stepping)

    def _prepare_update(self) -> None:
        """Only what trains has gradients, and it has some."""
        turn = self._turns[self._applied]
        if self._ranks is not None:
            self._ranks.check_reduced()
        for parameter in turn.frozen_parameters:
            parameter.grad = None  # whoever computed it
        for parameter in turn.active_parameters:
            if not parameter.requires_grad:
                parameter.grad = None
        self._check_reach(turn)

    def _step_optimizers(self, optimizers: list[Optimizer]) -> list[Optimizer]:
        """Step each; returns those that updated."""
        return step(optimizers, self._scaler)

    def _check_reach(self, turn: _Turn) -> None:
        if all(parameter.grad is None for parameter in turn.own_parameters):
            raise LossError(
                f"the loss reaches no parameter of {self._applied!r}, which is active: give a loss that depends on it, "
                "or call skip() if this step has nothing for it"
            )
        check_reduced(self._unreduced)
        unfrozen = [name for name, parameter in self._uncovered.items() if parameter.requires_grad]
        if unfrozen:
            raise ConfigurationError(
                f"a parameter that trains must be in an optimizer, but {listed(unfrozen)} was unfrozen and is in none: "
                "build the optimizer over all parameters, frozen ones too"
            )

    def _advance(self, updated: bool) -> Decision:
        self.zero_grad()
        self._micro_step = 0
        for computed_in, name, value in self._pending.close_step(self._alternator.step + 1):
            self._alternator.record(name, value, step=computed_in)
        decision = self._alternator.advance(updated=updated)
        if self._ranks is not None:
            self._ranks.check_decision(decision)
        if self._alternator.active != self._applied:
            self.apply()
        return decision


def _parameters_of(groups: Iterable[Freezable]) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for group in groups for parameter in group.parameters.values())


def _gather(modules: Mapping[str, Parameters], always: Parameters | None) -> dict[str, Freezable]:
    """The modules, and the always group if there is one; what is declared always belongs to no module."""
    if always is None:
        return {name: Freezable(name, module) for name, module in modules.items()}
    group = Freezable(ALWAYS, always)
    taken = {id(item) for item in (*group.parameters.values(), *group.submodules.values())}
    return {**{name: Freezable(name, module, taken) for name, module in modules.items()}, ALWAYS: group}


def _split_pair(always: Parameters | tuple[Parameters, Optimizer] | None) -> tuple[Parameters | None, Optimizer | None]:
    if isinstance(always, tuple) and len(always) == 2 and isinstance(always[1], Optimizer):
        return always
    return always, None

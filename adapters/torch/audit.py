"""Auditing a loop: are the frozen modules the same to the bit after each step, and has none of them got a gradient?

The audit trusts nothing that freezes: it hashes parameters, saved buffers and optimizer state before and after, for a
loop written by hand as for the adapters. It costs a copy to the host and a hash of all that is frozen in each step, so
run it for some hundred steps when a loop is new, and leave it out afterwards.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from adapters.contract import FreezeError, check_names
from adapters.torch.checks import Optimizers, each_of, parameters_of
from adapters.torch.decisions import LISTENERS, Decisions
from adapters.torch.digests import MOVED_BY_SCHEDULERS, Digester, Digests, find_changed
from adapters.torch.frozen_states import FrozenStates
from adapters.torch.modules import Freezable, Parameters
from adapters.torch.naming import Naming
from adapters.torch.schedules import Schedulers, list_schedulers
from alternator import ConfigurationError, UnknownModuleError
from alternator.checks import listed

__all__ = ["Audit", "audited"]


class Alternating(Protocol):
    """An adapter that decides at the end of a step: `AlternatingOptimizer`, `Follower`."""

    _decisions: Decisions


class Audit:
    """Raises when a bit of a frozen module moves: in a loop of your own, or under an adapter (`Audit.of`, `audited`).

    Audited are parameters, saved buffers, the optimizer state of these parameters, the options of parameter groups that
    hold one module alone (learning rates, counters), schedulers, and that no gradient is computed.

    Args:
        modules: Per name what belongs to it, as `AlternatingOptimizer` has it.
        optimizers: One per name, several, or one over all.
        schedulers: Per name a scheduler, or several.
        model: The model in which names are looked up.
        gradients: Whether a frozen module may get no gradient either. False for loops that compute gradients which are
            not applied.
        learning_rates: Whether learning rates, momenta and betas of a frozen module must stay. False where a scheduler
            of the whole run moves them all.

    Raises:
        ConfigurationError: A module has no parameter in an optimizer, and so would never train, or a scheduler is of no
            module.

    Example:
        >>> import torch
        >>> encoder, head = torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()])
        >>> audit = Audit({"encoder": encoder, "head": head}, optimizer, gradients=False)
        >>> for step in range(2):
        ...     with audit.step("head"):  # only the head may change
        ...         head(encoder(torch.ones(8, 4))).square().mean().backward()
        ...         for parameter in encoder.parameters():
        ...             parameter.grad.zero_()
        ...         optimizer.step()
        Traceback (most recent call last):
            ...
        adapters.contract.FreezeError: a frozen module must keep every bit, but 'encoder.weight', 'exp_avg of
        encoder.weight', 'exp_avg_sq of encoder.weight' and 5 more of 'encoder' changed in step 1; set its gradients to
        None, leave its optimizer alone, and put it in inference mode before the forward pass
    """

    def __init__(
        self,
        modules: Mapping[str, Parameters],
        optimizers: Optimizers | Iterable[Optimizer],
        schedulers: Schedulers | None = None,
        *,
        model: nn.Module | None = None,
        gradients: bool = True,
        learning_rates: bool = True,
    ) -> None:
        naming = Naming(modules, model=model)
        self._start(
            naming, naming.groups(), _flat(optimizers), schedulers, gradients=gradients, learning_rates=learning_rates
        )

    def _start(
        self,
        naming: Naming,
        groups: Mapping[str, Freezable],
        optimizers: Sequence[Optimizer],
        schedulers: Schedulers | None = None,
        *,
        gradients: bool,
        learning_rates: bool,
    ) -> None:
        self._naming = naming
        self._groups = groups
        self._optimizers = optimizers
        self._schedulers: dict[str, list[LRScheduler]] = {}
        for each in list_schedulers(schedulers):
            check_names("schedulers", [each.module], groups)
            self._schedulers.setdefault(each.module, []).append(each.scheduler)
        self._learning_rates = learning_rates
        self._frozen_states: FrozenStates | None = None
        self._digester = Digester()
        self._gradients = _Gradients() if gradients else None
        self._kept: dict[str, Digests] = {}
        self._num_checks = 0
        self._check_covered()

    @property
    def num_checks(self) -> int:
        """The number of times that what was frozen has been found unchanged: after steps, forced switches, epochs."""
        return self._num_checks

    @property
    def num_bytes(self) -> int:
        """The number of bytes hashed."""
        return self._digester.num_bytes

    @contextmanager
    def step(self, *training: str) -> Iterator[None]:
        """A step in which only these may change: forward, backward and update belong within.

        Args:
            training: The names of the modules that train; none for an evaluation.

        Raises:
            FreezeError: Naming the module, what of it has changed or got a gradient, and the step.
            UnknownModuleError: A name is not that of a module.
        """
        for name in training:
            if name not in self._groups:
                raise UnknownModuleError(name, tuple(self._groups))
        self._naming.look_again(self._groups)
        self._check_covered()
        self._keep([name for name in self._groups if name not in training])
        try:
            yield
            self._check(self._num_checks + 1)
        finally:
            self._forget()

    @classmethod
    @contextmanager
    def of(cls, alternating: Alternating, *, gradients: bool = True, learning_rates: bool = True) -> Iterator["Audit"]:
        """Audit an adapter within: each module from when it is frozen to when it is active again.

        What you write meanwhile on purpose, or load, you accept by ``apply()`` of the adapter. Of schedulers only the
        learning rates are audited, the adapter does not show them.

        Args:
            alternating: An `AlternatingOptimizer` or `Follower`.
            gradients: As above.
            learning_rates: As above.

        Example:
            >>> import torch
            >>> from adapters.torch import AlternatingOptimizer
            >>> from alternator import Alternator, Cycle
            >>> modules = {"encoder": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 1)}
            >>> optimizers = {name: torch.optim.AdamW(module.parameters()) for name, module in modules.items()}
            >>> alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(2)), modules, optimizers)
            >>> with Audit.of(alternating) as audit:
            ...     for step in range(6):
            ...         loss = modules["head"](modules["encoder"](torch.ones(8, 4))).square().mean()
            ...         decision = alternating.step(loss)
            >>> audit.num_checks
            6
        """
        with cls._of(alternating._decisions, gradients=gradients, learning_rates=learning_rates) as audit:
            yield audit

    @classmethod
    @contextmanager
    def _of(cls, decisions: Decisions, *, gradients: bool, learning_rates: bool) -> Iterator["Audit"]:
        audit = cls.__new__(cls)
        freezer = decisions.freezer
        audit._start(
            freezer.naming, freezer.groups, freezer.optimizers, gradients=gradients, learning_rates=learning_rates
        )
        audit._frozen_states = freezer.frozen_states
        audit._listen(decisions, accepted=True)
        decisions.listeners.append(audit._listen)
        try:
            yield audit
        finally:
            decisions.listeners.remove(audit._listen)
            audit._forget()

    def _listen(self, decisions: Decisions, accepted: bool) -> None:
        """Check what was frozen in the step that has ended, unless it has been accepted; keep what is frozen now."""
        if accepted:
            self._forget()
        else:
            self._check(decisions.alternator.step)
        self._keep([group.name for group in decisions.freezer.turn.frozen])

    def _keep(self, frozen: Collection[str]) -> None:
        """Remember what is frozen; of what was before, it has just been checked."""
        kept = {name: self._kept.get(name) or self._digests_of(name) for name in frozen}
        if self._gradients is not None:
            self._gradients.listen({name: self._groups[name] for name in frozen})
        self._kept = kept

    def _check(self, step: int) -> None:
        for name, before in self._kept.items():
            now = self._digests_of(name)
            if changed := find_changed(before, now):
                raise FreezeError(
                    f"a frozen module must keep every bit, but {listed(changed)} of {name!r} changed in step {step}; "
                    f"{_remedy(changed)}"
                )
            self._kept[name] = now
        computed = [] if self._gradients is None else self._gradients.computed
        if computed:
            raise FreezeError(
                f"a frozen module must get no gradient, but {listed(dict.fromkeys(computed))} got one in step {step}; "
                "set requires_grad to False while it is frozen"
            )
        self._num_checks += 1

    def _forget(self) -> None:
        self._kept = {}
        if self._gradients is not None:
            self._gradients.listen({})

    def _digests_of(self, name: str) -> Digests:
        states = self._frozen_states
        if states is not None:
            states.wait()
        own = self._digester.of_module(
            self._groups[name],
            self._optimizers,
            learning_rates=self._learning_rates,
            is_dropped=None if states is None else states.is_dropped,
        )
        return own | self._digester.of_schedulers(self._schedulers.get(name, ()))

    def _check_covered(self) -> None:
        covered = {id(parameter) for optimizer in self._optimizers for parameter in parameters_of(optimizer)}
        for name, group in self._groups.items():
            if not any(id(parameter) in covered for parameter in group.parameters.values()):
                raise ConfigurationError(
                    f"a module must be in an optimizer, but no parameter of {name!r} is, and it would never train; "
                    "build the optimizer over all its parameters (was it built while they were frozen?)"
                )


@contextmanager
def audited(*, gradients: bool = True, learning_rates: bool = True) -> Iterator[list[Audit]]:
    """Audit every adapter of PyTorch that is built within: for programs and frameworks that build their own.

    Args:
        gradients: See `Audit`.
        learning_rates: See `Audit`.

    Returns:
        The audits, one per adapter, in the order in which these are built.

    Example:
        >>> import torch
        >>> from adapters.torch import AlternatingOptimizer
        >>> from alternator import Alternator, Cycle
        >>> def train():
        ...     modules = {"encoder": torch.nn.Linear(4, 3), "head": torch.nn.Linear(3, 1)}
        ...     optimizers = {name: torch.optim.AdamW(module.parameters()) for name, module in modules.items()}
        ...     alternating = AlternatingOptimizer(Alternator(modules, rule=Cycle(2)), modules, optimizers)
        ...     for step in range(6):
        ...         alternating.step(modules["head"](modules["encoder"](torch.ones(8, 4))).square().mean())
        >>> with audited() as audits:
        ...     train()
        >>> [audit.num_checks for audit in audits]
        [6]
    """
    audits: list[Audit] = []
    with ExitStack() as stack:

        def built(decisions: Decisions) -> None:
            audit = Audit._of(decisions, gradients=gradients, learning_rates=learning_rates)
            audits.append(stack.enter_context(audit))

        token = LISTENERS.set((*LISTENERS.get(), built))
        stack.callback(LISTENERS.reset, token)
        yield audits


class _Gradients:
    """Notices gradients that autograd computes for parameters, also those that are dropped before anyone looks."""

    def __init__(self) -> None:
        self.computed: list[str] = []
        """The names of parameters that have got a gradient."""
        self._hooks: list[RemovableHandle] = []

    def listen(self, groups: Mapping[str, Freezable]) -> None:
        """Notice those of these modules from now on, and no others."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.computed = [], []
        for group in groups.values():
            for key, parameter in group.parameters.items():
                if parameter.is_floating_point() and not parameter.is_inference():
                    self._hook(key, parameter)

    def _hook(self, name: str, parameter: Tensor) -> None:
        required = parameter.requires_grad
        parameter.requires_grad_(True)  # a hook can be registered only so
        hook = parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            lambda _: self.computed.append(name)
        )
        self._hooks.append(hook)
        parameter.requires_grad_(required)


def _remedy(changed: Iterable[str]) -> str:
    if all(name.partition(" of the group of ")[0] in MOVED_BY_SCHEDULERS for name in changed):
        return "change it while the module trains only, or give learning_rates=False if a scheduler of the run moves it"
    return "set its gradients to None, leave its optimizer alone, and put it in inference mode before the forward pass"


def _flat(optimizers: Optimizers | Iterable[Optimizer]) -> list[Optimizer]:
    """Each optimizer once."""
    if isinstance(optimizers, Mapping):
        given = [each for value in optimizers.values() for each in each_of(value)]
    else:
        given = [optimizers] if hasattr(optimizers, "param_groups") else list(optimizers)
    return list({id(optimizer): optimizer for optimizer in given}.values())

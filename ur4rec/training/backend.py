"""Loads a backend by name: the only place where `ur4rec` reaches a framework, and what it may ask of it.

Design constraints:

1. Nothing of a framework is imported before its backend is asked for, so `ur4rec --help` stays fast and a JAX run never
   holds PyTorch in memory.
2. A backend is a package with `UR4Rec`, `JointTrainer`, `Scorer` and `load_model`, with the same signatures in every
   framework. `ur4rec` knows them by the protocols below and by the base classes of their trainer and scorer; all arrays
   that these take and return are NumPy's.
3. A missing framework is an error that names the extra; a *broken* one shows its own error.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from alternator import Alternator
from ur4rec.config import ModelConfig
from ur4rec.errors import ConfigurationError
from ur4rec.training.slices import DEFAULT_MEMORY

if TYPE_CHECKING:  # a configuration names a backend, and is parsed without data or arrays
    from numpy.typing import ArrayLike

    from ur4rec.training.processes import Processes
    from ur4rec.training.scorer import AnyModelScorer
    from ur4rec.training.trainer import AnyTrainer

BACKENDS = {"torch": ("ur4rec_torch", ("torch",)), "jax": ("ur4rec_jax", ("jax", "flax", "optax"))}


@runtime_checkable
class Model(Protocol):
    """A `UR4Rec`."""

    @property
    def config(self) -> ModelConfig:
        """Its shape."""


def check_model(model: object) -> None:
    """Refuse what is not a `UR4Rec`, such as a wrapper around one, whose own effect would be lost.

    Raises:
        ConfigurationError: Naming the wrapper.
    """
    if not isinstance(model, Model):
        raise ConfigurationError(
            f"model must be a UR4Rec, got {type(model).__name__}; give the model inside it (in PyTorch its .module)"
        )


class Adapter(Protocol):
    """What applies a schedule to the modules of a backend."""

    @property
    def alternator(self) -> Alternator:
        """The schedule."""

    def state_dict(self) -> dict[str, Any]:
        """The state of the schedule, JSON-safe, losses under way included."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken, in this backend or another."""


class Backend(Protocol):
    """The package of a backend; its classes take the arguments that their docstrings list."""

    @property
    def UR4Rec(self) -> Callable[..., Model]:  # noqa: N802
        """The class of the model."""

    @property
    def JointTrainer(self) -> Callable[..., AnyTrainer]:  # noqa: N802
        """The class of the trainer."""

    @property
    def Scorer(self) -> Callable[..., AnyModelScorer]:  # noqa: N802
        """The class of the scorer."""

    @property
    def load_model(self) -> Callable[..., Model]:
        """Loads the model of a checkpoint; ``later_items`` are text vectors of items that came after it."""

    @property
    def count_threads(self) -> Callable[[], int]:
        """The number of threads among which a computation on the CPU is divided now."""

    @property
    def start_processes(self) -> Callable[..., AbstractContextManager[Processes]]:
        """Joins the processes of a run that the environment tells of, and leaves them at the end.

        Takes ``device`` and ``mesh``, as a trainer does, and checks both; and ``timeout`` in seconds. One process is a
        `ur4rec.training.processes.OneProcess`.
        """


def load_backend(name: str) -> Backend:
    """Import and return the package of a backend.

    Args:
        name: "torch" or "jax".

    Raises:
        ConfigurationError: An unknown name, or a framework that is not installed.
    """
    if name not in BACKENDS:
        raise ConfigurationError(f"backend must be one of {tuple(BACKENDS)}, got {name!r}")
    package, frameworks = BACKENDS[name]
    missing = [framework for framework in frameworks if importlib.util.find_spec(framework) is None]
    if missing:
        raise ConfigurationError(
            f"backend {name!r} needs {', '.join(missing)}, which is not installed; "
            f"run: pip install 'adaptive-alternator[{name}]'"
        )
    try:
        return cast(Backend, importlib.import_module(package))
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("adapters."):
            raise
        raise ConfigurationError(
            f"the package 'adapters' must be adaptive-alternator's, but another is found first, without {error.name}; "
            "use an environment without the distribution adapters"
        ) from error


def load_scorer(
    backend: str,
    checkpoint: Path,
    device: str = "cpu",
    later_items: ArrayLike | None = None,
    *,
    memory: int | str = DEFAULT_MEMORY,
) -> AnyModelScorer:
    """A `Scorer` of the model of a checkpoint.

    Args:
        backend: "torch" or "jax".
        checkpoint: The checkpoint.
        device: Where to score.
        later_items: Text vectors of items that came after it was saved; see `Checkpoint.with_items`.
        memory: Bytes that scores may take at once.

    Raises:
        AlternatorError: The backend is unknown or missing, or the checkpoint is damaged.
    """
    package = load_backend(backend)
    return package.Scorer(package.load_model(checkpoint, later_items=later_items), device=device, memory=memory)

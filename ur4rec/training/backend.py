"""Loads a backend by name: the only place where `ur4rec` reaches a framework, and what it may ask of it.

Design constraints:

1. Nothing of a framework is imported before its backend is asked for, so `ur4rec --help` stays fast and a JAX run never
   holds PyTorch in memory.
2. A backend is a package with `UR4Rec`, `JointTrainer`, `Scorer` and `load_model`, with the same signatures in every
   framework. `ur4rec` knows them by the protocols below, in which all arrays are NumPy's.
3. A missing framework is an error that names the extra; a *broken* one shows its own error.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from alternator import Alternator
from ur4rec.config import SCORERS, ModelConfig
from ur4rec.errors import ConfigurationError

if TYPE_CHECKING:  # a configuration names a backend, and is parsed without data or arrays
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from ur4rec.data.batches import Batch, EvaluationBatch

BACKENDS = {"torch": ("ur4rec_torch", ("torch",)), "jax": ("ur4rec_jax", ("jax", "flax", "optax"))}


@runtime_checkable
class Model(Protocol):
    """A `UR4Rec`."""

    @property
    def config(self) -> ModelConfig:
        """Its shape."""


@runtime_checkable
class Scorer(Protocol):
    """What ranks and scores; see `ur4rec.training.scorer.BaseScorer`."""

    @property
    def model(self) -> Model:
        """The model."""

    def rank_all(
        self, loader: Iterable[EvaluationBatch], scorers: Iterable[str] = SCORERS
    ) -> dict[str, NDArray[np.int64]]:
        """The rank of every target by several scorers."""

    def score(
        self, items_BL: ArrayLike, scorer: str = "fused", users_B: ArrayLike | None = None
    ) -> NDArray[np.float32]:
        """Scores of every item as the next one, (B, I)."""

    def scores(
        self, items_BL: ArrayLike, users_B: ArrayLike | None = None, scorers: Iterable[str] = SCORERS
    ) -> dict[str, NDArray[np.float32]]:
        """The scores of several scorers by name."""


@runtime_checkable
class Trainer(Scorer, Protocol):
    """A `JointTrainer`; see `ur4rec.training.trainer.BaseTrainer`."""

    step: int

    @property
    def alternator(self) -> Alternator:
        """The schedule that runs now."""

    @property
    def num_probe_forwards(self) -> int:
        """How often a module has scored held-out targets in this stage."""

    def set_training_stage(
        self, stage: str, num_steps: int | None = None, *, position: Callable[[], float] | None = None
    ) -> None:
        """Enter a stage."""

    def train_epoch(
        self,
        train_loader: Iterable[Batch],
        epoch: int = 0,
        *,
        start: int = 0,
        max_steps: int | None = None,
        after_step: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Train on the batches of one epoch; returns its metrics."""

    def flush(self) -> None:
        """Report the steps whose losses have not been read."""

    def save_checkpoint(self, path: str | Path, epoch: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        """Write everything that the run needs to continue."""

    def load_checkpoint(self, path: str | Path) -> dict[str, Any]:
        """Continue where a checkpoint was saved; returns its epoch and metrics."""


_BuildScorer = Callable[..., Scorer]  # in Backend the name Scorer is the attribute


class Backend(Protocol):
    """The package of a backend; its classes take the arguments that their docstrings list."""

    @property
    def UR4Rec(self) -> Callable[..., Model]:  # noqa: N802
        """The class of the model."""

    @property
    def JointTrainer(self) -> Callable[..., Trainer]:  # noqa: N802
        """The class of the trainer."""

    @property
    def Scorer(self) -> _BuildScorer:  # noqa: N802
        """The class of the scorer."""

    @property
    def load_model(self) -> Callable[[str | Path], Model]:
        """Loads the model of a checkpoint."""


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
    return cast(Backend, importlib.import_module(package))


def load_scorer(backend: str, checkpoint: Path, device: str = "cpu") -> Scorer:
    """A `Scorer` of the model of a checkpoint.

    Raises:
        AlternatorError: The backend is unknown or missing, or the checkpoint is damaged.
    """
    package = load_backend(backend)
    return package.Scorer(package.load_model(checkpoint), device=device)

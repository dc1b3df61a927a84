"""Loads a backend by name: the only place where `ur4rec` reaches a framework.

Design constraints:

1. Nothing of a framework is imported before its backend is asked for, so `ur4rec --help` stays fast and a JAX run never
   holds PyTorch in memory.
2. A backend is a package with `UR4Rec`, `JointTrainer`, `Scorer` and `load_model`, with the same signatures in every
   framework.
3. A missing framework is an error that names the extra; a *broken* one shows its own error.
"""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from ur4rec.errors import ConfigurationError

BACKENDS = {"torch": ("ur4rec_torch", ("torch",)), "jax": ("ur4rec_jax", ("jax", "flax", "optax"))}


def load_backend(name: str) -> ModuleType:
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
    return importlib.import_module(package)


def load_scorer(backend: str, checkpoint: Path, device: str = "cpu") -> Any:
    """A `Scorer` of the model of a checkpoint.

    Raises:
        AlternatorError: The backend is unknown or missing, or the checkpoint is damaged.
    """
    package = load_backend(backend)
    return package.Scorer(package.load_model(checkpoint), device=device)

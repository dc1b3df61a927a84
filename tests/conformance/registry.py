"""The backends by name. Each has one or more harnesses, named by where they are: nothing is imported before use.

To measure an adapter of your own, name its harness on the command line: ``--backend=my_package.my_module:MyHarness``.
"""

from importlib import import_module
from importlib.util import find_spec

from tests.conformance.harness import Build

BACKENDS: dict[str, tuple[str, ...]] = {
    "reference": ("tests.conformance.reference:ReferenceHarness",),
    "torch": ("tests.conformance.torch_backend:TorchHarness",),
    "jax": (
        "tests.conformance.optax_backend:StaticHarness",
        "tests.conformance.optax_backend:TracedHarness",
        "tests.conformance.nnx_backend:NnxHarness",
    ),
}
NEEDS: dict[str, tuple[str, ...]] = {"reference": ("numpy",), "torch": ("torch",), "jax": ("jax", "flax", "optax")}
"""The packages that a backend needs."""


def missing(backend: str) -> list[str]:
    """The packages that a backend needs and that are not installed."""
    return [package for package in NEEDS.get(backend, ()) if find_spec(package) is None]


def chosen(option: str | None) -> list[str]:
    """The backends of a command line's option; without it all whose packages are installed.

    Raises:
        ValueError: A backend that is unknown, or whose packages are missing: what was asked for is never skipped.
    """
    if option is None:
        return [backend for backend in BACKENDS if not missing(backend)]
    backends = [name.strip() for name in option.split(",") if name.strip()]
    for backend in backends:
        if backend not in BACKENDS and ":" not in backend:
            raise ValueError(f"unknown backend {backend!r}; expected some of {tuple(BACKENDS)}, or module:Harness")
        if lacking := missing(backend):
            raise ValueError(f"backend {backend!r} needs {lacking}; install them, or leave the backend out")
    if not backends:
        raise ValueError(f"--backend must name a backend, some of {tuple(BACKENDS)}, or module:Harness")
    return backends


def harnesses(backends: list[str]) -> dict[str, str]:
    """Where the harnesses of some backends are, by a short name."""
    places = [place for backend in backends for place in BACKENDS.get(backend, (backend,))]
    return {place.rpartition(":")[2]: place for place in places}


def load(place: str) -> Build:
    """Import a harness.

    Raises:
        ValueError: There is none at that place.
    """
    module, _, name = place.partition(":")
    try:
        build: Build = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no harness at {place!r}: {error}") from error
    return build

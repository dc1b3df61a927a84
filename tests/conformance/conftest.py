"""The command line: which backends are measured."""

import pytest

from tests.conformance.registry import BACKENDS, chosen, load, missing

collect_ignore_glob = [
    pattern
    for backend, patterns in {"torch": ("*torch*.py",), "jax": ("optax_*.py", "nnx_*.py")}.items()
    if missing(backend)
    for pattern in patterns
]
"""Files that cannot be imported, so that pytest must not look for doctests in them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        default=None,
        metavar="NAMES",
        help=f"measure these: some of {','.join(BACKENDS)}, or module:Harness of your own; all installed by default",
    )


def pytest_configure(config: pytest.Config) -> None:
    selected(config)  # at once, so that a mistake on the command line ends the run


def selected(config: pytest.Config) -> list[str]:
    try:
        backends = chosen(config.getoption("--backend", default=None))
        for place in backends:
            if ":" in place:
                load(place)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    return backends

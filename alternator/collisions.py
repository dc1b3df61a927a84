"""Other distributions on PyPI that install a package named as one of ours: one line says which is in the way."""

import sys
import warnings
from importlib.metadata import distributions

_OTHERS = (("adapters", "adapters"), ("alternator", "alternator"), ("alternator-client", "alternator"))
"""Distributions, and the package of each that is named as one of ours."""


def warn_of_others() -> None:
    """Warn, in one line each, of installed distributions whose packages could be imported in place of ours."""
    for name, package in _OTHERS:
        if name == "adapters" and hasattr(sys.modules.get(name), "NAMESAKES"):
            continue  # ours is loaded, and has said it
        for other in distributions(name=name):
            warnings.warn(
                f"the distribution {other.name} {other.version} has a package {package!r} too, and Python imports the "
                "one that it finds first; use adaptive-alternator in an environment without it",
                stacklevel=3,
            )

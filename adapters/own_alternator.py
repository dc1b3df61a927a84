"""Refuses another distribution's package ``alternator`` in one line that names it, before anything is asked of it."""

from importlib.metadata import packages_distributions

import alternator

if not hasattr(alternator, "Alternator"):
    _found = sorted({*packages_distributions().get("alternator", ())} - {"adaptive-alternator"})
    raise ImportError(
        f"the package 'alternator' in {alternator.__path__[0]} is that of {' or '.join(_found) or 'another project'}, "
        "not adaptive-alternator's; use adaptive-alternator in an environment without it"
    )

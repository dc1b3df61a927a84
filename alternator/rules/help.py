"""The rules and their parameters as help for the command line, from their own docstrings."""

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Sequence

from alternator.checks import check_choice
from alternator.rules.named import RULES


def render_rules(names: Sequence[str] = ()) -> str:
    """What each rule does and the meaning and default of each of its parameters.

    Raises:
        UnknownNameError: An unknown rule.

    Example:
        >>> print(render_rules(["cycle"]))
        cycle
          Train each module for a fixed number of updated steps, in order.
          --set steps=1
              Length of a tenure in updated steps: one number for all modules, or one per module.
    """
    for name in names:
        check_choice("rule", name, RULES)
    return "\n\n".join(_render_rule(name, RULES[name]) for name in names or RULES)


def parameter_docs(rule: type) -> dict[str, str]:
    """What the docstring of a class says of each of its parameters.

    Example:
        >>> from alternator import Cycle
        >>> parameter_docs(Cycle)
        {'steps': 'Length of a tenure in updated steps: one number for all modules, or one per module.'}
    """
    section = inspect.cleandoc(rule.__doc__ or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def render_setting(setting: str, meaning: str) -> str:
    """What ``--set`` takes, and what it means below it.

    Example:
        >>> print(render_setting("steps=1", "Length of a tenure."))
          --set steps=1
              Length of a tenure.
    """
    return f"  --set {setting}\n{textwrap.indent(textwrap.fill(meaning, 100), ' ' * 6)}"


def _render_rule(name: str, rule: type) -> str:
    docs = parameter_docs(rule)
    lines = [name, f"  {(rule.__doc__ or '').splitlines()[0]}"]
    for field in dataclasses.fields(rule):
        default = "VALUE (required)" if field.default is dataclasses.MISSING else repr(field.default)
        lines.append(render_setting(f"{field.name}={default}", docs[field.name]))
    return "\n".join(lines)

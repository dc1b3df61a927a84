"""The rules and their parameters as help for the command line, from their own docstrings."""

import ast
import dataclasses
import inspect
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


def field_docs(rule: type) -> dict[str, str]:
    """The docstring under each field of a dataclass.

    Example:
        >>> from alternator import Cycle
        >>> field_docs(Cycle)
        {'steps': 'Length of a tenure in updated steps: one number for all modules, or one per module.'}
    """
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(rule))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = " ".join(doc.split())
    return docs


def render_setting(setting: str, meaning: str) -> str:
    """What ``--set`` takes, and what it means below it.

    Example:
        >>> print(render_setting("steps=1", "Length of a tenure."))
          --set steps=1
              Length of a tenure.
    """
    return f"  --set {setting}\n{textwrap.indent(textwrap.fill(meaning, 100), ' ' * 6)}"


def _render_rule(name: str, rule: type) -> str:
    docs = field_docs(rule)
    lines = [name, f"  {(rule.__doc__ or '').splitlines()[0]}"]
    for field in dataclasses.fields(rule):
        default = "VALUE (required)" if field.default is dataclasses.MISSING else repr(field.default)
        lines.append(render_setting(f"{field.name}={default}", docs[field.name]))
    return "\n".join(lines)

"""``ur4rec settings``: the settings of model and trainer, from their own docstrings."""

import ast
import inspect
import textwrap
from typing import Annotated

import typer

from alternator.rules.help import render_setting
from ur4rec.cli.options import PRESET_NAMES, one_line_errors
from ur4rec.cli.output import say_raw
from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.runs.config import MODEL_SETTINGS, PRESETS, TRAINER_SETTINGS, preset


def settings(
    preset_name: Annotated[str, typer.Option("--preset", help=f"Show its values: {PRESET_NAMES}.")] = "default",
) -> None:
    """List what --set takes: every setting of model and trainer, its value and its meaning."""
    with one_line_errors():
        say_raw(render_settings(preset_name))


def render_settings(preset_name: str) -> str:
    r"""Every setting that ``--set`` takes: its value in a preset, its default where that differs, and its meaning.

    Raises:
        UnknownNameError: There is no such preset.

    Example:
        >>> print("\n".join(render_settings("demo").splitlines()[:6]))
        preset demo, others: default, smoke
        dataset ml-100k, encoder tfidf, batches of 64, epochs 5 + 5 + 10 + 5
        <BLANKLINE>
        model
          --set sasrec_hidden_dim=64 (default 256)
              Width of SASRec: of item embeddings, positions and blocks. A multiple of sasrec_num_heads.
    """
    config = preset(preset_name)
    others = ", ".join(name for name in PRESETS if name != preset_name)
    epochs = " + ".join(map(str, config.epochs.values()))
    lines = [
        f"preset {preset_name}, others: {others}",
        f"dataset {config.dataset}, encoder {config.encoder}, batches of {config.batch_size}, epochs {epochs}",
    ]
    for title, owner, names, changed in (
        ("model", ModelConfig, MODEL_SETTINGS, config.model),
        ("trainer", TrainerConfig, TRAINER_SETTINGS, config.trainer),
    ):
        docs = field_docs(owner)
        lines += ["", title]
        for name in names:
            default = getattr(owner, name)
            value = changed.get(name, default)
            note = "" if value == default else f" (default {default})"
            lines.append(render_setting(f"{name}={value}{note}", docs[name]))
    return "\n".join(lines)


def field_docs(config: type) -> dict[str, str]:
    """The docstring under each field of a dataclass.

    Example:
        >>> field_docs(TrainerConfig)["sasrec_lr"]
        'Peak learning rate of SASRec.'
    """
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                docs[name] = " ".join(doc.split())
    return docs

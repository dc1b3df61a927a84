"""``ur4rec settings``: the settings of model and trainer, from their own docstrings; and ``ur4rec presets``."""

import ast
import inspect
import textwrap
from typing import Annotated

import typer

from alternator.rules.help import render_setting
from ur4rec.cli.options import PRESET_NAMES, one_line_errors
from ur4rec.cli.output import say_raw
from ur4rec.config import ModelConfig, TrainerConfig
from ur4rec.runs.config import MODEL_SETTINGS, TRAINER_SETTINGS, RunConfig
from ur4rec.runs.presets import PRESETS, preset


def settings(
    preset_name: Annotated[str, typer.Option("--preset", help=f"Show its values: {PRESET_NAMES}.")] = "default",
) -> None:
    """List what --set takes: every setting of model and trainer, its value and its meaning."""
    with one_line_errors():
        say_raw(render_settings(preset_name))


def presets() -> None:
    """List what --preset takes: for which data each preset is, and its sizes."""
    with one_line_errors():
        say_raw(render_presets())


def render_presets() -> str:
    r"""Every preset: for which data it is, and its sizes.

    Example:
        >>> print("\n".join(render_presets().splitlines()[:4]))
        default
            any data: sizes, rates and lengths follow from its counts, and are said when the run begins
            everything that is not set is from the data; 'ur4rec data FILE' shows what that is
        ml-1m
    """
    return "\n".join(
        line for name, each in PRESETS.items() for line in (name, f"    {each.purpose}", f"    {_describe_sizes(name)}")
    )


def _describe_sizes(name: str) -> str:
    config = preset(name)
    if config.from_data:
        return "everything that is not set is from the data; 'ur4rec data FILE' shows what that is"
    model, trainer = config.model_config(num_items=2), TrainerConfig(**config.trainer)
    early = f", early stopping after {config.early_stopping}" if config.early_stopping else ""
    return (
        f"d = {model.sasrec_hidden_dim}, blocks {model.sasrec_num_blocks}, heads {model.sasrec_num_heads}, "
        f"{model.max_seq_len} positions, dropout {model.sasrec_dropout}, batches of {config.batch_size}, learning rate "
        f"{trainer.sasrec_lr}, catalogue_loss {trainer.catalogue_loss}, epochs {_epochs(config)}, schedule "
        f"{config.schedule}{early}"
    )


def _epochs(config: RunConfig) -> str:
    return " + ".join("?" if stage in config.from_data else str(num) for stage, num in config.epochs.items())


def render_settings(preset_name: str) -> str:
    r"""Every setting that ``--set`` takes: its value in a preset, its default where that differs, and its meaning.

    Raises:
        UnknownNameError: There is no such preset.

    Example:
        >>> print("\n".join(render_settings("demo").splitlines()[:6]))
        preset demo, others: default, ml-1m, amazon, large-catalogue, smoke
        dataset ml-100k, encoder tfidf, batches of 64, epochs 5 + 5 + 10 + 5
        <BLANKLINE>
        model
          --set sasrec_hidden_dim=64 (default 256)
              Width of SASRec: of item embeddings, positions and blocks. A multiple of sasrec_num_heads.
    """
    config = preset(preset_name)
    others = ", ".join(name for name in PRESETS if name != preset_name)
    batches = "?" if "batch_size" in config.from_data else config.batch_size
    unknown = "; ? is from the data" if config.from_data else ""
    lines = [
        f"preset {preset_name}, others: {others}",
        f"dataset {config.dataset}, encoder {config.encoder}, batches of {batches}, epochs {_epochs(config)}{unknown}",
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
            if name in config.from_data:
                value, note = "?", " (from the data)"
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

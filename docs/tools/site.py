"""What the site adds to the pages as they stand in the checkout: links to files outside docs/, and the commands' help.

mkdocs calls `on_page_markdown` for each page. A link to a file that does not exist is a warning, and so an error.
"""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ur4rec.cli import app

ROOT = Path(__file__).parents[2]
_LOGGER = logging.getLogger("mkdocs.hooks.site")
_HELP = re.compile(r"^<!-- help of (\w+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """The page with links to the repository, and help in place of the lines ``<!-- help of COMMAND -->``."""
    source = Path(page.file.abs_src_path)

    def to_repository(link: re.Match[str]) -> str:
        target = (source.parent / link[1]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return link[1]
        if not target.exists():
            _LOGGER.warning("%s links to %s, which does not exist", page.file.src_path, link[1])
        kind = "tree" if target.is_dir() else "blob"
        return f"{config.repo_url}/{kind}/main/{target.relative_to(ROOT).as_posix()}"

    markdown = _LINK.sub(to_repository, markdown)
    return _HELP.sub(lambda line: HELP[line[1]](), markdown)


def help_of_alternator() -> str:
    """What the command says of itself, for each of its subcommands."""
    environment = {**os.environ, "COLUMNS": "94"}
    parts = []
    for arguments in (["replay", "--help"], ["rules"]):
        command = [sys.executable, "-m", "alternator", *arguments]
        shown = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        parts.append(f"## alternator {arguments[0]}\n\n```text\n{shown.rstrip()}\n```\n")
    return "\n".join(parts)


def help_of_ur4rec() -> str:
    """A section per command: its help, its arguments and its options."""
    group: Any = typer.main.get_command(app)
    return "\n".join(line for name, command in group.commands.items() for line in _section(name, command))


def _section(name: str, command: Any) -> Iterator[str]:
    yield f"## ur4rec {name}\n"
    yield f"{command.help or ''}\n"
    parameters = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    if parameters:
        yield "| argument or option | what it is |\n|---|---|"
        for parameter in parameters:
            yield f"| {_names(parameter)} | {_cell(getattr(parameter, 'help', None) or '')} |"
        yield ""
    for each, subcommand in getattr(command, "commands", {}).items():
        yield from _section(f"{name} {each}", subcommand)


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`"
    return ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


HELP = {"alternator": help_of_alternator, "ur4rec": help_of_ur4rec}
"""Per command, the text that describes it."""

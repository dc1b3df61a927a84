"""The help of each command says what is written: no emoji in place of ``:b:``, nothing lost to markup, nothing cut."""

import inspect

import pytest
import typer
from typer.testing import CliRunner

from ur4rec.cli import app

ROOT = typer.main.get_command(app)
COMMANDS = {
    **{(name,): command for name, command in ROOT.commands.items()},
    **{("data", name): command for name, command in ROOT.commands["data"].commands.items()},
}
FRAME = "╭╮╰╯─│"


def help_of(words, width):
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": str(width)})
    assert result.exit_code == 0
    return result.output


def words_of(text):
    """The words of a help text, without the marks of Markdown that are meant."""
    return " ".join(inspect.cleandoc(text).replace("`", "").replace("*", "").split())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_says_what_is_written(words):
    command = COMMANDS[words]
    shown = " ".join(help_of(words, 2000).translate(dict.fromkeys(map(ord, FRAME), " ")).split())
    texts = [command.help, *(each.help for each in command.params if getattr(each, "help", None))]
    assert [text for text in texts if words_of(text) not in shown] == []


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=lambda words: " ".join(words) or "ur4rec")
def test_help_is_plain_and_whole_on_a_narrow_terminal(words):
    assert {each for each in help_of(words, 80) if not each.isascii()} <= {*FRAME}

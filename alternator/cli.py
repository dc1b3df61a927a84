"""The command ``alternator``: replay a rule over recorded losses, and list the rules."""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from alternator.checks import printable
from alternator.errors import AlternatorError, ConfigurationError, LossError
from alternator.recordings.event_files import is_event_path, read_events
from alternator.recordings.plot import plot_replay
from alternator.recordings.replay import replay
from alternator.recordings.sweep import parse_grid, sweep
from alternator.recordings.tables import LossTable, Where, read_losses
from alternator.recordings.text import render_replay, render_sweep
from alternator.rules.help import render_rules
from alternator.rules.named import rule_from_settings

_REPLAY_HELP = """\
Show when a rule would have switched on recorded losses, and why it would have held.

LOSSES is one of
  a CSV file with a header, one row per step, the oldest first, a column "step" and one column of losses per module
  the decision log of a run (decisions.csv), or the directory that it is in
  a TensorBoard event file, or a directory of them
An empty cell is a loss that was not computed.

A decision log may hold several stages. By default the rows of those are used in which who trains, or the reason,
changes from row to row, as elsewhere nothing was decided; --where chooses others.
"""
_REPLAY_EXAMPLES = """\
examples:
  alternator replay losses.csv                                   the recommended rule, with its defaults
  alternator replay losses.csv --rule plateau                    the original method
  alternator replay losses.csv --rule trend --set min_gain=0.02 max_steps=None
  alternator replay losses.csv --rule plateau --sweep threshold=0.005,0.01,0.02 min_steps=3,5,10
  alternator replay losses.csv --plot replay.png
  alternator replay runs/demo --where stage=joint_finetune       the run in that directory, rows of one stage
  alternator replay runs/gan --modules generator=loss/g,critic=loss/d
  alternator rules                                               all rules and their parameters

It never switches? Read "Why it held": the most frequent reason is the parameter to change.
"""

LOG_NAME = "decisions.csv"
"""The file in the directory of a run that is replayed."""
_MAX_ERROR = 1000
"""The number of characters of an error at most."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"{self.prog}: {message} (see {self.prog} --help)") + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 2 for anything that the user can fix; 1 where nobody reads the output any more, as in ``| head``.
    """
    try:
        try:
            return _run(_build_parser().parse_args(argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit finds no fault
        return 1


def _run(arguments: argparse.Namespace) -> int:
    try:
        text = arguments.run(arguments)
    except (AlternatorError, OSError) as error:
        line = " ".join(str(error).split())
        print(printable(f"alternator: {line[:_MAX_ERROR]}"), file=sys.stderr)
        return 2
    print(printable(text, keep="\n"))
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="alternator", description="Decide step by step which module of a model trains next.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    _add_replay(commands)
    rules = commands.add_parser("rules", help="list the rules and their parameters")
    rules.add_argument("names", nargs="*", metavar="RULE", help="show only these")
    rules.set_defaults(run=lambda arguments: render_rules(arguments.names))
    return parser


def _add_replay(commands: "argparse._SubParsersAction[_Parser]") -> None:
    parser = commands.add_parser(
        "replay",
        help="show what a rule would have decided on recorded losses, and why",
        description=_REPLAY_HELP,
        epilog=_REPLAY_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("losses", type=Path, metavar="LOSSES", help="CSV file, decision log, event file, or a directory with one")
    add("--rule", default="trend", help="name of the rule (default: trend); 'alternator rules' lists them")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="parameters of the rule")
    add("--sweep", nargs="+", action="extend", default=[], metavar="NAME=V,V", help="try all combinations, as a table")
    add("--modules", metavar="NAME,NAME", help="columns to use, in the order of turns; or NAME=COLUMN,NAME=COLUMN")
    where = "use only the rows with this value in a column that is not a loss, e.g. stage=joint; repeatable"
    add("--where", nargs="+", action="extend", default=[], metavar="COLUMN=VALUE", help=where)
    add("--delay", type=int, default=0, help="steps that losses arrive late (default: 0; training loops often have 1)")
    add("--plot", type=Path, metavar="FILE.png", help="draw losses, turns and switches (needs matplotlib)")
    add("--json", action="store_true", help="print JSON")
    add("--all", action="store_true", help="print every switch")
    parser.set_defaults(run=_run_replay)


def _run_replay(arguments: argparse.Namespace) -> str:
    rule = arguments.rule.replace("-", "_")
    if rule == "payoff":
        raise ConfigurationError(
            "payoff decides by payoffs, which recorded losses do not hold, so it cannot be replayed; choose another"
        )
    table = _read_table(arguments.losses, _parse_modules(arguments.modules), _parse_where(arguments.where))
    if arguments.sweep:
        if arguments.plot:
            raise ConfigurationError("--plot draws one replay, not a sweep; choose the parameters with --set")
        rows = sweep(table.losses, rule, parse_grid(arguments.sweep), arguments.set, delay=arguments.delay)
        return _to_json([row.to_dict() for row in rows]) if arguments.json else render_sweep(rows)
    built = rule_from_settings(rule, arguments.set)
    result = replay(table.losses, built, steps=table.steps, delay=arguments.delay)
    if arguments.plot:
        plot_replay(arguments.plot, table, result)
    return _to_json(result.to_dict()) if arguments.json else render_replay(table, result, all_switches=arguments.all)


def _read_table(path: Path, modules: Mapping[str, str] | None, where: Where) -> LossTable:
    if (path / LOG_NAME).is_file():
        path = path / LOG_NAME
        if path.is_symlink():
            raise LossError(f"the log in a directory must be a file of its own, {path} is a link; give its target")
    if is_event_path(path):
        if where:
            raise ConfigurationError(
                f"--where chooses rows of a CSV file, but {path} holds TensorBoard events; drop it"
            )
        return read_events(path, modules)
    if path.is_dir():
        raise LossError(
            f"{path} must hold a decision log ({LOG_NAME}) or TensorBoard event files (*tfevents*), it holds neither; "
            "give the file itself"
        )
    return read_losses(path, modules, where)


def _parse_where(conditions: Sequence[str]) -> list[tuple[str, str]]:
    """``column=value`` pairs."""
    pairs = [condition.partition("=") for condition in conditions]
    for (column, equals, _), condition in zip(pairs, conditions, strict=True):
        if not column or not equals:
            raise ConfigurationError(f"--where must read COLUMN=VALUE, got {condition!r}")
    return [(column.strip(), value.strip()) for column, _, value in pairs]


def _parse_modules(columns: str | None) -> dict[str, str] | None:
    """``a,b`` or ``a=column,b=column``: the column of each module."""
    if columns is None:
        return None
    pairs = [item.partition("=") for item in columns.split(",")]
    return {name: column or name for name, _, column in pairs}


def _to_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)

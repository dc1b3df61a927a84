"""A tiny run, and the command: in a process of its own, or in this one."""

import os
import subprocess
import sys

from typer.testing import CliRunner

from ur4rec.cli import app

TINY = [
    *("--dataset", "synthetic", "--preset", "smoke", "--batch-size", "128", "--quiet"),
    *("--epochs", "pretrain_sasrec=1", "--epochs", "pretrain_retriever=1"),
    *("--epochs", "joint_finetune=3", "--epochs", "end_to_end=1"),
]


COMMAND = [sys.executable, "-W", "ignore", "-c", "from ur4rec.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def ur4rec(*arguments):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def mistaken(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    return line

"""Commands in children of one process that has imported everything: what they say, what they cost, what they change.

A child is limited in processor time and address space, so that a case that goes wrong harms nothing. Its time and
memory are the kernel's own figures, beyond those of the process that it was forked from: neither depends on how busy
the machine is.

The process is started as ``python -m tests.hostile.commands``: one line of JSON is a command, the answer is another.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
MODULES = (
    *(
        "alternator.cli",
        "ur4rec.cli",
        "ur4rec.runs.finished",
        "ur4rec.runs.recommendations",
        "ur4rec.runs.run",
        "ur4rec.compare.workers",
    ),
    *("ur4rec.compare.report", "ur4rec.data", "ur4rec_torch", "ur4rec_jax", "sklearn.decomposition", "rich.markdown"),
    *("sklearn.feature_extraction.text", "tensorboard.backend.event_processing.event_accumulator", "filelock"),
    *("torch.optim.adamw", "torch._dynamo", "pandas", "xml.dom.minidom", "rich.progress", "tests.hostile.good"),
)
CPU_SECONDS, ADDRESS_SPACE = 10, 4 * 2**30
"""What a child may use, beyond what there is when it begins: where it is stopped, not what is expected."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "JAX_PLATFORMS": "cpu", "PIP_NO_INDEX": "1"}
NO_NETWORK = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    """Exit code; minus the number of the signal that ended it."""
    stdout: str
    stderr: str
    seconds: float
    """Processor time."""
    megabytes: float
    """Memory at its peak, beyond what the process began with."""


class Commands:
    """Runs commands, one after the other, in a directory that is also their home and holds their cache."""

    def __enter__(self):
        environment = {**os.environ, **ENVIRONMENT, **NO_NETWORK, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, directory, program, *arguments):
        """Run ``ur4rec``, ``alternator``, or the function ``module:name`` of strings."""
        request = {"directory": str(directory), "program": program, "arguments": [str(each) for each in arguments]}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def tree(directory, without=()):
    """The hash of every file below a directory, and where every link leads; locks do not count."""
    files = [path for path in sorted(directory.rglob("*")) if path.name != ".lock" and not path.is_dir()]
    return {
        str(path.relative_to(directory)): os.readlink(path) if path.is_symlink() else _digest(path)
        for path in files
        if not any(path.is_relative_to(directory / each) for each in without)
    }


def _digest(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _serve():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in MODULES:
        importlib.import_module(name)
    warnings.filterwarnings("ignore", "os.fork")
    _warm_up()
    gc.collect()
    gc.freeze()  # so that a child's collections do not write into every page that it shares
    baseline = _peak_of_nothing()
    for line in sys.stdin:
        answers.write(json.dumps(_run(json.loads(line), baseline)) + "\n")
        answers.flush()


def _peak_of_nothing():
    child = os.fork()
    if not child:
        os._exit(0)
    return os.wait4(child, 0)[2].ru_maxrss


def _run(request, baseline):
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if not child:
            _be_child(request, stdout, stderr)
        _, status, usage = os.wait4(child, 0)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return {
        "code": os.waitstatus_to_exitcode(status),
        "stdout": texts[0],
        "stderr": texts[1],
        "seconds": usage.ru_utime + usage.ru_stime,
        "megabytes": (usage.ru_maxrss - baseline) / 1024,
    }


def _be_child(request, stdout, stderr):
    code = 1
    try:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        os.chdir(request["directory"])
        os.environ |= {"HOME": request["directory"], "ADAPTIVE_ALTERNATOR_CACHE": f"{request['directory']}/cache"}
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE") + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        code = _call(request["program"], request["arguments"])
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:  # noqa: BLE001  (as the interpreter would)
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _warm_up():
    """Every command once, so that a child has nothing left to import."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for words in (["evaluate"], ["recommend"], ["train", "--resume"], ["data"], ["compare"], ["settings"]):
            with contextlib.suppress(SystemExit):
                _ur4rec_command()([*words, "missing"])
    logging.getLogger().handlers.clear()  # a child has its own


@cache
def _ur4rec_command():
    """What the command line calls, built once, before any child is."""
    import typer

    from ur4rec.cli import app

    return typer.main.get_command(app)


def _call(program, arguments):
    sys.argv = [program, *arguments]
    if program == "ur4rec":
        return _ur4rec_command()(arguments)
    if program == "alternator":
        from alternator.cli import main

        return main()
    module, _, name = program.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments) or 0


if __name__ == "__main__":
    _serve()

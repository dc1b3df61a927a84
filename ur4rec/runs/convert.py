"""A run of one backend handed to the other: the arrays have the same names and layout, so only the label changes."""

import shutil
from pathlib import Path

from alternator.checks import check_choice
from ur4rec.errors import ConfigurationError
from ur4rec.runs.directory import RunDirectory
from ur4rec.training.backend import BACKENDS, load_backend


def convert_run(directory: RunDirectory, backend: str, out: Path, *, overwrite: bool = False) -> RunDirectory:
    """Copy a run so that another backend evaluates, recommends from or resumes it.

    The other backend must load the best and the newest checkpoint before the copy is made.

    Args:
        directory: The run.
        backend: "torch" or "jax".
        out: The directory to make.
        overwrite: Replace an earlier run there, but never the run itself.

    Raises:
        AlternatorError: An unknown or missing backend, a run without a checkpoint, a damaged one, or an ``out`` that
            holds something.
    """
    check_choice("backend", backend, tuple(BACKENDS))
    checkpoints = {directory.require_checkpoint(which) for which in ("best", "latest")}
    load_model = load_backend(backend).load_model
    for checkpoint in checkpoints:
        load_model(checkpoint)
    config = directory.read_json("config.json")
    if out.resolve().is_relative_to(directory.path.resolve()):
        raise ConfigurationError(f"--out must not be in the run's own directory, got {out}; choose another --out")
    copy = RunDirectory.create(out, overwrite=overwrite)
    shutil.copytree(directory.path, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    copy.write_json("config.json", {**config, "backend": backend})
    return copy

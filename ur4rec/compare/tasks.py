"""What the processes of a study are asked to do: all they need comes with the request, all they find goes back.

So it is the same to a process on this machine and to one on another, which sees none of the study's files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ur4rec.compare.arms import original_of
from ur4rec.compare.costs import hash_costs, read_costs
from ur4rec.compare.directory import StudyDirectory
from ur4rec.compare.runner import ArmRun, RunKey, pretrain
from ur4rec.compare.study import StudyConfig
from ur4rec.files import scratch_directory, write_directory
from ur4rec.training.backend import load_backend

Files = Mapping[str, bytes]
"""The content of a checkpoint's files, by name."""


@dataclass(frozen=True, kw_only=True)
class ArmRequest:
    """One run of a study."""

    study: StudyConfig
    """What is compared."""
    key: RunKey
    """Which run."""
    costs: Mapping[str, Any]
    """What steps cost, as `ur4rec.compare.costs.measure_costs` returned it."""
    original: Mapping[str, Any] | None
    """For a control, what its original's run reported."""
    start: Files | None
    """The checkpoint of the pretraining stages, where the study has them."""
    data_dir: Path | None
    """Where to look for a built-in dataset before it is downloaded."""

    @classmethod
    def of(cls, directory: StudyDirectory, key: RunKey, data_dir: Path | None = None) -> "ArmRequest":
        """A run of a study whose costs are known. A control needs its original's."""
        costs = directory.read_costs()
        assert costs is not None
        original = original_of(key.arm)
        start = directory.start_of(key.seed)
        return cls(
            study=directory.study,
            key=key,
            costs=costs,
            original=None if original is None else directory.read_run(directory.key_of(original, key.seed, key.basis)),
            start=None if start is None else {file.name: file.read_bytes() for file in start.iterdir()},
            data_dir=data_dir,
        )


@dataclass(frozen=True, kw_only=True)
class ArmOutcome:
    """What a run found, for `StudyDirectory.write_run`."""

    report: dict[str, Any]
    """What is kept as JSON."""
    arrays: dict[str, NDArray[Any]]
    """What every target got at every point."""


def check_device(backend: str, device: str) -> None:
    """Refuse a device that this machine lacks, before anything is read.

    Raises:
        ConfigurationError: It does.
    """
    with load_backend(backend).start_processes(device):
        pass


def train_arm(request: ArmRequest) -> ArmOutcome:
    """Do one run."""
    with scratch_directory() as scratch:
        start = None
        if request.start is not None:
            start = scratch / "start"
            write_directory(start, dict(request.start))
        run = ArmRun(
            request.study,
            request.key,
            read_costs(request.costs),
            original=request.original,
            start=start,
            data_dir=request.data_dir,
        )
        report = {**run.train(), "costs_hash": hash_costs(request.costs)}
    return ArmOutcome(report=report, arrays=run.arrays())


def pretrain_seed(study: StudyConfig, seed: int, data_dir: Path | None) -> Files:
    """Do the pretraining stages of a seed; returns the checkpoint where its arms start."""
    with scratch_directory() as scratch:
        pretrain(study, seed, scratch / "start", data_dir)
        return {file.name: file.read_bytes() for file in (scratch / "start").iterdir()}

"""The directory of a study: its configuration, the costs, and its finished runs, each whole or absent."""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipInfo

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ur4rec.compare.arms import PARITY, slug
from ur4rec.compare.costs import hash_costs, read_costs
from ur4rec.compare.forms import check_costs, check_report
from ur4rec.compare.packed import KeptTargets, PackedRuns, write_packed
from ur4rec.compare.runner import RunKey
from ur4rec.compare.study import StudyConfig
from ur4rec.errors import ConfigurationError, DataError, refuse_malformed
from ur4rec.files import holding, parse_object, refuse_links, write_directory, write_file, write_whole
from ur4rec.runs.sizes import Counts

_LOCK = ".lock"
MAX_ARRAYS_BYTES, MAX_ARRAYS_RATIO = 2**26, 50
"""The arrays of a run have at most this number of bytes, or this number of times those of their file."""


class StudyDirectory:
    """``study.json``, ``costs.json`` and the runs: one pair of files each as they finish, all in one once packed.

    A loose run is ``runs/ARM/BUDGET-seed-N.json`` with an ``.npz`` of what every target got at every point; packed runs
    are in ``runs.parquet``. A loose run takes precedence over a packed one.

    Args:
        path: The directory. Open it with `begin` or `reopen`.
        study: What is compared.
    """

    def __init__(self, path: Path, study: StudyConfig) -> None:
        self.path = path
        self.study = study
        self._packed = PackedRuns(path / "runs.parquet")
        self._lock = FileLock(path / _LOCK)

    @classmethod
    def begin(cls, path: Path, study: StudyConfig) -> "StudyDirectory":
        """Make a study, or extend one of the same conditions by further arms and seeds.

        Raises:
            ConfigurationError: There is a study of other conditions, or something else.
        """
        if (path / "study.json").is_file():
            if (extended := cls._extended(path, study)) == cls.reopen(path).study:
                return cls(path, extended)  # nothing to write: a report may be wanted while the study runs
        elif path.exists() and (not path.is_dir() or any(each.name != _LOCK for each in path.iterdir())):
            raise ConfigurationError(f"the directory of a study must be new, empty or a study, {path} is not")
        path.mkdir(parents=True, exist_ok=True)
        directory = cls(path, study)
        with directory.locked():  # another process may have begun it meanwhile
            directory.study = cls._extended(path, study)
            directory._write_json(path / "study.json", directory.study.to_json())
        return directory

    @classmethod
    def _extended(cls, path: Path, study: StudyConfig) -> StudyConfig:
        """The study at a path, if there is one, with what this one adds to it."""
        if not (path / "study.json").is_file():
            return study
        there = cls.reopen(path).study
        mine, theirs = study.conditions(), there.conditions()
        if different := sorted(name for name in mine if mine[name] != theirs[name]):
            name = different[0]
            raise ConfigurationError(
                f"{path} holds a study with {name}={theirs[name]!r}, got {mine[name]!r}; choose another directory"
            )
        budgets = tuple(dict.fromkeys(there.budgets + study.budgets))
        return StudyConfig.from_json(
            {**there.extended(arms=study.arms, seeds=study.seeds).to_json(), "budgets": budgets}
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from running this study; the same `StudyDirectory` may lock it again.

        Raises:
            ConfigurationError: Another process runs it.
        """
        refusal = (
            f"only one process may run a study, and another one runs {self.path}; wait for it, or choose another "
            "directory"
        )
        with holding(self._lock, refusal):
            yield

    @classmethod
    def reopen(cls, path: Path) -> "StudyDirectory":
        """Open the directory of a study.

        Raises:
            ConfigurationError: There is no study at that path.
            DataError: It holds a symbolic link.
        """
        if not (path / "study.json").is_file():
            raise ConfigurationError(f"{path} is no study: it has no study.json; give the --out of a comparison")
        refuse_links(path)
        content = _read_json(path / "study.json")
        with refuse_malformed(path / "study.json", "restore it"):
            return cls(path, StudyConfig.from_json(content))

    def keys(self) -> list[RunKey]:
        """All runs of the study, seed by seed. Parity has one per seed: it is its own measure of both budgets."""
        study = self.study
        return [
            RunKey(arm, seed, basis)
            for seed in study.seeds
            for arm in study.arms
            for basis in (study.budgets if arm != PARITY else study.budgets[:1])
        ]

    def key_of(self, arm: str, seed: int, basis: str) -> RunKey:
        """The run that answers for an arm under a budget."""
        if arm == PARITY:
            basis = next((each for each in ("updates", "cost") if self.is_done(RunKey(arm, seed, each))), basis)
        return RunKey(arm, seed, basis)

    def is_done(self, key: RunKey) -> bool:
        """Whether a run is finished and kept."""
        return self.is_loose(key) or key in self._packed

    def is_loose(self, key: RunKey) -> bool:
        """Whether a finished run has files of its own, which hold what every target got at every point."""
        return self._run_file(key).is_file()

    def missing(self) -> list[RunKey]:
        """The runs that have yet to be done."""
        return [key for key in self.keys() if not self.is_done(self.key_of(*key))]

    def read_run(self, key: RunKey) -> dict[str, Any]:
        """What a finished run reported.

        Raises:
            DataError: Its file is damaged.
        """
        path = self._run_file(key)
        report = _read_json(path) if self.is_loose(key) else self._packed.report(key)
        with refuse_malformed(path, "remove it and its .npz, and compare again"):
            check_report(report, self.study.modules)
        return report

    def read_arrays(self, key: RunKey) -> dict[str, NDArray[Any]]:
        """What every target got at every point of a loose run, and its training losses.

        Raises:
            DataError: The file is missing or damaged.
        """
        path = self._run_file(key).with_suffix(".npz")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                _check_size(path, arrays.zip.infolist())
                found = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, BadZipFile, zlib.error) as error:
            raise DataError(f"{path} is damaged ({error}); remove it and its .json, and compare again") from error
        self._check_arrays(path, found, len(self.read_run(key)["points"]))
        return found

    def _check_arrays(self, path: Path, found: Mapping[str, NDArray[Any]], num_points: int) -> None:
        for split in ("validation", "test"):
            ranks_PT, nll_PT = (found.get(f"{split}_{what}_PT", np.zeros(0)) for what in ("ranks", "nll"))
            kinds = (ranks_PT.dtype.kind, nll_PT.dtype.kind)
            if kinds != ("i", "f") or ranks_PT.shape != nll_PT.shape or ranks_PT.shape[:-1] != (num_points,):
                raise DataError(
                    f"{path} is damaged: it must hold ranks and likelihoods of every target at {num_points} points; "
                    "remove it and its .json, and compare again"
                )

    def read_targets(self, key: RunKey) -> KeptTargets:
        """What every test target got at the best validation point of a finished run.

        Raises:
            DataError: The file is missing or damaged.
        """
        if not self.is_loose(key):
            return self._packed.targets(key)
        best = self.read_run(key)["best"]
        if best is None:
            return KeptTargets.of(np.array([]), np.array([]))
        arrays = self.read_arrays(key)
        return KeptTargets.of(arrays["test_ranks_PT"][best], arrays["test_nll_PT"][best])

    def kept_time_ratios(self, basis: str) -> dict[str, Any]:
        """By arm, what `pack` kept of a budget."""
        return dict(self._packed.time_ratios.get(basis, {}))

    def pack(self, time_ratios: Mapping[str, Any]) -> None:
        """Move all finished runs into ``runs.parquet``: what the report uses of them.

        Args:
            time_ratios: By budget and arm, what can no longer be computed from packed runs; see `PackedRuns`.
        """
        with self.locked():
            self._pack(time_ratios)

    def _pack(self, time_ratios: Mapping[str, Any]) -> None:
        keys = [*dict.fromkeys([*(key for key, _ in self.runs()), *self._packed.keys])]
        targets = [self.read_targets(key) for key in keys]
        write_packed(self.path / "runs.parquet", [self.read_run(key) for key in keys], targets, time_ratios)
        self._packed = PackedRuns(self.path / "runs.parquet")
        for file in [self._run_file(key) for key in keys if self.is_loose(key)]:
            file.unlink()
            file.with_suffix(".npz").unlink()
            if not any(file.parent.iterdir()):
                file.parent.rmdir()
        if (self.path / "runs").is_dir() and not any((self.path / "runs").iterdir()):
            (self.path / "runs").rmdir()

    def write_run(self, key: RunKey, report: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep a finished run; it counts as finished once its JSON is there, which comes last."""
        path = self._run_file(key)
        write_file(path.with_suffix(".npz"), lambda scratch: np.savez_compressed(scratch, **arrays))  # type: ignore[arg-type]
        self._write_json(path, report)

    def settle(self, counts: Counts) -> None:
        """Decide what the preset leaves to the data, unless the study has begun before, and keep it."""
        if not self.study.sizes and self.read_costs() is None and (found := self.study.settled(counts)).sizes:
            self.study = found
            self._write_json(self.path / "study.json", found.to_json())

    def read_costs(self) -> dict[str, Any] | None:
        """What steps cost; None until it is measured."""
        path = self.path / "costs.json"
        if not path.is_file():
            return None
        content = _read_json(path)
        with refuse_malformed(path, "remove it and compare again"):
            check_costs(content, self.study.modules)
        return content

    def write_costs(self, content: Mapping[str, Any]) -> None:
        """Keep what steps cost."""
        self._write_json(self.path / "costs.json", content)

    def check_costs(self) -> None:
        """Refuse finished runs that were charged with other costs than those that are kept.

        Raises:
            DataError: Naming a run.
        """
        costs = self.read_costs()
        for key, run in self.runs():
            if not _was_charged(run, costs, self.study.updates):
                raise DataError(
                    f"all runs of a study must be charged with one timing of the steps, but {key.arm}, {key.basis}, "
                    f"seed {key.seed} of {self.path} was not with its costs.json; restore that file, or remove runs/ "
                    "and runs.parquet and compare again"
                )

    def start_of(self, seed: int) -> Path | None:
        """Where a seed's arms start: the checkpoint of its pretraining; None if the study has none."""
        return self.path / "pretrained" / f"seed-{seed}" if self.study.pretrain else None

    def write_start(self, seed: int, files: Mapping[str, bytes]) -> None:
        """Keep where a seed's arms start."""
        path = self.start_of(seed)
        assert path is not None
        write_directory(path, dict(files))

    def runs(self) -> Iterator[tuple[RunKey, dict[str, Any]]]:
        """All finished runs of the study's arms, seeds and budgets."""
        for key in self.keys():
            if self.is_done(found := self.key_of(*key)):
                yield found, self.read_run(found)

    def _run_file(self, key: RunKey) -> Path:
        return self.path / "runs" / slug(key.arm) / f"{key.basis}-seed-{key.seed}.json"

    def _write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        write_whole(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _was_charged(run: Mapping[str, Any], costs: Mapping[str, Any] | None, updates: int) -> bool:
    """Whether a run knows these costs; one of before runs kept their hash, whether its budget follows from them."""
    if costs is None:
        return False
    if run.get("costs_hash") is not None:
        return bool(run["costs_hash"] == hash_costs(costs))
    return bool(run["budget"]["cost"] == read_costs(costs).parity(updates))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and compare again") from error


def _check_size(path: Path, members: Sequence[ZipInfo]) -> None:
    """Refuse a small file of huge arrays; numpy reads no more of a member than the file says of it."""
    size = sum(member.file_size for member in members)
    limit = max(MAX_ARRAYS_BYTES, MAX_ARRAYS_RATIO * path.stat().st_size)
    if size > limit:
        raise ValueError(f"its arrays must have at most {limit} bytes, got {size}")


def open_study(
    path: Path | None,
    out: Path | None,
    given: Mapping[str, Any],
    *,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    budgets: Sequence[str] = (),
) -> StudyDirectory:
    """The study that a command means: a new one, or an earlier one with what is added to it.

    Args:
        path: An earlier study.
        out: Where a new one is to be, or an earlier one of the same conditions is.
        given: The conditions that were given; None where they were not.
        arms: Arms to compare; parity comes first in any case.
        seeds: Seeds.
        budgets: What is held equal.

    Raises:
        ConfigurationError: Both paths are given, or none; or the conditions are not those of the study.
    """
    if (path is None) == (out is None):
        raise ConfigurationError("give either --out DIR for a new study, or the DIR of an earlier one")
    conditions = {name: value for name, value in given.items() if value is not None}
    chosen = {"arms": tuple(arms), "seeds": tuple(seeds), "budgets": tuple(budgets)}
    chosen = {name: values for name, values in chosen.items() if values}
    if path is None and out is not None and (out / "study.json").is_file():
        path = out
    if path is not None:
        there = StudyDirectory.reopen(path).study
        _refuse_other_conditions(path, there, conditions)
        return StudyDirectory.begin(path, StudyConfig.from_json({**there.to_json(), **_with_parity(chosen)}))
    assert out is not None
    if "eval_every" not in conditions and "updates" in conditions:
        conditions["eval_every"] = max(conditions["updates"] // 10, 1)
    if "preset" not in conditions:
        conditions["preset"] = "smoke" if conditions.get("dataset") == "synthetic" else "demo"
    return StudyDirectory.begin(out, StudyConfig(**conditions, **_with_parity(chosen)))


_OPTIONS = {"model": "--set", "trainer": "--set", "data": "the options of data"}
"""How a command gives a condition, where it is not by its own name."""


def _refuse_other_conditions(path: Path, there: StudyConfig, given: Mapping[str, Any]) -> None:
    """Refuse conditions that were given and are not those of a study; those that were not given are the study's."""
    for name, value in given.items():
        if value != (known := getattr(there, name)):
            option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
            raise ConfigurationError(
                f"{path} holds a study with {name}={known!r}, got {value!r}; leave out {option}, or choose another "
                "directory"
            )


def _with_parity(chosen: Mapping[str, Any]) -> dict[str, Any]:
    arms = chosen.get("arms")
    return {**chosen, "arms": (PARITY, *(arm for arm in arms if arm != PARITY))} if arms else dict(chosen)

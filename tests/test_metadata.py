"""The version is the same wherever it stands."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_citation_has_the_version():
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_changelog_begins_with_the_version():
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == VERSION


def test_one_address_of_the_repository():
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Source"]
    for name in ("mkdocs.yml", "CITATION.cff", "SECURITY.md"):
        assert address in (ROOT / name).read_text(), name


def test_the_versions_of_the_text_encoder_are_bounded():
    """Which files a model may hold is decided by what these versions load: see ur4rec/text/model_folder.py."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["text"] == ["sentence-transformers>=3,<7"]
    assert "sentence-transformers 3 to 6" in (ROOT / "SECURITY.md").read_text()

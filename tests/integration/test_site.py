"""The documentation's site builds without a warning, shows every public name, and leaves no page out."""

import ast
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("alternator", "adapters", "ur4rec", "ur4rec_torch", "ur4rec_jax")
COMMANDS = "ur4rec.cli"  # its names are the program's, and its commands have a page of their own


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. No framework may be imported for it: docstrings are read from the source."""
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(directory)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


def public_names():
    """``package.name`` for each name in the ``__all__`` of each package, and ``package`` for each package."""
    for path in sorted(ROOT.glob("*/**/__init__.py")):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        if path.relative_to(ROOT).parts[0] in PACKAGES and package != COMMANDS:
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                    yield from (f"{package}.{name}" for name in ast.literal_eval(node.value))


def inventory(site):
    """Every name that the site documents."""
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ", 1)[0] for line in zlib.decompress(content).decode().splitlines()}


def test_every_public_name_is_in_the_reference(site):
    names = set(public_names())
    assert len(names) > 50
    documented = inventory(site)
    shadowed = {name for name in names if f"{name}.{name.rpartition('.')[2]}" in documented}  # by a module of that name
    assert names - documented - shadowed == set()


def test_every_module_of_the_recommender_is_in_the_reference(site):
    documented = {name.rpartition(".")[0] for name in inventory(site)}
    layers = {path.name for path in (ROOT / "ur4rec").iterdir() if (path / "__init__.py").exists()} - {"cli"}
    assert {f"ur4rec.{layer}" for layer in layers} - {".".join(name.split(".")[:2]) for name in documented} == set()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}


def test_every_command_is_on_its_page(site):
    page = (site / "reference/commands.html").read_text()
    commands = ("train", "data", "data show", "data prepare", "evaluate", "recommend", "serve", "convert", "settings")
    for command in (*commands, "compare"):
        assert f"ur4rec {command}</h2>" in re.sub(r"<a class=.headerlink.*?</a>", "", page)
    assert "--resume" in page
    assert "--sweep" in page


def test_examples_are_code(site):
    assert 'class="admonition example"' not in (site / "reference/alternator.html").read_text()


def test_no_page_asks_another_host_for_anything(site):
    for page in site.rglob("*.html"):
        sources = re.findall(
            r"<(?:script|img|link rel=.stylesheet.)[^>]*(?:src|href)=[\"']?(https?://[^\"' >]*)", page.read_text()
        )
        assert sources == [], page

"""What the core says of other distributions that have a package of one of our names."""

import importlib
import sys
import warnings
from types import SimpleNamespace

import pytest

from alternator.collisions import warn_of_others


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A directory of installed packages that comes first."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "adapters", raising=False)
    return tmp_path


def install(site, distribution, package):
    (site / package).mkdir(exist_ok=True)
    (site / package / "__init__.py").touch()
    metadata = site / f"{distribution.replace('-', '_')}-9.8.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.8\n")
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("distribution", "package"),
    [("adapters", "adapters"), ("alternator", "alternator"), ("alternator-client", "alternator")],
)
def test_the_other_one_is_named(site, distribution, package):
    install(site, distribution, package)
    with pytest.warns(
        UserWarning, match=f"^the distribution {distribution} 9.8 has a package '{package}' too"
    ) as warned:
        warn_of_others()
    assert len(warned) == 1


def test_ours_alone(site):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_others()


def test_what_our_adapters_have_said_is_not_said_again(site, monkeypatch):
    install(site, "adapters", "adapters")
    monkeypatch.setitem(sys.modules, "adapters", SimpleNamespace(NAMESAKES=()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_others()

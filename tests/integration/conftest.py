"""One tiny run that the tests of the commands share."""

import pytest

from tests.integration.tiny_run import TINY, ur4rec


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    done = ur4rec("train", *TINY, "--log", "tensorboard", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout

"""Every program in examples/ runs without moving a frozen bit, and those listed here show what they promise."""

import math
import runpy
from pathlib import Path

import pytest

from adapters.torch.audit import audited
from tests.integration import audited_jax

EXAMPLES = sorted(Path(__file__).parents[2].joinpath("examples").glob("*.py"))

SHOWS = {
    "plain_loop": lambda result: result["loss_after"] < 0.3 * result["loss_before"] and result["switches"] >= 2,
    "scanned_gan": lambda result: abs(result["mean_after"] - 4) < 0.5 and abs(result["mean_before"] - 4) > 3,
    "lightning_loop": lambda result: result["loss_after"] < 0.3 * result["loss_before"] and result["switches"] >= 2,
    "actor_critic": lambda result: (
        result["return_after"] > 0.6 > 0 > result["return_before"] and result["switches"] >= 4
    ),
}
"""Per example a condition on its ``result``."""


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_shows_what_it_promises(path, capsys):
    with audited() as of_torch, audited_jax.audited() as of_jax:
        result = runpy.run_path(str(path), run_name="__main__").get("result")
    audits = [*of_torch, *of_jax]
    assert all(audit.num_checks > 0 for audit in audits)
    assert audits
    assert capsys.readouterr().out.strip()
    if path.stem in SHOWS:
        assert all(math.isfinite(value) for value in result.values())
        assert SHOWS[path.stem](result), result


def test_every_listed_example_exists():
    assert set(SHOWS) <= {path.stem for path in EXAMPLES}

"""The guide's programs run, one after the other, as a reader would run them."""

from tests.guide_blocks import blocks_of, run_blocks

GUIDE = "docs/jax.md"


def test_the_page_of_whole_loops_runs(capsys):
    page = "docs/jax-loops.md"
    names = run_blocks(page, blocks_of(page), {})
    assert names["alternator"].step == 12
    assert names["schedule"].step == 8
    assert names["audit"].num_checks == 4
    assert capsys.readouterr().out.endswith("4 steps without a change\n")


def test_the_guide_runs(capsys):
    blocks = blocks_of(GUIDE)
    assert len(blocks) >= 4
    names = run_blocks(GUIDE, blocks, {})
    assert "trains on" in capsys.readouterr().out
    assert names["decision"] is not None
    assert len(names["decisions"]) == 5

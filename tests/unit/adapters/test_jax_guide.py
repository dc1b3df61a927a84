"""The guide's programs run, one after the other, as a reader would run them."""

import re
from pathlib import Path

GUIDE = Path(__file__).parents[3] / "docs" / "embedding-jax.md"


def test_the_guide_runs(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    assert "trains on" in capsys.readouterr().out
    assert names["decision"] is not None
    assert len(names["decisions"]) == 5

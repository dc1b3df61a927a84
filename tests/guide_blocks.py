"""The programs in a guide, and running them one after the other as a reader would."""

import re
from pathlib import Path


def blocks_of(page):
    text = (Path(__file__).parents[1] / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_blocks(page, blocks, names):
    """Run them with what the guide takes as given; what they leave behind."""
    names["__name__"] = "guide"
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names

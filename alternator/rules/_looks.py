"""When a rule that fits lines looks at the losses: often while they are few, in proportion to them later."""

MIN_LOSSES = 10
"""No line is fitted through fewer losses."""


def look_spacing(count: int) -> int:
    """New losses to wait for after a look at ``count``: an eighth of them, 8 at least.

    Example:
        >>> look_spacing(20), look_spacing(200)
        (8, 25)
    """
    return max(8, count // 8)

"""When a rule that fits lines looks at the losses: often while there are few, more rarely later."""

MIN_LOSSES = 10
"""The minimum number of losses that a line is fitted through."""


def look_spacing(count: int) -> int:
    """The number of new losses to wait for after a look at ``count`` losses: an eighth of them, at least 8.

    Example:
        >>> look_spacing(20), look_spacing(200)
        (8, 25)
    """
    return max(8, count // 8)

"""When a rule that fits lines looks at the losses: often while there are few, more rarely later."""

from alternator.rule import Facts

MIN_LOSSES = 10
"""The minimum number of losses that a line is fitted through."""


def look_spacing(count: int) -> int:
    """The number of new losses to wait for after a look at ``count`` losses: an eighth of them, at least 8.

    Example:
        >>> look_spacing(20), look_spacing(200)
        (8, 25)
    """
    return max(8, count // 8)


def is_next_look(next_look: int, facts: Facts, *, first: int, spacing: int) -> bool:
    """Whether a tenure's next look can be at that number of losses, the looks being at most ``spacing`` apart.

    Where a tenure begins, the number is still that of the one before.
    """
    return first <= next_look and (facts.entered or next_look <= max(first, facts.observed + spacing))

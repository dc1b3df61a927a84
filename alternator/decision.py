"""Decision: the answer of the alternator at each step."""

from typing import NamedTuple

from alternator.reasons import describe


class Decision(NamedTuple):
    """Who trains from now on, and why; returned by `Alternator.observe` and `Alternator.advance`.

    Attributes:
        step: The step that was counted, 1-based.
        active: The module that trains from now on.
        previous: The module that was active in the counted step.
        switched: Whether they differ by the rule's decision (or by non-finite losses).
        reason: A code of `Reason`, or a string of your own rule.
        value: The number that was compared.
        limit: The number that it was compared with.
        all_plateaued: True at a switch after which every module's last tenure has ended on a plateau: nothing improves
            any more, so a trainer may stop early. A loss that rises is on no plateau.
    """

    step: int
    active: str
    previous: str
    switched: bool
    reason: str
    value: float
    limit: float
    all_plateaued: bool

    def explain(self) -> str:
        """The decision as one sentence: who trains, and why it switched or did not.

        Example:
            >>> from alternator import Alternator
            >>> Alternator(("encoder", "head")).observe(0.7).explain()
            'step 1: encoder trains on (tenure 1 of 5)'
        """
        why = describe(self.reason, self.value, self.limit)
        if self.switched:
            return f"step {self.step}: {self.previous} → {self.active} ({why})"
        return f"step {self.step}: {self.active} trains on ({why})"

"""Reasons: why a step held or switched, as a code with two numbers that becomes a sentence only when asked for."""

from typing import Final


class Reason:
    """The codes of the built-in rules: plain strings. A rule of your own may use any other string.

    Those of a loss that rises, rather than having stopped falling, begin with ``rising``, and `DIVERGING` is a rise
    beyond doubt: no rise counts as a plateau.
    """

    MIN_STEPS: Final = "min_steps"
    FEW_LOSSES: Final = "few_losses"
    CHANGING: Final = "changing"
    STEADY: Final = "steady"
    IMPROVING: Final = "improving"
    UNSURE: Final = "unsure"
    UNCONFIRMED_PLATEAU: Final = "unconfirmed_plateau"
    COOLDOWN: Final = "cooldown"
    WAITING: Final = "waiting"
    OUT_OF_PATIENCE: Final = "out_of_patience"
    PLATEAU: Final = "plateau"
    DIVERGING: Final = "diverging"
    RISING: Final = "rising"
    RISING_UNCONFIRMED: Final = "rising_unconfirmed"
    RISING_CHANGE: Final = "rising_change"
    RISING_OUT_OF_PATIENCE: Final = "rising_out_of_patience"
    MAX_STEPS: Final = "max_steps"
    BEST_GAIN: Final = "best_gain"
    LESS_GAIN: Final = "less_gain"
    LESS_UNCONFIRMED: Final = "less_unconfirmed"
    STALE: Final = "stale"
    IDLE: Final = "idle"
    UNCONFIRMED: Final = "unconfirmed"
    PAYS: Final = "pays"
    UNMEASURED: Final = "unmeasured"
    ABOVE: Final = "above"
    BELOW: Final = "below"
    UNTIL_TRIAL: Final = "until_trial"
    TRIED: Final = "tried"
    HALVED: Final = "halved"
    TRIED_BETTER: Final = "tried_better"
    TRIED_NO_BETTER: Final = "tried_no_better"
    SCHEDULED: Final = "scheduled"
    DRAW_HOLD: Final = "draw_hold"
    DRAW_SWITCH: Final = "draw_switch"
    NONFINITE: Final = "nonfinite"
    FORCED: Final = "forced"


# code → (label for histograms, sentence with the step's numbers)
_SENTENCES: dict[str, tuple[str, str]] = {
    Reason.MIN_STEPS: ("tenure < min_steps", "tenure {value:.0f} of {limit:.0f}"),
    Reason.FEW_LOSSES: ("too few losses seen", "{value:.0f} of {limit:.0f} losses seen"),
    Reason.CHANGING: ("change rate ≥ threshold", "change rate {value:.3g} ≥ {limit:g}"),
    Reason.STEADY: ("change rate < threshold", "change rate {value:.3g} < {limit:g}"),
    Reason.IMPROVING: ("still improving", "still improving: expected gain {value:.2%} ≥ {limit:.2%}"),
    Reason.UNSURE: ("not sure yet", "not sure yet: the expected gain may be as high as {value:.2%} ≥ {limit:.2%}"),
    Reason.UNCONFIRMED_PLATEAU: ("plateau, to be confirmed", "plateau, confirmation {value:.0f} of {limit:.0f}"),
    Reason.COOLDOWN: ("cooling down", "cooling down: {value:.0f} of {limit:.0f} losses left"),
    Reason.WAITING: ("patience not used up", "bad losses in a row: {value:.0f}, patience {limit:.0f}"),
    Reason.OUT_OF_PATIENCE: ("out of patience", "bad losses in a row: {value:.0f} > patience {limit:.0f}"),
    Reason.PLATEAU: ("plateau", "plateau: the expected gain is at most {value:.2%} < {limit:.2%}"),
    Reason.DIVERGING: ("diverging", "diverging, the loss rises: expected gain {value:.2%} < {limit:.2%}"),
    Reason.RISING: ("the loss rises", "the loss rises: expected gain {value:.2%} ≤ {limit:.2%}"),
    Reason.RISING_UNCONFIRMED: (
        "the loss rises, to be confirmed",
        "the loss rises: expected gain {value:.2%} ≤ {limit:.2%}; to be confirmed",
    ),
    Reason.RISING_CHANGE: (
        "the loss rises: change rate ≥ threshold",
        "the loss rises: change rate {value:.3g} ≥ {limit:g}",
    ),
    Reason.RISING_OUT_OF_PATIENCE: (
        "the loss rises: out of patience",
        "the loss rises: bad losses in a row: {value:.0f} > patience {limit:.0f}",
    ),
    Reason.MAX_STEPS: ("tenure = max_steps", "tenure {value:.0f} reached max_steps {limit:.0f}"),
    Reason.BEST_GAIN: ("largest gain per cost", "gain per cost {value:.3g} ≥ {limit:.3g} of the best other module"),
    Reason.LESS_GAIN: ("another module gains more", "gain per cost {value:.3g} < {limit:.3g} of another module"),
    Reason.LESS_UNCONFIRMED: (
        "another module gains more, to be confirmed",
        "gain per cost {value:.3g} < {limit:.3g} of another module; to be confirmed",
    ),
    Reason.STALE: ("a module has waited too long", "a module has waited {value:.0f} of at most {limit:.0f} steps"),
    Reason.IDLE: ("a module does not pay", "a module does not pay: {value:.2f} standard errors < {limit:.2f}"),
    Reason.UNCONFIRMED: (
        "a module does not pay, to be confirmed",
        "a module does not pay: {value:.2f} standard errors < {limit:.2f}; to be confirmed",
    ),
    Reason.PAYS: ("all modules pay", "all modules pay: {value:.2f} standard errors ≥ {limit:.2f}"),
    Reason.UNMEASURED: ("a turn has not been measured", "not measured: {value:.0f} of {limit:.0f} payoffs recorded"),
    Reason.ABOVE: ("signal above its band", "signal {value:.3g} > {limit:g}"),
    Reason.BELOW: ("signal below its band", "signal {value:.3g} < {limit:g}"),
    Reason.UNTIL_TRIAL: ("until the next trial", "step {value:.0f} of {limit:.0f} until the next trial"),
    Reason.TRIED: ("on trial", "on trial: step {value:.0f} of {limit:.0f}"),
    Reason.HALVED: (
        "the better candidates go on",
        "the best candidate: {value:.2f} standard errors > {limit:.2f}; tried on",
    ),
    Reason.TRIED_BETTER: ("a candidate is better", "a candidate is better: {value:.2f} standard errors > {limit:.2f}"),
    Reason.TRIED_NO_BETTER: (
        "no candidate is better",
        "no candidate is better: {value:.2f} standard errors ≤ {limit:.2f}",
    ),
    Reason.SCHEDULED: ("scheduled", "tenure {value:.0f} of {limit:.0f} is over"),
    Reason.DRAW_HOLD: ("random draw: stay", "draw {value:.0f} > {limit:.0f}"),
    Reason.DRAW_SWITCH: ("random draw: switch", "draw {value:.0f} ≤ {limit:.0f}"),
    Reason.NONFINITE: ("non-finite losses", "{value:.0f} non-finite losses in a row, limit {limit:.0f}"),
    Reason.FORCED: ("forced", "forced"),
}

_GAINS = (Reason.BEST_GAIN, Reason.LESS_GAIN, Reason.LESS_UNCONFIRMED)


def describe(reason: str, value: float, limit: float) -> str:
    """The sentence for one decision; a reason of your own is quoted with its two numbers.

    Example:
        >>> describe(Reason.CHANGING, 0.0312, 0.01)
        'change rate 0.0312 ≥ 0.01'
        >>> describe(Reason.LESS_GAIN, -0.001, 0.002)
        'the loss rises: gain per cost -0.001 < 0.002 of another module'
        >>> describe(Reason.DIVERGING, -0.8403, -0.00001)
        'diverging, the loss rises: expected gain -84.03% < 0.00%'
        >>> describe("my_reason", 0.5, 2)
        'my_reason: 0.5 against 2'
    """
    known = _SENTENCES.get(reason)
    if known is None:
        return f"{reason}: {value:g} against {limit:g}"
    rises = "the loss rises: " if reason in _GAINS and value < 0 else ""
    return rises + known[1].format(value=value, limit=limit).replace("-0.00%", "0.00%")


def label(reason: str) -> str:
    """What a code means, without numbers; a reason of your own is its own label.

    Example:
        >>> label(Reason.CHANGING), label("my_reason")
        ('change rate ≥ threshold', 'my_reason')
    """
    known = _SENTENCES.get(reason)
    return known[0] if known else reason

"""The built-in switching rules, one per file.

================  ==============================================================================
`Trend`           Switches on a plateau of a noisy loss; the rule for new work.
`Payoff`          Trains all modules together and leaves out those that do not pay for their work.
`Trial`           Tries each candidate from one snapshot, and goes on with the best by a held-out loss.
`Gain`            Trains the module that learns most per unit of cost.
`Balance`         Finds the ratio of two players' steps that keeps a critic's accuracy inside a band.
`Patience`        Switches where `ReduceLROnPlateau` would cut the learning rate.
`Plateau`         The original method: switches when the loss hardly changes.
`Cycle`           Fixed tenures: parity and ratios, the controls of an adaptive rule.
`RandomTenure`    Random tenures of a given mean: the control of a rule's timing.
================  ==============================================================================
"""

from alternator.rules.balance import Balance
from alternator.rules.cycle import Cycle
from alternator.rules.gain import Gain
from alternator.rules.patience import Patience
from alternator.rules.payoff import Payoff
from alternator.rules.plateau import Plateau
from alternator.rules.random_tenure import RandomTenure
from alternator.rules.trend import Trend
from alternator.rules.trial import Trial

__all__ = ["Balance", "Cycle", "Gain", "Patience", "Payoff", "Plateau", "RandomTenure", "Trend", "Trial"]

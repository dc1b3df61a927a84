"""The built-in switching rules, one a file."""

from alternator.rules.cycle import Cycle
from alternator.rules.gain import Gain
from alternator.rules.patience import Patience
from alternator.rules.payoff import Payoff
from alternator.rules.plateau import Plateau
from alternator.rules.random_tenure import RandomTenure
from alternator.rules.trend import Trend

__all__ = ["Cycle", "Gain", "Patience", "Payoff", "Plateau", "RandomTenure", "Trend"]

"""Recorded losses: reading them, what a rule would have decided on them, and how that is shown."""

"""Ranks of held-out targets, the metrics made from them, and the baseline of popularity."""

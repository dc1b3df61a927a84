"""Transformers: a callback that keeps the freeze contract within ``Trainer.train``."""

"""Accelerate: the freeze contract in a loop whose model, optimizer and loader `Accelerator.prepare` returned."""

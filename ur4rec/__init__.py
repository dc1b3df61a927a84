"""What both reference recommenders share: data, text, batches, metrics, runs and commands. No framework."""

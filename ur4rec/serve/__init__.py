"""A local page of a trained run: type a history, see what each scorer recommends and why, and look at the run."""

"""Which module trains when: stages, schedules by name, learning rates, and the probe that measures payoffs."""

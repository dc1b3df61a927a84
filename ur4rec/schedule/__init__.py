"""Who trains when: stages, schedules by name, learning rates, and what tells a schedule its payoffs."""

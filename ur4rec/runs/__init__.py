"""A run: its configuration, its directory, and what is done with a finished one."""

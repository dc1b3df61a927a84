"""The trainer that both backends share, and what it keeps of its steps."""

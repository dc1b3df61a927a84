"""Texts as vectors, of items and of users, and the check that user texts do not reveal what is held out."""

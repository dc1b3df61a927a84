"""Texts as vectors: of items, of users, and whether those of users name what is held out."""

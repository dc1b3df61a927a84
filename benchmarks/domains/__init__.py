"""One file per domain: a kind of training in which somebody has to decide who trains next.

A file whose name has no leading underscore holds ``DOMAINS``, a tuple of what `_domain.Domain` describes.
"""

"""What `import alternator` offers."""

import alternator


def test_every_public_name_is_there():
    assert all(hasattr(alternator, name) for name in alternator.__all__)
    assert list(alternator.__all__) == sorted(alternator.__all__)

"""What an adapter needs beside its framework: named with the extra that installs it. No framework."""

from importlib.util import find_spec


def require(extra: str, *packages: str) -> None:
    """Refuse to import an adapter without its packages, in words that say what to install.

    Args:
        extra: What installs them.
        packages: The packages that are imported.

    Raises:
        ModuleNotFoundError: Naming those that are missing.

    Example:
        >>> require("torch", "json", "no_such_package")
        Traceback (most recent call last):
        ModuleNotFoundError: this adapter needs no_such_package, which is not installed; run: pip install
        'adaptive-alternator[torch]'
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"this adapter needs {', '.join(missing)}, which is not installed; run: pip install "
            f"'adaptive-alternator[{extra}]'",
            name=missing[0],
        )

"""User preference texts: a JSON file that says in words what each user likes."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ur4rec.data.interactions import Interactions
from ur4rec.data.splits import Split
from ur4rec.errors import ConfigurationError, DataError
from ur4rec.files import hash_bytes, write_whole

logger = logging.getLogger(__name__)

_FORM = 'write {"user id": "text", ...}'


def read_user_texts(path: Path, user_ids: Sequence[str]) -> list[str]:
    """The text of each user of a dataset, from a JSON file with one object: user id → text.

    Users whom the file leaves out, or whose text is blank, have the empty text. Users whom the dataset does not have
    are ignored with a warning, unless the file has no others.

    Args:
        path: The file: UTF-8, with or without a byte order mark.
        user_ids: The dataset's users, in their order.

    Raises:
        DataError: The file cannot be read, does not hold such an object (with line and column), gives a user twice or
            something other than a string, or no user of the dataset has a text.
    """
    texts = _parse(path)
    for user, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{path}: the text of user {user!r} must be a string, got {json.dumps(text)[:40]}", _FORM)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(
                f"{path}: the text of user {user!r} must be Unicode, got half of a surrogate pair", "drop it"
            )
    if unknown := texts.keys() - set(user_ids):
        example = next(user for user in texts if user in unknown)
        logger.warning("%s: %d of %d users are not in the dataset, such as %r", path, len(unknown), len(texts), example)
    found = [text if (text := texts.get(user, "")).strip() else "" for user in user_ids]
    if not any(found):
        raise DataError(
            f"{path} must have a text for at least one user of the dataset, got none among {len(texts)} users; "
            f"use the dataset's ids, such as {list(user_ids[:3])}"
        )
    return found


def texts_of_prefixes(split: Split, interactions: Interactions, max_titles: int = 20) -> list[str]:
    """What is known about each user in words: the last titles of the *training* prefix, the newest last.

    Validation and test items are named only where the user had them in training too, so no text leaks a target. A user
    without training items has an empty text.

    Example:
        >>> from ur4rec.data import leave_one_out, synthetic
        >>> interactions = synthetic(num_users=20, num_items=50)
        >>> len(texts_of_prefixes(leave_one_out(interactions), interactions))
        20
    """
    recent = split.train.tails(max_titles)
    return ["; ".join(interactions.titles[item] for item in items) for items in recent]


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse a path at which no file of user texts can be written, before the data is read.

    Args:
        path: The file.
        overwrite: Whether one that is there is replaced.

    Raises:
        ConfigurationError: It is a directory, or in none, or there and not to be replaced.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigurationError(
            f"--write-user-texts must be a file in a directory that exists, got {path}; choose another"
        )
    if path.exists() and not overwrite:
        raise ConfigurationError(
            f"--write-user-texts must be a file that does not exist, got {path}; give --overwrite to replace it, or "
            "choose another"
        )


def write_user_texts(path: Path, user_ids: Sequence[str], texts: Sequence[str]) -> None:
    """Write a file that `read_user_texts` reads; users with an empty text are left out."""
    content = {user: text for user, text in zip(user_ids, texts, strict=True) if text}
    write_whole(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        DataError: The file cannot be read.
    """
    return hash_bytes(_read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"the file of user texts must be readable, but {path} is not ({error.strerror})") from error


def _parse(path: Path) -> dict[str, Any]:
    content = _read(path)
    try:
        texts = json.loads(content.decode("utf-8-sig"), object_pairs_hook=lambda pairs: _without_repeats(path, pairs))
    except UnicodeDecodeError as error:
        line, column = _place(content, error.start)
        raise DataError(
            f"{path}:{line}, column {column}: must be UTF-8, got the byte {content[error.start]:#x}", "save it as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}, column {error.colno}: must be JSON ({error.msg})", _FORM) from error
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} must hold one JSON object of strings, got numbers or nesting out of bounds", _FORM
        ) from error
    if not isinstance(texts, dict):
        raise DataError(f"{path} must hold one JSON object, user id to text, got {type(texts).__name__}", _FORM)
    return texts


def _without_repeats(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(f"{path}: every user must be there once, got {repeated!r} twice; leave one out")
    return values


def _place(content: bytes, position: int) -> tuple[int, int]:
    """Line and column of a byte, from 1."""
    before = content[:position]
    return before.count(b"\n") + 1, position - before.rfind(b"\n")

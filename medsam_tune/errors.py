"""Errors and warnings that a user can act on, and the case that they speak of."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches

_SUBJECT: ContextVar[str] = ContextVar("subject", default="")


class DataError(ValueError):
    """A fault in the user's data: which file, what was found, what was expected, what to do."""

    subject = ""


@contextmanager
def about(subject: str) -> Iterator[None]:
    """Name what is worked on in every `DataError` and `warn` of the block.

    Args:
        subject: name of the case or series, such as "case liver_017". In nested blocks, the inner
            subject counts.
    """
    token = _SUBJECT.set(subject)
    try:
        yield
    except DataError as error:
        if not error.subject:
            error.args = (f"{subject}: {error}",)
            error.subject = subject
        raise
    finally:
        _SUBJECT.reset(token)


def warn(text: str) -> None:
    """Warn the user of what was found in the data, and name what is worked on."""
    subject = _SUBJECT.get()
    warnings.warn(f"{subject}: {text}" if subject else text, stacklevel=2)


def nearest(word: str, known: Iterable[str]) -> str:
    """A question for a message about a mistyped word: " Did you mean 'lora'?", or nothing."""
    lower = {each.lower(): each for each in known}
    best = get_close_matches(word.lower(), lower, n=1)
    return f" Did you mean {lower[best[0]]!r}?" if best else ""


def listed(names: Iterable[str], shown: int = 10, separator: str = ", ") -> str:
    """Names for a message: the first so many, then how many there are."""
    every = list(names)
    rest = f"{separator}... ({len(every)} in all)" if len(every) > shown else ""
    return separator.join(every[:shown]) + rest

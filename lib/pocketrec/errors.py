"""Errors that are the user's to mend: one sentence, shown without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Input that cannot be used; the message names the file, the key and the remedy."""


def suggest(word: object, known: Iterable[str]) -> str:
    """Return `"; did you mean 'robe'?"`, or the known names when none is close."""
    known = sorted(known)
    close = get_close_matches(str(word), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"


def unknown(kind: str, word: object, known: Iterable[str], where: object) -> UserError:
    """Return the error for a name that does not exist, with the nearest one that does."""
    return UserError(f"{where}: unknown {kind} {word!r}{suggest(word, known)}")

"""Errors that are the user's to mend: one sentence, shown without a traceback; and the check of a value's type."""

import math
import types
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

_NUMBERS = {int: Integral, float: Real}


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


def conform(value: Any, hint: Any, where: str) -> Any:
    """Return a value as its type hint wants it: numpy's numbers as Python's, a whole one as a float where it shall be.

    Hints that are checked are int, float, bool, str, a `Literal`, a list, and several of them joined by `|`, with or
    without None; with any other one every value passes.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise unknown("value", value, arguments, where)
    elif origin in (Union, types.UnionType):
        return _one_of(value, arguments, where)
    elif origin is list:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: expected a list, found {value!r}")
        return [conform(item, arguments[0], where) for item in value]
    elif hint in _NUMBERS and isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool):
        if hint is float and not math.isfinite(value):
            raise UserError(f"{where}: expected a finite number, found {value!r}")
        return hint(value)
    elif hint in (int, float, bool, str) and type(value) is not hint:
        raise UserError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value


def _one_of(value: Any, hints: Iterable[Any], where: str) -> Any:
    """Return a value as the first of some hints that it conforms to."""
    if value is None and type(None) in hints:
        return None
    *others, last = (hint for hint in hints if hint is not type(None))
    for hint in others:
        with suppress(UserError):
            return conform(value, hint, where)
    return conform(value, last, where)

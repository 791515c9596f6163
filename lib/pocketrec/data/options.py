"""Options of a dataset: a dataclass a source, checked against its annotations."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pocketrec.errors import UserError, unknown

Options = TypeVar("Options")


def resolve(kind: type[Options], layers: Mapping[str, Mapping[str, Any]]) -> Options:
    """Build `kind` from layers of options, later ones first in rank; the layer's key says where it stands.

    Raises `UserError` for an unknown or missing option and for a value of the wrong kind.
    """
    hints = get_type_hints(kind)
    values = {}
    for where, layer in layers.items():
        for name, value in layer.items():
            if name not in hints:
                raise unknown("option", name, hints, where)
            values[name] = _check(value, hints[name], f"{where}: option {name!r}")
    required = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    for name in required:
        if name not in values:
            raise UserError(f"{next(iter(layers))}: option {name!r} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{' and '.join(layers)}: {error}") from None


def _check(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise unknown("value", value, arguments, where)
    elif origin in (Union, types.UnionType):
        return None if value is None else _check(value, arguments[0], where)
    elif origin is list:
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list, found {value!r}")
        return [_check(item, arguments[0], where) for item in value]
    elif hint is float and type(value) is int:
        return float(value)
    elif type(value) is not hint:
        raise UserError(f"{where}: expected {hint.__name__}, found {value!r}")
    return value

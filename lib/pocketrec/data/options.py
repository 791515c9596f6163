"""Options of a dataset: a dataclass a source, checked against its annotations."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from pocketrec.errors import UserError, conform, unknown

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
            values[name] = conform(value, hints[name], f"{where}: option {name!r}")
    required = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    for name in required:
        if name not in values:
            raise UserError(f"{next(iter(layers))}: option {name!r} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{' and '.join(layers)}: {error}") from None

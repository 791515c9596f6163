"""Reading YAML strictly, and writing files that are whole or absent."""

import ast
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pocketrec.errors import UserError


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping (`1e-3` is a number, `no` a word, a repeated key an error)."""
    try:
        content = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of keys to values, found {type(content).__name__}")
    return content


@contextmanager
def atomic(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary sibling that takes the name `path` only when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def spelled(value: Any) -> str:
    """Spell a parameter's value as names of folders and records do: 0.1, 1000, 64x32, int8."""
    if isinstance(value, list):
        return "x".join(spelled(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def source_hash(file: Path) -> str:
    """Hash what a file does, as SHA-256: of Python its comments, docstrings and layout do not count."""
    content = file.read_bytes()
    if file.suffix == ".py":
        tree = ast.parse(content)
        for node in ast.walk(tree):
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and ast.get_docstring(node, clean=False):
                del node.body[0]
        content = ast.unparse(tree).encode()
    return hashlib.sha256(content).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; a NaN or infinity is a `ValueError`, since no missing number has a value."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with atomic(path, "w") as file:
        file.write(text)

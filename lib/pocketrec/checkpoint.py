"""The state of a long training in a file: saved now and then, so that a crash costs minutes and changes no number.

One safetensors file, which takes its name when it is whole: the tensors, and in its header all other values as JSON,
where {"$tensor": name} stands for a tensor, with what tells one training from another.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pocketrec import distributed
from pocketrec.errors import UserError

TENSOR = "$tensor"
REMEDY = "delete it to start anew, or name another file"


class Checkpoint:
    """A file for the state of one training, or none with an empty `path`.

    Args:
        path: the file; it need not exist yet.
        minutes: from one saving to the next; 0 saves never.
        about: plain values that tell this training from others.
    """

    def __init__(self, path: str, minutes: float, about: dict[str, Any]) -> None:
        self.path = Path(path) if path else None
        self.minutes = minutes
        self.about = json.loads(json.dumps(about))  # as it is read back
        self.saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether to save now; of processes that train together only the first does."""
        if not self.path or not self.minutes or time.monotonic() - self.saved < self.minutes * 60:
            return False
        return distributed.rank() == 0

    def save(self, state: Any) -> None:
        """Write a state: tensors and plain values in nested lists and dictionaries."""
        tensors: dict[str, Tensor] = {}

        def name(tensor: Tensor) -> dict[str, str]:
            tensors[number := str(len(tensors))] = tensor.detach().contiguous()
            return {TENSOR: number}

        header = {"about": json.dumps(self.about), "state": json.dumps(state, default=name)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        try:
            save_file(tensors, part, metadata=header)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)
        self.saved = time.monotonic()

    def load(self) -> Any:
        """Return the state as it was saved, its tensors on the CPU, or None where there is none.

        Raises:
            UserError: when the file is truncated, is no checkpoint, or is that of another training.
        """
        if not self.path or not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                self._check(json.loads(header.get("about", "null")))
                # copies, since what is read lies in the file's own memory map
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{self.path}: cannot be read as a checkpoint ({error}); {REMEDY}") from None

        def restored(content: dict[str, Any]) -> Any:
            if content.keys() == {TENSOR}:
                return tensors[content[TENSOR]]
            return {int(key) if key.isdigit() else key: value for key, value in content.items()}

        return json.loads(header["state"], object_hook=restored)

    def _check(self, about: dict[str, Any] | None) -> None:
        """Raise unless a file was saved by this training."""
        if about is None:
            raise UserError(f"{self.path}: not a checkpoint of a training; {REMEDY}")
        different = [
            f"{key} {about.get(key)!r} there, {self.about.get(key)!r} here"
            for key in sorted(self.about.keys() | about.keys())
            if about.get(key) != self.about.get(key)
        ]
        if different:
            raise UserError(f"{self.path}: the checkpoint of another training ({'; '.join(different)}); {REMEDY}")

"""What a notebook saves, and what the record says of code and machine."""

import json
import subprocess
import sys

import numpy as np
import pytest

from pocketrec.kernels import native
from pocketrec.suite import execute, record


def test_sections_are_added_one_by_one(tmp_path):
    record.publish(tmp_path, sizes={"full_bytes": np.int64(8)}, environment={"triton": "3"})
    record.publish(tmp_path, curve={"step": np.arange(2)}, metrics={"test": {"auc": np.float32(0.5)}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "sizes": {"full_bytes": 8},
        "environment": {"triton": "3"},
        "curve": {"step": [0, 1]},
        "metrics": {"test": {"auc": 0.5}},
    }


def test_kernels_asked_for_in_vain_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_loaded", {("gather", ""): (object(), ""), ("robe", ""): (None, "no C++ compiler")})
    record.publish(tmp_path, sizes={"full_bytes": 8})
    assert json.loads((tmp_path / "metrics.json").read_text())["environment"] == {
        "missing_kernels": "robe: no C++ compiler"
    }


def test_kernels_that_serve_or_were_not_asked_for_are_not_named(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_loaded", {("gather", ""): (object(), "")})
    record.publish(tmp_path, sizes={"full_bytes": 8})
    assert "environment" not in json.loads((tmp_path / "metrics.json").read_text())
    with native.off():
        record.publish(tmp_path, sizes={"full_bytes": 8})
    assert "robe: switched off" in json.loads((tmp_path / "metrics.json").read_text())["environment"]["missing_kernels"]


def test_a_notebook_opened_by_hand_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record.publish("", metrics={"test": {"auc": 0.5}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_no_nan_is_saved(tmp_path, value):
    with pytest.raises(ValueError, match=r"curve\.validation_auc\.1 is (nan|inf); .* must be left out"):
        record.publish(tmp_path, curve={"validation_auc": [0.5, value]})
    assert not list(tmp_path.iterdir())


def test_unknown_sections_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no section"):
        record.publish(tmp_path, metric={})


def test_environment_needs_no_torch():
    code = (
        "import sys; from pocketrec.suite import record; found = record.environment()\n"
        "assert found['torch'] and found['cores'] >= 1 and found['memory_gb'] > 0\n"
        "record.publish('', sizes={})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(
    ("name", "message", "status", "reason"),
    [
        ("Infeasible", "too large", "infeasible", "Infeasible: too large"),
        ("Diverged", "", "diverged", "Diverged"),
        ("_ArrayMemoryError", "Unable to allocate", "oom", "_ArrayMemoryError: Unable to allocate"),
        ("OutOfMemoryError", "CUDA out of memory.\nmore", "oom", "OutOfMemoryError: CUDA out of memory."),
        ("OSError", "[Errno 12] Cannot allocate memory", "oom", "OSError: [Errno 12] Cannot allocate memory"),
        ("KeyError", "'a'", "failed", "KeyError: 'a'"),
        ("ValueError", "\x1b[31mred\x1b[0m\nblue", "failed", "ValueError: red"),
        (
            "SafetensorError",
            "No space left on device (os error 28)",
            "failed",
            "the disk is full (SafetensorError: No space left on device (os error 28))",
        ),
    ],
)
def test_exceptions_are_classified_by_name(name, message, status, reason):
    assert execute.classify(name, message) == (status, reason)

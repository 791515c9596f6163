"""Shared by all tests: one data folder for the session, so that nothing outside it is touched."""

import atexit
import os
import shutil
import tempfile

if "POCKETREC_DATA" not in os.environ:  # before pocketrec is imported, since paths are read at import
    os.environ["POCKETREC_DATA"] = tempfile.mkdtemp(prefix="pocketrec-test-data-")
    atexit.register(shutil.rmtree, os.environ["POCKETREC_DATA"], ignore_errors=True)
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch

from pocketrec import data

TINY = {"rows": 4000, "scale": 0.0001}


@pytest.fixture(scope="session")
def tiny():
    """Four thousand planted rows with about three thousand ids."""
    return data.load("planted", **TINY)


@pytest.fixture(autouse=True)
def the_same_numbers():
    """Draw the same numbers from torch's generator every time, and sum them in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)

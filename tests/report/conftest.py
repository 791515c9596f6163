from pathlib import Path

import pytest
import records


@pytest.fixture(scope="session")
def suite(tmp_path_factory) -> Path:
    """A suite's folder with every status in it; tests do not change it."""
    return records.write(tmp_path_factory.mktemp("results") / "quick", records.suite())

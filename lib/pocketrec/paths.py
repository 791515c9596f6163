"""Where things lie. `POCKETREC_ROOT` and `POCKETREC_DATA` override what is found."""

import os
from pathlib import Path

_checkout = Path(__file__).resolve().parents[2]

ROOT = Path(os.environ.get("POCKETREC_ROOT") or (_checkout if (_checkout / "params").is_dir() else Path.cwd()))
PARAMS = ROOT / "params"
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
DATA = Path(os.environ.get("POCKETREC_DATA") or ROOT / "data")

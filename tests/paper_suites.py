"""A suite's folder with records and test predictions, without training anything."""

import json
from pathlib import Path

import numpy as np

OPTIONS = {"rows": 4000, "scale": 0.0001}  # those of the fixture `tiny`
NOTE = {"cpu": "a processor"}


def record(tiny, method, ratio, seed, block_size=None, **changes):
    """Return the record of a finished run on the tiny data."""
    name = f"{method}/planted/r{ratio:g}-s{seed}" + (f"-block_size{block_size}" if block_size else "")
    parameters = {"method": method, "dataset": "planted", "ratio": ratio, "seed": seed, "dim": 64}
    parameters |= {"dataset_options": OPTIONS, "knobs": {"block_size": block_size} if method == "robe" else {}}
    found = {"schema": 1, "suite": "paper_robe", "run": name, "kind": "quality", "status": "done", "method": method}
    found |= {"dataset": "planted", "ratio": ratio, "seed": seed, "parameters": parameters, "environment": NOTE}
    return found | {"data": {"digest": tiny.digest}, "sizes": {"ratio_achieved": ratio}} | changes


def write(folder: Path, tiny, strength, seeds, digest=None, ratio=100):
    """Write runs whose scores are the labels times a strength, and noise of their own."""
    labels = tiny.labels[tiny.split("test")].astype(float)
    for place, (method, weight) in enumerate(strength.items()):
        for seed in range(seeds):
            found = record(tiny, method, 1 if method == "full" else ratio, seed)
            if digest:
                found["data"] = {"digest": digest}
            run = folder / "runs" / found["run"]
            run.mkdir(parents=True)
            (run / "record.json").write_text(json.dumps(found))
            noise = np.random.default_rng([seed, place]).normal(0, 1, len(labels))
            np.save(run / "predictions.npy", (weight * labels + noise).astype(np.float32))
    return folder

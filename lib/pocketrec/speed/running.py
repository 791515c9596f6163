"""From options to `results/speed/`: samples, the whole model, where a step's time goes, and what machine it was.

samples.parquet   one row a sample, see `bench.bench`
dlrm.parquet      one row a sample, see `dlrm.bench`
profile.csv       torch's operators in one training step
machine.json      what the machine is and can, and how it was made steady
replaced/         the same files of earlier benches, a folder each
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from pocketrec import data
from pocketrec.errors import UserError, unknown
from pocketrec.files import atomic, write_json
from pocketrec.kernels import native
from pocketrec.measure import Load
from pocketrec.speed import bench, dlrm, machine
from pocketrec.speed.bench import FAMILIES, FULL, IDS, QUICK, Options
from pocketrec.suite import record

DLRM = "dlrm"
HUGE = "huge pages are asked for below every table and array, for rivals as for ours"
POINT = ["dim", "batch", "ids", "work", "family", "route", "ratio", "block_size", "hash", "rank", "embedding"]


def options(
    full: bool, family: str | None, dim: str | None, batch: str | None, ids: str | None, **more: Any
) -> Options:
    """Turn the words of a command line into options; what is not said is that of the quick or the full bench."""
    default = FULL if full else QUICK
    families = _known("family", family, [*FAMILIES, DLRM]) or [*FAMILIES, DLRM]
    device = more["device"]
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: this machine has no GPU that torch can use")
    if more["rivals"] is not None and not more["rivals"].is_dir():
        raise UserError(f"--rivals {more['rivals']}: no such folder")
    return Options(
        dims=_numbers("--dim", dim) or default["dims"],
        batches=_numbers("--batch", batch) or default["batches"],
        ids=_known("distribution of ids", ids, IDS) or default["ids"],
        families=families,
        full=full,
        **more,
    )


def run(cardinalities: Sequence[int], options: Options, folder: Path, *, add: bool = False) -> None:
    """Measure and keep; with `add`, what was measured before at other points stays, and else is put aside."""
    kept, found = native.keep_memory(), machine.description(options.device)
    if add:
        _check_same(folder / "machine.json", found)
    known = record.environment() | (record.accelerator() if options.device != "cpu" else {})
    found |= {name: known[name] for name in ("commit", "dirty", "driver", "triton") if name in known}
    found |= {"command": " ".join(["pocketrec", *sys.argv[1:]]), "core_to_core_ns": machine.core_to_core()}
    load = Load()
    found |= machine.limits(options.device) | {"foreign_cores_meanwhile": load.share()}
    memory = "keeps what is freed (M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GB, M_TOP_PAD 64 MB)" if kept else "is as it was"
    found["how"] = f"malloc {memory} and {HUGE}"
    tqdm.write(_about(found))
    if not add:
        _put_aside(folder)
    if set(options.families) - {DLRM}:
        samples = bench.bench(cardinalities, options)
        _keep(folder / "samples.parquet", samples, add)
        for row in samples[samples["reason"].notna()].drop_duplicates(["family", "route", "reason"]).itertuples():
            tqdm.write(f"{row.family}, {row.route}: {row.reason}")
    if DLRM in options.families and options.device != "cpu":
        _keep(folder / "dlrm.parquet", dlrm.on_gpu(cardinalities, options), add)
    elif DLRM in options.families:
        _keep(folder / "dlrm.parquet", dlrm.bench(cardinalities, options), add)
        with atomic(folder / "profile.csv", "w") as file:
            dlrm.profile(cardinalities).to_csv(file, index=False)
        found |= dlrm.reading(data.load("planted"))
    elif (folder / "machine.json").exists() and add:
        before = json.loads((folder / "machine.json").read_text())
        found |= {name: value for name, value in before.items() if name.startswith("reading_")}
    write_json(folder / "machine.json", found)


def _check_same(file: Path, here: dict[str, Any]) -> None:
    """Refuse to put samples beside those of another machine or device, or of another number of threads."""
    before = json.loads(file.read_text()) if file.exists() else here
    for name in ("processor", "device", "threads", "torch"):
        if before[name] != here[name]:
            raise UserError(
                f"{file.parent}: was measured with {name} {before[name]}, and here it is {here[name]}; make it the "
                "same (OMP_NUM_THREADS sets threads), or leave out --add to begin anew"
            )


def _put_aside(folder: Path) -> None:
    """Move what an earlier bench has left to a folder named by its time."""
    if (folder / "machine.json").exists():
        time = datetime.fromtimestamp((folder / "machine.json").stat().st_mtime, UTC)
        kept = folder / "replaced" / f"{time:%Y-%m-%dT%H%M%S}"
        kept.mkdir(parents=True, exist_ok=True)
        for file in filter(Path.is_file, folder.iterdir()):
            file.replace(kept / file.name)


def _keep(path: Path, samples: pd.DataFrame, add: bool) -> None:
    if add and path.exists():
        before = pd.read_parquet(path)
        again = _points(before).isin(_points(samples))
        samples = pd.concat([before[~again], samples], ignore_index=True)
    with atomic(path) as file:
        samples.to_parquet(file)


def _points(samples: pd.DataFrame) -> pd.Series:
    """Return a name for the way and point of each sample."""
    known = [name for name in POINT if name in samples]
    return samples[known].astype(object).fillna("").astype(str).agg("|".join, axis=1)


def _about(found: dict[str, Any]) -> str:
    hop = f"{found['core_to_core_ns']:.0f} ns from core to core, " if found["core_to_core_ns"] else ""
    return (
        f"{found['processor']}, {found['threads']} threads, {found['device']}: {hop}"
        f"copy {found['copy_gb_s']:.0f} GB/s, rows of 64 bytes {found['rows_in_cache_m_s']:.0f} M/s in cache, "
        f"{found['rows_out_of_cache_m_s']:.0f} M/s out of it; others used {found['foreign_cores_meanwhile']:.2f} cores"
        f"\n{found['how']}"
    )


def _numbers(option: str, text: str | None) -> list[int]:
    try:
        return [int(word.replace("_", "")) for word in (text or "").split(",") if word]
    except ValueError:
        raise UserError(f"{option} {text}: numbers, separated by commas") from None


def _known(kind: str, text: str | None, known: Sequence[str]) -> list[str]:
    words = [word.strip() for word in (text or "").split(",") if word]
    for word in words:
        if word not in known:
            raise unknown(kind, word, known, "bench")
    return words

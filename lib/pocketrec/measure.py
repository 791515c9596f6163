"""Latency and throughput: under inference mode, after warm-up, rivals interleaved, samples kept.

What is timed must be alone on the machine; the suite sees to that with a lock.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pocketrec.data import Batch, Dataset


class Load:
    """How busy others keep the processor, from its making to `share`."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.perf_counter(), _busy_seconds(), time.process_time()

    def share(self) -> float:
        """Return the processor time that others took, in cores; /proc/stat counts in hundredths of a second."""
        foreign = _busy_seconds() - self._busy - (time.process_time() - self._own)
        return max(0.0, foreign) / (time.perf_counter() - self._start)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)


def interleave(
    calls: dict[object, Callable[[], object]], repeats: int, seconds: float = 60
) -> dict[object, np.ndarray]:
    """Time every call in turn, round after round, so that a change of the machine's speed meets them all.

    Returns the samples of each in milliseconds, float64 [rounds]; `repeats` rounds after a tenth as warm-up,
    fewer (at least 5) when they would take longer than `seconds`.
    """
    samples: dict[object, list[float]] = {name: [] for name in calls}
    warm_up = max(2, repeats // 10)
    started = time.perf_counter()
    for round_ in tqdm(range(warm_up + repeats), desc="timing", unit="round"):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            synchronize()
            if round_ >= warm_up:
                samples[name].append((time.perf_counter() - begin) * 1e3)
        if round_ >= warm_up + 4 and time.perf_counter() - started > seconds:
            break
    return {name: np.array(times) for name, times in samples.items()}


def synchronize() -> None:
    """Wait until an accelerator, if there is one, has done what was asked."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


@torch.inference_mode()
def inference_speed(
    model: nn.Module, dataset: Dataset, batch_sizes: Sequence[int], repeats: int, device: str = "cpu"
) -> pd.DataFrame:
    """Time the whole model and its lookup alone on test rows, one row a part and batch size.

    Columns: part (`model` or `lookup`), batch, p50_ms, p95_ms, p99_ms, samples_per_s (at the median), rounds, foreign
    (cores that others took meanwhile: above a tenth the times, and most of all p99, are theirs too).
    """
    model = model.to(device).eval()
    speeds = []
    for size in batch_sizes:
        batches = _test_batches(dataset, size, repeats, device)
        forth, back = cycle(batches), cycle(batches[::-1])  # neither finds in the cache what the other has just read

        def whole(batches=forth) -> Tensor:
            batch = next(batches)
            return model(batch.dense, batch.ids)

        def lookup(batches=back) -> Tensor:
            return model.embedding(next(batches).ids)

        load = Load()
        samples = interleave({"model": whole, "lookup": lookup}, repeats, seconds=4)
        about = {"batch": size, "foreign": load.share()}
        speeds += [{"part": part, **about, **_percentiles(ms), "rounds": len(ms)} for part, ms in samples.items()]
    frame = pd.DataFrame(speeds)
    return frame.assign(samples_per_s=frame.batch / frame.p50_ms * 1e3)


def _test_batches(dataset: Dataset, size: int, most: int, device: str) -> list[Batch]:
    """Return up to `most` different batches; a test set smaller than one is gone through again."""
    test = dataset.split("test")
    count = min(most, -(-dataset.rows("test") // size))
    if not count:
        raise ValueError(f"{dataset.name} has no test rows to time on")
    rows = test.start + np.arange(count * size) % dataset.rows("test")
    arrays = (dataset.dense[rows], dataset.ids[rows], dataset.labels[rows].astype(np.float32))
    parts = zip(*(torch.from_numpy(array).to(device).split(size) for array in arrays), strict=True)
    return [Batch(*part) for part in parts]


def _percentiles(times: np.ndarray) -> dict[str, float]:
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "p99_ms": float(p99)}


def zipf_ids(cardinalities: Sequence[int], rows: int, exponent: float = 1.05, seed: int = 0) -> Tensor:
    """Draw ids int64 [rows, features], id k with probability about k^-exponent (inverse of the continuous law)."""
    draw = torch.Generator().manual_seed(seed)
    n = torch.tensor(cardinalities, dtype=torch.float64)
    u = torch.rand(rows, len(cardinalities), generator=draw, dtype=torch.float64)
    power = 1 - exponent
    rank = ((((n + 1) ** power - 1) * u + 1) ** (1 / power)).long() - 1
    return rank.clamp(min=0).minimum(n.long() - 1)


def peak_memory() -> dict[str, int]:
    """Return the peak resident memory of this process so far, and of the GPU where one was used, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_initialized():
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return found

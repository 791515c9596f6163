"""Training and scoring: one loop for every method, choices made on validation data only."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pocketrec import distributed, models
from pocketrec.data import Batch, Dataset
from pocketrec.kernels import native
from pocketrec.metrics import frequency_slices, scores
from pocketrec.optim import in_place, optimizers

EVALUATION_BATCH = 16384


class Diverged(Exception):
    """The loss became infinite or not a number."""


@dataclass
class History:
    """What happened in a training: points of the curve, totals, and the step whose weights were kept."""

    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0  # of training alone, evaluations excluded
    best_step: int = 0

    def frame(self) -> pd.DataFrame:
        """Return the curve, one row an evaluation."""
        return pd.DataFrame(self.curve)

    def summary(self) -> dict[str, float]:
        """Return the totals for a record."""
        return {
            "steps": self.steps,
            "samples": self.samples,
            "seconds": self.seconds,
            "samples_per_s": self.samples / self.seconds,
            "best_step": self.best_step,
        }


def fit(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 1024,
    epochs: float = 1,
    table_optimizer: str = "adagrad",
    table_lr: float = 0.05,
    dense_optimizer: str = "adam",
    dense_lr: float = 1e-3,
    updates: str = "fused",
    precision: str = "float32",
    keep: str = "best",
    seed: int = 0,
    train_rows: int = 0,
    evaluations: int = 5,
    schedule: str = "constant",
    target_auc: float = 0.0,
    device: str = "cpu",
    nproc: int = 1,
) -> History:
    """Train in place on the training rows with binary cross-entropy; return the history.

    Args:
        epochs: passes over the training rows; a fraction stops early.
        updates: `fused` applies the gradients of tables where they arise, `autograd` makes them first; the results
            agree to rounding.
        precision: of the MLPs' and the interaction's products: `float32`, or `bf16`, which takes half the time on
            processors that have it. Weights, updates and scores are float32.
        keep: `best` puts back the weights of the evaluation with the highest validation AUC, `last` does not.
        seed: of the order of the rows.
        train_rows: use only that many leading training rows; 0 means all.
        evaluations: scorings of the validation rows, evenly spaced in every epoch.
        schedule: of the learning rates: `constant`, or `plateau`, a tenth after more than ten evaluations in a row
            that did not lower the validation log loss.
        target_auc: end with the first evaluation whose validation AUC reaches it; 0 goes on to the end.
        nproc: processes that train together, see `distributed`; `batch_size` is that of all.

    Raises:
        Diverged: as soon as a loss that is read is not finite.
    """
    arguments = dict(locals())
    if keep not in ("best", "last"):
        raise ValueError(f"keep must be 'best' or 'last', got {keep!r}")
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision must be 'float32' or 'bf16', got {precision!r}")
    if updates not in ("fused", "autograd"):
        raise ValueError(f"updates must be 'fused' or 'autograd', got {updates!r}")
    if updates == "fused" and table_optimizer in ("adam", "adamw"):
        raise ValueError(f"{table_optimizer} moves every row in every step: it needs updates 'autograd'")
    if schedule not in ("constant", "plateau"):
        raise ValueError(f"schedule must be 'constant' or 'plateau', got {schedule!r}")
    if batch_size < 1 or epochs <= 0 or train_rows < 0:
        raise ValueError(f"batch_size, epochs, train_rows cannot be {batch_size}, {epochs}, {train_rows}")
    if nproc > 1:
        return distributed.fit(arguments.pop("model"), arguments.pop("dataset"), arguments.pop("nproc"), arguments)
    model.to(device)
    steps_per_epoch = math.ceil(min(train_rows or math.inf, dataset.rows("train")) / batch_size)
    total = max(1, round(epochs * steps_per_epoch))

    def is_due(step: int) -> bool:
        passed = [n * evaluations // steps_per_epoch for n in (step - 1, step)]
        return passed[0] != passed[1] or step == total

    optims = optimizers(
        model, table_optimizer=table_optimizer, table_lr=table_lr, dense_optimizer=dense_optimizer, dense_lr=dense_lr
    )
    trained = distributed.replicated(model, optims)
    schedules = [ReduceLROnPlateau(optim) for optim in optims] if schedule == "plateau" else []
    history, losses, best = History(), [], None
    model.train()
    start = time.perf_counter()
    native.keep_memory()
    lower = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    training = in_place(model.embedding, optims[0]) if updates == "fused" else nullcontext()
    with training, distributed.progress(total=total, unit="step", desc="training") as bar:
        for epoch in range(math.ceil(epochs)):
            if _reached(history, target_auc):
                break
            order = seed * 1000 + epoch
            for batch in dataset.batches("train", batch_size, seed=order, limit=train_rows or None, device=device):
                part, weight = distributed.share(batch)
                losses.append(train_step(trained, part, optims, lower, weight))
                history.steps += 1
                model.embedding.adapt(history.steps, total, optims[0])
                history.samples += len(batch.labels)
                bar.update()
                if is_due(history.steps):
                    history.seconds += time.perf_counter() - start
                    best = _evaluate(model, dataset, history, losses, best, keep, device)
                    for plateau in schedules:
                        plateau.step(history.curve[-1]["validation_log_loss"])
                    losses = []
                    start = time.perf_counter()
                if history.steps == total or _reached(history, target_auc):
                    break
    if best is not None:
        model.load_state_dict(best)
    else:
        history.best_step = history.steps
    return history


def train_step(
    model: nn.Module,
    batch: Batch,
    optims: list[torch.optim.Optimizer],
    precision: AbstractContextManager = nullcontext(),  # noqa: B008
    weight: float = 1.0,
) -> Tensor:
    """Take one step; return the loss, detached and not yet waited for.

    `precision` surrounds the forward pass; `weight` is that of the batch among those of other processes.
    """
    for optim in optims:
        optim.zero_grad()
    with precision:
        logits = model(batch.dense, batch.ids)
    loss = weight * F.binary_cross_entropy_with_logits(logits.float(), batch.labels)
    loss.backward()
    for optim in optims:
        optim.step()
    return loss.detach()


def _reached(history: History, target_auc: float) -> bool:
    return bool(target_auc and history.curve) and history.curve[-1].get("validation_auc", 0) >= target_auc


def _evaluate(
    model: nn.Module,
    dataset: Dataset,
    history: History,
    losses: list[Tensor],
    best: dict[str, Tensor] | None,
    keep: str,
    device: str,
) -> dict[str, Tensor] | None:
    """Add a point to the curve; return the weights to keep so far."""
    loss = distributed.mean(torch.stack(losses).mean()).item()
    if not math.isfinite(loss):
        raise Diverged(f"the training loss is {loss} before step {history.steps}")
    result = distributed.once(scores, *predict(model, dataset, "validation", device))
    previous = [point["validation_auc"] for point in history.curve if "validation_auc" in point]
    point = {
        "step": history.steps,
        "samples": history.samples,
        "seconds": history.seconds,
        "train_loss": loss,
    }
    point |= {f"validation_{name}": result[name] for name in ("auc", "log_loss") if name in result}
    history.curve.append(point)
    if keep == "last" or ("auc" in result and previous and result["auc"] <= max(previous)):
        return best
    history.best_step = history.steps
    return deepcopy(model.state_dict())


@torch.inference_mode()
def predict(model: nn.Module, dataset: Dataset, split: str, device: str | None = None) -> tuple[Tensor, Tensor]:
    """Return the probabilities and labels of a split, float32 [rows] each, on the CPU.

    `device` is where the model lies; its embedding tells where none is given.
    """
    device = device or str(model.embedding.limits.device)
    training = model.training
    model.eval()
    probabilities, labels = [], []
    for batch in dataset.batches(split, EVALUATION_BATCH, device=device):
        part, _ = distributed.share(batch)
        logits = distributed.gathered(model(part.dense, part.ids), len(batch.labels))
        probabilities.append(logits.sigmoid().cpu())
        labels.append(batch.labels.cpu())
    model.train(training)
    if not labels:
        return torch.empty(0), torch.empty(0)
    return torch.cat(probabilities), torch.cat(labels)


def evaluate(
    model: nn.Module, dataset: Dataset, device: str | None = None, *, test: bool = True
) -> tuple[dict[str, dict], Tensor]:
    """Score validation and test rows; return the scores by part and the test probabilities [rows].

    Parts: `validation`, `test`, `slices` of the test rows by frequency of their ids, and `bayes`, the scores
    of the true probabilities where the dataset knows its teacher. With `test=False` the test rows are not
    read: only `validation` is scored, and no probabilities are returned.
    """
    parts: dict[str, dict] = {"validation": scores(*predict(model, dataset, "validation", device))}
    if not test:
        return parts, torch.empty(0)
    probabilities, labels = predict(model, dataset, "test", device)
    parts["test"] = scores(probabilities, labels)
    rows = dataset.split("test")
    if dataset.counts is not None:
        parts["slices"] = frequency_slices(probabilities, labels, dataset.ids[rows], dataset.counts, dataset.offsets)
    if dataset.teacher is not None:
        ceiling = scores(torch.tensor(dataset.teacher[rows]), labels)
        parts["bayes"] = {name: ceiling[name] for name in ("auc", "log_loss") if name in ceiling}
    return parts, probabilities


def save(run_dir: str, served: nn.Module, history: History, probabilities: Tensor) -> dict[str, int]:
    """Keep a run's deployed model, curve and test predictions; return the bytes of the embedding's tensors on disk.

    With an empty `run_dir`, as in a notebook opened by hand, nothing is kept.
    """
    if not run_dir:
        return {}
    folder = Path(run_dir)
    history.frame().to_parquet(folder / "curve.parquet")
    np.save(folder / "predictions.npy", probabilities.numpy())
    return {"file_bytes": models.save(served, folder)}

"""Training and scoring: one loop for every method, choices made on validation data only."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pocketrec import distributed, models
from pocketrec.checkpoint import Checkpoint
from pocketrec.data import Batch, Dataset
from pocketrec.embeddings import Embedding
from pocketrec.errors import UserError
from pocketrec.kernels import native
from pocketrec.measure import synchronize
from pocketrec.metrics import frequency_slices, scores
from pocketrec.optim import in_place, optimizers

EVALUATION_BATCH = 16384
OUTSIDE = ("model", "dataset", "device", "checkpoint", "checkpoint_minutes")  # may differ from the checkpoint


class Diverged(Exception):
    """The loss became infinite or not a number."""


@dataclass
class History:
    """What happened in a training: points of the curve, totals, and the step whose weights were kept."""

    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0  # of training alone, evaluations and checkpoints excluded
    waited: float = 0.0  # seconds of those in which the next batch was not there yet
    best_step: int = 0
    resumed: int = 0  # times that it went on from a checkpoint
    optimizer_bytes: int = 0  # of what the optimizer of the embedding keeps beside it

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
            "waiting_share": self.waited / self.seconds,
            "best_step": self.best_step,
            "resumed": self.resumed,
        }


@dataclass
class State:
    """All that a training changes, and so all that it needs to go on."""

    model: nn.Module
    optims: list[torch.optim.Optimizer]
    schedules: list[ReduceLROnPlateau]
    history: History = field(default_factory=History)
    losses: list[Tensor] = field(default_factory=list)  # of the steps since the last evaluation
    best: dict[str, Tensor] | None = None  # the weights to keep so far

    def content(self) -> dict[str, Any]:
        """Return it as tensors and plain values, in memory that goes on changing."""
        return {
            "model": self.model.state_dict(),
            "others": [part.state_dict() for part in (*self.optims, *self.schedules)],
            "history": vars(self.history),
            "losses": torch.stack(self.losses) if self.losses else None,
            "best": self.best,
        }

    def restore(self, content: dict[str, Any], device: str) -> None:
        """Take over what `content` has returned in another process."""
        self.model.load_state_dict(content["model"])
        for part, kept in zip((*self.optims, *self.schedules), content["others"], strict=True):
            part.load_state_dict(kept)
        self.history = History(**content["history"])
        self.history.resumed += 1
        self.losses = [] if content["losses"] is None else list(content["losses"].to(device))
        self.best = content["best"]


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
    evaluations: int = 5,
    schedule: str = "constant",
    target_auc: float = 0.0,
    device: str = "cpu",
    checkpoint: str = "",
    checkpoint_minutes: float = 0.0,
    nproc: int = 1,
) -> History:
    """Train in place on the training rows with binary cross-entropy; return the history.

    It asks the C library to keep memory that is freed (`kernels.native.keep_memory`), for the rest of the process.

    Args:
        batch_size: rows a step, of all processes together.
        epochs: passes over the training rows; a fraction stops early.
        table_optimizer: of the embedding: `adagrad` (row-wise) or `sgd`, and with `updates: autograd` also `adam` or
            `adamw`; `table_lr` is its learning rate.
        dense_optimizer: of everything else: `adam` or `sgd`; `dense_lr` is its learning rate.
        updates: `fused` applies the gradients of tables where they arise, `autograd` makes them first; the results
            agree to rounding.
        precision: of the MLPs' and the interaction's products: `float32`, or `bf16`, which takes half the time on
            processors that have it, and many times as long on others. Embeddings, weights and updates are float32.
        keep: `best` puts back the weights of the evaluation with the highest validation AUC, `last` does not.
        seed: of the order of the rows.
        evaluations: scorings of the validation rows, evenly spaced in every epoch.
        schedule: of the learning rates: `constant`, or `plateau`, a tenth after more than ten evaluations in a row
            that did not lower the validation log loss.
        checkpoint: file to go on from, where there is one, with the same numbers as without the interruption.
        checkpoint_minutes: how often to save to that file; 0 never.
        target_auc: end with the first evaluation whose validation AUC reaches it; 0 goes on to the end.
        device: `cpu`, `cuda`, or one of several, `cuda:1`; the model is moved there.
        nproc: processes that train together, see `distributed`.

    Raises:
        ValueError: for an argument that is none of the above, or that another one rules out.
        Diverged: where the mean loss of the steps before an evaluation is not finite.
        UserError: when the checkpoint cannot be read, or is that of another training.
    """
    arguments = dict(locals())
    about = {name: value for name, value in arguments.items() if name not in OUTSIDE}
    if keep not in ("best", "last"):
        raise ValueError(f"keep must be 'best' or 'last', got {keep!r}")
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision must be 'float32' or 'bf16', got {precision!r}")
    if updates not in ("fused", "autograd"):
        raise ValueError(f"updates must be 'fused' or 'autograd', got {updates!r}")
    if updates == "fused" and table_optimizer in ("adam", "adamw"):
        raise ValueError(f"{table_optimizer} moves every row in every step: it needs updates 'autograd'")
    if getattr(model.embedding, "keeps_zeros", False) and table_optimizer in ("adam", "adamw"):
        raise ValueError(f"{model.embedding.name}: {table_optimizer} would move what was pruned: take adagrad or sgd")
    if schedule not in ("constant", "plateau"):
        raise ValueError(f"schedule must be 'constant' or 'plateau', got {schedule!r}")
    if batch_size < 1 or epochs <= 0:
        raise ValueError(f"batch_size and epochs cannot be {batch_size} and {epochs}")
    if nproc > 1:
        return distributed.fit(arguments.pop("model"), arguments.pop("dataset"), arguments.pop("nproc"), arguments)
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device: {device}: torch can use no GPU on this machine: take device: cpu (`pocketrec doctor`)"
        )
    model.to(device)
    steps_per_epoch = math.ceil(dataset.rows("train") / batch_size)
    total = max(1, round(epochs * steps_per_epoch))

    def is_due(step: int) -> bool:
        passed = [n * evaluations // steps_per_epoch for n in (step - 1, step)]
        return passed[0] != passed[1] or step == total

    optims = optimizers(
        model, table_optimizer=table_optimizer, table_lr=table_lr, dense_optimizer=dense_optimizer, dense_lr=dense_lr
    )
    trained = distributed.replicated(model, optims)
    schedules = [ReduceLROnPlateau(optim) for optim in optims] if schedule == "plateau" else []
    state = State(model, optims, schedules)
    saved = Checkpoint(checkpoint, checkpoint_minutes, about | _identity(model, dataset) if checkpoint else {})
    if content := saved.load():
        state.restore(content, device)
        distributed.say(f"going on from step {state.history.steps:,} of {total:,}, as {checkpoint} has it")
    history = state.history
    model.train()
    start = time.perf_counter()
    native.keep_memory()
    lower = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
    training = in_place(model.embedding, optims[0]) if updates == "fused" else nullcontext()
    with training, distributed.progress(total=total, initial=history.steps, unit="step", desc="training") as bar:
        for epoch in range(history.steps // steps_per_epoch, math.ceil(total / steps_per_epoch)):
            if _reached(history, target_auc):
                break
            rows = {"seed": seed * 1000 + epoch, "device": device}
            done = history.steps - epoch * steps_per_epoch
            for batch in _waiting(dataset.batches("train", batch_size, skip=done, **rows), history):
                part, weight = distributed.share(batch)
                state.losses.append(distributed.mean(train_step(trained, part, optims, lower, weight)))
                history.steps += 1
                model.embedding.adapt(history.steps, total, optims[0])
                history.samples += len(batch.labels)
                bar.update()
                if is_due(history.steps) or saved.due:
                    synchronize()
                    history.seconds += time.perf_counter() - start
                    if is_due(history.steps):
                        _evaluate(state, dataset, keep, device)
                    if saved.due and history.steps < total:
                        saved.save(state.content())
                    start = time.perf_counter()
                if history.steps == total or _reached(history, target_auc):
                    break
    history.optimizer_bytes = sum(
        kept.nbytes for of in optims[0].state.values() for kept in of.values() if isinstance(kept, Tensor)
    )
    if state.best is not None:
        model.load_state_dict(state.best)
    else:
        history.best_step = history.steps
    return history


def _identity(model: nn.Module, dataset: Dataset) -> dict[str, Any]:
    """Return what tells a model and its data from others, as plain values."""
    embedding = model.embedding
    return {
        "data": dataset.digest,
        "train_rows": dataset.train_rows,
        "model": {"name": model.name, **model.shape},
        "embedding": {"name": embedding.name, "dim": embedding.dim, "seed": embedding.seed, **embedding.config},
    }


def _waiting(batches: Iterator[Batch], history: History) -> Iterator[Batch]:
    """Pass batches on; add up the seconds that the loop waits for them."""
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        history.waited += time.perf_counter() - start
        if batch is None:
            return
        yield batch


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


def _evaluate(state: State, dataset: Dataset, keep: str, device: str) -> None:
    """Add a point to the curve, take the weights if they are to be kept so far, and let the schedules know."""
    history = state.history
    loss = torch.stack(state.losses).mean().item()
    if not math.isfinite(loss):
        raise Diverged(f"the training loss is {loss} before step {history.steps}")
    state.losses = []
    result = distributed.once(scores, *predict(state.model, dataset, "validation", device))
    previous = [point["validation_auc"] for point in history.curve if "validation_auc" in point]
    point = {
        "step": history.steps,
        "samples": history.samples,
        "seconds": history.seconds,
        "train_loss": loss,
    }
    point |= {f"validation_{name}": result[name] for name in ("auc", "log_loss") if name in result}
    history.curve.append(point)
    if keep == "best" and not ("auc" in result and previous and result["auc"] <= max(previous)):
        history.best_step = history.steps
        state.best = deepcopy(state.model.state_dict())
    for plateau in state.schedules:
        plateau.step(point["validation_log_loss"])


@torch.inference_mode()
def predict(model: nn.Module, dataset: Dataset, split: str, device: str | None = None) -> tuple[Tensor, Tensor]:
    """Return the probabilities of a split, float64 [rows], and its labels, float32 [rows], on the CPU.

    `device` is where the model lies; its embedding tells where none is given. Raises `Diverged` for what is no number.
    """
    device = device or str(model.embedding.limits.device)
    training = model.training
    model.eval()
    probabilities, labels = [], []
    for batch in dataset.batches(split, EVALUATION_BATCH, device=device):
        part, _ = distributed.share(batch)
        logits = distributed.gathered(model(part.dense, part.ids), len(batch.labels))
        probabilities.append(logits.double().sigmoid().cpu())  # in float32 what is near 1 becomes 1
        labels.append(batch.labels.cpu())
    model.train(training)
    if isinstance(model.embedding, Embedding):
        model.embedding.check_ids()
    if not labels:
        return torch.empty(0), torch.empty(0)
    probabilities = torch.cat(probabilities)
    if not probabilities.isfinite().all():
        raise Diverged(f"a prediction of the {split} rows is not a number")
    return probabilities, torch.cat(labels)


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
    np.save(folder / "predictions.npy", probabilities.float().numpy())
    return {"file_bytes": models.save(served, folder)}

"""Scores of predicted probabilities. What cannot be computed is absent, never a stand-in number."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_accuracy, binary_auroc, binary_average_precision

SCAN = 2**18  # rows looked at together


def scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Score probabilities [n] against labels 0/1 [n].

    Returns:
        auc: area under the ROC curve, exact.
        pr_auc: average precision.
        log_loss: mean cross-entropy in nats.
        ne: normalised entropy, log loss over that of always predicting the mean label
            (He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014).
        calibration: mean prediction over mean label.
        accuracy: of predicting a positive above 0.5.

        With a single class among the labels, only log_loss and accuracy exist; with no row, nothing does.
    """
    if not len(labels):
        return {}
    p = probabilities.double().cpu()
    y = labels.cpu()
    result = {"log_loss": log_loss(p, y), "accuracy": float(binary_accuracy(p, y.int()))}
    mean = float(y.double().mean())
    if 0 < mean < 1:
        entropy = -mean * np.log(mean) - (1 - mean) * np.log(1 - mean)
        result |= {
            "auc": float(binary_auroc(p, y.int(), validate_args=False)),
            "pr_auc": float(binary_average_precision(p, y.int(), validate_args=False)),
            "ne": result["log_loss"] / float(entropy),
            "calibration": float(p.mean()) / mean,
        }
    return result


def log_loss(probabilities: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy in nats, in float64; a logarithm is bounded below by -100 as in torch."""
    return float(torch.nn.functional.binary_cross_entropy(probabilities.double(), labels.double()))


def frequency_slices(
    probabilities: Tensor, labels: Tensor, ids: np.ndarray, counts: np.ndarray, offsets: np.ndarray
) -> dict[str, dict[str, float]]:
    """AUC on three equal parts of the rows: those with the most frequent ids (head), torso, and tail.

    Rows are ranked by the mean over features of log(1 + occurrences of the row's id in training).

    Args:
        ids: [n, features]; counts: occurrences in training, all features concatenated; offsets: [features].
    """
    parts = [ids[first : first + SCAN] for first in range(0, max(1, len(ids)), SCAN)]
    familiarity = np.concatenate([np.log1p(counts[part + offsets]).mean(1) for part in parts])
    order = torch.from_numpy(np.argsort(-familiarity, kind="stable"))
    parts = zip(("head", "torso", "tail"), order.tensor_split(3), strict=True)
    return {name: {"rows": len(part), **_only_auc(scores(probabilities[part], labels[part]))} for name, part in parts}


def _only_auc(result: dict[str, float]) -> dict[str, float]:
    return {"auc": result["auc"]} if "auc" in result else {}

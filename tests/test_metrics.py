"""Scores against scikit-free arithmetic on small cases."""

import numpy as np
import pytest
import torch

from pocketrec.metrics import frequency_slices, scores


def pairwise_auc(p, y):
    """Share of positive-negative pairs in the right order, ties half: the definition."""
    positive, negative = p[y == 1], p[y == 0]
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).double().mean() + 0.5 * (difference == 0).double().mean())


def draw(n=500):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(n, generator=generator).mul(20).round().div(20).clamp(0.01, 0.99)  # with ties
    return p, (torch.rand(n, generator=generator) < p).float()


def test_scores_are_their_definitions():
    p, y = draw()
    found = scores(p, y)
    p64, mean = p.double(), y.double().mean()
    loss = -(y * p64.log() + (1 - y) * (1 - p64).log()).mean()
    entropy = -mean * mean.log() - (1 - mean) * (1 - mean).log()
    assert found["auc"] == pytest.approx(pairwise_auc(p64, y), abs=1e-6)
    assert found["log_loss"] == pytest.approx(float(loss), abs=1e-9)
    assert found["ne"] == pytest.approx(float(loss / entropy), abs=1e-9)
    assert found["calibration"] == pytest.approx(float(p64.mean() / mean), abs=1e-9)
    assert found["accuracy"] == pytest.approx(float(((p > 0.5) == y.bool()).double().mean()), abs=1e-6)
    assert 0 < found["pr_auc"] <= 1


def test_predicting_the_mean_has_normalised_entropy_one():
    _, y = draw()
    assert scores(torch.full_like(y, float(y.mean())), y)["ne"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_what_a_single_class_does_not_define_is_absent(label):
    assert set(scores(torch.rand(9), torch.full((9,), label))) == {"log_loss", "accuracy"}


def test_no_rows_no_scores():
    assert scores(torch.empty(0), torch.empty(0)) == {}


def test_slices_rank_rows_by_how_often_their_ids_were_seen():
    counts = np.array([100, 10, 0, 50, 5, 0])  # two features of three ids
    ids = np.repeat([[0, 0], [1, 1], [2, 2]], 40, axis=0)
    y = torch.tensor([0.0, 1.0] * 60)
    p = torch.cat([torch.tensor([0.1, 0.9] * 20), torch.tensor([0.5, 0.5] * 20), torch.tensor([0.9, 0.1] * 20)])
    found = frequency_slices(p, y, ids, counts, np.array([0, 3]))
    assert {name: part["rows"] for name, part in found.items()} == {"head": 40, "torso": 40, "tail": 40}
    assert [found[name]["auc"] for name in ("head", "torso", "tail")] == pytest.approx([1, 0.5, 0])

import time

import numpy as np
import pytest
import torch

from pocketrec import data
from pocketrec.data import prepared

ROWS = 30_000


@pytest.fixture
def dataset(root, monkeypatch) -> data.Dataset:
    monkeypatch.setattr(prepared, "BLOCK", 256)
    monkeypatch.setattr(prepared, "BUFFER", 4096)
    return data.load("planted", rows=ROWS, scale=0.0001)


def joined(batches) -> tuple[np.ndarray, ...]:
    return tuple(torch.cat(column).numpy() for column in zip(*batches, strict=True))


def test_in_order(dataset):
    batches = list(dataset.batches("validation", 512))
    dense, ids, labels = joined(batches)
    rows = dataset.split("validation")
    assert [len(batch.labels) for batch in batches] == [512] * 5 + [440]
    assert (batches[0].dense.dtype, batches[0].ids.dtype) == (torch.float32, torch.int32)
    assert batches[0].labels.dtype == torch.float32
    assert np.array_equal(dense, dataset.dense[rows]) and np.array_equal(ids, dataset.ids[rows])
    assert np.array_equal(labels, dataset.labels[rows])


@pytest.mark.parametrize("batch_size", [1, 100, 512, 5000, 50_000])
def test_shuffled_yields_every_row_once(dataset, batch_size):
    batches = list(dataset.batches("train", batch_size, seed=3))
    assert all(len(batch.labels) == batch_size for batch in batches[:-1])
    dense, ids, labels = joined(batches)
    rows = dataset.split("train")
    order, expected = np.lexsort(dense.T), np.lexsort(dataset.dense[rows].T)
    assert np.array_equal(dense[order], dataset.dense[rows][expected])
    assert np.array_equal(ids[order], dataset.ids[rows][expected])
    assert np.array_equal(labels[order], dataset.labels[rows][expected])


def test_same_seed_same_order(dataset):
    first, again, other = (joined(dataset.batches("train", 512, seed=seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_shuffle_mixes_far_rows(dataset):
    place = {value: row for row, value in enumerate(dataset.dense[:, 0].tolist())}
    batch = next(dataset.batches("train", 512, seed=0))
    rows = np.array([place[value] for value in batch.dense[:, 0].tolist()])
    assert rows.std() > ROWS * 0.8 / 6 and (np.diff(rows) == 1).sum() < 20


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("limit", [0, 1, 700, 10**9])
def test_limit_takes_the_first_rows(dataset, limit, seed):
    rows = min(limit, dataset.rows("train"))
    batches = list(dataset.batches("train", 512, seed=seed, limit=limit))
    assert sum(len(batch.labels) for batch in batches) == rows
    if rows:
        assert set(joined(batches)[0][:, 0]) == set(dataset.dense[:rows, 0])


def test_describe(dataset):
    table = dataset.describe()
    assert table["feature"].tolist() == dataset.feature_names
    train, test = (dataset.ids[dataset.split(name), 2] for name in ("train", "test"))
    assert table["unseen_in_test"][2] == pytest.approx((~np.isin(test, train)).mean())
    assert table["top_id_share"][2] == pytest.approx(np.bincount(train).max() / len(train))
    assert (table["top_percent_share"] >= table["top_id_share"]).all()


@pytest.mark.slow
def test_a_core_sustains_millions_of_rows_a_second(root):
    dataset = data.load("planted", rows=500_000, scale=0.001)
    start = time.perf_counter()
    rows = sum(len(batch.labels) for batch in dataset.batches("train", 1024, seed=0))
    assert rows / (time.perf_counter() - start) > 1e6

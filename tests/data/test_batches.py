import threading
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from pocketrec import data
from pocketrec.data import prepared

ROWS = 30_000


@pytest.fixture(scope="module")
def dataset():
    """Rows that are read in small pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "BLOCK", 256)
        patch.setattr(prepared, "BUFFER", 4096)
        yield data.load("planted", rows=ROWS, scale=0.0001)


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


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("count", [1, 700, 9999])
def test_fewer_training_rows_are_evenly_spaced(dataset, count, seed):
    thinned, whole = dataset.thinned(count), dataset.rows("train")
    rows = thinned.taken("train")
    assert thinned.rows("train") == len(rows) == count and thinned.split("train") == dataset.split("train")
    gaps = np.diff(np.append(rows, whole))  # the last gap is that to the end
    assert rows[0] == 0 and gaps.min() >= whole // count and gaps.max() <= -(-whole // count)
    batches = list(thinned.batches("train", 512, seed=seed))
    assert set(joined(batches)[0][:, 0]) == set(dataset.dense[rows, 0])
    assert sum(len(batch.labels) for batch in batches) == count
    for feature, counts in enumerate(thinned.feature_counts()):
        assert np.array_equal(counts, np.bincount(dataset.ids[rows, feature], minlength=len(counts)))
    assert thinned.summary() == dataset.summary()  # how many are used, the parameter `train_rows` says
    others = [joined(which.batches("test", 512))[1] for which in (thinned, dataset)]
    assert np.array_equal(*others)


def test_all_training_rows_are_the_dataset_itself(dataset):
    assert all(dataset.thinned(count) is dataset for count in (0, dataset.rows("train"), 10**9))


class Watched:
    """An array that remembers which rows were read of it, and may fail."""

    def __init__(self, array, fails_after=10**9):
        self.array, self.fails_after, self.read = array, fails_after, []

    def __getitem__(self, rows):
        self.read += range(rows.start, rows.stop)
        if len(self.read) > self.fails_after:
            raise OSError("the disk has gone")
        return self.array[rows]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(("batch_size", "skip"), [(100, 1), (512, 8), (512, 31), (5000, 2), (5000, 5), (512, 99)])
def test_goes_on_in_the_middle(dataset, batch_size, skip, seed):
    watched = replace(dataset, labels=Watched(dataset.labels))
    whole = list(dataset.batches("train", batch_size, seed=seed))
    rest = list(watched.batches("train", batch_size, seed=seed, skip=skip))
    assert len(rest) == max(0, len(whole) - skip)
    for batch, expected in zip(rest, whole[skip:], strict=True):
        assert all(torch.equal(tensor, other) for tensor, other in zip(batch, expected, strict=True))
    left, window = sum(len(batch.labels) for batch in rest), max(prepared.BUFFER, batch_size)
    assert len(watched.labels.read) <= (left + window if left else 0)


def test_every_row_of_the_disk_is_read_once_an_epoch(dataset):
    watched = replace(dataset, labels=Watched(dataset.labels))
    list(watched.batches("train", 512, seed=0))
    rows = dataset.split("train")
    assert sorted(watched.labels.read) == list(range(rows.start, rows.stop))


def test_memory_does_not_grow_with_the_dataset(dataset):
    row = dataset.dense.itemsize * dataset.num_dense + dataset.ids.itemsize * dataset.ids.shape[1] + 1
    tracemalloc.start()
    try:
        for _ in dataset.batches("train", 64, seed=0):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    window = prepared.BUFFER * (row + 8)  # with the order of its rows
    assert window < peak < 3.5 * window < dataset.rows("train") * row


def test_what_comes_next_is_made_while_the_caller_works():
    made = []
    items = prepared.ahead((made.append(number) or number for number in range(9)), 2)
    assert next(items) == 0
    deadline = time.monotonic() + 30
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made == [0, 1, 2]
    assert list(items) == list(range(1, 9))


def test_the_threads_end_with_the_caller(dataset):
    def readers():
        return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]

    batches = dataset.batches("train", 64, seed=0)
    next(batches)
    assert len(readers()) == 2
    batches.close()
    assert not readers()


@pytest.mark.parametrize("seed", [None, 0])
def test_what_fails_in_a_thread_is_raised_to_the_caller(dataset, seed):
    watched = replace(dataset, labels=Watched(dataset.labels, fails_after=8192))
    with pytest.raises(OSError, match="the disk has gone"):
        list(watched.batches("train", 512, seed=seed))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_batches_for_a_gpu_are_the_same(dataset):
    there, here = (dataset.batches("train", 512, seed=1, device=device) for device in ("cuda", "cpu"))
    for batch, expected in zip(there, here, strict=True):
        assert all(t.is_cuda and torch.equal(t.cpu(), e) for t, e in zip(batch, expected, strict=True))


def test_describe(dataset):
    table = dataset.describe()
    assert table["feature"].tolist() == dataset.feature_names
    train, test = (dataset.ids[dataset.split(name), 2] for name in ("train", "test"))
    assert table["unseen_in_test"][2] == pytest.approx((~np.isin(test, train)).mean())
    assert table["top_id_share"][2] == pytest.approx(np.bincount(train).max() / len(train))
    assert (table["top_percent_share"] >= table["top_id_share"]).all()

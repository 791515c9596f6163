from dataclasses import replace

import numpy as np
import pytest

from pocketrec import data
from pocketrec.data.sources.planted import BLOCK, CRITEO_KAGGLE, DENSE, Options, Teacher

SMALL = Options(scale=0.001)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher(SMALL)


def test_cardinalities():
    assert sum(CRITEO_KAGGLE) == 33_762_577 and Options(scale=1).cardinalities == CRITEO_KAGGLE
    assert sum(Options().cardinalities) == 1_012_905
    assert min(SMALL.cardinalities) == 3


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (17, 300), (BLOCK - 5, BLOCK + 5), (BLOCK, 2 * BLOCK)])
def test_a_range_alone_equals_the_slice(teacher, start, stop):
    whole = teacher.rows(0, 2 * BLOCK)
    for alone, sliced in zip(Teacher(SMALL).rows(start, stop), whole, strict=True):
        assert np.array_equal(alone, sliced[start:stop])


def test_more_rows_extend_fewer(root):
    short, long = (data.load("planted", rows=rows, scale=0.001) for rows in (1_000, 2_000))
    assert np.array_equal(short.ids, long.ids[:1_000]) and np.array_equal(short.labels, long.labels[:1_000])


def test_seeds_differ_and_repeat(teacher):
    again, other = Teacher(SMALL).rows(0, 100), Teacher(replace(SMALL, seed=1)).rows(0, 100)
    assert np.array_equal(again.teacher, teacher.rows(0, 100).teacher)
    assert not np.array_equal(again.ids, other.ids) and not np.array_equal(again.teacher, other.teacher)


@pytest.mark.parametrize("zipf", [0.5, 1.0, 1.15])
def test_frequencies_follow_the_power_law(zipf):
    teacher = Teacher(replace(SMALL, zipf=zipf))
    rows = 2**17
    ids = np.concatenate([teacher.rows(i, i + BLOCK).ids for i in range(0, rows, BLOCK)])
    for feature in (0, 2, 4, 8):
        n = SMALL.cardinalities[feature]
        probability = teacher.probability(feature, np.arange(n))
        assert probability.sum() == pytest.approx(1) and (np.diff(probability) < 0).all()
        ids_of_ranks = (np.arange(n) * teacher.multipliers[feature] + teacher.offsets[feature]) % n
        assert np.unique(ids_of_ranks).size == n
        frequent = probability * rows > 50
        found = np.bincount(ids[:, feature], minlength=n)[ids_of_ranks]
        found, expected = (np.append(c[frequent], c[~frequent].sum()) for c in (found, probability * rows))
        assert (np.abs(found - expected) < 5 * np.sqrt(expected + 1)).all()


def test_variance_has_the_stated_shares():
    options = replace(SMALL, scale=0.01)
    teacher = Teacher(options)
    draws = [teacher._draw(number) for number in range(4)]
    parts = np.concatenate([teacher._parts(draw, teacher._ids(draw)) for draw in draws])
    center, scale, _ = teacher.calibration
    scaled = (parts - center) * scale
    shares = scaled.var(axis=0) / scaled.var(axis=0).sum()
    assert shares == pytest.approx(options.weights, abs=0.02)
    assert scaled.sum(axis=1).std() == pytest.approx(1, abs=0.02)
    assert shares[2] / shares[1:].sum() == pytest.approx(options.rare_share, abs=0.02)


def test_rare_ids_are_those_below_the_threshold(teacher):
    for feature, first in enumerate(teacher.first_rare):
        rare = teacher.probability(feature, np.arange(SMALL.cardinalities[feature])) < SMALL.rare_below
        assert rare[first:].all() and not rare[:first].any()


def test_labels_follow_the_teacher(teacher):
    block = teacher.rows(0, 2 * BLOCK)
    assert block.teacher.mean() == pytest.approx(SMALL.base_rate, abs=0.005)
    for low in np.arange(0, 0.8, 0.1):
        inside = (block.teacher >= low) & (block.teacher < low + 0.1)
        error = np.sqrt(0.25 / inside.sum())
        assert block.labels[inside].mean() == pytest.approx(block.teacher[inside].mean(), abs=4 * error)
    assert np.abs(block.dense.mean(axis=0)).max() < 0.03 and block.dense.shape[1] == DENSE


def test_full_size_needs_no_table():
    block = Teacher(Options(scale=1)).rows(0, 1_000)
    assert (block.ids < CRITEO_KAGGLE).all() and block.ids[:, 2].max() > 1_000_000
    huge = Teacher(Options(scale=400)).rows(0, 1_000)
    assert huge.ids.max() > 2**31 and huge.ids.min() >= 0

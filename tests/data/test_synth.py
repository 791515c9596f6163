import numpy as np
import pandas as pd
import pytest

from pocketrec import data
from pocketrec.data import synth
from pocketrec.data.sources.planted import Teacher
from pocketrec.errors import UserError

SIZES = {"criteo-kaggle": [50 + 40 * i for i in range(26)], "avazu": [50 + 40 * i for i in range(22)]}
SIZES["criteo-tb"] = SIZES["criteo-kaggle"]
ROWS = 5_000


@pytest.mark.parametrize("name", synth.FORMATS)
def test_lines_have_the_original_format(tmp_path, name):
    form = synth.FORMATS[name]
    files = synth.write(name, tmp_path, SIZES[name], ROWS, progress=False)
    assert [file.name for file in files] == synth.FILES[name] == sorted(synth.FILES[name], key=lambda n: (len(n), n))
    contents = [file.read_bytes().splitlines() for file in files]
    if form.has_header:
        assert contents[0].pop(0) == form.header
    assert sum(map(len, contents)) == ROWS
    assert all(form.line.fullmatch(line) for content in contents for line in content)


def test_the_same_seed_gives_the_same_bytes_and_more_rows_extend_fewer(tmp_path):
    texts = [
        synth.write("criteo-kaggle", tmp_path / str(i), SIZES["criteo-kaggle"], rows, seed=seed, progress=False)[0]
        for i, (rows, seed) in enumerate([(ROWS, 1), (ROWS, 1), (ROWS, 2), (2 * ROWS, 1)])
    ]
    first, again, other, longer = (text.read_bytes() for text in texts)
    assert first == again and first != other and longer.startswith(first)


def test_prepared_rows_are_those_of_the_teacher(root, monkeypatch):
    monkeypatch.setattr(synth, "BLOCK", 2_000)
    (file,) = synth.write("criteo-kaggle", root, SIZES["criteo-kaggle"], ROWS, seed=3, progress=False)
    folder = data.prepare("criteo-kaggle", {"vocabulary": "all", "transform": "none"}, raw=file, progress=False)
    dataset = data.Dataset.open(folder)
    block = Teacher(synth.Options(seed=3, sizes=tuple(SIZES["criteo-kaggle"]))).rows(0, ROWS)
    held_out = ROWS // 7
    train, test = ROWS - held_out, (held_out + 1) // 2
    order = np.r_[0:train, train + test : ROWS, train : train + test]
    assert np.array_equal(dataset.labels, block.labels[order])
    for feature in range(26):
        ids = block.ids[order, feature]
        assert np.array_equal(pd.factorize(dataset.ids[:, feature])[0], pd.factorize(ids)[0])
        assert np.array_equal(dataset.ids[:, feature] == 0, ids == 0)
    dense = block.dense[order, 0]
    assert (np.diff(dataset.dense[np.argsort(dense), 0][dense[np.argsort(dense)] > -1.5]) >= 0).all()


def test_published_cardinalities_are_the_largest(root):
    assert sum(data.published_cardinalities("criteo-kaggle")) == 33_762_577
    assert sum(data.published_cardinalities("criteo-tb")) == 882_774_559
    assert sum(data.published_cardinalities("avazu")) == 9_449_445
    with pytest.raises(UserError, match=r"planted.yaml: has no published"):
        data.published_cardinalities("planted")
    with pytest.raises(UserError, match="unknown raw format 'criteo'; did you mean"):
        synth.write("criteo", root, [1], 10)

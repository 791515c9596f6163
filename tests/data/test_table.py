import gzip
import os
import resource
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML

from pocketrec import data, paths
from pocketrec.data.rows import random_split
from pocketrec.errors import UserError

ROWS = 2_000


@pytest.fixture
def frame() -> pl.DataFrame:
    generator = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "clicked": generator.integers(0, 2, ROWS),
            "user": [f"user {i}" for i in generator.integers(0, 300, ROWS)],
            "label": [None if i == 7 else f"né;{i}" for i in generator.integers(0, 12, ROWS)],
            "price": [None if i % 10 == 0 else float(i) for i in range(ROWS)],
            "when": generator.permutation(ROWS),
        }
    )


@pytest.fixture
def dataset(root, frame):
    """Return a function that writes a table and loads it as the dataset `mine`."""

    def load(name="t.csv", content=None, raw=None, **options):
        path = root / name
        if raw is not None:
            path.write_bytes(raw)
        elif path.suffix == ".parquet":
            (frame if content is None else content).write_parquet(path)
        else:
            text = (frame if content is None else content).write_csv(separator=options.get("separator", ","))
            path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        given = {"path": name, "label": "clicked", "categorical": ["user", "label"], "dense": ["price"]} | options
        with (root / "params" / "datasets" / "mine.yaml").open("w") as file:
            YAML(typ="safe").dump({"source": "table", "options": given}, file)
        return data.load("mine")

    return load


def rows_of(dataset: data.Dataset, split: np.ndarray) -> np.ndarray:
    """Return the table's row of each prepared row."""
    return np.argsort(split, kind="stable")


def test_ids_stand_for_the_sorted_values_of_training_rows(dataset, frame):
    mine = dataset()
    split = random_split(np.arange(ROWS), 0)
    assert [mine.rows(name) for name in ("train", "validation", "test")] == np.bincount(split).tolist()
    order = rows_of(mine, split)
    for feature, name in enumerate(["user", "label"]):
        values = frame[name].to_list()
        known = sorted({values[row] for row in np.flatnonzero(split == 0)} - {None}, key=str.encode)
        expected = [known.index(values[row]) + 1 if values[row] in known else 0 for row in order]
        assert mine.ids[:, feature].tolist() == expected
        assert mine.cardinalities[feature] == len(known) + 1
    assert mine.labels.tolist() == frame["clicked"].to_numpy()[order].tolist()


def test_all_formats_give_the_same_arrays(dataset):
    plain = dataset()
    others = [dataset("t.csv.gz"), dataset("t.tsv", separator="\t"), dataset("t.parquet"), dataset(separator=";")]
    for other in others:
        assert np.array_equal(plain.ids, other.ids) and np.array_equal(plain.dense, other.dense)
        assert np.array_equal(plain.labels, other.labels) and plain.digest != other.digest


def test_unseen_values_at_test_time_are_id_0(dataset, frame):
    late = frame.with_columns(
        pl.when(pl.col("when") < ROWS * 0.9).then(pl.col("user")).otherwise(pl.lit("new")).alias("user")
    )
    mine = dataset(content=late, split="time:when")
    assert (mine.ids[mine.split("test"), 0] == 0).all() and (mine.ids[mine.split("train"), 0] > 0).all()
    assert mine.describe()["unseen_in_test"][0] == 1
    assert dataset(content=late, split="time:when", vocabulary="all").ids[mine.split("test"), 0].min() > 0


def test_min_count_sends_rare_values_to_id_0(dataset):
    mine = dataset(min_count=6)
    counts = mine.feature_counts()[0]
    assert counts[1:].min() >= 6 and counts[0] > 0


def test_split_by_position_and_time(dataset, frame):
    mine = dataset(split="position")
    assert mine.labels.tolist() == frame["clicked"].to_list()
    assert mine.meta["splits"] == {"train": [0, 1600], "validation": [1600, 1800], "test": [1800, 2000]}
    early = frame.filter(pl.col("when") < 1600)["clicked"].to_list()
    assert dataset(split="time:when").labels[:1600].tolist() == early
    dates = pl.col("when") * pl.duration(hours=1) + pl.datetime(2024, 1, 1)
    assert dataset(split="time:when", content=frame.with_columns(when=dates)).labels[:1600].tolist() == early
    with pytest.raises(UserError, match="row 1: column 'when' is '31/12/2024'; times must"):
        dataset(split="time:when", content=frame.with_columns(when=pl.lit("31/12/2024")))


def test_dense_transforms(dataset, frame):
    train = slice(0, 1600)
    price = frame["price"].to_numpy()
    fine = ~np.isnan(price[train])
    mean, spread = price[train][fine].mean(), price[train][fine].std()
    for transform, expected in {
        "standardise": np.nan_to_num((price - mean) / spread),
        "log1p": np.nan_to_num(np.log1p(price)),
        "none": np.nan_to_num(price),
    }.items():
        found = dataset(split="position", transform=transform).dense[:, 0]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_quotes_are_text_between_tabs_and_where_it_is_said(dataset, frame):
    quoted = frame.with_columns(pl.concat_str(pl.lit('"'), "user").alias("user"))
    text = "\n".join("\t".join("" if v is None else str(v) for v in row) for row in [quoted.columns, *quoted.rows()])
    tabs = dataset("t.tsv", raw=text.encode())
    assert len(tabs.ids) == ROWS and np.array_equal(tabs.ids, dataset().ids)
    commas = dataset("q.csv", raw=text.replace("\t", ",").encode(), quotes=False)
    assert np.array_equal(commas.ids, tabs.ids)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_quoted_empty_field_is_missing(dataset, frame, name):
    plain = dataset()
    content = frame.with_columns(pl.col("label").fill_null(""), pl.col("price").cast(pl.String).fill_null(""))
    if name == "t.csv":
        quoted = dataset("q.csv", raw=content.write_csv(quote_style="always").encode())
    else:
        quoted = dataset(name, content=content)
    assert np.array_equal(quoted.ids, plain.ids) and np.array_equal(quoted.dense, plain.dense)


def test_a_number_that_is_constant_in_training_stays_finite(dataset, frame):
    price = pl.when(pl.col("when") < 1900).then(19.99).otherwise(24.99).alias("price")
    mine = dataset(content=frame.with_columns(price), split="time:when")
    assert np.abs(mine.dense[mine.split("train")]).max() < 1e-6
    assert np.abs(mine.dense[mine.split("test")]).max() == pytest.approx(5)


def test_a_changed_file_has_another_digest(dataset, root):
    before = dataset().digest
    with (root / "t.csv").open("a") as file:
        file.write("1,new,new,1.0,3\n")
    assert data.digest("mine") != before


def test_a_file_that_was_touched_or_put_away_is_the_same(dataset, root):
    before = dataset()
    (root / "t.csv").touch()
    assert data.digest("mine") == before.digest
    os.utime(root / "t.csv", ns=(1, 1))
    assert data.digest("mine") == before.digest
    (root / "t.csv").unlink()
    assert data.load("mine").digest == before.digest


@pytest.mark.parametrize(("path", "message"), [("folder", "no such file"), ("t.csv", "cannot be read: Permission")])
def test_what_cannot_be_read_is_a_users_error(dataset, root, path, message, monkeypatch):
    dataset()
    (root / "folder").mkdir()
    (paths.DATA / "hashes.json").write_text("[]")

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pocketrec.data.identity._hash", refused)
    with pytest.raises(UserError, match=f"{path}: {message}.*; set option 'path' to your table"):
        data.digest("mine", {"path": path})


def test_a_change_that_keeps_size_and_time_elsewhere_is_seen(dataset, root):
    before, state = dataset().digest, (root / "t.csv").stat()
    content = (root / "t.csv").read_bytes()
    (root / "t.csv").write_bytes(content.replace(b"user 1,", b"user 2,", 1))
    os.utime(root / "t.csv", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert data.digest("mine") != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"raw": b""}, "t.csv: the file is empty"),
        ({"raw": b"clicked,user,label,price\n"}, "no training rows"),
        ({"label": "click"}, "unknown column 'click'; did you mean 'clicked'"),
        ({"split": "time:wen"}, "unknown column 'wen'; did you mean 'when'"),
        ({"raw": b"clicked;user\n1;a\n"}, r"only one column with the separator ','; .* semicolon .*'separator'"),
        ({"raw": b"clicked,user,label,price\n1,a,b,2\n2,a,b,2\n"}, "row 2: column 'clicked' is '2'; labels must"),
        ({"raw": b"clicked,user,label,price\n1,a,b,2\n,a,b,2\n"}, "row 2: column 'clicked' is empty"),
        ({"raw": b"clicked,user,label,price\n1,a,b,2\n0,a,b,x\n"}, "row 2: column 'price' is 'x'; dense values"),
        ({"raw": b"clicked,user,label,price\n" + b"1,a,b,2\n" * 50}, "every training row has the label 1"),
        ({"raw": b"clicked,user,label,price\n1,a,b,2,3,4\n"}, "cannot be read"),
        ({"raw": b"PAR1 nonsense", "name": "t.parquet"}, "t.parquet: cannot be read"),
        ({"raw": b"\xff\xfe,b\n1,2\n"}, "t.csv: cannot be read: .*save it as UTF-8"),
        ({"raw": b"clicked,user,label,price\n1,a,b,2\n1,\xff,b,2\n"}, "t.csv: cannot be read: .*save it as UTF-8"),
        ({"raw": b"clicked,user,label,price\n1,a,b,2\n1,a,2\n"}, "cannot be read: .*Expected 4 columns, got 3"),
        ({"raw": b"clicked,user,label,price,user\n1,a,b,2,c\n"}, "2 columns are called 'user'"),
        ({"raw": b'clicked,user,label,price\n1,"a,b,2\n0,c",b,2\n'}, "row 1: column 'user' is 'a,b.*`quotes: false`"),
        ({"raw": b'clicked,user,label,price\n1,"a,b,2\n' + b"0,c,b,2\n" * 9}, "cannot be read: .*Expected 4"),
        ({"raw": b"clicked,user,label,price\n1,a,b,1e300\n"}, "row 1: column 'price' is '1e300'; dense values"),
        ({"raw": b"clicked,user,label,price\n1,a,b,1\n1,a,b,NaN\n", "split": "time:price"}, "row 2: .*needs its time"),
        (
            {
                "raw": b"clicked,user,label,price\n1,2024-01-03 9:00,b,1\n",
                "categorical": ["label"],
                "split": "time:user",
            },
            "row 1: column 'user' is '2024-01-03 9:00'; times must",
        ),
        ({"raw": b"clicked,user,label,price\n1,a,b,2\n1,a, j,b,2\n", "dense": []}, "cannot be read"),
        ({"raw": b"clicked,user,label,price\n" + b"1,a,b,2\n0,a,b,2\n" * 9, "split": "time:price"}, "no (train|valid)"),
        ({"min_count": 0}, "min_count. is 0"),
        ({"categorical": []}, "names no column"),
        ({"categorical": ["user", "clicked"]}, "column 'clicked' is named twice"),
        ({"split": "tine"}, "known: random, position, time"),
        ({"path": "nowhere.csv"}, "nowhere.csv: no such file; set option 'path'"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_leaves_nothing(dataset, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        dataset(**arguments)
    assert "\n" not in str(caught.value)
    assert not list(paths.DATA.glob("prepared/mine-*")) and not list(paths.DATA.glob("prepared/.*.building"))


@pytest.mark.parametrize("name", ["t.csv.gz", "t.parquet"])
def test_truncated_file(dataset, frame, root, name):
    dataset(name)
    whole = (root / name).read_bytes()
    with pytest.raises(UserError, match="cannot be read"):
        dataset(name, raw=whole[: len(whole) // 2])


def test_missing_options_are_named(root):
    (root / "params" / "datasets" / "mine.yaml").write_text("source: table\noptions: {path: t.csv}\n")
    with pytest.raises(UserError, match=r"mine.yaml: option 'label' is missing"):
        data.digest("mine")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(root, dataset, frame):
    """A table five times as long, with the same values, needs about the same memory."""
    peaks = []
    for repeats in (400, 2_000):
        dataset(content=frame)
        pl.concat([frame] * repeats).write_csv(root / "t.csv")
        code = "from pocketrec import data; data.load('mine')"
        environment = {"POCKETREC_ROOT": str(root), "POCKETREC_DATA": str(root / "data")}
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, stderr=subprocess.DEVNULL)
        peaks.append(max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
    assert peaks[1] < 2 * peaks[0]

"""Criteo's and Avazu's original formats, against pandas, on small files and on genuine samples where they are.

`POCKETREC_SAMPLES` names a folder with the samples; they are not part of the project.
"""

import gzip
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from originals import FORMATS, ROWS, lines, write
from polars.exceptions import PolarsError

from pocketrec import data, paths
from pocketrec.data import columns, text
from pocketrec.data.rows import random_split, uniform
from pocketrec.data.sources import avazu
from pocketrec.errors import UserError

SAMPLES = {
    "criteo-kaggle": "criteo_kaggle_train_head10000.txt",
    "criteo-tb": "criteo_tb_day0_head1000.tsv",
    "avazu": "avazu_train_head9999.csv",
}
HELD_OUT = {"criteo-kaggle": (1, 7), "criteo-tb": (1, 24), "avazu": (4_218_938, 40_428_967)}


def sample(name: str, folder: Path) -> Path:
    """Return a genuine sample, or skip."""
    path = Path(os.environ.get("POCKETREC_SAMPLES") or folder / "none") / SAMPLES[name]
    return path if path.is_file() else pytest.skip("POCKETREC_SAMPLES names no folder with the genuine samples")


def with_pandas(file: Path, name: str, options: dict) -> dict[str, np.ndarray]:
    """Prepare a file as the documentation says, with another engine and everything in memory."""
    form, chosen = FORMATS[name], data.catalogue._choose(name, options).options
    frame = pd.read_csv(
        file,
        sep=form.separator,
        names=list(form.columns),
        skiprows=int(form.has_header),
        dtype=str,
        keep_default_na=False,
    )
    row, last = np.arange(len(frame)), len(frame) * HELD_OUT[name][0] // HELD_OUT[name][1]
    label = frame[form.names("label")[0]].astype(int).to_numpy()
    if chosen.split == "random":
        split = random_split(row, chosen.split_seed)
    else:
        split = np.where(row < len(frame) - last, 0, np.where(row < len(frame) - last + (last + 1) // 2, 2, 1))
    if getattr(chosen, "drop_negatives", 0):
        kept = (label == 1) | (uniform(row, chosen.split_seed) >= chosen.drop_negatives)
        frame, label, split = frame[kept], label[kept], split[kept]
    dense_names = form.names("integer") if name != "avazu" else []
    dense = frame[dense_names].replace("", np.nan).astype(float)
    if getattr(chosen, "transform", "none") == "log1p":
        dense = np.log1p(dense.clip(lower=0))
    elif dense_names:
        dense = (dense - dense[split == 0].mean()) / dense[split == 0].std(ddof=0)
    ids, sizes = [], []
    for feature in [n for n in form.columns if n not in (*dense_names, *form.names("label"), *form.names("ignored"))]:
        base = 16 if form.columns[feature] == "hex" else 10
        values = pd.Series([int(value, base) if value else None for value in frame[feature]], dtype="Int64")
        if getattr(chosen, "id_cap", None):
            values = values % chosen.id_cap
        seen = (values if chosen.vocabulary == "all" else values[split == 0]).value_counts()
        known = sorted(seen[seen >= chosen.min_count].index)
        ids.append(pd.Index(known).get_indexer(values) + 1 if known else np.zeros(len(values), int))
        sizes.append(len(known) + 1)
    order = np.argsort(split, kind="stable")
    return {
        "labels": label[order],
        "ids": np.stack(ids, axis=1)[order],
        "dense": dense.fillna(0).to_numpy(np.float32).reshape(len(label), -1)[order],
        "split": np.bincount(split, minlength=3),
        "sizes": sizes,
    }


def assert_as_with_pandas(file: Path, name: str, options: dict) -> None:
    dataset = data.Dataset.open(data.prepare(name, options, raw=file, progress=False))
    expected = with_pandas(file, name, options)
    assert np.array_equal(dataset.labels, expected["labels"])
    assert np.array_equal(dataset.ids, expected["ids"]) and dataset.cardinalities == expected["sizes"]
    train = dataset.ids[dataset.split("train")].T
    for counts, ids, size in zip(dataset.feature_counts(), train, dataset.cardinalities, strict=True):
        assert np.array_equal(counts, np.bincount(ids, minlength=size))
    assert dataset.dense == pytest.approx(expected["dense"], rel=1e-6, abs=1e-6)
    assert [dataset.rows(split) for split in ("train", "validation", "test")] == expected["split"].tolist()


CHOICES = [
    ("criteo-kaggle", {}),
    ("criteo-kaggle", {"vocabulary": "all", "id_cap": 1_000}),
    ("criteo-kaggle", {"split": "random", "min_count": 3, "transform": "standardise"}),
    ("criteo-tb", {"drop_negatives": 0.875, "id_cap": 10_000_000}),
    ("avazu", {}),
    ("avazu", {"split": "random", "vocabulary": "all", "min_count": 2}),
]


@pytest.mark.parametrize(("name", "options"), CHOICES)
def test_arrays_are_those_of_pandas(root, monkeypatch, name, options):
    monkeypatch.setattr(text, "BLOCK", 50_000)
    assert_as_with_pandas(write(root / "train.txt", name, lines(name)), name, options)


def test_the_hour_of_the_day_may_be_a_number(root):
    file = write(root / "train.csv", "avazu", lines("avazu"))
    plain, dense = (
        data.Dataset.open(data.prepare("avazu", {"hour": hour}, raw=file, progress=False))
        for hour in ("feature", "dense")
    )
    assert np.array_equal(dense.ids, plain.ids[:, 1:]) and np.array_equal(dense.labels, plain.labels)
    assert dense.cardinalities == plain.cardinalities[1:] and plain.num_dense == 0
    hours = pd.read_csv(file)["hour"].fillna(0).to_numpy() % 100  # a missing one is 0
    assert sorted(dense.dense[:, 0]) == pytest.approx(sorted(np.log1p(hours)), rel=1e-6)


@pytest.mark.parametrize(("name", "options"), CHOICES[1:3])
def test_a_vocabulary_collected_in_many_passes_is_the_same(root, monkeypatch, name, options):
    monkeypatch.setattr(columns, "PASS", 40)
    assert_as_with_pandas(write(root / "train.txt", name, lines(name)), name, options)


@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
@pytest.mark.parametrize("spread", ["even", "clustered", "few", "none"])
def test_integers_are_found_where_a_search_finds_them(dtype, spread):
    generator = np.random.default_rng(0)
    high = np.iinfo(np.uint32).max
    drawn = {
        "even": generator.integers(0, high, 200_000, endpoint=True),
        "clustered": np.concatenate([generator.integers(0, 5_000, 3_000), [high]]),
        "few": np.array([0, 7, high]),
        "none": np.array([], np.int64),
    }[spread]
    values = np.unique(drawn).astype(dtype)
    wanted = np.concatenate([drawn, drawn + 1, generator.integers(0, high, 10_000), [0, high]]) % 2**32
    expected = pd.Index(values).get_indexer(wanted) + 1 if len(values) else np.zeros(len(wanted))
    assert np.array_equal(columns._Lookup(values)(wanted.astype(dtype)), expected)


@pytest.mark.parametrize(("name", "options"), CHOICES)
def test_arrays_of_genuine_samples_are_those_of_pandas(root, name, options):
    assert_as_with_pandas(sample(name, root), name, options)


def packed(folder: Path, kind: str, content: bytes, member: str) -> Path:
    path = folder / {"plain": "train", "gz": "train.gz", "zip": "train.zip", "tar": "dac.tar.gz"}.get(
        kind, "nested.zip"
    )
    if kind == "plain":
        path.write_bytes(content)
    elif kind == "gz":
        path.write_bytes(gzip.compress(content[: len(content) // 2]) + gzip.compress(content[len(content) // 2 :]))
    elif kind == "tar":
        with tarfile.open(path, "w:gz") as tar:
            for name, held in (("readme.txt", b"terms"), (f"./{member}", content), ("test.txt", b"1")):
                entry = tarfile.TarInfo(name)
                entry.size = len(held)
                tar.addfile(entry, io.BytesIO(held))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("test.csv", b"1")
            nested = kind == "nested"
            archive.writestr(
                f"train{'.gz' * nested or Path(member).suffix}", gzip.compress(content) if nested else content
            )
    return path


@pytest.mark.parametrize("name", ["criteo-kaggle", "avazu"])
def test_every_packing_gives_the_same_arrays(root, monkeypatch, contents, name):
    monkeypatch.setattr(text, "BLOCK", 50_000)
    content = write(root / "x", name, lines(name)).read_bytes()
    member = "train.txt" if name == "criteo-kaggle" else "train.csv"
    arrays = []
    for kind in ("plain", "gz", "zip", "tar", "nested"):
        found = contents(data.prepare(name, raw=packed(root, kind, content, member), progress=False))
        arrays.append([found[array] for array in ("ids.npy", "dense.npy", "labels.npy", "counts.npy")])
    assert all(other == arrays[0] for other in arrays[1:])
    crlf = packed(root, "plain", content.replace(b"\n", b"\r\n").removesuffix(b"\r\n"), member)
    assert contents(data.prepare(name, raw=crlf, progress=False))["ids.npy"] == arrays[0][0]


def test_of_several_days_the_last_is_held_out(root):
    (root / "raw").mkdir()
    days = {f"day_{day}": lines("criteo-tb", 500 + day, seed=day) for day in (0, 2, 9, 10)}
    for day, content in days.items():
        write(root / "raw" / day, "criteo-tb", content)
    (root / "raw" / "notes.txt").write_text("not a day")
    folder = data.prepare("criteo-tb", raw=root / "raw", progress=False)
    dataset = data.Dataset.open(folder)
    assert dataset.meta["splits"] == {"train": [0, 1511], "validation": [1511, 1766], "test": [1766, 2021]}
    labels = [int(line[:1]) for day in ("day_0", "day_2", "day_9") for line in days[day]]
    assert dataset.labels[:1511].tolist() == labels
    assert dataset.labels[dataset.split("test")].tolist() == [int(line[:1]) for line in days["day_10"][:255]]
    one_by_one = [root / "raw" / day for day in days]
    assert data.prepare("criteo-tb", raw=one_by_one, progress=False) == folder


def broken(content: list[bytes]) -> dict[int, bytes]:
    """Return lines that break the format in every way, by their number from 0 on."""
    good = content[0].split(b"\t")
    return {
        10: b"\t".join(good[:-1]),  # a field too few
        11: b"\t".join([*good, b"68fd1e64"]),  # and one too many: the tabs add up
        500: b"2" + content[500][1:],
        501: content[501][1:],
        900: b"\t".join([*good[:14], b"xyz", *good[15:]]),
        901: b"\t".join([*good[:14], b"123456789", *good[15:]]),
        902: b"\t".join([*good[:3], b"1.5", *good[4:]]),
        1500: b"",
        2999: content[2999][:40],  # cut short
    }


def test_malformed_lines_are_counted_shown_and_left_out(root, monkeypatch):
    monkeypatch.setattr(text, "BLOCK", 50_000)
    content = lines("criteo-kaggle")
    bad = broken(content)
    spoiled = [bad.get(number, line) for number, line in enumerate(content)]
    file = write(root / "train.txt", "criteo-kaggle", spoiled)
    with pytest.raises(UserError, match="9 of 3,000 lines are malformed, more than the share 0.0001") as caught:
        data.prepare("criteo-kaggle", raw=file, progress=False)
    assert f"{file}:11: " in str(caught.value) and f"{file}:501: " in str(caught.value)
    assert not list(paths.DATA.glob("prepared/criteo*")) and not list(paths.DATA.glob("prepared/.*.building"))
    dataset = data.load("criteo-kaggle", malformed_share=0.003)
    assert dataset.meta["notes"]["malformed lines left out"] == 9 and dataset.meta["rows"] == ROWS - 9
    assert [int(re.search(r":(\d+): ", line)[1]) for line in dataset.meta["notes"]["the first of them"]] == [
        11, 12, 501, 502, 901,
    ]  # fmt: skip
    labels = [int(line[:1]) for number, line in enumerate(content) if number not in bad]
    order = [*range(dataset.rows("train")), *range(*dataset.split("test").indices(ROWS))]
    order += range(*dataset.split("validation").indices(ROWS))
    assert dataset.labels[order].tolist() == labels


@pytest.mark.parametrize(
    "field", [b"+5", b" 5", b"05", b"-0", b"5 ", b"1_0", b"1.0", b"0x5", b"--5", b"5e1", b"+", b""]
)
@pytest.mark.parametrize("column", [0, 1, 14])
def test_a_line_is_malformed_whatever_stands_around_it(tmp_path, column, field):
    """The parser and the pattern, which only blocks with a malformed line are held against, agree."""
    form = FORMATS["criteo-kaggle"]
    fields = lines("criteo-kaggle", 1)[0].split(b"\t")
    fields[column] = field.replace(b"5", b"1") if column == 0 else field
    line = b"\t".join(fields) + b"\n"
    try:
        read = len(text._frame(line, 1, form)) == 1
    except (ValueError, PolarsError):
        read = False
    assert read == bool(form.line.fullmatch(line[:-1]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("criteo-kaggle", b"", "the file has no rows"),
        (
            "criteo-kaggle",
            b"1,2,3\n" * 100,
            r"train.txt:1: '1,2,3': this and 99 of the next 99 lines do not have the or",
        ),
        ("avazu", b"id,click\n1,1\n", r"train.txt:1: expected the header b'id,click,hour"),
        ("avazu", avazu.FORMAT.header + b"\n", "the file has no rows"),
    ],
)
def test_other_files_are_refused(root, name, content, message):
    (root / "train.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        data.prepare(name, raw=root / "train.txt", progress=False)


@pytest.mark.parametrize("kind", ["gz", "zip", "tar"])
def test_a_file_cut_short_is_refused(root, kind):
    path = packed(root, kind, write(root / "x", "criteo-kaggle", lines("criteo-kaggle")).read_bytes(), "train.txt")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read, or is cut short"):
        data.prepare("criteo-kaggle", raw=path, progress=False)


def test_an_archive_without_the_member_is_refused(root):
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        archive.writestr("other.txt", b"1")
    with pytest.raises(UserError, match="has no member train.txt"):
        data.prepare("criteo-kaggle", raw=root / "train.zip", progress=False)


def test_where_the_files_are_is_remembered(root):
    with pytest.raises(UserError, match=r"criteo-kaggle: where its raw files are is not known; .* --raw FILE"):
        data.digest("criteo-kaggle")
    file = write(root / "train.txt", "criteo-kaggle", lines("criteo-kaggle"))
    folder = data.prepare("criteo-kaggle", raw=file, progress=False)
    before = data.digest("criteo-kaggle")
    kept = file.read_bytes()
    file.unlink()
    assert data.digest("criteo-kaggle") == before and data.prepare("criteo-kaggle", progress=False) == folder
    file.write_bytes(kept + kept)
    assert data.digest("criteo-kaggle") != before
    with pytest.raises(UserError, match="nowhere: no such file"):
        data.prepare("criteo-kaggle", raw=root / "nowhere", progress=False)


def test_cardinalities_are_compared_with_the_published_ones(root):
    name = "criteo-kaggle"
    file = write(root / "train.txt", name, lines(name))
    assert (
        "3,000 rows instead of 45,840,617" in data.Dataset.open(data.prepare(name, raw=file)).meta["notes"]["published"]
    )
    sizes = with_pandas(file, name, {"vocabulary": "all"})["sizes"]  # id 0 stands for the missing value
    path = root / "params" / "datasets" / f"{name}.yaml"
    text = path.read_text().replace("45_840_617", "3_000")
    path.write_text(re.sub(r"cardinalities: \[[^]]*\]", f"cardinalities: {sizes}", text))
    note = data.load(name, min_count=1, split_seed=5).meta["notes"]["published"]
    assert note == "3,000 rows, all that were published; all 26 cardinalities are those of DLRM, Hetu"
    path.write_text(re.sub(r"cardinalities: \[[^]]*\]", f"cardinalities: {[sizes[0] + 1, *sizes[1:]]}", text))
    note = data.load(name, split_seed=6).meta["notes"]["published"]
    assert note.endswith(f"cardinalities unlike those of DLRM, Hetu: C1 has {sizes[0]:,} instead of {sizes[0] + 1:,}")


KILLED = """
import os, signal, sys
from pathlib import Path
from pocketrec import data
from pocketrec.data import columns, rows, text

owner, name, calls = {"read": (text, "_parse", 5), "encode": (rows._Column, "append", 9)}[sys.argv[2]]
original, left = getattr(owner, name), iter(range(calls))
def counted(*arguments):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(owner, name, counted)
text.BLOCK, columns.BLOCK = 50_000, 256
data.prepare("criteo-kaggle", raw=Path(sys.argv[1]), progress=False)
"""


@pytest.mark.parametrize("stage", ["read", "encode"])
def test_killed_half_way_and_started_again_it_gives_the_same_bytes(root, monkeypatch, contents, stage):
    monkeypatch.setattr(text, "BLOCK", 50_000)
    file = write(root / "train.txt", "criteo-kaggle", lines("criteo-kaggle"))
    environment = os.environ | {"POCKETREC_ROOT": str(root), "POCKETREC_DATA": str(root / "data")}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file), stage], env=environment)
    assert killed.returncode == -signal.SIGKILL
    (left,) = paths.DATA.glob("prepared/.*.building")
    assert list((left / "scratch").iterdir()) and (left / "labels.npy").exists() == (stage == "encode")
    again = contents(data.prepare("criteo-kaggle", progress=False))
    assert not list(paths.DATA.glob("prepared/.*.building"))
    monkeypatch.setattr(paths, "DATA", root / "elsewhere")
    assert contents(data.prepare("criteo-kaggle", raw=file, progress=False)) == again


@pytest.mark.parametrize("size", ["64k", "500k"])  # too small for the scratch files, and for the arrays
def test_a_full_disk_is_one_clear_sentence_and_leaves_nothing(root, size):
    file = write(root / "train.txt", "criteo-kaggle", lines("criteo-kaggle"))
    paths.DATA.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", paths.DATA], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted without the rights for it")
    try:
        with pytest.raises(UserError, match="prepared: no space left on this disk, so nothing was kept; make room"):
            data.prepare("criteo-kaggle", raw=file, progress=False)
        assert [path for path in (paths.DATA / "prepared").iterdir() if path.suffix != ".lock"] == []
    finally:
        subprocess.run(["umount", paths.DATA], check=True)

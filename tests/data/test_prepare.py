import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pocketrec import data, paths
from pocketrec.data.rows import Block, Rows, write
from pocketrec.errors import UserError

TINY = {"rows": 5_000, "scale": 0.001}
PREPARE = "import json, sys; from pocketrec import data; print(data.prepare('planted', json.loads(sys.argv[1])))"


def start(root: Path, options: dict) -> subprocess.Popen:
    environment = os.environ | {"POCKETREC_ROOT": str(root), "POCKETREC_DATA": str(root / "data")}
    command = [sys.executable, "-c", PREPARE, json.dumps(options)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


LATER = [pytest.param(name, marks=pytest.mark.slow) for name in ("labels.npy", "counts.npy")]


@pytest.mark.parametrize("name", ["ids.npy", "meta.json", *LATER])
def test_a_damaged_folder_is_prepared_again(root, name):
    folder = data.prepare("planted", TINY, progress=False)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert (data.prepare("planted", TINY, progress=False) / name).read_bytes() == whole
    (folder / name).unlink()
    assert (data.prepare("planted", TINY, progress=False) / name).read_bytes() == whole


def test_prepared_folder_holds_what_its_meta_says(root):
    folder = data.prepare("planted", TINY, progress=False)
    dataset = data.load("planted", **TINY)
    assert folder.name == f"planted-{data.digest('planted', TINY)[:12]}"
    assert dataset.labels.dtype == np.uint8 and dataset.ids.dtype == np.int32
    assert dataset.dense.dtype == dataset.teacher.dtype == np.float32
    assert dataset.dense.shape == (5_000, 13) and dataset.ids.shape == (5_000, 26)
    assert dataset.meta["splits"] == {"train": [0, 4000], "validation": [4000, 4500], "test": [4500, 5000]}
    assert (dataset.ids.max(axis=0) < dataset.cardinalities).all() and dataset.ids.min() >= 0
    for name in ("train", "validation", "test"):
        assert dataset.meta["positives"][name] == dataset.labels[dataset.split(name)].sum()
    for feature, counts in enumerate(dataset.feature_counts()):
        train = dataset.ids[dataset.split("train"), feature]
        assert (counts == np.bincount(train, minlength=dataset.cardinalities[feature])).all()


def test_prepare_again_changes_nothing(root):
    folder = data.prepare("planted", TINY, progress=False)
    before = (folder / "meta.json").stat().st_mtime_ns
    assert data.prepare("planted", TINY, progress=False) == folder
    assert (folder / "meta.json").stat().st_mtime_ns == before


def test_digest_follows_options_and_not_their_order(root):
    digests = {data.digest("planted", o) for o in ({}, {"seed": 1}, {"rows": 20}, {"rows": 20, "seed": 1})}
    assert len(digests) == 4
    assert data.digest("planted", {"seed": 1, "rows": 20}) in digests
    assert data.digest("planted", {"seed": 0}) == data.digest("planted")


@pytest.mark.slow
def test_kill_half_way_leaves_nothing_and_the_next_start_gives_the_same_bytes(root, contents, monkeypatch):
    options = {"rows": 400_000, "scale": 0.001}
    process = start(root, options)
    labels = root / "data" / "prepared"
    for _ in range(3000):
        if any(file.stat().st_size > 40_000 for file in labels.glob(".*.building/labels.npy")):
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(labels.glob(".*.building")) and not list(labels.glob("planted-*"))
    repaired = contents(data.prepare("planted", options, progress=False))
    assert not list(labels.glob(".*.building"))
    monkeypatch.setattr(paths, "DATA", root / "elsewhere")
    assert contents(data.prepare("planted", options, progress=False)) == repaired


def test_left_over_builds_of_other_options_are_cleaned(root):
    left = paths.DATA / "prepared" / ".planted-0123456789ab.building"
    left.mkdir(parents=True)
    data.prepare("planted", TINY, progress=False)
    assert not left.exists()


def test_failed_build_leaves_nothing(root, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("pocketrec.data.rows.write_json", fail)
    with pytest.raises(OSError, match="no space"):
        data.prepare("planted", TINY, progress=False)
    assert [path for path in (paths.DATA / "prepared").iterdir() if path.suffix != ".lock"] == []


def test_two_processes_at_once_give_one_folder(root):
    both = [start(root, TINY | {"rows": 100_000}) for _ in range(2)]
    folders = {process.communicate(timeout=60)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1 and len(list((root / "data" / "prepared").glob("planted-*"))) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("plantd", {}, "unknown dataset 'plantd'; did you mean 'planted'"),
        ("../planted", {}, "unknown dataset"),
        ("planted", {"row": 5}, "unknown option 'row'; did you mean 'rows'"),
        ("planted", {"rows": "many"}, "option 'rows': expected int, found 'many'"),
        ("planted", {"rows": True}, "expected int, found True"),
        ("planted", {"rows": 0}, "rows must be at least 10"),
        ("planted", {"base_rate": 2}, "base_rate between 0 and 1"),
        ("planted", {"rare_share": 0.9}, "negative share"),
        ("bookcrossing", {"task": "explicitly"}, "unknown value 'explicitly'; did you mean 'explicit'"),
    ],
)
def test_wrong_names_and_values(root, name, options, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        data.digest(name, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source: plantd\n", "unknown source 'plantd'; did you mean 'planted'"),
        ("titel: x\nsource: planted\n", "unknown key 'titel'; did you mean 'title'"),
        ("title: x\n", "unknown source None"),
    ],
)
def test_wrong_yaml(root, text, message):
    (root / "params" / "datasets" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine.yaml: " + message):
        data.digest("mine")


def test_raw_is_for_downloaded_datasets(root):
    with pytest.raises(UserError, match="planted: takes no raw file"):
        data.prepare("planted", TINY, raw=Path("x"))


def test_every_dataset_has_a_recipe(root):
    assert data.available() == sorted(path.stem for path in (root / "params" / "datasets").glob("*.yaml"))
    assert all(data.recipe(name)["dim"] > 0 for name in data.available())


def test_writer_orders_splits_and_refuses_ids_out_of_range(tmp_path):
    split = np.array([2, 0, 1, 0, 2], np.uint8)
    ids = np.arange(5)[:, None]
    blocks = [
        Block(split % 2, np.zeros((5, 0)), ids, split),
        Block(split % 2, np.zeros((5, 0)), ids + 5, split),
    ]
    write(tmp_path, Rows({"f": 10}, [], [4, 2, 4], iter(blocks)), {})
    assert np.load(tmp_path / "ids.npy")[:, 0].tolist() == [1, 3, 6, 8, 2, 7, 0, 4, 5, 9]
    with pytest.raises(IndexError, match="out of range"):
        write(tmp_path, Rows({"f": 9}, [], [4, 2, 4], iter(blocks)), {})


def test_wide_features_get_int64_ids_and_no_counts(tmp_path):
    block = Block(np.zeros(1), np.zeros((1, 0)), np.array([[2**31]]), np.zeros(1, np.uint8))
    write(tmp_path, Rows({"f": 2**31 + 1}, [], [1, 0, 0], iter([block])), {"name": "wide"})
    dataset = data.Dataset.open(tmp_path)
    assert dataset.ids.dtype == np.int64 and dataset.ids[0, 0] == 2**31 and dataset.counts is None
    assert list(dataset.describe()) == ["feature", "cardinality"]

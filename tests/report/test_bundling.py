"""One file to send: whole, without the sender's name, and good enough to compare with."""

import json
import shutil
import socket
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import records

from pocketrec import paths, report
from pocketrec.errors import UserError
from pocketrec.report.bundling import anonymous


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sent") / "quick"
    records.write(folder, [records.quality("robe", "planted", 10, seed) for seed in range(2)])
    run = folder / "runs/robe/planted/r10-s0"
    (run / "log.txt").write_text(f"{paths.ROOT}/lib/pocketrec/x.py on {socket.gethostname()} in {Path.home()}/notes\n")
    (run / "embedding.safetensors").write_bytes(b"large")
    (folder / "runs/robe/planted/r10-s1/run.ipynb").write_text(" " * 1_000_001)
    return folder


def test_it_holds_what_a_reader_needs(suite, tmp_path):
    path, left_out = report.bundle(suite, tmp_path / "sent.zip")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    run = "quick/runs/robe/planted/r10-s0"
    assert {"quick/index.html", "quick/results.parquet", f"{run}/record.json", f"{run}/run.ipynb"} <= names
    assert {"quick/environment/constraints.txt", "quick/environment/environment.yml"} <= names
    assert f"{run}/embedding.safetensors" not in names
    assert left_out == ["runs/robe/planted/r10-s1/run.ipynb"]
    assert "quick/runs/robe/planted/r10-s1/run.ipynb" not in names


def test_it_goes_into_a_folder_with_the_files_that_define_it(suite, tmp_path):
    (tmp_path / "alice").mkdir()  # wherever it lies, whose name is nobody's business
    asked = tmp_path / "alice/quick.yaml"
    asked.write_text(f"title: mine\noptions: {{path: {Path.home()}/clicks.csv}}\n")
    path, _ = report.bundle(suite, tmp_path, params=[asked, paths.PARAMS / "datasets/planted.yaml"])
    assert path == tmp_path / "quick.zip"
    with zipfile.ZipFile(path) as archive:
        text = archive.read("quick/params/suites/quick.yaml").decode()
        assert "quick/params/datasets/planted.yaml" in archive.namelist()
    assert text.startswith("title: mine") and "{path: ~/clicks.csv}" in text


def test_it_is_read_like_a_folder(suite, tmp_path):
    path, _ = report.bundle(suite, tmp_path)
    pd.testing.assert_frame_equal(report.load_results(path), report.load_results(suite))
    assert len(report.load_curves(path)) == len(report.load_curves(suite))


def test_it_names_neither_machine_nor_folder(suite, tmp_path):
    path, _ = report.bundle(suite, tmp_path / "sent.zip")
    with zipfile.ZipFile(path) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if "environment/" not in name).decode(
            "latin-1"
        )
    for word in (str(paths.ROOT), f"{Path.home()}/", socket.gethostname(), str(tmp_path)):
        assert word not in text
    assert "./lib/pocketrec/x.py on host in ~/notes" in text


def test_words_that_only_contain_a_name_stay(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "ana")
    monkeypatch.setattr("socket.gethostname", lambda: "lab")
    assert anonymous("ana on lab: analysis, label, banana") == "user on host: analysis, label, banana"


def test_the_keys_of_a_record_stay_whoever_sends_it(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "test")
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    found = json.loads(anonymous('{"test": {"auc": 0.5}, "by": ["https://x", "test"]}'))
    assert found == {"test": {"auc": 0.5}, "by": ["https://x", "user"]}


def test_a_name_with_a_dot_keeps_all_of_it(suite, tmp_path):
    path, _ = report.bundle(shutil.copytree(suite, tmp_path / "exp1.5"))
    assert path.name == "exp1.5.zip"


def test_it_can_be_compared_with(suite, tmp_path):
    path, _ = report.bundle(suite, tmp_path / "sent.zip")
    with report.unpacked(path) as folder:
        assert set(report.compare(folder, suite)["flag"]) == {"same"}
        assert (folder / "index.html").exists()
    assert not folder.exists()


def test_what_is_no_bundle_is_one_sentence(tmp_path):
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    for name in ("text.zip", "other.zip", "missing.zip"):
        with pytest.raises(UserError, match=name), report.unpacked(tmp_path / name):
            pass
    with pytest.raises(UserError, match="nothing to bundle"):
        report.bundle(tmp_path)

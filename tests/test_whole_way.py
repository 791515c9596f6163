"""The whole way on tiny data: suite, runs, records, dashboards, page; twice."""

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pocketrec import load_results, paths

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow
SUITE = """
title: tiny
timed: latency
grid: {method: [full, hashing, low_dim, robe], dataset: planted, ratio: 50, seed: 0}
options: {planted: {rows: 20_000, scale: 0.0001}}
fixed: {bottom_mlp: [8], top_mlp: [8], batch_size: 256, table_lr: 0.1}
"""
COLUMNS = {
    "method",
    "dataset",
    "ratio_requested",
    "ratio_achieved",
    "inference_bytes",
    "training_bytes",
    "seed",
    "status",
}
MEASURED = ["auc", "log_loss", "ne", "latency_p50_ms", "latency_p99_ms", "train_samples_per_s", "steps", "seconds"]


def pocketrec(root, *arguments):
    environment = os.environ | {"POCKETREC_ROOT": str(root), "POCKETREC_DATA": str(paths.DATA)}
    command = [sys.executable, "-m", "pocketrec.suite.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A checkout of its own with the real notebooks and datasets, after one `pocketrec all tiny`."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    shutil.copytree(ROOT / "params", root / "params")
    (root / "params/suites/tiny.yaml").write_text(SUITE)
    done = pocketrec(root, "all", "tiny", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "index.html" in done.stdout
    return root


def records(root):
    return {
        str(path.parent): json.loads(path.read_text()) for path in sorted(root.glob("results/tiny/runs/**/record.json"))
    }


def test_every_cell_has_its_record(root):
    found = {record["run"]: record["status"] for record in records(root).values()}
    assert found == {
        "full/planted/r1-s0": "done",
        "full/planted/r1-latency": "done",
        "hashing/planted/r50-s0": "done",
        "hashing/planted/r50-latency": "done",
        "low_dim/planted/r50-s0": "infeasible",
        "robe/planted/r50-s0": "done",
        "robe/planted/r50-latency": "done",
    }


def test_results_are_one_tidy_row_a_run(root):
    results = load_results(root / "results/tiny")
    assert {*COLUMNS, *MEASURED, "reason"} <= set(results.columns)
    done = results[results.status == "done"].set_index("method")
    assert set(done.index) == {"full", "hashing", "robe"} and len(results) == 4
    assert done[MEASURED].notna().all(axis=None)
    assert (done.inference_bytes <= done.ratio_achieved.rdiv(done.loc["full", "inference_bytes"]) * 1.0001).all()
    assert done.loc["robe", "ratio_achieved"] == pytest.approx(50, rel=0.02)
    assert (done.auc < done.bayes_auc).all() and (done.auc > 0.5).all()
    assert "single column" in results.set_index("method").loc["low_dim", "reason"]


def test_the_page_opens_without_a_network_and_its_links_lead_somewhere(root):
    page = root / "results/tiny/index.html"
    text = page.read_text()
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", text) and "@import" not in text
    # written out, or in the data that the page's script makes links of
    links = re.findall(r'href="([^"#]+)"', text) + re.findall(r'"(runs/[^"]+)"', text)
    links = [link for link in links if not link.startswith(("data:", "${"))]  # a picture, the script's own text
    assert any(link.endswith("run.html") for link in links)
    assert all((page.parent / link).exists() for link in links)


def test_executed_notebooks_carry_no_path_or_name_of_this_machine(root):
    for notebook in root.glob("results/tiny/**/*.ipynb"):
        text = notebook.read_text()
        assert len(text) < 1_000_000
        words = re.sub(r'"image/\w+": "[^"]*"', "", text)
        assert str(root) not in words and str(ROOT) not in words
        assert not re.search(rf"\b({os.uname().nodename}|{getpass.getuser()})\b", words)


def test_kept_files_hold_the_bytes_of_the_record(root):
    for folder, record in records(root).items():
        if record["kind"] == "quality" and record["status"] == "done":
            size = (Path(folder) / "embedding.safetensors").stat().st_size
            assert 0 <= size - record["sizes"]["inference_bytes"] <= 16_000
            assert record["sizes"]["file_bytes"] == record["sizes"]["inference_bytes"]


def test_a_second_call_does_nothing_and_a_lost_run_comes_back_with_the_same_numbers(root):
    before = records(root)
    assert pocketrec(root, "run", "tiny").returncode == 0
    assert records(root) == before
    lost = root / "results/tiny/runs/robe/planted/r50-s0"
    shutil.rmtree(lost)
    assert pocketrec(root, "run", "tiny").returncode == 0
    after = records(root)
    assert after[str(lost)]["metrics"] == before[str(lost)]["metrics"]
    assert after[str(lost)]["key"] == before[str(lost)]["key"]
    assert {k: r["started"] for k, r in after.items() if k != str(lost)} == {
        k: r["started"] for k, r in before.items() if k != str(lost)
    }


def test_what_cannot_fit_is_known_without_a_notebook(root):
    (record,) = (r for r in records(root).values() if r["method"] == "low_dim" and r["kind"] == "quality")
    assert record["status"] == "infeasible" and record["seconds"] == 0
    assert record["reason"].startswith("Infeasible: low_dim") and "metrics" not in record

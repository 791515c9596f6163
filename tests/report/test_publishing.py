"""What is kept in the repository: small, whole, and without dead links."""

import json
import re

import pytest
import records

from pocketrec import report
from pocketrec.errors import UserError


def test_published_results_stand_alone(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr("pocketrec.report.publishing.dashboards", built.append)  # has tests of its own
    suite = tmp_path / "quick"
    records.write(suite, records.suite())
    (suite / "runs/robe/planted/r10-s0/embedding.safetensors").write_bytes(b"large")
    page = report.publish(suite, tmp_path / "published/quick")
    kept = {path.name for path in page.parent.rglob("*") if path.is_file()}
    assert {"record.json", "index.html", "results.parquet", "auc_vs_ratio.png"} <= kept
    assert "embedding.safetensors" not in kept
    assert len(built) == 1
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text())[1])
    links = re.findall(r'href="([^"#$]+)"', page.read_text())
    links += [link for run in data["runs"] for link in run["links"].values()]
    assert links and all((page.parent / link).exists() for link in links)
    assert len(report.load_results(page.parent)) == len(report.load_results(suite))


def test_nothing_done_nothing_published(tmp_path):
    records.write(tmp_path / "quick", [records.failed("crashed", "its kernel died", "robe", "planted", 10, 0)])
    with pytest.raises(UserError, match="nothing to publish"):
        report.publish(tmp_path / "quick", tmp_path / "published")
    assert not (tmp_path / "published").exists()

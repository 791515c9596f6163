import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from urllib.parse import unquote

import pytest
import records

from pocketrec import report
from pocketrec.errors import UserError
from pocketrec.report import contents
from pocketrec.report.results import tidy

LOADS = {"src", "srcset", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """Collects what a page would load, where it leads, and its ids."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads, self.links, self.ids = [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    @property
    def data(self):
        return json.loads(re.search(r'id="data">(.*?)</script>', self.text)[1])

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in LOADS or (name in ("href", "xlink:href") and tag != "a"):
                self.loads.append(value)
            elif name == "href":
                self.links.append(value)
            elif name == "id":
                self.ids.append(value)


@pytest.fixture(scope="module")
def built(suite, tmp_path_factory) -> Path:
    copy = shutil.copytree(suite, tmp_path_factory.mktemp("built") / "quick")
    report.convert(copy, jobs=2, progress=False)
    report.index(copy, title="Quick <look>")
    return copy


@pytest.fixture(scope="module")
def page(built) -> Page:
    return Page(built / "index.html")


def assert_offline(page: Page) -> None:
    assert [target for target in page.loads if not target.startswith(("data:", "#"))] == []
    assert not re.search(
        r"url\(\s*['\"]?(?!#|data:)|@import|<script[^>]* src|<iframe|fetch\(|XMLHttp|import\(", page.text
    )


def test_the_page_loads_nothing(page):
    assert_offline(page)
    assert "http" not in page.text


def test_every_link_is_relative_and_resolves(built, page):
    files = [link for link in page.links if not link.startswith("#")]
    files += [link for run in page.data["runs"] for link in run["links"].values()]
    assert len(files) == 3 * 80 + 3 * 6  # notebook, record and log of every run, once more for the failed
    assert all((built / unquote(link)).is_file() and not link.startswith(("/", "..", "file:")) for link in files)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_it_shows_what_ran_and_what_did_not(page):
    for text in ("Quick &lt;look&gt;", "51 of 60 runs done", "one dimension of 590,000 rows", "KeyError", "AMD EPYC"):
        assert text in page.text
    assert "machines: their times" not in page.text


def test_runs_and_timings_are_counted_apart(page):
    assert "and 20 timings beside them" in page.text


def test_it_says_how_runs_were_trained():
    found = [records.quality("robe", "planted", 10, seed) for seed in range(2)]
    for record, dim in zip(found, (8, 16), strict=True):
        record["parameters"] |= {"dim": dim, "epochs": 1, "batch_size": 1024, "table_lr": 0.1, "train_rows": 3000}
        record["parameters"] |= {"table_optimizer": "adagrad"}
        record["data"] = {"rows": {"train": 8000}}
        record["search"] = {"parameter": "table_lr", "validation_auc": {"0.03": 0.7, "0.1": 0.8}, "chosen": 0.1}
    assert contents.settings(found) == {
        "planted": "dim 8 or 16; 3,000 of 8,000 training rows; 1 epoch; batch 1,024; tables by adagrad at 0.03 or 0.1, "
        "the best on validation data of each cell; 2 of 2 best values at an end of what was tried; "
        "on AMD EPYC 7742, 2 cores, 23.4 GB"
    }


def _cell(page, *key):
    (cell,) = [cell for cell in page.data["cells"] if (cell["dataset"], cell["method"], cell["ratio"]) == key]
    return cell


def test_a_cell_carries_the_numbers_of_its_records(built, page):
    results = report.load_results(built)
    runs = results.query("dataset == 'planted' and method == 'robe' and ratio_requested == 10")
    cell = _cell(page, "planted", "robe", 10)
    assert cell["values"]["auc"][0] == pytest.approx(runs["auc"].mean())
    assert cell["values"]["auc_loss"][0] == pytest.approx(-runs["auc_delta"].mean(), rel=1e-5)
    assert cell["speed"]["batches"]["2048"][1] == pytest.approx(
        runs["latency_p99_ms"].iloc[0] * (1 + 2048 / 300) / (1 + 1 / 300), rel=1e-5
    )
    assert len(cell["curve"]["step"]) == len(cell["curve"]["half"]) == 18
    mine = [run["run"] for run in page.data["runs"] if page.data["cells"][run["cell"]] == cell]
    assert mine == [f"robe/planted/r10-{name}" for name in ("latency", "s0", "s1", "s2")]


def test_cells_say_how_they_ended(page):
    assert _cell(page, "planted", "hashing", 10)["status"] == "crashed"
    assert _cell(page, "planted", "robe", 100)["seeds"] == [2, 1, 0]
    assert _cell(page, "bookcrossing", "low_dim", 1000)["reason"].startswith("low_dim at 1000x")
    assert _cell(page, "bookcrossing", "hashing", 10)["tied"] is False
    assert _cell(page, "bookcrossing", "robe", 10)["tied"] is True
    assert (page.data["datasets"]["planted"]["ceiling"], page.data["datasets"]["bookcrossing"]["ceiling"]) == (
        0.7801,
        None,
    )


def test_without_a_full_table_the_loss_is_against_the_best_cell(tmp_path):
    records.write(tmp_path, [records.quality("robe", "planted", ratio, 0) for ratio in (10, 100)])
    page = Page(report.index(tmp_path))
    best, other = (_cell(page, "planted", "robe", ratio)["values"] for ratio in (10, 100))
    assert page.data["datasets"]["planted"]["against"] == "best cell"
    assert best["auc_loss"][0] == 0
    assert other["auc_loss"][0] == pytest.approx(best["auc"][0] - other["auc"][0], rel=1e-4)


def test_published_scores_stand_beside_the_cells_of_their_suite(tmp_path, monkeypatch):
    monkeypatch.setattr("pocketrec.paths.PARAMS", tmp_path)
    (tmp_path / "published").mkdir()
    (tmp_path / "published/mine.yaml").write_text(
        "title: A grid\nsource: a paper\ndataset: planted\n"
        "budgets: [5]\nrows: 100\nmethods: {full: [0.8], robe: [0.75]}\n"
    )
    records.write(tmp_path / "mine", [records.quality("robe", "planted", 10, 0)])
    page = Page(report.index(tmp_path / "mine"))
    assert page.data["published"] == [
        {"method": "full", "ratio": 1, "auc": 0.8},
        {"method": "robe", "ratio": 10, "auc": 0.75},
    ]
    assert Page(report.index(tmp_path / "mine", title="other")).data["published"] == []


def test_a_reason_cannot_end_the_script(tmp_path):
    records.write(tmp_path, [records.failed("failed", "</script><script>alert(1)", "robe", "planted", 10, 0)])
    page = Page(report.index(tmp_path))
    assert page.text.count("</script>") == 2
    assert page.data["cells"][0]["reason"] == "</script><script>alert(1)"


def test_executed_notebooks_become_small_offline_pages(built):
    html = Page(built / "runs/robe/planted/r10-s0/run.html")
    assert_offline(html)
    assert len(html.text) < 40_000
    assert "step 100" in html.text
    assert "<title>robe · planted · r10-s0 – " in html.text and html.text.count('class="name"') == html.text.count(
        "<h1"
    )
    (back,) = [link for link in html.links if link.endswith("index.html")]
    assert (built / "runs/robe/planted/r10-s0" / back).resolve() == built / "index.html"


def test_pages_newer_than_their_notebook_stay(tmp_path):
    records.write(tmp_path, [records.quality("robe", "planted", 10, seed) for seed in (0, 1)])
    assert len(report.convert(tmp_path, progress=False)) == 2
    assert report.convert(tmp_path, progress=False) == []
    notebook = tmp_path / "runs/robe/planted/r10-s1/run.ipynb"
    notebook.write_text("{")
    os.utime(notebook, (time.time() + 9, time.time() + 9))
    (page,) = report.convert(tmp_path, progress=False)
    assert "run.ipynb cannot be read" in page.read_text()


def test_records_of_two_machines_are_noted(tmp_path):
    other = records.quality("robe", "planted", 10, 1)
    other["environment"] = records.ENVIRONMENT | {"cpu": "Intel Xeon 8480", "commit": "0ther"}
    text = report.index(records.write(tmp_path, [records.quality("robe", "planted", 10, 0), other])).read_text()
    assert "come from 2 machines" in text
    assert "come from 2 versions" in text


def test_only_failures_and_an_unreadable_record(tmp_path):
    records.write(tmp_path, [records.failed("oom", "MemoryError: <4 GB>", "robe", "planted", 10, 0)])
    (tmp_path / "runs/robe/planted/r10-latency").mkdir()
    (tmp_path / "runs/robe/planted/r10-latency/record.json").write_text("{")
    text = report.index(tmp_path).read_text()
    assert "no run has finished" in text
    assert "MemoryError: &lt;4 GB&gt;" in text
    assert "record.json cannot be read" in text


def test_no_record_at_all_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no record.json"):
        report.index(tmp_path)


def test_five_thousand_records_take_seconds(tmp_path):
    methods = ["robe", "hashing", "low_dim", "quotient_remainder", "tt_rec", "mlet", "cce", "cafe", "dhe", "dpq"]
    grid = product(methods, ("planted", "bookcrossing"), [10 * 2**power for power in range(10)], range(25))
    found = [records.quality(*cell) for cell in grid]
    results = tidy(found)
    start = time.monotonic()
    text = json.dumps(contents.contents(tmp_path, "quick", found, results), allow_nan=False)
    assert time.monotonic() - start < 60  # three seconds on an idle core
    assert len(text) < 3_000_000


def test_no_torch_is_imported():
    names = ", ".join(report.__all__)
    code = f"from pocketrec.report import {names}\nimport sys\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

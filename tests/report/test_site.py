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

LOADS = {"src", "srcset", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """Collects what a page would load, where it leads, and its ids."""

    def __init__(self, path: Path):
        super().__init__()
        self.loads, self.links, self.ids = [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

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
    assert not re.search(r"url\(\s*['\"]?(?!#|data:)|@import|<script|<iframe", page.text)


def test_the_page_loads_nothing(page):
    assert_offline(page)
    assert "http" not in page.text


def test_every_link_is_relative_and_resolves(built, page):
    files = [link for link in page.links if not link.startswith("#")]
    assert len(files) == 3 * 80 + 3 * 6  # notebook, record and log of every run, once more for the failed
    assert all((built / unquote(link)).is_file() and not link.startswith(("/", "..", "file:")) for link in files)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_ids_are_used_once_and_svg_references_exist(page):
    sections = [name for name in page.ids if not re.fullmatch(r"[a-z][0-9a-f]{8,}", name)]
    assert len(sections) == len(set(sections))
    assert set(re.findall(r"(?:url\(|href=\")#([a-z][0-9a-f]{8,})", page.text)) <= set(page.ids)


def test_it_shows_what_ran_and_what_did_not(page):
    for text in ("Quick &lt;look&gt;", "51 of 60 runs done", "one dimension of 590,000 rows", "KeyError", "AMD EPYC"):
        assert text in page.text
    assert page.text.count("<svg") == 10
    assert 'class="best"' in page.text
    assert "machines: their times" not in page.text


def test_executed_notebooks_become_small_offline_pages(built):
    html = Page(built / "runs/robe/planted/r10-s0/run.html")
    assert_offline(html)
    assert len(html.text) < 40_000
    assert "step 100" in html.text


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


def test_a_thousand_records_take_seconds(tmp_path):
    grid = product(
        ("robe", "hashing", "low_dim", "qr"), ("planted", "bookcrossing"), (5, 10, 100, 1000, 2000), range(25)
    )
    records.write(tmp_path, [records.quality(*cell) for cell in grid], notebooks=False)
    start = time.monotonic()
    report.index(tmp_path)
    assert time.monotonic() - start < 60  # four seconds on an idle core


def test_no_torch_is_imported():
    names = ", ".join(report.__all__)
    code = f"from pocketrec.report import {names}\nimport sys\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

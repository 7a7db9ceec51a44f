"""The files module: identity of files, copies with their hash, and results put in place."""

import hashlib
import os
import resource
from pathlib import Path

import pytest

from deeprank.runtime.errors import ExportError
from deeprank.runtime.files import (
    SourceError,
    copy_blocks,
    file_id,
    file_sha256,
    open_indexed,
    regular_status,
    sha256_of,
    write_result,
)


def test_a_file_is_the_same_under_each_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x")
    (tmp_path / "link").symlink_to("one")
    os.link(tmp_path / "one", tmp_path / "hard")
    (tmp_path / "other").write_bytes(b"x")
    identity = file_id(tmp_path / "one")
    assert {file_id(tmp_path / "link"), file_id(os.fsencode(tmp_path / "hard"))} == {identity}
    assert file_id(tmp_path / "other") != identity
    with pytest.raises(FileNotFoundError):
        file_id(tmp_path / "none")
    assert regular_status(str(tmp_path / "link"), follow_links=True).st_ino == identity[1]


def test_a_copy_has_the_hash_of_what_was_copied(tmp_path: Path) -> None:
    content, counts = os.urandom(3_000_000), []
    (tmp_path / "one").write_bytes(content)
    with (tmp_path / "one").open("rb") as source, (tmp_path / "two").open("w+b") as target:
        digest = copy_blocks(source, target, lambda count=1, /, detail="": counts.append(count))
        target.seek(0)
        assert sha256_of(target) == digest == hashlib.sha256(content).digest()
    assert sum(counts) == len(content)
    assert len(counts) > 1
    assert file_sha256(tmp_path / "two", follow_links=False) == digest.hex()


def test_an_indexed_file_is_opened_at_its_start_while_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(b"as indexed")
    content = (hashlib.sha256(b"as indexed").digest(), 10)
    with open_indexed(str(path), content) as file:
        assert file.read() == b"as indexed"
    for changed in (b"as indexec", b"longer than before"):
        path.write_bytes(changed)
        with pytest.raises(SourceError, match="not what was indexed"), open_indexed(str(path), content):
            pass
    with open_indexed(str(path)) as file:
        assert file.read() == b"longer than before"


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_result(b"first", tmp_path / "report.md", ExportError)
    write_result(b"old", tmp_path / "report.md", ExportError)
    with pytest.raises(ExportError, match=r"folder cannot be written \(it is a folder\)"):
        write_result(b"new", tmp_path / "folder", ExportError)
    with pytest.raises(ExportError, match=r"none/report\.md cannot be written"):
        write_result(b"new", tmp_path / "none" / "report.md", ExportError)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limit[1]))  # as a full disk
    try:
        with pytest.raises(ExportError, match=r"report\.md cannot be written \(File too large\)"):
            write_result(b"new" * 10, tmp_path / "report.md", ExportError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "report.md"]
    assert (tmp_path / "report.md").read_bytes() == b"old"

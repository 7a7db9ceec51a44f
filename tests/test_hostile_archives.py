"""Hostile zip data sets: members are read by what the directory says and no further, few at a time."""

import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from random import Random

import pytest

from deeprank.runtime.data.sources import ZipSource
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.errors import DataError, PictureError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "attack"))

import archives
from archives import Packer
from pictures import deflated, encoded

MB = 1_000_000
PICTURE = encoded("PNG")

READ = """
import sys, resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from deeprank.runtime.errors import DataError, PictureError
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.images import PictureRule, load_picture
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (4 << 30,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
before = peak()
def load(sample):
    try:
        with sample.open() as file:
            load_picture(file, PictureRule(32))
    except PictureError as error:
        kept.append(error)  # as commands do until their end
kept = []
try:
    dataset = open_dataset(sys.argv[1])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(load, (dataset.train + dataset.val)[:24]))
except DataError as error:
    pass
print(peak() - before)
"""


def peak(path: Path) -> int:
    """Bytes that reading a data set in eight threads takes."""
    result = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def packed(path: Path, *members: tuple[str, bytes, int, int]) -> Path:
    """A zip of sound pictures and of these members: name, deflated data, announced size, checksum."""
    packer = Packer()
    for name in ("train/cat/a.png", "train/cat/b.png", "train/dog/a.png", "train/dog/b.png"):
        packer.add(name, PICTURE, crc=zlib.crc32(PICTURE))
    for name, data, size, crc in members:
        packer.add(name, data, method=8, size=size, crc=crc)
    packer.write(path)
    return path


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("said", [1000, 300 * MB])
def test_members_take_no_more_than_all_may_together(said: int, tmp_path: Path) -> None:
    """Of 300 MB each, whatever they say."""
    data = deflated(300 * MB, b"\0")[2:-4]
    path = packed(tmp_path / "data.zip", *[(f"train/dog/{number}.png", data, said, 0) for number in range(8)])
    assert peak(path) < (100 * MB if said == 1000 else 700 * MB)


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_too(method: int, tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for number in range(4):
            archive.writestr(f"train/c{number % 2}/{number}.png", bytes(50 * MB))
    content = path.read_bytes().replace((50 * MB).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(content)
    assert peak(path) < 600 * MB


def test_a_member_of_another_size_than_it_says_is_refused(tmp_path: Path) -> None:
    data, crc = zlib.compress(PICTURE)[2:-4], zlib.crc32(PICTURE)
    sizes = (len(PICTURE), len(PICTURE) - 1, len(PICTURE) + 1, 5_000_000)
    members = [(f"train/dog/{number}.png", data, size, crc) for number, size in enumerate(sizes)]
    source = ZipSource(packed(tmp_path / "data.zip", *members))
    assert source.sample("dog/0.png", "dog").read() == PICTURE
    for number in (1, 2, 3):
        with pytest.raises(PictureError, match="damaged zip member"):
            source.sample(f"dog/{number}.png", "dog").read()


def test_members_in_each_other_are_refused(tmp_path: Path) -> None:
    packer = Packer()
    packer.add("train/cat/a.png", PICTURE, crc=zlib.crc32(PICTURE))
    packer.add("train/dog/a.png", PICTURE, crc=zlib.crc32(PICTURE), place=10)
    packer.write(tmp_path / "data.zip")
    with pytest.raises(DataError, match=r"train/cat/a\.png and train/dog/a\.png overlap"):
        open_dataset(tmp_path / "data.zip")


def test_a_directory_of_members_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    with path.open("wb") as file:
        file.truncate(400 * MB)
        file.seek(0, 2)
        file.write(b"PK\5\6" + bytes(8) + (300 * MB).to_bytes(4, "little") + bytes(6))
    with pytest.raises(DataError, match="its directory has 300,000,000 bytes"):
        open_dataset(path)


def test_a_place_is_free_again_once_a_member_is_closed(tmp_path: Path) -> None:
    size = 200 * MB
    data, crc = deflated(size, b"\0")[2:-4], zlib.crc32(bytes(size))
    source = ZipSource(packed(tmp_path / "data.zip", ("train/dog/0.png", data, size, crc)))
    for _ in range(4):
        with source.sample("dog/0.png", "dog").open() as file:
            assert file.read(3) == bytes(3)
    source.sample("dog/0.png", "dog").open()  # not closed, but gone
    source.sample("dog/0.png", "dog").open().close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.thorough
@pytest.mark.parametrize("kind", archives.KINDS)
def test_every_kind_stays_within_memory(kind: str, tmp_path: Path) -> None:
    """``python benchmarks/attack --only archives`` tries more of each."""
    archives.KINDS[kind](tmp_path / "data.zip", Random(0))
    assert peak(tmp_path / "data.zip") < 1300 * MB


def test_a_member_without_a_name_is_left_out(tmp_path: Path) -> None:
    packer = Packer()
    for name in ("train/cat/a.png", "train/cat/b.png", "train/dog/a.png", "train/dog/b.png", ""):
        packer.add(name, PICTURE, crc=zlib.crc32(PICTURE))
    packer.write(tmp_path / "data.zip")
    assert len(open_dataset(tmp_path / "data.zip").train) == 4

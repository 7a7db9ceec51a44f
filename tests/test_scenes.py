"""The drawn scenes: always the same, of twelve kinds, and not to be told apart by colour."""

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeprank.runtime.data.scenes import KINDS, PICTURES_PER_KIND, SIDE, draw_scene, scene_file
from deeprank.runtime.datasets import open_dataset, open_pictures, write_scenes
from deeprank.runtime.errors import DataError


def test_a_scene_is_always_the_same() -> None:
    """In this process and in another one, whatever was drawn before."""
    program = "import sys; from deeprank.runtime.data.scenes import *; sys.stdout.buffer.write(scene_file('castle', 7))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    draw_scene("fir", 3)
    assert scene_file("castle", 7) == other
    picture = Image.open(io.BytesIO(other))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (SIDE, SIDE))


@pytest.mark.thorough
def test_the_data_set() -> None:
    data = open_dataset("scenes")
    assert data.classes == KINDS == tuple(sorted(KINDS))
    both = Counter(sample.label for sample in (*data.train, *data.val))
    assert both == dict.fromkeys(KINDS, PICTURES_PER_KIND)
    assert Counter(sample.label for sample in data.val) == dict.fromkeys(KINDS, PICTURES_PER_KIND // 10)
    contents = [sample.read() for sample in (*data.train, *data.val)]
    assert len(set(contents)) == len(contents)
    assert sum(map(len, contents)) < 10_000_000
    assert len(open_pictures("scenes").train) == len(contents)
    with pytest.raises(DataError, match=r"scenes has its own labels; leave --labels out"):
        open_dataset("scenes", labels="leaf")


def test_scenes_are_pictures_and_not_told_apart_by_colour() -> None:
    """The nearest by colour are of a kind by chance; no scene is flat, and none hides its thing."""
    data = open_dataset("scenes")
    histograms, labels = [], []
    for sample in data.train:
        pixels = np.asarray(Image.open(io.BytesIO(sample.read())))
        assert pixels.std(axis=(0, 1)).max() > 12
        bins = (pixels // 64).reshape(-1, 3) @ (16, 4, 1)
        histograms.append(np.sqrt(np.bincount(bins, minlength=64) / len(bins)))
        labels.append(sample.label)
    near = np.array(histograms) @ np.array(histograms).T
    np.fill_diagonal(near, -1)
    best = np.argsort(-near, axis=1)[:, :10]
    names = np.array(labels)
    assert (names[best] == names[:, None]).mean() < 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn_at_every_number(kind: str) -> None:
    for number in (0, 10**9):
        assert draw_scene(kind, number).size == (SIDE, SIDE)


@pytest.mark.thorough
def test_scenes_from_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deeprank.runtime.datasets", "scenes", str(tmp_path / "out")]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    train, val = 12 * PICTURES_PER_KIND * 9 // 10, 12 * PICTURES_PER_KIND // 10
    assert first.stdout == f"{train} train and {val} val pictures in {tmp_path / 'out'}\n"
    for sample in open_dataset("scenes").val:
        assert (tmp_path / "out" / "val" / sample.path).read_bytes() == sample.read()
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"error: {tmp_path / 'out'} is not empty; name a new folder for the scenes.\n"
    with pytest.raises(DataError, match="is not empty"):
        write_scenes(tmp_path)
    wrong = subprocess.run([*command[:3], "words", "x"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "usage: python -m deeprank.runtime.datasets digits|scenes OUT\n"

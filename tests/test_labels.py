"""Labels and splits from the folders of a path."""

from __future__ import annotations

import pytest

from deeprank.runtime.data.labels import FolderLabels, is_split_layout, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(("train", "train"), ("TRAINING", "train"), ("Val", "val"), ("valid", "val"), ("Validation", "val")),
        *(("dev", "val"), ("Test", "test"), ("testing", "test")),
        *(("tests", None), ("trains", None), ("", None), ("cats", None)),
    ],
)
def test_the_name_of_a_split(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["train"], True),
        (["Train", "test"], True),
        (["valid", "test"], True),
        (["train", "validation", "test"], True),
        (["test"], False),
        (["val"], False),
        (["train", "cats"], False),
        (["cats", "dogs"], False),
        ([], False),
    ],
)
def test_a_layout_of_splits(folders, splits):
    assert is_split_layout(folders) is splits


@pytest.mark.parametrize(
    ("path", "top", "leaf", "whole"),
    [
        ("a.jpg", None, None, None),
        ("cat/a.jpg", "cat", "cat", "cat"),
        ("pets/cat/a.jpg", "pets", "cat", "pets/cat"),
        ("train/pets/cat/a.jpg", "pets", "cat", "pets/cat"),
        ("Train/cat/a.jpg", "cat", "cat", "cat"),
        ("train/a.jpg", None, None, None),
        ("cat/train/a.jpg", "cat", "train", "cat/train"),
    ],
)
def test_labels_begin_below_the_split(path, top, leaf, whole):
    assert FolderLabels("top", splits=True).label(path) == top
    assert FolderLabels("leaf", splits=True).label(path) == leaf
    assert FolderLabels("path", splits=True).label(path) == whole
    assert FolderLabels("none", splits=True).label(path) is None


def test_without_splits_a_folder_called_train_is_a_class():
    assert FolderLabels().label("train/cat/a.jpg") == "train"
    assert FolderLabels().split("train/cat/a.jpg") is None
    assert FolderLabels(splits=True).split("train/cat/a.jpg") == "train"
    assert FolderLabels(splits=True).split("train") is None

"""The feature cache: its keys, its agreement with the network, and damaged files."""

import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeprank.models.network import NetworkConfig, build_network
from deeprank.models.normalisation import HALF
from deeprank.runtime.datasets import Sample, open_dataset
from deeprank.runtime.errors import TrainingError, TrainingInterrupted
from deeprank.runtime.images import PictureRule
from deeprank.runtime.progress import Advance, SilentMonitor
from deeprank.train.data import features as features_module
from deeprank.train.data.features import Extractor, FeatureCache, View, content_digests, make_extractor, weights_digest
from deeprank.train.data.loaders import read_augmented, read_plain, threaded
from deeprank.train.loop.setup import remark_unreadable
from deeprank.train.options.config import Augmentation

SIZE = 32
AUGMENTATION = Augmentation(0.6, True, 0.2)


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(2)
    torch.manual_seed(0)
    return build_network(NetworkConfig("resnet18", SIZE, 8, (), 0.0, 0.0, HALF.mean, HALF.deviation)).eval()


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, ...]:
    return open_dataset("digits").train[:70]


@pytest.fixture(scope="module")
def extractor(network) -> Extractor:
    return make_extractor(network, torch.device("cpu"), 2)


class Listener(SilentMonitor):
    """Keeps what it is told; asks to stop after ``stop_after`` pictures."""

    def __init__(self, stop_after: int | None = None):
        self.remarks: list[str] = []
        self.done = 0
        self.stop_after = stop_after

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        return self.advance

    def advance(self, count: int = 1, /, detail: str = "") -> None:
        self.done += count

    def stopping(self) -> bool:
        return self.stop_after is not None and self.done >= self.stop_after


@pytest.fixture
def make_cache(network, extractor, tmp_path: Path):
    def make(monitor=None, **changes) -> FeatureCache:
        cache = FeatureCache(
            tmp_path / "cache",
            extractor,
            weights_digest(network),
            network.feature_dim,
            PictureRule(SIZE),
            2,
            monitor or Listener(),
        )
        return dataclasses.replace(cache, **changes)

    return make


def directly(network, pictures) -> np.ndarray:
    with torch.inference_mode():
        return network.features(torch.from_numpy(np.stack(pictures))).numpy()


def test_on_a_cpu_the_exported_backbone_runs_and_agrees(network, extractor):
    assert extractor.engine == "onnxruntime"
    pictures = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    np.testing.assert_allclose(extractor.run(pictures), directly(network, list(pictures)), atol=1e-4)


def test_a_backbone_that_cannot_be_exported_runs_in_torch():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * (2 if float(x.sum()) > 0 else 1)

    network = build_network(NetworkConfig("resnet18", SIZE, 8, (), 0.0, 0.0, HALF.mean, HALF.deviation))
    network.backbone = Odd()
    extractor = make_extractor(network, torch.device("cpu"), 1)
    assert extractor.engine == "torch"
    assert extractor.remark
    assert extractor.run(np.full((2, SIZE, SIZE, 3), 255, np.uint8)).shape == (2, 3)


def test_more_features_than_the_disk_can_hold_are_refused(samples, make_cache, tmp_path: Path):
    """Before anything is written: a mapped file without space would end the process by a signal."""
    cache = make_cache(width=10**15)
    with pytest.raises(TrainingError, match=r"take \d+\.\d GB, but .*cache has \d+\.\d GB free; name another folder"):
        cache.features(samples, content_digests(samples, 2), View(0), "features")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("view", [View(0), View(2, AUGMENTATION, 5)])
def test_cached_features_are_those_of_the_network(network, samples, make_cache, view):
    contents = content_digests(samples, 2)
    found = make_cache().features(samples, contents, view, "x")
    rule = PictureRule(SIZE)
    reader = read_augmented(samples, rule, AUGMENTATION, (5, 1, 2)) if view.number else read_plain(samples, rule)
    expected = directly(network, [reader(position) for position in range(len(samples))])
    assert expected.std() > 0.1
    assert found.values.dtype == np.float16
    assert found.unreadable == ()
    # Half precision rounds to 11 bits.
    np.testing.assert_allclose(found.values, expected, rtol=2**-10, atol=1e-3)
    listener = Listener()
    again = make_cache(listener).features(samples, contents, view, "x")
    assert listener.done == 0
    assert np.array_equal(again.values, found.values)


def test_the_key_changes_with_everything_it_should(network, samples, make_cache):
    contents = content_digests(samples, 2)
    cache = make_cache()
    other = build_network(network.config)
    other.load_state_dict(network.state_dict())
    same_weights = weights_digest(other)
    with torch.no_grad():
        next(other.backbone.parameters())[0, 0, 0, 0] += 1e-3
    view = View(1, AUGMENTATION, 0)
    keys = {
        "base": cache.key(contents, View(0)),
        "weights": make_cache(weights=weights_digest(other)).key(contents, View(0)),
        "size": make_cache(rule=PictureRule(64)).key(contents, View(0)),
        "mode": make_cache(rule=PictureRule(SIZE, "crop")).key(contents, View(0)),
        "fewer": cache.key(contents[:-1], View(0)),
        "order": cache.key(contents[::-1], View(0)),
        "content": cache.key([*contents[:-1], bytes(32)], View(0)),
        "view": cache.key(contents, view),
        "number": cache.key(contents, dataclasses.replace(view, number=2)),
        "seed": cache.key(contents, dataclasses.replace(view, seed=1)),
        "crop": cache.key(contents, View(1, Augmentation(0.5, True, 0.2), 0)),
        "flip": cache.key(contents, View(1, Augmentation(0.6, False, 0.2), 0)),
        "jitter": cache.key(contents, View(1, Augmentation(0.6, True, 0.1), 0)),
    }
    assert len(set(keys.values())) == len(keys)
    assert same_weights == weights_digest(network)
    # The plain view is the same whatever the seed of a run.
    assert keys["base"] == cache.key(contents, View(0, None, 9))


def test_the_normalisation_is_part_of_the_weights(network):
    moved = build_network(dataclasses.replace(network.config, mean=(1.0, 2.0, 3.0)))
    moved.load_state_dict(network.state_dict())
    assert weights_digest(moved) != weights_digest(network)


@pytest.mark.parametrize("damage", ["flip", "truncate", "description"])
def test_damaged_files_are_noticed_and_made_again(samples, make_cache, damage):
    contents = content_digests(samples, 2)
    good = np.array(make_cache().features(samples, contents, View(0), "x").values)
    (values,) = make_cache().folder.glob("*.npy")
    if damage == "flip":
        data = bytearray(values.read_bytes())
        data[-100] ^= 1
        values.write_bytes(data)
    elif damage == "truncate":
        values.write_bytes(values.read_bytes()[:-10])
    else:
        values.with_suffix(".json").write_text("{")
    listener = Listener()
    again = make_cache(listener).features(samples, contents, View(0), "x")
    assert np.array_equal(again.values, good)
    assert listener.done == len(samples)
    assert "damaged" in listener.remarks[0]


def test_a_stopped_extraction_goes_on_where_it_was(samples, make_cache, monkeypatch):
    monkeypatch.setattr(features_module, "_CHUNK", 16)
    contents = content_digests(samples, 2)
    view = View(1, AUGMENTATION, 0)
    whole = np.array(make_cache(folder=make_cache().folder / "whole").features(samples, contents, view, "x").values)
    with pytest.raises(TrainingInterrupted):
        make_cache(Listener(stop_after=50)).features(samples, contents, view, "x")
    assert not list(make_cache().folder.glob("*.npy"))
    listener = Listener()
    resumed = make_cache(listener).features(samples, contents, view, "x")
    assert listener.done == len(samples) - 48
    assert np.array_equal(resumed.values, whole)
    assert sorted(path.suffix for path in make_cache().folder.glob("*.*") if path.suffix != ".lock") == [
        ".json",
        ".npy",
    ]


def test_unreadable_pictures_are_reported_and_left_out(samples, make_cache):
    def broken():
        file = io.BytesIO(b"no picture")
        file.name = "holiday [/x]\x1b.png"
        return file

    mixed = (*samples[:3], dataclasses.replace(samples[3], path="holiday [/x]\x1b.png", opener=broken), *samples[4:6])
    listener = Listener()
    for _ in range(2):  # computed, then from the cache
        found = make_cache(listener).features(mixed, content_digests(mixed, 2), View(0), "x")
        assert found.unreadable == (3,)
        assert not found.values[3].any()
        assert found.values[4].any()
    assert listener.remarks == []
    remark_unreadable(mixed, found.unreadable, PictureRule(SIZE), listener)
    mended = (*mixed[:3], dataclasses.replace(mixed[3], opener=samples[3].opener), *mixed[4:])
    remark_unreadable(mended, found.unreadable, PictureRule(SIZE), listener)
    said, later = listener.remarks
    assert said.startswith("Left out: holiday [/x]")
    assert "is not a picture" in said
    assert later.endswith("could not be read when its features were computed.")
    assert "\x1b" not in said + later


def test_augmented_views_depend_on_their_seed_alone(samples):
    rule = PictureRule(SIZE)
    first, again = (read_augmented(samples, rule, AUGMENTATION, (1, 2)) for _ in range(2))
    assert np.array_equal(first(5), again(5))
    assert not np.array_equal(first(5), read_augmented(samples, rule, AUGMENTATION, (1, 3))(5))
    plain = read_augmented(samples, rule, Augmentation(1.0, False, 0.0), (1, 2))
    # Without any augmentation only the two resizes remain.
    assert np.abs(plain(5).astype(int) - read_plain(samples, rule)(5)).mean() < 6


def test_crops_keep_the_share_that_is_asked_and_flips_are_half():
    from deeprank.train.data.loaders import augment

    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (200, 1, 3))
    shares, flipped = [], 0
    for seed in range(400):
        view = augment(ramp, 100, Augmentation(0.5, True, 0.0), (seed,)).astype(int)
        rise = view[50, -2, 0] - view[50, 1, 0]
        flipped += rise < 0
        shares.append(abs(rise) / 197)
    # The width of a crop of half the area at the extreme shape: sqrt(0.5 * 3/4).
    assert min(shares) > 0.58
    assert max(shares) <= 1.03
    assert 150 < flipped < 250


def test_jitter_changes_colours_and_stays_uint8():
    from deeprank.train.data.loaders import augment

    picture = np.asarray(Image.radial_gradient("L").resize((64, 64)).convert("RGB"))
    view = augment(picture, 64, Augmentation(1.0, False, 0.5), (0,))
    assert view.dtype == np.uint8
    assert view.shape == (64, 64, 3)
    assert np.abs(view.astype(int) - picture).mean() > 2


def test_threads_keep_the_order_and_stay_bounded():
    started = itertools.count()
    results = threaded(lambda item: (item, next(started)), range(50), threads=4, ahead=6)
    first = next(results)
    assert first[0] == 0
    assert next(started) <= 8
    assert [item for item, _ in results] == list(range(1, 50))

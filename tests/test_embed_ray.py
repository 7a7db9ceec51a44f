"""``deeprank-embed --engine ray``: two nodes on this machine, and what happens when their parts die."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import BIN, Run
from PIL import Image
from tiny_model import write_model, write_picture

pytest.importorskip("pyarrow")
pytest.importorskip("ray")
pytest.importorskip("ray.data")

from ray.cluster_utils import Cluster

from deeprank.runtime.embed.job import embed
from deeprank.runtime.embed.options import EmbedOptions
from deeprank.runtime.errors import ClusterError
from deeprank.runtime.parts import EmbeddedFolder

pytestmark = pytest.mark.timeout(900)

PICTURES, PART = 80, 4
PARTS = 21


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core each, below a short path of their own: Ray puts sockets there."""
    place = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", place)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=1)
        yield made
        made.shutdown()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that take a while to decode, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("ray") / "photos"
    for number in range(PICTURES):
        path = folder / f"label{number % 2}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < 4:
            Image.effect_noise((60, 60), 90).convert("RGB").resize((2000, 2000)).save(path, compress_level=1)
        else:
            path.hardlink_to(folder / f"label{number % 2}" / f"{number % 4:03d}.png")
    (folder / "label0" / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    write_model(folder.parent / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def here(photos: Path) -> dict[str, tuple]:
    """What one process makes of the pictures."""
    embed(photos, photos.parent / "here", EmbedOptions(model=str(photos.parent / "model.onnx"), part_size=PART))
    return rows_of(photos.parent / "here")


def rows_of(out: Path) -> dict[str, tuple]:
    folder = EmbeddedFolder.open(out)
    folder.check_complete()
    rows: dict[str, tuple] = {}
    for _, part in folder.rows():
        columns = zip(part.paths, part.ids, part.labels, part.sha256, part.vectors, strict=True)
        for path, number, label, sha256, vector in columns:
            assert path not in rows
            rows[path] = int(number), label, sha256, [round(float(value), 5) for value in vector]
    return rows


def command(cluster: Cluster, photos: Path, out: Path, *more: object) -> list[str]:
    words = [BIN / "deeprank-embed", photos, "--out", out, "--model", photos.parent / "model.onnx", "--part-size", PART]
    return [str(word) for word in (*words, "--engine", "ray", "--address", cluster.address, *more)]


def embedded(cluster: Cluster, photos: Path, out: Path, **more: Any) -> None:
    """Do in this process, which has imported Ray, what the command does."""
    options = {"model": str(photos.parent / "model.onnx"), "part_size": PART, "engine": "ray", **more}
    embed(photos, out, EmbedOptions(**options, address=cluster.address))


def done(out: Path) -> int:
    return len(list(out.glob("vectors/*.parquet")))


@contextlib.contextmanager
def running(words: list[str], out: Path, parts: int) -> Iterator[subprocess.Popen]:
    """A job that has written so many parts."""
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait(lambda: process.poll() is not None or done(out) >= parts)
        assert process.poll() is None, process.communicate()
        yield process
        if process.poll() is None:
            said = process.communicate(timeout=600)
            assert process.returncode == 0, said


def wait(until: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers_of(node: Any) -> list[int]:
    """The processes below a node that embed."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == raylet and "MapWorker" in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


def check(out: Path, here: dict[str, tuple]) -> None:
    assert rows_of(out) == here
    assert EmbeddedFolder.open(out).skipped()["path"].to_pylist() == ["label0/torn.jpg"]
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.thorough
def test_two_nodes_give_the_folder_of_one_process(
    cluster: Cluster, photos: Path, here: dict[str, tuple], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    seen = []

    def start(*words):
        seen.append(words)
        return lambda count=1, detail="": seen.append(count)

    options = EmbedOptions(
        model=str(photos.parent / "model.onnx"), part_size=PART, engine="ray", address=cluster.address
    )
    report = embed(photos, tmp_path / "parts", options, progress=start)
    assert (report.embedded, report.parts, report.is_complete) == (PICTURES, PARTS, True)
    assert seen[0] == ("embedding", PICTURES + 1, "pictures", 0)
    assert sum(seen[1:]) == PICTURES + 1
    check(tmp_path / "parts", here)
    from ray._common.usage import usage_lib

    assert usage_lib._usage_stats_enabledness() is usage_lib.UsageStatsEnabledness.DISABLED_EXPLICITLY


def said_by_us(stderr: str) -> list[str]:
    """Return the lines without those of Ray's C++ part, which come at any time: [date, level] file: text."""
    return [line for line in stderr.splitlines() if not line.startswith("[2")]


@pytest.mark.thorough
def test_errors_of_workers_and_of_the_cluster_are_sentences(
    cluster: Cluster, photos: Path, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "parts"
    options = EmbedOptions(model=str(photos.parent / "model.onnx"), part_size=PART, engine="ray")
    for address, says in (
        ("127.0.0.1:9", "There is no Ray cluster at 127.0.0.1:9"),
        ("nowhere", "expected auto or HOST:PORT"),
    ):
        with pytest.raises(ClusterError, match=says):
            embed(photos, out, EmbedOptions(**{**vars(options), "address": address}))
    with pytest.raises(ClusterError, match="No node of the cluster has 64 cores for a worker"):
        embed(photos, out, EmbedOptions(**{**vars(options), "address": cluster.address, "threads": 64}))
    write_model(out / "model.onnx", seed=9)
    result = run("deeprank-embed", *command(cluster, photos, out)[1:], cwd=tmp_path, status=1)
    assert said_by_us(result.stderr)[-1].startswith("error: ")
    assert "model.onnx is not the model that the vectors were made with" in result.stderr
    assert done(out) == 0


@pytest.mark.thorough
def test_an_interruption_ends_the_job_and_keeps_its_parts(
    cluster: Cluster, photos: Path, here: dict[str, tuple], tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with running(command(cluster, photos, out), out, done(out) + 3) as process:
            process.send_signal(number)
            said = process.communicate(timeout=300)[1]
        assert process.returncode == status, said
        assert said_by_us(said)[-1] == "interrupted; finished parts are kept, and the same command continues there."
        assert done(out) < PARTS
    embedded(cluster, photos, out)
    check(out, here)


@pytest.mark.thorough
def test_a_driver_that_is_killed_goes_on_and_killed_workers_cost_one_part_each(
    cluster: Cluster, photos: Path, here: dict[str, tuple], tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    with running(command(cluster, photos, out), out, 3) as process:
        process.kill()
        process.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.glob("vectors/*.parquet")}
    assert 3 <= len(before) < PARTS
    with running(command(cluster, photos, out), out, len(before) + 3):
        victims = [pid for node in cluster.list_all_nodes() for pid in workers_of(node)]
        assert victims
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
    check(out, here)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.glob("vectors/*.parquet")}.items()


@pytest.mark.thorough
def test_more_workers_than_cores_do_not_wait_for_ever(cluster: Cluster, tmp_path: Path) -> None:
    for number in range(8):
        write_picture(tmp_path / "photos" / f"{number}.png", number)
    write_model(tmp_path / "model.onnx")
    embedded(cluster, tmp_path / "photos", tmp_path / "parts", workers=6)
    assert len(rows_of(tmp_path / "parts")) == 8


@pytest.mark.thorough
def test_a_node_that_is_killed_is_done_without(
    cluster: Cluster, photos: Path, here: dict[str, tuple], tmp_path: Path
) -> None:
    """The last test of this file: it takes a node away."""
    out = tmp_path / "parts"
    node = next(iter(cluster.worker_nodes))
    with running(command(cluster, photos, out), out, 3):
        cluster.remove_node(node, allow_graceful=False)
    check(out, here)

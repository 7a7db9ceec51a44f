"""The pool of decoding processes: the same pixels as without, and a decoder that fails harms no other request."""

import contextlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import run_command
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from server_process import serving
from tiny_model import write_model, write_pictures

from deeprank.runtime import Embedder
from deeprank.runtime.decoding.frames import Answer, Channel, Code, FrameError
from deeprank.runtime.decoding.pool import DecodingLimits, DecodingPool
from deeprank.runtime.decoding.process import DecodingProcess, Job, OutOfMemory
from deeprank.runtime.errors import DecodersBusyError, DecodersFailedError, PictureError
from deeprank.runtime.images import PictureRule, load_picture, load_rendition
from deeprank.runtime.index import Index
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.pictures.heif import DECODERS
from deeprank.runtime.shell import pip

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "attack"))
from decoding_pool import interlaced_png

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

RULE = PictureRule(64)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
PATIENCE_S = 60
WAYS = {
    "forked": {},
    "interpreters": {"forks": False},
    "bytes are copied": {"forks": False, "share_memory": False},
}


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A picture that nothing is wrong with, and that takes seconds to decode."""
    return interlaced_png()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    with DecodingPool(2) as pool:
        yield pool


def picture(image_format: str = "PNG", size: tuple[int, int] = (90, 70), seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, image_format)
    return content.getvalue()


def wait_for(holds: Callable[[], object], what: str) -> None:
    for _ in range(50 * PATIENCE_S):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come about")


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def processor_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, child.read_text().split())
    return found + [each for child in found for each in descendants(child)]


def busiest(pids: list[int], seconds: float = 0.3) -> int | None:
    """The worker that has worked for longer than it takes to start. What forks the workers is none: it has children."""
    pid = max((pid for pid in pids if not descendants(pid)), key=processor_seconds, default=None)
    return pid if pid is not None and processor_seconds(pid) > seconds else None


@pytest.mark.parametrize("way", WAYS)
def test_pixels_are_those_of_decoding_here(way: str, tmp_path: Path) -> None:
    with DecodingPool(2, **WAYS[way]) as pool:  # type: ignore[arg-type]
        for image_format in FORMATS:
            content = picture(image_format)
            ours = load_picture(io.BytesIO(content), RULE)
            assert np.array_equal(pool.load_picture(io.BytesIO(content), RULE), ours), image_format
            (tmp_path / "file").write_bytes(content)
            assert np.array_equal(pool.load_picture(tmp_path / "file", RULE), ours), image_format
            with (tmp_path / "file").open("rb") as file:
                file.read(3)
                assert np.array_equal(pool.load_picture(file, RULE), ours), image_format
            with (tmp_path / "file").open("r+b") as file:
                assert np.array_equal(pool.load_picture(file, RULE), ours), image_format
            small, whole = pool.load_rendition(io.BytesIO(content), 40)
            assert np.array_equal(small, load_rendition(io.BytesIO(content), 40)[0])
            assert whole == pool.load_size(io.BytesIO(content)) == Image.open(io.BytesIO(content)).size
            part = pool.load_picture(io.BytesIO(content), RULE, box=(0.25, 0.0, 1.0, 0.5))
            assert np.array_equal(part, load_picture(io.BytesIO(content), RULE, box=(0.25, 0.0, 1.0, 0.5)))


def test_heic_is_decoded_in_a_worker(pool: DecodingPool) -> None:
    pytest.importorskip("_pi_heif")
    files = sorted((Path(__file__).parent / "heic").glob("*.heic"))
    assert files
    for path in files[:5]:
        assert np.array_equal(pool.load_picture(path, RULE), load_picture(path, RULE))


@pytest.mark.parametrize("way", WAYS)
def test_refusals_are_those_of_decoding_here(way: str, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture\x1b[31m")
    (tmp_path / "cut.jpg").write_bytes(picture("JPEG")[:400])
    (tmp_path / "large.png").write_bytes(picture())
    (tmp_path / "folder").mkdir()
    with DecodingPool(2, **WAYS[way]) as pool:  # type: ignore[arg-type]
        for name in ("text.png", "cut.jpg", "large.png", "folder", "missing.png"):
            with pytest.raises(PictureError) as here:
                load_picture(tmp_path / name, RULE, max_pixels=1000)
            with pytest.raises(PictureError) as there:
                pool.load_picture(tmp_path / name, RULE, max_pixels=1000)
            for what in ("kind", "short"):
                assert getattr(there.value, what) == getattr(here.value, what), name
            assert str(there.value) == str(here.value)


def test_workers_hold_nothing_but_decoders(pool: DecodingPool) -> None:
    pool.load_picture(io.BytesIO(picture()), RULE)
    for pid in pool.pids():
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "_imaging" in mapped
        for foreign in ("onnxruntime", "hnswlib", "torch", "pydantic", "uvloop", "sqlite"):
            assert foreign not in mapped
        limits = Path(f"/proc/{pid}/limits").read_text()
        for name in ("core file", "file"):
            assert any(line.startswith(f"Max {name} size") and " 0 " in line for line in limits.splitlines())
        assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
        assert Path(f"/proc/{pid}/environ").read_bytes().count(b"DEEPRANK") == 0
    code = "import sys, deeprank.runtime.decoding.worker as w; w._import_decoders(); print(*sys.modules)"
    modules = set(subprocess.check_output([sys.executable, "-P", "-c", code], text=True).split())
    for foreign in ("onnxruntime", "hnswlib", "fastapi", "typer", "sqlite3", "deeprank.runtime.index", "asyncio"):
        assert foreign not in modules


def test_cold_queries_and_plain_embedding_start_no_process(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    model = write_model(tmp_path / "model.onnx")
    code = (
        "import sys; from deeprank.runtime import Embedder; Embedder(sys.argv[1]).embed([sys.argv[2]])\n"
        "assert not {'multiprocessing', 'deeprank.runtime.decoding.pool'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(model), str(tmp_path / "a.png")], check=True)


def test_a_worker_that_is_killed_takes_its_own_picture_alone(slow: bytes) -> None:
    stopped = []
    with DecodingPool(2, stopped=lambda reason, name: stopped.append(reason)) as pool, ThreadPoolExecutor() as threads:
        pool.load_picture(io.BytesIO(picture()), RULE)
        for number, kind, reason in ((signal.SIGSEGV, "damaged", "crash"), (signal.SIGKILL, "unreadable", "killed")):
            running = threads.submit(pool.load_picture, io.BytesIO(slow), RULE)
            wait_for(lambda: busiest(pool.pids()), "a worker at work")
            victim = busiest(pool.pids())
            assert victim is not None
            os.kill(victim, number)
            assert pool.load_picture(io.BytesIO(picture()), RULE).shape == (64, 64, 3)
            error = running.exception()
            assert isinstance(error, PictureError)
            assert error.kind == kind
            assert stopped.pop() == reason
            wait_for(lambda: len(pool.pids()) == 2, "another worker")


def test_idle_workers_that_are_killed_are_replaced_before_they_are_missed() -> None:
    with DecodingPool(2) as pool:
        for _ in range(5):
            pool.load_picture(io.BytesIO(picture()), RULE)
            pids = pool.pids()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_for(lambda pids=pids: not any(map(lives, pids)), "their end")
            assert pool.load_picture(io.BytesIO(picture()), RULE).shape == (64, 64, 3)


def test_the_process_that_forks_is_replaced() -> None:
    with DecodingPool(2) as pool:
        pool.load_picture(io.BytesIO(picture()), RULE)
        (pid,) = {int(Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[1]) for each in pool.pids()}
        assert pid != os.getpid()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not lives(pid), "its end")
        wait_for(lambda: pool.pids() and all(map(lives, pool.pids())), "other workers")
        assert pool.load_picture(io.BytesIO(picture()), RULE).shape == (64, 64, 3)


def test_processes_that_fork_leave_nothing_behind() -> None:
    with DecodingPool(2) as pool:
        counts = []
        for _ in range(4):
            wait_for(lambda: len(pool.pids()) == 2, "the workers")
            pool.load_picture(io.BytesIO(picture()), RULE)
            counts.append(len(list(Path("/proc/self/fd").iterdir())))
            (pid,) = {int(Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[1]) for each in pool.pids()}
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "that it is reaped")
        assert max(counts) - counts[0] <= 1, counts


def test_a_picture_whose_workers_are_killed_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system, say, because they take more than the container has."""
    killed = []
    decode = DecodingProcess.decode

    def decode_and_die(self: DecodingProcess, *words: Any) -> Any:
        killed.append(self.pid)
        os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: not lives(self.pid), "its end")
        return decode(self, *words)

    with DecodingPool(2) as pool:
        monkeypatch.setattr(DecodingProcess, "decode", decode_and_die)
        with pytest.raises(PictureError, match="the system ended its decoding process"):
            pool.load_picture(io.BytesIO(picture()), RULE)
        assert len(killed) <= 2
        monkeypatch.undo()
        assert pool.load_picture(io.BytesIO(picture()), RULE).shape == (64, 64, 3)


@pytest.mark.thorough
def test_pictures_that_wait_for_memory_hold_no_worker(slow: bytes) -> None:
    with DecodingPool(2) as pool, ThreadPoolExecutor(8) as threads:
        large = [threads.submit(pool.load_picture, io.BytesIO(slow), RULE) for _ in range(5)]
        wait_for(lambda: busiest(pool.pids(), 0.1), "a worker at work")
        assert pool.load_picture(io.BytesIO(picture()), RULE).shape == (64, 64, 3)
        assert sum(each.done() for each in large) <= 2
        assert all(each.result().shape == (64, 64, 3) for each in large)


def test_a_missing_decoder_is_named_as_it_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in DECODERS:
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = min((Path(__file__).parent / "heic").glob("*.heic"))
    with DecodingPool(2) as pool, pytest.raises(PictureError) as refused:
        pool.load_picture(file, RULE)
    assert str(refused.value).endswith(pip("install", "pi-heif"))


@pytest.mark.thorough
@pytest.mark.parametrize("watched", [False, True], ids=["limited by the system", "looked at"])
def test_a_picture_that_takes_too_much_memory_is_refused(slow: bytes, watched: bool) -> None:
    limits = DecodingLimits(memory=150_000_000)
    with DecodingPool(2, limits=limits, limit_memory=not watched) as pool:
        with pytest.raises(PictureError, match="takes more than 150 MB of memory") as refused:
            pool.load_picture(io.BytesIO(slow), RULE, grows=False)
        assert refused.value.kind == "too large"
        for pid in pool.pids():
            peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line)
            assert int(peak.split()[1]) < 250_000
        # The same picture, where it may have what its header says that it takes.
        assert pool.load_picture(io.BytesIO(slow), RULE).shape == (64, 64, 3)


@pytest.mark.thorough
def test_a_picture_that_takes_too_long_is_refused(slow: bytes) -> None:
    # The system counts whole seconds: one picture or the next passes the end of the second that it began in.
    with DecodingPool(2, limits=DecodingLimits(cpu_s=0)) as pool:
        with pytest.raises(PictureError, match="takes more than 0 seconds of CPU time to decode") as refused:
            all(pool.load_picture(io.BytesIO(slow), RULE).any() for _ in range(20))
        assert refused.value.kind == "too large"
    with DecodingPool(2, limits=DecodingLimits(cpu_s=1)) as pool:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:  # of each picture, not of the worker
            pool.load_picture(io.BytesIO(picture()), RULE)
    with DecodingPool(2, limits=DecodingLimits(wall_s=0.3)) as pool:
        with pytest.raises(PictureError, match=r"was not decoded within 0\.3 seconds") as refused:
            pool.load_picture(io.BytesIO(slow), RULE)
        assert refused.value.kind == "unreadable"


@pytest.mark.thorough
def test_slow_pictures_hold_up_nobody(slow: bytes) -> None:
    order: list[str] = []
    stopped: list[str] = []
    limits = DecodingLimits(quantum_s=0.2, cpu_s=60, wall_s=300)
    pool = DecodingPool(2, slow=1, limits=limits, stopped=lambda reason, _: stopped.append(reason))

    def load(content: bytes, name: str) -> None:
        assert pool.load_picture(io.BytesIO(content), RULE).shape == (64, 64, 3)
        order.append(name)

    with pool, ThreadPoolExecutor(8) as threads:
        pool.load_picture(io.BytesIO(picture()), RULE)
        hostile = [threads.submit(load, slow, "slow") for _ in range(4)]
        time.sleep(0.1)
        quick = [threads.submit(load, picture(), "quick") for _ in range(20)]
        for each in quick + hostile:
            each.result()
    assert order.count("slow") == 4
    assert order[-2:] == ["slow", "slow"], order
    assert set(stopped) <= {"evicted"}


@pytest.mark.thorough
def test_more_slow_pictures_than_can_wait_are_told_to_come_again(slow: bytes) -> None:
    with DecodingPool(2, slow=1, limits=DecodingLimits(quantum_s=0.05)) as pool, ThreadPoolExecutor(16) as threads:
        answers = [threads.submit(pool.load_picture, io.BytesIO(slow), RULE, grows=False) for _ in range(12)]
        errors = [answer.exception() for answer in answers]
    assert any(isinstance(error, DecodersBusyError) for error in errors)
    assert any(error is None for error in errors)
    assert all(error is None or isinstance(error, DecodersBusyError) for error in errors), errors


def test_many_pictures_from_many_threads(pool: DecodingPool) -> None:
    contents = [picture("JPEG", seed=seed) for seed in range(20)]
    ours = [load_picture(io.BytesIO(content), RULE) for content in contents]

    def check(number: int) -> bool:
        return np.array_equal(pool.load_picture(io.BytesIO(contents[number % 20]), RULE), ours[number % 20])

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(check, range(400)))
    for pid in pool.pids():  # its streams and line, and those of one picture
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) <= 6


LIES = {
    "another code": b"\x09\0" + bytes(24),
    "another size": struct.pack("!B?IIIIQ", Code.PICTURE, False, 65, 64, 0, 0, 65 * 64 * 3),
    "a huge size": struct.pack("!B?IIIIQ", Code.PICTURE, False, 2**31, 2**31, 0, 0, 2**63),
    "a size of none": struct.pack("!B?IIIIQ", Code.SIZE, False, 0, 0, 9, 9, 0),
    "endless words": struct.pack("!B?IIIIQ", Code.REFUSED, False, 0, 0, 0, 0, 2**40),
    "words that are no JSON": struct.pack("!B?IIIIQ", Code.REFUSED, False, 0, 0, 0, 0, 4) + b"\xff[[[",
    "a list": struct.pack("!B?IIIIQ", Code.REFUSED, False, 0, 0, 0, 0, 2) + b"[]",
    "another kind": struct.pack("!B?IIIIQ", Code.REFUSED, False, 0, 0, 0, 0, 45)
    + b'{"kind": "root", "message": "a", "short": ""}',
    "memory without end": struct.pack("!B?IIIIQ", Code.NEEDS, False, 0, 0, 0, 0, 2**60) * 9,
    "ready again": struct.pack("!B?IIIIQ", Code.READY, False, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_worker_answers_is_checked(lie: str) -> None:
    ours, theirs = socket.socketpair()
    with subprocess.Popen(["sleep", "5"]) as process, theirs, Path("/dev/null").open("rb") as file:
        worker = DecodingProcess(process, Channel(ours.fileno(), os.dup(ours.detach())), shares_memory=True)
        worker.begin(10)
        theirs.sendall(LIES[lie])
        job = Job(file, "a.png", 64, RULE, 10**8, 10**8, True, 10)
        with pytest.raises(FrameError):
            worker.decode(job, lambda size: size)
        assert not worker.is_reusable
        worker.kill("frames")
        assert worker.end() == "frames"


def test_words_of_a_worker_are_made_printable_and_short() -> None:
    ours, theirs = socket.socketpair()
    words = json.dumps({"kind": "damaged", "message": "\x1b[31m" + "a" * 9000, "short": "\n"}).encode()
    with subprocess.Popen(["sleep", "5"]) as process, theirs, Path("/dev/null").open("rb") as file:
        worker = DecodingProcess(process, Channel(ours.fileno(), os.dup(ours.detach())), shares_memory=True)
        Channel(theirs.fileno(), theirs.fileno()).answer(Answer(Code.REFUSED, size=len(words)), words)
        with pytest.raises(PictureError) as refused:
            worker.decode(Job(file, "a.png", 64, RULE, 10**8, 10**8, False, 10), lambda size: size)
        assert str(refused.value).isprintable()
        assert refused.value.short.isprintable()
        assert len(str(refused.value)) < 2100
        words = json.dumps({"out_of_memory": True}).encode()
        Channel(theirs.fileno(), theirs.fileno()).answer(Answer(Code.REFUSED, size=len(words)), words)
        with pytest.raises(OutOfMemory):
            worker.decode(Job(file, "a.png", 64, RULE, 10**8, 10**8, False, 10), lambda size: size)
        worker.kill("retired")
        worker.end()


EMBEDDING = """
import sys
from deeprank.runtime import Embedder
print("begun", flush=True)
embedder = Embedder(sys.argv[1], isolate=True)
print(embedder._decode.__self__.pids(), flush=True)
print(embedder.embed(sys.argv[2:]).shape, flush=True)
"""


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(EMBEDDING)
    # Neither is anything imported from where it is run.
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported')")
    write_pictures(tmp_path, ["a.png", "b.png"])
    work = tmp_path / "work"
    work.mkdir()
    (work / "PIL.py").write_text("raise SystemExit('imported')")
    script = tmp_path.parent / "script.py"
    script.write_text(EMBEDDING)
    model = write_model(tmp_path / "model.onnx")
    command = [sys.executable, str(script), str(model), str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=work)
    assert result.stderr == ""
    assert result.stdout.count("begun") == 1
    assert "(2, 16)" in result.stdout


def shared_memory() -> set[Path]:
    """What lies in shared memory, but folders, which may be those of other tests."""
    return {path for path in Path("/dev/shm").iterdir() if not path.is_dir()}


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_die_with_their_parent(tmp_path: Path, slow: bytes, number: signal.Signals) -> None:
    (tmp_path / "slow.png").write_bytes(slow)
    model = write_model(tmp_path / "model.onnx")
    before = shared_memory()
    command = [sys.executable, "-c", EMBEDDING, str(model), *[str(tmp_path / "slow.png")] * 8]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        wait_for(lambda: busiest(descendants(process.pid), 0.6), "a worker at work")
        pids = descendants(process.pid)
        assert len(pids) >= 3
        process.send_signal(number)
        process.wait()
        wait_for(lambda: not any(map(lives, pids)), "the end of the workers")
        assert process.stderr.read() == ""
    assert shared_memory() <= before


def test_a_forked_process_is_told_so(pool: DecodingPool) -> None:
    pool.load_picture(io.BytesIO(picture()), RULE)
    pid = os.fork()
    if pid == 0:
        try:
            pool.load_picture(io.BytesIO(picture()), RULE)
        except DecodersFailedError:
            pool.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert pool.load_picture(io.BytesIO(picture()), RULE).shape == (64, 64, 3)


def test_where_no_process_can_be_started_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no \x1b[31mluck' >&2\nexit 3\n")
    broken.chmod(0o755)
    for forks in (True, False):
        monkeypatch.setattr(sys, "executable", str(broken))
        pool = DecodingPool(2, forks=forks)
        with pytest.raises(
            DecodersFailedError, match=r"No process can be started to decode pictures .no .*luck"
        ) as error:
            pool.wait_until_ready()
        assert str(error.value).isprintable()


def test_closing_ends_all_processes(slow: bytes) -> None:
    others = set(descendants(os.getpid()))
    pool = DecodingPool(2)
    with ThreadPoolExecutor() as threads:
        running = threads.submit(pool.load_picture, io.BytesIO(slow), RULE)
        wait_for(lambda: busiest(pool.pids()), "a worker at work")
        everything = set(descendants(os.getpid())) - others
        assert everything >= set(pool.pids())
        pool.close()
        assert isinstance(running.exception(), DecodersBusyError)
    assert not any(map(lives, everything))
    with pytest.raises((DecodersBusyError, DecodersFailedError)):
        pool.load_picture(io.BytesIO(picture()), RULE)


@pytest.mark.thorough
def test_sync_in_isolation_makes_the_same_index(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, [f"{label}/{i}.png" for label in "ab" for i in range(20)])
    for image_format in FORMATS:
        (photos / "a" / f"x.{image_format.lower()}").write_bytes(picture(image_format))
    (photos / "b" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    model = write_model(tmp_path / "model.onnx")
    run = [
        run_command("deeprank-index", "sync", photos, "--index", tmp_path / name, "--model", model, *options)
        for name, options in (("here.index", ()), ("there.index", ("--isolate",)))
    ]
    assert run[0].stderr.split("Took")[0].replace("here.index", "there.index") == run[1].stderr.split("Took")[0]
    with Index.open(tmp_path / "here.index") as here, Index.open(tmp_path / "there.index") as there:
        assert len(here) == len(there) == 47
        query = photos / "a" / "1.png"
        assert [(hit.path, hit.distance) for hit in here.search(query, k=40)] == [
            (hit.path, hit.distance) for hit in there.search(query, k=40)
        ]
    again = run_command(
        "deeprank-index", "sync", "--reembed", "--isolate", "--index", tmp_path / "there.index", "--model", model
    )
    assert "47" in again.stdout


def test_a_picture_that_kills_its_decoder_is_skipped_by_a_sync_and_remembered(tmp_path: Path, slow: bytes) -> None:
    photos = tmp_path / "photos"
    write_pictures(photos, [f"a/{i}.png" for i in range(10)])
    (photos / "a" / "slow.png").write_bytes(slow)
    model = write_model(tmp_path / "model.onnx")
    killed = threading.Event()
    others = set(descendants(os.getpid()))  # such as the one that forks commands for other tests

    def workers() -> list[int]:
        return [pid for pid in descendants(os.getpid()) if pid not in others]

    def kill() -> None:
        with contextlib.suppress(AssertionError):
            # Here, starting takes 0.17 s and the slow picture 0.58 s; half the speed is enough, or twice.
            wait_for(lambda: busiest(workers(), 0.4), "a worker at work")
            victim = busiest(workers())
            assert victim is not None
            os.kill(victim, signal.SIGSEGV)
            killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    report = sync(tmp_path / "my.index", [photos], model=model, isolate=True)
    thread.join()
    assert killed.is_set()
    assert report.added == 10
    (skipped,) = report.skipped_files
    assert (skipped.kind, skipped.short) == ("damaged", "made its decoder fail")
    start = time.process_time()
    (again,) = sync(tmp_path / "my.index", [photos]).skipped_files
    assert again == skipped
    assert time.process_time() - start < 1


def test_embedding_in_isolation_gives_the_same_vectors(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"{i}.png" for i in range(70)])
    paths = sorted(tmp_path.glob("*.png"))
    model = write_model(tmp_path / "model.onnx")
    isolated = Embedder(model, isolate=True)
    assert np.array_equal(Embedder(model).embed(paths), isolated.embed(paths))
    pids = isolated._decode.__self__.pids()  # type: ignore[attr-defined]
    del isolated
    wait_for(lambda: not any(map(lives, pids)), "the end of its workers")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_pictures(folder / "photos", [f"a/{i}.png" for i in range(10)])
    sync(folder / "my.index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    return folder / "my.index"


def stopped_by_reason(client: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        sample.labels["reason"]: sample.value
        for family in families
        if family.name == "deeprank_decoding_stopped"
        for sample in family.samples
    }


@pytest.mark.thorough
def test_hostile_uploads_hold_up_no_other_client(index: Path, slow: bytes) -> None:
    with (
        serving("--index", index, "--decoders", 2) as server,
        server.client() as client,
        ThreadPoolExecutor(8) as threads,
    ):
        line = "Pictures are decoded in 2 processes, and 2 more for slow ones; decoding an upload takes at most 512 MB"
        server.wait_for(lambda: line in server.stderr, "a line on memory")

        def upload(content: bytes) -> int:
            return client.post("/v1/search", files={"image": ("a.png", content)}).status_code

        assert upload(picture()) == 200
        hostile = [threads.submit(upload, slow) for _ in range(4)]
        time.sleep(0.3)
        for _ in range(20):
            assert upload(picture()) == 200
            assert client.get("/healthz").status_code == 200
        assert not all(each.done() for each in hostile)
        assert {each.result() for each in hostile} == {200}


def test_an_upload_that_kills_its_decoder_is_refused_alone(index: Path, slow: bytes) -> None:
    with serving("--index", index) as server, server.client() as client, ThreadPoolExecutor(4) as threads:
        running = threads.submit(client.post, "/v1/embed", files={"image": ("bomb.png", slow)})
        server.wait_for(lambda: busiest(descendants(server.process.pid), 0.5) is not None, "a worker at work")
        victim = busiest(descendants(server.process.pid))
        assert victim is not None
        os.kill(victim, signal.SIGSEGV)
        assert client.post("/v1/embed", files={"image": ("a.png", picture())}).status_code == 200
        answer = running.result()
        assert answer.status_code == 422
        assert answer.json()["error"].startswith("The upload bomb.png made its decoder fail")
        assert stopped_by_reason(client) == {"crash": 1}
        assert "decoding was stopped (crash): The upload bomb.png" in server.stderr
        assert client.get("/v1/items/1/thumbnail").status_code == 200


@pytest.mark.thorough
def test_an_upload_may_take_as_much_memory_as_is_said(index: Path, slow: bytes) -> None:
    with serving("--index", index, "--max-decoding", 200_000_000) as server, server.client() as client:
        answer = client.post("/v1/embed", files={"image": ("a.png", slow)})
        assert answer.status_code == 422
        assert "takes more than 200 MB of memory to decode" in answer.json()["error"]
        assert stopped_by_reason(client) == {"memory": 1}
    with serving("--index", index, "--max-pixels", 300_000_000) as server:
        server.wait_for(lambda: "at most 1,536 MB" in server.stderr, "a line on memory")


@pytest.mark.thorough
def test_ctrl_c_in_a_terminal_ends_server_and_workers(index: Path, slow: bytes) -> None:
    with serving("--index", index) as server, server.client() as client, ThreadPoolExecutor() as threads:
        running = threads.submit(client.post, "/v1/embed", files={"image": ("a.png", slow)})
        server.wait_for(lambda: busiest(descendants(server.process.pid), 0.5) is not None, "a worker at work")
        pids = descendants(server.process.pid)
        # As a terminal and systemd do it: to all of them.
        for pid in (server.process.pid, *pids):
            os.kill(pid, signal.SIGINT)
        assert running.result().status_code == 200
        assert server.end(signal.SIGINT) == 0
        assert "Traceback" not in server.stderr
        wait_for(lambda: not any(map(lives, pids)), "the end of the workers")

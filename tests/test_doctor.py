"""``deeprank-doctor``: its findings and advice in sound, broken and hostile surroundings."""

import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import Run
from tiny_model import DIM, expected, square, write_model, write_pictures

from deeprank.runtime import devices
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.doctor import checks as doctor_checks
from deeprank.runtime.doctor import finding, hnswlib_build, isolated, packages
from deeprank.runtime.doctor import index as doctor_index
from deeprank.runtime.doctor.cli import lines
from deeprank.runtime.doctor.isolated import try_apart
from deeprank.runtime.doctor.onnx_runtime import describe, device_finding
from deeprank.runtime.evaluate.embeddings import EmbeddedSplit
from deeprank.runtime.evaluate.reference import save_reference
from deeprank.runtime.index.database.writer import locked, open_writer
from deeprank.runtime.index.layout import DATABASE, GRAPH, MODEL
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.model.pretrained import pretrained_model
from deeprank.runtime.shell import shell_word


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model with its report and reference sample, its pictures, and an index of them."""
    folder = tmp_path_factory.mktemp("made")
    model = write_model(folder / "tiny.onnx")
    write_pictures(folder / "photos", [f"{label}/{number}.png" for label in "ab" for number in range(6)])
    sync(folder / "my.index", [folder / "photos"], model=model)
    (folder / "tiny.parity.json").write_text(json.dumps({"sha256": sha256(model), "min_cosine": 0.5}), "utf-8")
    write_reference(folder / "tiny.reference.npz", folder / "photos")
    return folder


def write_reference(path: Path, photos: Path, seed: int = 0) -> None:
    """Write a sample of all pictures, with vectors that were computed independently of ONNX Runtime."""
    data = open_dataset(photos)
    splits = [
        EmbeddedSplit(
            samples,
            expected(np.stack([square(io.BytesIO(sample.read())) for sample in samples]), seed).astype(np.float32),
            tuple(hashlib.sha256(sample.read()).digest() for sample in samples),
        )
        for samples in (data.val, data.train)
    ]
    save_reference(path, *splits)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(made, tmp_path):
    """A copy of the index, to be spoiled."""
    return Path(shutil.copytree(made / "my.index", tmp_path / "my.index"))


def examined(index: Path, **asked) -> dict[str, list[finding.Finding]]:
    """Make the checks of an index alone, in this process."""
    return sections("index", index=index, index_named=True, **asked)


def measured(**asked) -> dict[str, list[finding.Finding]]:
    """Make the checks of a model and of parity alone, in this process."""
    return sections("model", "parity", index=Path("none"), **asked)


def sections(*names: str, graphs: bool = True, **asked) -> dict[str, list[finding.Finding]]:
    examination = doctor_checks._Examination(
        doctor_checks.DoctorOptions(**asked), lambda *_: lambda *_: None, lambda _: None
    )
    examination._runs, examination._graphs = True, graphs
    for name in names:
        examination.tried(name, getattr(examination, name))
    found: dict[str, list[finding.Finding]] = {}
    for one in examination.findings:
        found.setdefault(one.check, []).append(one)
    return found


def the(found, check: str):
    (one,) = found[check]
    return one


def document(run: Run, cwd: Path, *words: object, status: int = 0, **environment: str):
    result = run("deeprank-doctor", "--json", *words, cwd=cwd, status=status, **environment)
    said = json.loads(result.stdout)
    assert result.stderr == ""
    by_name: dict[str, dict] = {}
    for one in said["findings"]:
        assert set(one) == {"check", "status", "found", "fix"}
        assert one["status"] in ("ok", "warning", "problem", "skipped")
        assert one["fix"] or one["status"] in ("ok", "skipped")
        by_name.setdefault(one["check"], one)
    assert said["schema"] == 1
    assert said["healthy"] == (status == 0)
    return said, by_name


def put_package(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")


# The whole command


@pytest.mark.thorough
def test_a_healthy_box(run: Run, made, tmp_path):
    before = states(made)
    words = ("--thorough", "--index", made / "my.index", "--model", made / "tiny.onnx")
    result = run("deeprank-doctor", *words, cwd=tmp_path)
    said = result.stdout.splitlines()
    begins = [line.split()[0] for line in said[:-2] if not line.startswith(" ")]
    assert set(begins) <= {"ok", "warning", "skipped"}
    count = {status: begins.count(status) for status in ("ok", "warning", "skipped")}
    plural = "" if count["warning"] == 1 else "s"
    assert said[-1] == f"{count['ok']} ok, {count['warning']} warning{plural}, 0 problems, {count['skipped']} skipped"
    assert result.stderr == ""
    assert any(line.startswith("ok") and "12 pictures of 1 folder" in line for line in said)
    assert any("smallest cosine to PyTorch 0.5" in line for line in said)
    assert states(made) == before
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_the_license_of_a_model(run: Run, tmp_path):
    write_model(tmp_path / "model.onnx", license="ours \x1b[31m")
    _, found = document(run, tmp_path)
    assert "16 numbers from 8 x 8 pixels; license ours \\x1b[31m)" in found["model"]["found"]


def states(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.mark.thorough
def test_bare_it_takes_what_lies_in_the_folder(run: Run, made, tmp_path):
    shutil.copytree(made / "my.index", tmp_path / "deeprank.index")
    shutil.copy(made / "tiny.onnx", tmp_path / "model.onnx")
    said, found = document(run, tmp_path)
    assert "model.onnx" in found["model"]["found"]
    assert found["index"]["found"].startswith("deeprank.index, 12 pictures")
    assert found["index model"]["found"] == "the model above"
    assert found["model report"]["status"] == found["parity"]["status"] == "skipped"
    import numpy
    import onnxruntime
    import PIL

    assert said["versions"]["numpy"] == numpy.__version__
    assert said["versions"]["pillow"] == PIL.__version__
    assert onnxruntime.__version__ in found["onnxruntime"]["found"]
    assert found["CPUExecutionProvider"]["status"] == "ok"
    assert found["hnswlib build"]["status"] == "ok"


def test_without_an_index(run: Run, made, tmp_path):
    one = the(sections("index", index=Path("no.index")), "index")
    assert (one.status, one.found) == ("skipped", "there is none here")
    one = the(examined(tmp_path), "index")
    assert (one.status, one.found) == ("problem", f"{tmp_path} holds no index")
    _, found = document(run, tmp_path, "--model", made / "tiny.onnx", status=1, DEEPRANK_INDEX="other.index")
    assert found["index"]["found"] == "other.index does not exist"
    assert found["index"]["fix"] == "deeprank-index sync PHOTOS --index other.index"


def test_wrong_usage(run: Run, tmp_path):
    assert "expected auto, cpu or cuda" in run("deeprank-doctor", "--device", "tpu", cwd=tmp_path, status=2).stderr


def test_verbose_shows_where_it_failed(run: Run, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    ended = subprocess.run(  # run_command lets no traceback pass
        [Path(sys.executable).with_name("deeprank-doctor"), "-v", "--model", "bad.onnx"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "ModelFileError" in ended.stderr


# Packages


def test_two_onnx_runtimes(run: Run, made, tmp_path):
    put_package(tmp_path / "more", "onnxruntime", "1.31.0")
    put_package(tmp_path / "more", "onnxruntime-gpu", "1.31.1")
    _, found = document(run, tmp_path, "--model", made / "tiny.onnx", status=1, PYTHONPATH=str(tmp_path / "more"))
    one = found["onnxruntime"]
    assert one["status"] == "problem"
    assert "onnxruntime 1.31.0 and onnxruntime-gpu 1.31.1 are both installed" in one["found"]
    uninstall, install = one["fix"].split(" && ")
    assert shlex.split(uninstall)[1:] == ["-m", "pip", "uninstall", "-y", "onnxruntime", "onnxruntime-gpu"]
    assert shlex.split(install)[-1] == packages.requirements()["onnxruntime-gpu"].to_install()


def test_an_old_package(monkeypatch, tmp_path):
    put_package(tmp_path, "numpy", "1.25.9")
    monkeypatch.syspath_prepend(tmp_path)
    (one,) = [one for one in packages.package_findings() if one.check == "numpy"]
    assert one.status == "warning"
    assert "1.25.9 is older than 1.26" in one.found
    assert shlex.split(str(one.fix))[-1] == "numpy>=1.26"
    assert packages.versions()["numpy"] == "1.25.9"


def test_hnswlib_of_another_processor(run: Run, made, tmp_path):
    write_module(tmp_path / "more", "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    _, found = document(run, tmp_path, "--model", made / "tiny.onnx", status=1, PYTHONPATH=str(tmp_path / "more"))
    one = found["hnswlib build"]
    assert one["status"] == "problem"
    assert "built for another processor" in one["found"]
    assert "SIGILL" in one["found"]
    assert "install --no-binary hnswlib --no-cache-dir --force-reinstall" in one["fix"]
    assert found["model"]["status"] == "ok"


def test_hnswlib_that_cannot_be_imported(monkeypatch, tmp_path):
    write_module(tmp_path, "raise ImportError('numpy.core \\x1b[31m failed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    one = hnswlib_build.graph_library_finding()
    assert one.status == "problem"
    assert "hnswlib cannot be imported here (numpy.core \\x1b[31m failed)" in one.found


def test_hnswlib_that_finds_others(monkeypatch, tmp_path):
    """A stand-in whose every answer is the first vectors: it runs, and is of no use."""
    write_module(
        tmp_path,
        """
import numpy as np
class Index:
    element_count = 300
    def __init__(self, space, dim): pass
    def init_index(self, **_): pass
    def add_items(self, *_, **__): pass
    def set_ef(self, ef): pass
    def knn_query(self, queries, k, num_threads):
        return np.tile(np.arange(k), (len(queries), 1)), np.zeros((len(queries), k))
""",
    )
    monkeypatch.syspath_prepend(tmp_path)
    one = hnswlib_build.graph_library_finding()
    assert one.status == "problem"
    assert "of the nearest neighbours" in one.found


def write_module(folder: Path, code: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "hnswlib.py").write_text(code, "utf-8")


def test_without_numpy(run: Run, made, tmp_path):
    """Whatever is missing, it is there to say so."""
    (tmp_path / "numpy.py").write_text("raise ImportError('there is no numpy')", "utf-8")
    words = ("--index", made / "my.index")
    _, found = document(run, tmp_path, *words, status=1, PYTHONPATH=str(tmp_path))
    assert "there is no numpy" in found["hnswlib build"]["found"]
    assert found["index"]["status"] == "problem"
    assert found["pillow"]["status"] == "ok"


def test_onnxruntime_that_kills_its_process(run: Run, made, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "utf-8")
    _, found = document(run, tmp_path, "--index", made / "my.index", status=1, PYTHONPATH=str(tmp_path))
    assert found["onnxruntime"]["status"] == "problem"
    assert "SIGSEGV" in found["onnxruntime"]["found"]
    assert found["model"]["status"] == "skipped"
    assert found["index graph"]["status"] == "ok"  # the others are still made


def test_the_current_folder_is_not_imported_from(monkeypatch, tmp_path):
    """What lies beside somebody's pictures is no module."""
    for name in ("json", "numpy", "hnswlib"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert hnswlib_build.graph_library_finding().status == "ok"


@pytest.mark.parametrize(
    ("version", "bound", "older"),
    [
        ("1.9", "1.10", True),
        ("1.10", "1.9", False),
        ("1.31", "1.31.0", False),
        ("1.31.0", "1.31", False),
        ("2", "1.99.99", False),
        ("1.26.0rc1", "1.26", False),
        ("1.25.9+cu130", "1.26", True),
        ("0!1.2", "1.3", True),
        ("unknown", "1.3", False),
        ("9" * 5000, "1.3", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version, bound, older):
    assert packages.is_older(version, bound) is older


def test_versions_are_compared_as_packaging_does():
    packaging = pytest.importorskip("packaging.version")
    draw = np.random.default_rng(0)
    for _ in range(300):
        one, other = (".".join(map(str, draw.integers(0, 12, draw.integers(1, 4)))) for _ in range(2))
        assert packages.is_older(one, other) is (packaging.Version(one) < packaging.Version(other))


def test_requirements_are_read_from_metadata():
    found = packages.parse_requirements(
        [
            "numpy>=1.26",
            'NumPy>=9; extra == "train"',
            'pillow_heif>=0.18; extra == "heif"',
            'onnxruntime-gpu[cuda,cudnn]>=1.31; extra == "cuda"',
            'onnxruntime-gpu>=1.30; sys_platform == "linux"',
            "typer",
            "hnswlib <2, >=0.8",
            "; what is this",
        ]
    )
    assert {name: (one.at_least, one.extra) for name, one in found.items()} == {
        "numpy": ("1.26", None),
        "pillow-heif": ("0.18", "heif"),
        "onnxruntime-gpu": ("1.30", None),
        "typer": (None, None),
        "hnswlib": ("0.8", None),
    }


# Processor, providers, machine code


def test_the_quota_of_a_container(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    (two / "a/b").mkdir(parents=True)
    (two / "a/cpu.max").write_text("150000 100000\n")
    (two / "a/b/cpu.max").write_text("max 100000\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    assert devices.cpu_quota(own, two) == 1.5
    own.write_text("0::/\n")
    assert devices.cpu_quota(own, two) is None
    (one / "cpu,cpuacct/x").mkdir(parents=True)
    (one / "cpu,cpuacct/x/cpu.cfs_quota_us").write_text("50000\n")
    (one / "cpu,cpuacct/x/cpu.cfs_period_us").write_text("100000\n")
    own.write_text("9:memory:/x\n4:cpu,cpuacct:/x\n0::/\n")
    assert devices.cpu_quota(own, one) == 0.5
    (one / "cpu,cpuacct/x/cpu.cfs_quota_us").write_text("-1\n")
    assert devices.cpu_quota(own, one) is None
    own.write_text("nonsense\n")
    assert devices.cpu_quota(own, one) is None
    assert devices.cpu_quota(tmp_path / "missing", one) is None


def test_the_memory_of_a_container(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    (two / "a/b").mkdir(parents=True)
    (two / "a/memory.max").write_text("536870912\n")
    (two / "a/b/memory.max").write_text("max\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    assert devices.memory_limit(own, two) == 2**29
    own.write_text("0::/\n")
    assert devices.memory_limit(own, two) is None
    (one / "memory/x").mkdir(parents=True)
    (one / "memory/x/memory.limit_in_bytes").write_text("1073741824\n")
    own.write_text("9:memory:/x\n4:cpu,cpuacct:/x\n0::/\n")
    assert devices.memory_limit(own, one) == 2**30
    assert devices.memory_limit(tmp_path / "missing", one) is None


def test_fewer_cores_than_it_seems(monkeypatch):
    assert packages.describe_cores(16, 8, None).found == "8 of 16 are used"
    assert "CPU quota is 2.5" in packages.describe_cores(16, 2, 2.5).found
    cores = len(os.sched_getaffinity(0))
    for quota, used in ((None, cores), (1.9, 1), (0.5, 1), (1000.0, cores), (cores - 0.5, max(1, cores - 1))):
        monkeypatch.setattr(devices, "_quota", lambda quota=quota: quota)
        assert devices.usable_cores() == used


def test_providers_are_judged_by_what_really_ran():
    ran = try_apart(isolated.run_model, "CPUExecutionProvider", str(pretrained_model("fp32")))
    assert ran.value is not None
    assert ran.value["providers"] == ["CPUExecutionProvider"]
    assert describe("CPUExecutionProvider", ran).status == "ok"
    # The same session is none of CUDA's, whatever ONNX Runtime lists.
    other = describe("CUDAExecutionProvider", ran)
    assert other.status == "warning"
    assert "used CPUExecutionProvider instead" in other.found
    assert "onnxruntime-gpu[cuda,cudnn]" in str(other.fix)


def test_a_provider_that_cannot_start_says_so_and_nothing_else(capfd):
    outcome = try_apart(isolated.run_model, "TensorrtExecutionProvider", str(pretrained_model("fp32")))
    if outcome.value is None:
        assert "libnvinfer" in outcome.failure
        assert describe("TensorrtExecutionProvider", outcome).status == "skipped"
    assert capfd.readouterr() == ("", "")


def test_cuda_that_was_asked_for():
    works = [finding.ok("CPUExecutionProvider", ""), finding.ok("CUDAExecutionProvider", "")]
    fails = [finding.ok("CPUExecutionProvider", ""), finding.warning("CUDAExecutionProvider", "", "")]
    assert "GPU" in device_finding("auto", works).found
    assert "CPU" in device_finding("cpu", works).found
    assert "CPU" in device_finding("auto", fails).found
    assert device_finding("cuda", fails).status == "problem"
    assert device_finding("cuda", works).status == "ok"


def test_what_hnswlib_was_compiled_with(tmp_path):
    """Files as compilers make them, and one that is not."""
    plain = b"\x0f\x10\x07\x0f\x5c\x06\xc3" * 1000
    avx = plain + b"\xc5\xf8\x77\xc3" * 1000
    avx512 = avx + b"\x62\xf1\x7c\x48\x10\x07" * 12
    for code, found in [(plain, set()), (avx, {"avx"}), (avx512, {"avx", "avx512f"})]:
        (tmp_path / "x.so").write_bytes(elf(code, data=b"\xc5\xf8\x77" * 1000))
        assert hnswlib_build.vector_instructions(tmp_path / "x.so") == found
    for other in (b"", b"MZ" + avx, elf(avx)[:70], elf(avx, machine=183)):
        (tmp_path / "x.so").write_bytes(other)
        assert hnswlib_build.vector_instructions(tmp_path / "x.so") is None
    assert hnswlib_build.vector_instructions(tmp_path / "missing") is None


def elf(code: bytes, data: bytes = b"", machine: int = 62) -> bytes:
    """Return an ELF file with two segments: data that is only read, and code."""
    import struct

    start = 64 + 2 * 56
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    segments = [(1, 4, start, len(data)), (1, 5, start + len(data), len(code))]
    table = b"".join(
        struct.pack("<IIQQQQQQ", kind, flags, at, at, at, size, size, 16) for kind, flags, at, size in segments
    )
    return header + table + data + code


def test_a_build_and_the_processor_it_runs_on():
    def status(built, here):
        return hnswlib_build.describe_build(built and frozenset(built), frozenset(here), "works")

    assert "is unknown" in status(None, {"avx"}).found
    assert "is unknown" in status({"avx"}, {}).found
    assert status({"avx"}, {"avx", "avx512f"}).fix is None
    assert "--no-binary" in str(hnswlib_build.describe_build(frozenset(), frozenset({"avx"}), "works").fix)
    assert hnswlib_build.describe_build(frozenset(), frozenset({"sse2"}), "works").fix is None
    foreign = status({"avx", "avx512f"}, {"avx"})
    assert foreign.status == "warning"
    assert "AVX-512" in foreign.found


# Models


def test_a_damaged_model(made, tmp_path):
    (tmp_path / "model.onnx").write_bytes((made / "tiny.onnx").read_bytes()[:-200])
    found = measured(model=tmp_path / "model.onnx")
    assert the(found, "model").status == "problem"
    assert "model.onnx is not an ONNX model that can be opened" in the(found, "model").found
    assert the(found, "parity").status == "skipped"


def test_a_model_that_gives_no_unit_vectors(tmp_path):
    import onnx

    model = onnx.load(write_model(tmp_path / "model.onnx"))
    model.graph.node[-1].CopyFrom(onnx.helper.make_node("Identity", ["raw"], ["embedding"]))
    onnx.save(model, tmp_path / "model.onnx")
    one = the(measured(model=tmp_path / "model.onnx"), "model")
    assert one.status == "problem"
    assert "unit length" in one.found


def test_a_model_that_depends_on_its_neighbours(tmp_path):
    """Its first step takes the mean of the batch off, as a batch norm in training mode would."""
    import onnx

    model = onnx.load(write_model(tmp_path / "model.onnx"))
    mean = onnx.helper.make_node("ReduceMean", ["float", "first"], ["mean"], keepdims=1)
    off = onnx.helper.make_node("Sub", ["float", "mean"], ["centred by batch"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node[1].input[0] = "centred by batch"
    model.graph.node.insert(1, mean)
    model.graph.node.insert(2, off)
    onnx.save(model, tmp_path / "model.onnx")
    one = the(measured(model=tmp_path / "model.onnx"), "model")
    assert one.status == "problem"
    assert "gives different vectors in a batch than for single pictures" in one.found
    assert "deeprank-export" in str(one.fix)


def test_a_report_of_another_file(made, tmp_path):
    model = write_model(tmp_path / "other.onnx", seed=1)
    shutil.copy(made / "tiny.parity.json", tmp_path / "other.parity.json")
    one = the(measured(model=model), "model report")
    assert one.status == "warning"
    assert sha256(made / "tiny.onnx")[:12] in one.found
    assert sha256(model)[:12] in one.found
    for said in ("[" * 10_000, "[]", '{"sha256": 5}', "\xff"):
        (tmp_path / "other.parity.json").write_text(said, "latin-1")
        assert the(measured(model=model), "model report").status == "warning", said
    (tmp_path / "other.parity.json").unlink()
    assert the(measured(model=model), "model report").status == "skipped"


# Parity


def test_parity(made):
    found = measured(model=made / "tiny.onnx", data=str(made / "photos"))
    assert f"12 pictures, {DIM} numbers each" in the(found, "reference sample").found
    one = the(found, "parity")
    assert one.status == "ok"
    assert "12 of 12 pictures" in one.found
    theirs, ours, graph = [part.split()[0] for part in one.found.split("precision@")[1].split(" ", 1)[1].split(", ")]
    assert theirs == ours == graph


def test_parity_of_another_model(run: Run, made, tmp_path):
    model = write_model(tmp_path / "other.onnx", seed=1)
    words = ("--model", model, "--reference", made / "tiny.reference.npz", "--data", made / "photos")
    result = run("deeprank-doctor", *words, cwd=tmp_path, status=1)
    assert "does not rank like its PyTorch reference here: the largest difference" in result.stdout
    assert ", 1 problem, " in result.stdout


def test_parity_without_hnswlib(made):
    """It is measured by a scan where a graph would end the process."""
    one = the(measured(model=made / "tiny.onnx", data=str(made / "photos"), graphs=False), "parity")
    assert one.status == "ok"
    assert "through the graph" not in one.found


@pytest.mark.parametrize(
    ("asked", "check", "said"),
    [
        ({"reference": "{made}/no.npz"}, "reference sample", "does not exist"),
        ({"reference": "{made}/tiny.parity.json"}, "reference sample", "not a reference sample"),
        ({"reference": "pretrained"}, "reference sample", f", {DIM}] with n hashes"),
        ({"reference": "{made}"}, "reference sample", "is a folder"),
        ({"data": "{made}/nothing"}, "parity", "nothing"),
        ({"data": "{here}"}, "parity", "Not one query or gallery picture"),
    ],
)
def test_parity_that_cannot_be_measured(made, tmp_path, asked, check, said):
    write_pictures(tmp_path, ["c/1.png", "c/2.png"], first_seed=100)
    named = {key: value.format(made=made, here=tmp_path) for key, value in asked.items()}
    if "reference" in named:
        named["reference"] = Path(named["reference"])
    one = the(measured(model=made / "tiny.onnx", **named), check)
    assert one.status == "problem"
    assert said in one.found


def test_what_lies_beside_one_of_all_forms(made, tmp_path):
    """deeprank-export --format all names the report of each form in full, and shares one sample."""
    model = Path(shutil.copy(made / "tiny.onnx", tmp_path / "model.fp16.onnx"))
    shutil.copy(made / "tiny.reference.npz", tmp_path / "model.reference.npz")
    assert the(measured(model=model), "model report").status == "skipped"
    assert "reference sample" not in measured(model=model)  # which may be anybody's
    shutil.copy(made / "tiny.parity.json", tmp_path / "model.fp16.onnx.parity.json")
    assert the(measured(model=model), "model report").status == "ok"
    assert the(measured(model=model), "reference sample").status == "ok"


def test_data_without_a_sample(made, tmp_path):
    model = Path(shutil.copy(made / "tiny.onnx", tmp_path / "alone.onnx"))
    assert the(measured(model=model, data=str(made / "photos")), "parity").status == "problem"
    assert the(measured(model=model), "parity").status == "skipped"


# Indexes


def test_a_sound_index(index):
    found = examined(index, thorough=True)
    assert {check: one.status for check in found for one in found[check]} == {
        "index": "ok",
        "index model": "ok",
        "index graph": "ok",
        "index contents": "ok",
        "index writer": "ok",
        "index disk": "ok",
        "index file system": "ok",
    }
    assert the(found, "index graph").found == "12 vectors"


def test_a_damaged_database(index):
    with (index / DATABASE).open("r+b") as file:
        file.write(b"\xff" * 4096)
    found = examined(index)
    assert the(found, "index").status == "problem"
    assert "is damaged" in the(found, "index").found
    assert shlex.split(str(the(found, "index").fix)) == ["deeprank-index", "verify", "--repair", "--index", str(index)]
    assert "index graph" not in found
    assert the(found, "index disk").status == "ok"


def test_damage_that_only_a_thorough_look_finds(index):
    with closing(sqlite3.connect(index / DATABASE)) as connection, connection:
        connection.execute("UPDATE items SET vector = zeroblob(length(vector)) WHERE id = 5")
    assert all(one.status == "ok" for ones in examined(index).values() for one in ones)
    one = the(examined(index, thorough=True), "index contents")
    assert one.status == "problem"
    assert "5" in one.found


def test_a_row_that_describes_the_index_wrongly(index):
    with closing(sqlite3.connect(index / DATABASE)) as connection, connection:
        connection.execute("UPDATE meta SET items = 11")
    assert the(examined(index), "index").status == "problem"


def test_a_damaged_graph(run: Run, index, tmp_path, made):
    with (index / GRAPH).open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\xff")
    for thorough in (False, True):
        found = examined(index, thorough=thorough)
        assert the(found, "index graph").status == "warning"
        assert "searches scan" in the(found, "index graph").found
    assert the(found, "index contents").status == "warning"
    # What is said is so, and so is what is advised.
    answer = run("deeprank-query", made / "photos/a/0.png", "--index", index, "--k", 1, "--paths-only", cwd=tmp_path)
    assert answer.stdout.strip() == str(made / "photos/a/0.png")
    run(*shlex.split(str(the(found, "index graph").fix)), cwd=tmp_path)
    assert the(examined(index), "index graph").status == "ok"


def test_an_index_without_a_graph(index, made):
    with locked(index), open_writer(index) as writer:
        writer.set_graph(None)
        writer.commit()
    one = the(examined(index), "index graph")
    assert one.status == "warning"
    assert shlex.split(str(one.fix)) == ["deeprank-index", "sync", str(made / "photos"), "--index", str(index)]


def test_items_beyond_the_graph(index):
    with locked(index), open_writer(index) as writer:
        (item,) = writer.items([5]).values()
        vector = writer.vectors()[1][4].astype("<f4").tobytes()
        writer.add(item._replace(path=b"another.png"), vector)
        writer.commit()
    one = the(examined(index), "index graph")
    assert one.status == "ok"
    assert "1 picture added later" in one.found


def test_the_model_of_an_index(index, tmp_path):
    shutil.copy(index / MODEL, tmp_path / "kept.onnx")
    write_model(index / MODEL, seed=1)
    one = the(examined(index), "index model")
    assert one.status == "problem"
    assert "is not the model that made the vectors" in one.found
    (index / MODEL).unlink()
    assert "cannot be read" in the(examined(index), "index model").found


def test_an_empty_index(index, made, tmp_path):
    photos = Path(shutil.copytree(made / "photos", tmp_path / "some photos"))
    target = tmp_path / "empty.index"
    sync(target, [photos], model=made / "tiny.onnx")
    shutil.rmtree(photos)
    assert "does not exist" in the(examined(target), "index").found
    sync(target, [photos], allow_mass_removal=True)
    one = the(examined(target), "index")
    assert (one.status, "holds no pictures" in one.found) == ("warning", True)
    assert the(examined(target), "index graph").status == "ok"


def test_an_index_of_a_newer_version(index):
    with closing(sqlite3.connect(index / DATABASE)) as connection:
        connection.execute("PRAGMA user_version = 99")
    one = the(examined(index), "index")
    assert one.status == "problem"
    assert "schema 99" in one.found


def test_a_writer_at_work_and_a_killed_one(index):
    assert the(examined(index), "index writer").found == "none"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(index)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == "writing\n"
        found = examined(index)
        assert "another process is writing" in the(found, "index writer").found
        assert {one.status for ones in found.values() for one in ones} == {"ok"}
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    (index / f"{GRAPH}.tmp").write_bytes(b"half")
    found = examined(index)
    one = the(found, "index writer")
    assert one.status == "ok"
    assert "a killed writer left" in one.found
    assert f"{GRAPH}.tmp" in one.found
    assert the(found, "index").status == "ok"
    assert not (index / f"{DATABASE}-wal").exists()  # whoever closes the index last leaves one plain database
    with locked(index):  # it was not taken away, or kept, by looking
        pass


WRITER = """
import sys
from pathlib import Path
from deeprank.runtime.index.database.writer import locked, open_writer
folder = Path(sys.argv[1])
with locked(folder), open_writer(folder) as writer:
    writer.reserve_ids(1000)
    writer.commit()
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_looking_does_not_hold_a_writer_up(index):
    with locked(index):
        assert doctor_index.is_being_written(index) is True
    assert doctor_index.is_being_written(index) is False
    (index / "write.lock").unlink(missing_ok=True)
    assert doctor_index.is_being_written(index) is False
    assert not (index / "write.lock").exists()
    (index / "write.lock").symlink_to("/dev/zero")
    assert doctor_index.is_being_written(index) is None


def test_a_journal_that_must_be_rolled_back(index):
    (index / f"{DATABASE}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(600))
    before = (index / DATABASE).read_bytes()
    one = the(examined(index), "index")
    assert one.status == "warning"
    assert (index / f"{DATABASE}-journal").exists()
    assert (index / DATABASE).read_bytes() == before


def test_a_full_disk(index):
    assert doctor_index.describe_space(index, 10**9, 10**8).status == "ok"
    one = doctor_index.describe_space(index, 199, 100)
    assert one.status == "warning"
    assert str(index) in str(one.fix)
    assert doctor_index.describe_space(index, 0, 0).status == "ok"


MOUNTS = """\
overlay / overlay rw 0 0
server:/x /mnt/my\\040photos nfs4 rw 0 0
/dev/sda1 /mnt/my\\040photos/fast ext4 rw 0 0
me@box: /home/me/box fuse.sshfs rw 0 0
//nas/share /mnt/nas cifs rw 0 0
tmpfs /mnt/nas tmpfs rw 0 0
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/i", "overlay"),
        ("/mnt/my photos/i", "nfs4"),
        ("/mnt/my photos/fast/i", "ext4"),
        ("/mnt/my photosx/i", "overlay"),
        ("/home/me/box", "fuse.sshfs"),
        ("/mnt/nas/i", "tmpfs"),
    ],
)
def test_the_file_system_of_a_path(path, kind):
    assert doctor_index.file_system(Path(path), MOUNTS) == kind


def test_an_index_on_a_network(index, monkeypatch, tmp_path):
    mounts = tmp_path / "mounts"
    escaped = str(index).replace(" ", "\\040")
    mounts.write_text(f"{MOUNTS}server:/y {escaped} nfs4 rw 0 0\n", "utf-8")
    monkeypatch.setattr(doctor_index, "_MOUNTS", mounts)
    one = doctor_index.file_system_finding(index)
    assert one.status == "warning"
    assert "nfs4" in one.found
    assert shlex.split(str(one.fix))[:2] == ["deeprank-index", "copy"]
    monkeypatch.setattr(doctor_index, "_MOUNTS", tmp_path / "missing")
    assert doctor_index.file_system_finding(index).status == "skipped"


# What is shown


def test_names_are_shown_escaped(run: Run, made, tmp_path):
    hostile = tmp_path / "a\n[red]\x1b[31m'\\\udcff.index"
    shutil.copytree(made / "my.index", hostile)
    (hostile / GRAPH).unlink()
    shutil.copy(made / "tiny.onnx", tmp_path / "a\n[bold].onnx")
    result = run("deeprank-doctor", "--index", hostile, "--model", tmp_path / "a\n[bold].onnx", cwd=tmp_path)
    assert "\x1b" not in result.stdout
    assert "a\\n[red]\\x1b[31m'\\\\xff.index" in result.stdout
    assert "a\\n[bold].onnx" in result.stdout
    (fix,) = [line for line in result.stdout.splitlines() if "fix: deeprank-index verify" in line]
    # What is to be pasted into a shell names that very folder.
    said = subprocess.run(
        ["bash", "-c", "printf %s " + fix.split(" --index ")[1]], capture_output=True, check=True
    ).stdout
    assert said == os.fsencode(hostile)


@pytest.mark.parametrize(
    "name", ["plain", "two words", "it's", "a\nb", "\x1b[0m", "\udcff", "\x85\u202e\U000e0001", "$(rm)`x`!\n\\", "\n'"]
)
def test_words_for_a_shell(name):
    word = shell_word(name)
    assert word.isprintable()
    said = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert said.stdout == os.fsencode(name)


@pytest.mark.thorough
def test_a_check_that_fails_in_an_unforeseen_way(monkeypatch, tmp_path):
    """The others are still made."""

    def broken():
        raise RuntimeError("boom\nboom")

    monkeypatch.setattr("deeprank.runtime.doctor.packages.processor_finding", broken)
    told = []
    diagnosis = doctor_checks.examine(doctor_checks.DoctorOptions(tmp_path / "none"), failed=told.append)
    by_name = {one.check: one for one in diagnosis.findings}
    assert by_name["processor"].status == "problem"
    assert by_name["processor"].found == "it cannot be checked (RuntimeError: boom)"
    assert by_name["cores"].status in ("ok", "warning")
    assert by_name["CPUExecutionProvider"].status == "ok"
    assert not diagnosis.healthy
    assert [str(error) for error in told] == ["boom\nboom"]


def test_the_count():
    found = [
        finding.ok("a", "x"),
        finding.warning("bb", "y", "do"),
        finding.problem("c", "z\n", "do"),
        finding.ok("d", ""),
    ]
    assert lines(found) == [
        "ok       a   x",
        "warning  bb  y",
        "         fix: do",
        "problem  c   z\\n",
        "         fix: do",
        "ok       d   ",
        "",
        "2 ok, 1 warning, 1 problem, 0 skipped",
    ]


# Attempts in another process


def core_limit() -> dict[str, int]:
    import resource

    return {"bytes": resource.getrlimit(resource.RLIMIT_CORE)[0]}


def test_an_attempt_that_dies_leaves_no_core_file(monkeypatch):
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    if before[1] == 0:
        pytest.skip("no process leaves one here")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        assert try_apart(core_limit).value == {"bytes": 0}
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def forever() -> dict[str, str]:
    time.sleep(3600)
    return {}


def test_an_attempt_that_does_not_end(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr("deeprank.runtime.doctor.isolated._SECONDS", 1.0)
    outcome = try_apart(forever)
    assert outcome.value is None
    assert outcome.died
    assert "did not end" in outcome.failure

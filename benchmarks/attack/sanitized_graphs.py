"""hnswlib under AddressSanitizer: hostile graphs that the database vouches for, opened, searched and added to.

    python benchmarks/attack/sanitized_graphs.py --graphs 10000 --seed 0
    python benchmarks/attack/sanitized_graphs.py --graphs 200 --unchecked

hnswlib is built from its source distribution into a folder of its own (--cache keeps it). A process with that build
takes one mutated graph after another. It searches by scan and through the graph, and adds vectors as a sync does. Where
it dies, the report of the sanitizer is shown, and another one goes on behind that graph. ``--unchecked`` leaves the
check of the graph's structure out: that the sanitizer then reports errors shows that it would. Exit status 1 if there
was an error.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

VERSION = "0.8.0"
# A search of a large k through lists of several levels, in a graph that takes a moment to build under the sanitizer.
ITEMS, DIM, ADDED, K = 400, 12, 12, 20
_LONGEST_S = 300.0
# A graph that was refused is built anew as any is: one of so many.
_REBUILT = 20
_FLAGS = (
    "-O1",
    "-g1",
    "-w",
    "-std=c++14",
    "-shared",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-omit-frame-pointer",
)
# Without the code for vectors: it reads the link behind the last one, to prefetch what that leads to, and so four bytes
# behind a list that is full, in any graph. It uses them for nothing else.
_SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DNO_MANUAL_VECTORIZATION")
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:exitcode=99:hard_rss_limit_mb=4096",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
}
_REPORT = re.compile(r"ERROR: AddressSanitizer: .*|.*runtime error: .*|SUMMARY: .*")


def build(folder: Path) -> Path:
    """Build hnswlib with the sanitizers, and return the folder that a process finds it in."""
    built = folder / "built"
    if any(built.glob("hnswlib*.so")):
        return built
    folder.mkdir(parents=True, exist_ok=True)
    pip = [_python_with_pip(), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = [f"hnswlib=={VERSION}", "--no-deps", "--no-binary", "hnswlib", "--dest", str(folder)]
    subprocess.run([*pip, "download", *source], check=True)
    subprocess.run([*pip, "install", "--target", str(folder / "headers"), "pybind11"], check=True)
    shutil.unpack_archive(folder / f"hnswlib-{VERSION}.tar.gz", folder, filter="data")
    unpacked = folder / f"hnswlib-{VERSION}"
    includes = [unpacked / "hnswlib", folder / "headers" / "pybind11" / "include", np.get_include()]
    python = subprocess.run(
        [sys.executable, "-c", "import sysconfig as s; print(s.get_path('include'), s.get_config_var('EXT_SUFFIX'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    making = folder / "making"
    making.mkdir(exist_ok=True)
    target = making / f"hnswlib{python[1]}"
    includes.append(python[0])
    command = ["c++", *_FLAGS, *_SANITIZERS, *(f"-I{path}" for path in includes)]
    subprocess.run([*command, str(unpacked / "python_bindings" / "bindings.cpp"), "-o", str(target)], check=True)
    making.replace(built)
    return built


def _python_with_pip() -> str:
    """Return a Python that has pip: this one, or the one that its environment was made with."""
    for python in (sys.executable, str(Path(sys.base_prefix, "bin", "python3"))):
        if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
            return python
    raise SystemExit("error: no pip to download the source of hnswlib with")


def environment(built: Path) -> dict[str, str]:
    """Return the environment in which a process takes the build, and no other one."""
    libraries = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    path = os.pathsep.join([str(built), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | _OPTIONS | {"LD_PRELOAD": " ".join(libraries), "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}


def make_base(folder: Path) -> None:
    """Make the index whose graph is changed."""
    from made_index import make_index

    make_index(folder, _vectors(ITEMS, 0))


def _vectors(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def attempt(base: Path, folder: Path, seed: int) -> str:
    """Let an index with a mutated graph answer and grow; return ``refused`` or ``loaded``: what became of its graph."""
    from graphs import mutate
    from made_index import add_rows, names

    from deeprank.runtime.errors import DeepRankError
    from deeprank.runtime.index import Index
    from deeprank.runtime.index.database.writer import writing
    from deeprank.runtime.index.graph_update import update_graph

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    mutate(folder, Random(seed))
    queries = _vectors(3, seed + 1)
    try:
        with Index.open(folder) as index:
            index.search_vectors(queries, K, method="exact")
            index.search_vectors(queries, K, method="hnsw")
            outcome = "loaded" if index.graph_problem is None else "refused"
        if outcome == "refused" and seed % _REBUILT:
            return outcome
        with writing(folder) as writer:
            add_rows(writer, _vectors(ADDED, seed + 2), names(ADDED, ITEMS))
            if (problem := update_graph(writer)) is not None:
                return f"not built: {problem}"
        with Index.open(folder) as index:
            index.search_vectors(queries, K, method="hnsw")
            if index.graph_problem is not None:
                return f"not repaired: {index.graph_problem}"
    except DeepRankError as error:
        return f"answered nothing: {error}"
    return outcome


def work(base: Path, first: int, count: int, *, unchecked: bool) -> None:
    """Try the graphs of some seeds, and say after each one what became of it."""
    import hnswlib

    if "built" not in Path(hnswlib.__file__).parts:
        raise SystemExit(f"error: {hnswlib.__file__} is not the build with the sanitizer")
    if unchecked:
        from deeprank.runtime.index.ann import hnsw

        hnsw.check = lambda file, layout: None
    with tempfile.TemporaryDirectory(dir=base.parent) as scratch, np.errstate(all="ignore"):
        for seed in range(first, first + count):
            print(f"{seed} {attempt(base, Path(scratch, 'index'), seed)}", flush=True)


def outcomes(base: Path, env: dict[str, str], first: int, count: int, unchecked: bool) -> Iterator[tuple[int, str]]:
    """Yield each seed with what became of its graph; a process that dies is followed by another."""
    seed, stop = first, first + count
    while seed < stop:
        command = [sys.executable, __file__, "--work", str(base), "--seed", str(seed), "--graphs", str(stop - seed)]
        command += ["--unchecked"] if unchecked else []
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True)
            hung = False
            for line in _lines(process):
                if line is None:
                    hung = True
                    process.kill()
                    break
                yield int(line.split()[0]), line.split(maxsplit=1)[1].strip()
                seed = int(line.split()[0]) + 1
            process.wait()
            if seed < stop:
                errors.seek(0)
                yield seed, f"error: {'hung' if hung else _summary(errors.read(), process.returncode)}"
                seed += 1


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """Yield the lines that a process prints, and None where it has not printed one for too long."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_pass_on, args=[process.stdout, lines], daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=_LONGEST_S)
        except queue.Empty:
            yield None
            return
        if not line:
            return
        yield line


def _pass_on(stream: Iterator[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _summary(said: str, status: int) -> str:
    found = _REPORT.findall(said)
    return "; ".join(dict.fromkeys(line.strip() for line in found)) or f"exit status {status}: {said[-300:]}"


def _counted(counts: Counter[str]) -> str:
    return "; ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))


def main() -> int:
    """Try the graphs, and print how many were refused and loaded, and every error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first one; each has the next")
    parser.add_argument("--cache", type=Path, help="a folder that keeps the build; default: a temporary one")
    parser.add_argument("--unchecked", action="store_true", help="leave out the check of the structure")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, arguments.seed, arguments.graphs, unchecked=arguments.unchecked)
        return 0
    with tempfile.TemporaryDirectory(prefix="deeprank-sanitized-") as scratch:
        env = environment(build(arguments.cache or Path(scratch, "hnswlib")))
        base = Path(scratch, "base")
        make_base(base)
        counts: Counter[str] = Counter()
        for seed, outcome in outcomes(base, env, arguments.seed, arguments.graphs, arguments.unchecked):
            kind = outcome.partition(":")[0]
            counts[kind] += 1
            if kind not in ("refused", "loaded"):
                print(f"{seed}: {outcome}", flush=True)
            if sum(counts.values()) % 500 == 0:
                print(_counted(counts), file=sys.stderr, flush=True)
    print(_counted(counts))
    return 1 if set(counts) - {"refused", "loaded"} else 0


if __name__ == "__main__":
    sys.exit(main())

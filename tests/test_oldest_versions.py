"""The oldest versions that pyproject.toml allows, installed into an environment of their own."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# What of the project is installed.
PARTS = ("train", "export", "runtime", "models")
# Beside the runtime and the server: what the tests need, in the versions of today.
TOOLS = ("pytest", "pytest-timeout", "hypothesis", "httpx", "onnx")
# Of the graphics card's runtime, a gigabyte, the tests use nothing.
SMALLER = {"onnxruntime-gpu": "onnxruntime"}
# A query and its table, a sync, pictures of each format, the graph, a server and its doors.
SUITE = (
    "tests/test_heic.py",
    "tests/test_images.py",
    "tests/test_index_backend.py",
    "tests/test_query_page.py",
    "tests/test_serve_access.py",
    "tests/test_query.py",
)


def oldest(requirements: list[str]) -> list[str]:
    """Return each requirement that counts here, pinned to its lower bound."""
    pinned = []
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        (lower,) = [one.version for one in requirement.specifier if one.operator == ">="]
        pinned.append(f"{SMALLER.get(requirement.name, requirement.name)}=={lower}")
    return pinned


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_dependency_has_a_lower_bound() -> None:
    names = project()
    everything = [*names["dependencies"], *(one for extra in names["optional-dependencies"].values() for one in extra)]
    for requirement in map(Requirement, everything):
        assert requirement.name == "deep-ranking" or any(one.operator == ">=" for one in requirement.specifier)


def test_every_folder_of_modules_is_installed() -> None:
    """A package that is not listed is there in a checkout, and missing everywhere else."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [path.parent for part in PARTS for path in (ROOT / part).rglob("*.py")]
    assert {f"deeprank.{folder.relative_to(ROOT).as_posix().replace('/', '.')}" for folder in folders} == set(listed)


def pip(python: Path, *words: str, seconds: float = 1200) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


@pytest.mark.thorough
@pytest.mark.timeout(2400)
def test_the_oldest_versions(tmp_path: Path) -> None:
    """Without torch, and without what newer versions of ours bring: the suite imports the project from there alone."""
    if pip(Path(sys.executable), "index", "versions", "packaging", seconds=300).returncode != 0:
        pytest.skip("no package index can be reached")
    venv.create(tmp_path / "old", with_pip=True)
    python = tmp_path / "old" / ("Scripts" if os.name == "nt" else "bin") / "python"
    source = tmp_path / "source"
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    names = project()
    pins = oldest([*names["dependencies"], *names["optional-dependencies"]["serve"]])
    installed = pip(python, "install", "--quiet", *pins, *TOOLS)  # hnswlib is built
    assert installed.returncode == 0, installed.stderr
    installed = pip(python, "install", "--quiet", "--no-deps", str(source))
    assert installed.returncode == 0, installed.stderr
    lines = pip(python, "list", "--format=freeze").stdout.lower().replace("_", "-").splitlines()
    versions = dict(line.split("==") for line in lines if "==" in line)
    for name, version in (pin.split("==") for pin in pins):
        found = versions[name.lower()]
        assert found == version or found.removesuffix(".0") == version, (name, found)
    assert "torch" not in versions
    for words in (["index", "sync"], ["serve"]):  # Typer, and what it stands on
        asked = subprocess.run([python.with_name(f"deeprank-{words[0]}"), *words[1:], "--help"], capture_output=True)
        assert asked.returncode == 0, asked.stderr
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "addopts=", *SUITE]
    ran = subprocess.run([str(python), *words], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]

"""The package's structure: folders import one way, all are installed, and documented imports hold."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("runtime", "models", "train", "export")
FILES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))
# Folders of one part that import each other both ways, and have to be told apart still.
ENTANGLED: set[frozenset[str]] = set()
# A part imports itself and those before it.
ARROWS = {name: set(PARTS[: number + 1]) for number, name in enumerate(PARTS)}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of this project that a file imports, at its head or within a function."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])]).removeprefix("deeprank.")
            for alias in node.names:
                yield from MODULES & {f"{base}.{alias.name}"} or MODULES & {base}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from MODULES & {alias.name.removeprefix("deeprank.")}


def folder_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


EDGES = {path: {imported for imported in imports(path) if imported != module_of(path)} for path in FILES}


def test_parts_import_one_way() -> None:
    for path, imported in EDGES.items():
        part = path.relative_to(ROOT).parts[0]
        outside = {name for name in imported if name.split(".")[0] not in ARROWS[part]}
        assert not outside, (path, outside)


def test_runtime_imports_no_pytorch() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {"torch", "torchvision", "timm"}, path


def test_folders_import_one_way() -> None:
    folders = {module_of(path): folder_of(path) for path in FILES}
    arrows = {(folder_of(path), folders[name]) for path, names in EDGES.items() for name in names}
    both = {
        frozenset({a, b})
        for a, b in arrows
        if (b, a) in arrows and a != b and not a.startswith(f"{b}.") and not b.startswith(f"{a}.")
    }
    assert both == ENTANGLED


def test_every_folder_is_installed() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {f"deeprank.{folder_of(path)}" for path in FILES}
    assert set(setuptools["packages"]) == folders
    data = {
        f"deeprank.{folder_of(path)}/{path.name}"
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.is_file() and path.suffix in (".html", ".css", ".js", ".toml", ".typed", ".json", ".svg")
    }
    packed = {
        f"deeprank.{folder}/{path.name}"
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.removeprefix("deeprank.").replace(".", "/")).glob(pattern)
        for folder in [folder_of(path)]
    }
    assert data <= packed


def documented() -> list[tuple[str, str]]:
    """Return the imports in README, docs and examples: a module, and a name in it."""
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.py")]
    pairs = set()
    for path in texts:
        for module, names in re.findall(r"^ *from (deeprank[\w.]*) import ([\w, ]+)", path.read_text(), re.MULTILINE):
            pairs |= {(module, name.strip()) for name in names.split(",")}
    return sorted(pairs)


# What README and docs promise, kept here so that no rewriting loses one of them in silence.
PROMISED = {
    ("deeprank.export", "export_onnx"),
    ("deeprank.runtime", "DeepRankError"),
    ("deeprank.runtime", "Embedder"),
    ("deeprank.runtime", "Hit"),
    ("deeprank.runtime", "Index"),
    ("deeprank.runtime", "open_index"),
    ("deeprank.runtime", "pretrained_model"),
    ("deeprank.runtime.datasets", "write_digits"),
    ("deeprank.runtime.images", "PictureRule"),
    ("deeprank.runtime.index", "Hit"),
    ("deeprank.runtime.index", "Index"),
    ("deeprank.runtime.index", "Searchable"),
    ("deeprank.runtime.index", "StoreOptions"),
    ("deeprank.runtime.modelfile", "ModelInfo"),
}


@pytest.mark.parametrize(("module", "name"), sorted({*documented(), *PROMISED}))
def test_documented_imports_hold(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_the_commands_import_what_they_need_alone() -> None:
    """A query is answered without PyTorch, Typer, a web server and the training code."""
    program = "import sys, deeprank.runtime.query.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    tops = {name.split(".")[0] for name in loaded} | {".".join(name.split(".")[:2]) for name in loaded}
    assert not tops & {"torch", "typer", "fastapi", "pydantic", "uvicorn", "deeprank.train", "deeprank.export"}
    assert not tops & {"pyarrow", "ray", "pymilvus"}

"""Errors are told apart by kinds, attributes and types; no code reads their text."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from deeprank.runtime.errors import BackboneError, TrainingError

FOLDERS = ("runtime", "models", "train", "export")
ROOT = Path(__file__).parents[1]
# Libraries that raise errors without codes or types of their own: one module for each reads their words.
LIBRARIES = {"runtime/pictures/faults.py", "runtime/devices.py", "train/run/failures.py"}
METHODS = {"startswith", "endswith", "partition", "rpartition", "find", "index", "split", "rsplit", "removeprefix"}


def names_of_errors(tree: ast.Module) -> set[str]:
    """Return the names that handlers bind, and the parameters that are annotated as errors."""
    handlers = {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}
    annotated = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg) and _is_error(node.annotation)}
    return handlers | annotated


def _is_error(annotation: ast.expr | None) -> bool:
    return annotation is not None and ("Error" in ast.unparse(annotation) or "Exception" in ast.unparse(annotation))


def texts_read(tree: ast.Module) -> Iterator[int]:
    """Yield the lines that look for words in ``str(error)``."""
    errors = names_of_errors(tree)

    def is_text(node: ast.AST) -> bool:
        return any(
            isinstance(part, ast.Call)
            and isinstance(part.func, ast.Name)
            and part.func.id == "str"
            and isinstance(part.args[0], ast.Name)
            and part.args[0].id in errors
            for part in ast.walk(node)
        )

    for node in ast.walk(tree):
        compared = node if isinstance(node, ast.Compare) else None
        if (
            compared is not None
            and isinstance(compared.ops[0], ast.In | ast.NotIn)
            and is_text(compared.comparators[0])
        ):
            yield node.lineno
        method = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
        if method is not None and method.attr in METHODS and is_text(method.value):
            yield node.lineno


@pytest.mark.parametrize(
    "code",
    ['if "gone" in str(error): pass', 'str(error).partition(";")', 'str(error).strip().startswith("gone")'],
)
def test_reading_the_text_of_an_error_is_noticed(code: str) -> None:
    assert list(texts_read(ast.parse(f"try:\n    pass\nexcept OSError as error:\n    {code}")))


def test_no_code_reads_the_text_of_an_error() -> None:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {path.relative_to(ROOT).as_posix(): list(texts_read(ast.parse(path.read_text()))) for path in paths}
    assert {path for path, lines in found.items() if lines} == LIBRARIES


def test_the_fault_of_a_backbone_error_is_its_message_without_advice() -> None:
    error = BackboneError("There is no backbone 'x'", "expected resnet18")
    assert isinstance(error, TrainingError)
    assert (str(error), error.fault) == ("There is no backbone 'x'; expected resnet18.", "There is no backbone 'x'")

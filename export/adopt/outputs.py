"""The output of an adopted graph: which one it is, and how it becomes one vector a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ...runtime.errors import ExportError
from ...runtime.text import printable
from .graph import inputs_of, upstream

if TYPE_CHECKING:
    import onnx

__all__ = [
    "NAMES",
    "TOKEN_NAMES",
    "Pool",
    "Pooling",
    "choose_output",
    "described",
    "only_picture_outputs",
    "pooling_of",
]

Pool = Literal["cls", "mean", "none"]

# Names of outputs in Hugging Face's, sentence-transformers' and open_clip's files; the first that a
# graph has is taken. With a pooling, the second list.
NAMES = (
    "image_embeds",
    "sentence_embedding",
    "image_embeddings",
    "image_embedding",
    "embeddings",
    "embedding",
    "image_features",
    "pooler_output",
)
TOKEN_NAMES = ("last_hidden_state", "token_embeddings", "hidden_states")

# Class and register tokens at the front: none, a class token, two with distillation, a few registers.
_MOST_PREFIX = 16
_SHOWN = 12
_MATRIX, _TOKENS, _MAP = 2, 3, 4


@dataclass(frozen=True)
class Pooling:
    """How an output becomes ``[n, d]``.

    Attributes:
        kind: ``vectors`` [n, d], ``one`` [n, 1, d] or [n, d, 1, 1], ``cls`` and ``mean`` of tokens
            [n, T, d], ``map``: the mean of [n, d, h, w].
        dim: d.
        skipped: leading tokens that ``mean`` leaves out.

    """

    kind: Literal["vectors", "one", "cls", "mean", "map"]
    dim: int
    skipped: int = 0

    def __str__(self) -> str:
        """Describe it, such as "mean of the patch tokens, the first 5 left out"."""
        words = {
            "vectors": "none",
            "one": "none",
            "cls": "class token",
            "mean": "mean of all tokens",
            "map": "mean of the map",
        }
        if self.kind == "mean" and self.skipped:
            first = "the first" if self.skipped == 1 else f"the first {self.skipped}"
            return f"mean of the patch tokens, {first} left out"
        return words[self.kind]


def choose_output(graph: onnx.GraphProto, name: str | None, pool: Pool | None) -> onnx.ValueInfoProto:
    """Return the output to take as the embedding: ``name``, the only one, or the first of the known names.

    Raises:
        ExportError: there is no such output, or none can be chosen.

    """
    outputs: dict[str, onnx.ValueInfoProto] = {value.name: value for value in graph.output}
    if name is not None:
        if name not in outputs:
            raise ExportError(f"There is no output {printable(name)!r}; the file has {described(graph.output)}.")
        return outputs[name]
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    names = TOKEN_NAMES if pool in ("cls", "mean") else NAMES
    for known in names:
        if known in outputs:
            return outputs[known]
    raise ExportError(
        f"The file has several outputs, {described(graph.output)}; none is called {', '.join(names)}. "
        "Choose one with --output NAME."
    )


def described(values: Sequence[onnx.ValueInfoProto]) -> str:
    """Return name, type and shape of each value."""
    shown = [_described(value) for value in values[:_SHOWN]]
    if len(values) > _SHOWN:
        shown.append(f"and {len(values) - _SHOWN} more")
    return ", ".join(shown)


def _described(value: onnx.ValueInfoProto) -> str:
    import onnx

    kind = value.type.tensor_type
    known = kind.elem_type in onnx.TensorProto.DataType.values()
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower() if known else "unknown"
    sizes = [
        str(size.dim_value) if size.HasField("dim_value") else size.dim_param[:20] or "?" for size in kind.shape.dim
    ]
    shape = f" [{', '.join(sizes[:8])}]" if kind.HasField("shape") else ""
    return printable(f"{value.name[:60]!r} {name}{shape}")


def only_picture_outputs(graph: onnx.GraphProto, picture: str) -> list[onnx.ValueInfoProto]:
    """Return the outputs that depend on the input ``picture`` and on no other one."""
    others = {value.name for value in inputs_of(graph)} - {picture}
    values = []
    for value in graph.output:
        names = upstream(graph, [value.name])[1]
        if picture in names and not names & others:
            values.append(value)
    return values


def pooling_of(shape: Sequence[int], pool: Pool | None, side: int) -> Pooling:
    """Return how an output becomes vectors.

    Args:
        shape: of the output for some pictures; the first is their number.
        pool: the pooling asked for; None: as the shape says.
        side: S, the side of the pictures.

    Raises:
        ExportError: the shape has no such pooling.

    """
    rest = list(shape[1:])
    shown = f"[n, {', '.join(map(str, rest))}]" if rest else "[n]"
    single = [size for size in rest if size != 1]
    if len(shape) == _MATRIX:
        kind: Literal["vectors", "one"] = "vectors"
    elif len(shape) in (_TOKENS, _MAP) and len(single) <= 1 and (len(shape) == _MAP or rest[0] == 1):
        kind = "one"
    elif len(shape) == _TOKENS:
        return _of_tokens(rest, pool, side, shown)
    elif len(shape) == _MAP:
        if pool != "mean":
            raise ExportError(f"The output is a map, {shown}; take its mean with --pool mean, or another --output.")
        return Pooling("map", rest[0])
    else:
        raise ExportError(f"The output has the shape {shown}; expected vectors [n, d], tokens [n, T, d] or a map.")
    if pool in ("cls", "mean"):
        raise ExportError(f"The output is one vector a picture already, {shown}; leave --pool {pool} out.")
    return Pooling(kind, math.prod(rest))


def _of_tokens(rest: list[int], pool: Pool | None, side: int, shown: str) -> Pooling:
    count, dim = rest
    if pool == "cls":
        return Pooling("cls", dim)
    if pool == "mean":
        return Pooling("mean", dim, _prefix(count, side))
    raise ExportError(
        f"The output is {count} tokens a picture, {shown}; take the class token with --pool cls, the mean of the "
        "patches with --pool mean, or another --output."
    )


def _prefix(count: int, side: int) -> int:
    """Return the class and register tokens before the patches: the fewest that leave a square of patches.

    Its side must divide that of the pictures. Without such a square, 0.
    """
    for prefix in range(min(count, _MOST_PREFIX + 1)):
        patches = math.isqrt(count - prefix)
        if patches * patches == count - prefix and side % patches == 0:
            return prefix
    return 0

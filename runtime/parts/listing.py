"""A listing: what one generation embeds, part by part, and what it takes out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ..errors import EmbeddedFolderError
from .parquet import damaged, header_of, opened_parquet, packed, with_header
from .settings import MAX_ROWS_PER_PART
from .storage import Storage, load_pyarrow

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "Generation",
    "PartName",
    "generations_in",
    "is_inside",
    "listing_name",
    "listing_schema",
    "read_listed",
    "read_replaced",
    "removed_name",
    "write_listing",
]

_LISTING = re.compile(r"listing-(\d{4,9})\.parquet")
_PART = re.compile(r"(\d{4,9})-(\d{6,12})\.parquet")
# An id stays below 2^53, which JavaScript and JSON keep.
_MAX_PARTS = 1 << 33
_ADVICE = "put it back from a copy, or embed the pictures again into another folder"


@dataclass(frozen=True, order=True)
class PartName:
    """The name of a part: its generation, and its number over all generations."""

    generation: int
    number: int

    def __str__(self) -> str:
        return f"{self.generation:04d}-{self.number:06d}"

    @property
    def vectors(self) -> str:
        """The file of its rows; once it exists, the part is done."""
        return f"vectors/{self}.parquet"

    @property
    def skipped(self) -> str:
        """The file of the pictures that could not be read, written before the other one."""
        return f"skipped/{self}.parquet"

    @property
    def first_id(self) -> int:
        """The id of the part's first picture; the others follow. As in an index, none is 0."""
        return self.number * MAX_ROWS_PER_PART + 1

    @classmethod
    def of(cls, file_name: str) -> PartName | None:
        """Return the part with this file; None: it belongs to none."""
        match = _PART.fullmatch(file_name)
        name = None if match is None else cls(int(match[1]), int(match[2]))
        return name if name is not None and f"{name}.parquet" == file_name else None


@dataclass(frozen=True)
class Generation:
    """One listing.

    Attributes:
        number: 1 for the first.
        first_part: the number of its first part.
        parts: how many.
        rows: pictures to embed.
        gone: pictures that it takes out without embedding others in their place.
        rows_per_part: pictures in a part, unless it is the last one.
        sha256: hex digest of the listed pictures; the parts made from them name it.

    """

    number: int
    first_part: int
    parts: int
    rows: int
    gone: int
    rows_per_part: int
    sha256: str

    @property
    def part_names(self) -> list[PartName]:
        """The names of its parts, in order."""
        return [PartName(self.number, self.first_part + place) for place in range(self.parts)]

    def listed(self, part: PartName) -> int:
        """Return the number of pictures that a part lists."""
        return min(self.rows_per_part, self.rows - (part.number - self.first_part) * self.rows_per_part)

    def is_sound(self) -> bool:
        """Tell whether the numbers, which come from a file, fit together."""
        numbers = (self.number, self.first_part, self.parts, self.rows, self.gone, self.rows_per_part)
        return (
            all(type(number) is int and number >= 0 for number in numbers)
            and 1 <= self.rows_per_part <= MAX_ROWS_PER_PART
            and self.parts == -(-self.rows // self.rows_per_part)
            and self.first_part + self.parts <= _MAX_PARTS
            and isinstance(self.sha256, str)
        )


def listing_name(generation: int) -> str:
    """Return the name of a generation's listing."""
    return f"listing-{generation:04d}.parquet"


def removed_name(generation: int) -> str:
    """Return the name of the file with the ids that a generation takes out; it ends the generation."""
    return f"removed-{generation:04d}.parquet"


def listing_schema() -> pyarrow.Schema:
    """Return the columns of a listing.

    ``problem`` is the reason why a file that was found cannot be read. ``replaces`` is the id of the picture that this
    one replaces; pictures that are gone are listed after the parts, with the id that they had.
    """
    pa = load_pyarrow("A folder of embedded parts")
    columns = {
        "path": pa.string(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "label": pa.string(),
        "problem": pa.string(),
        "replaces": pa.int64(),
    }
    return pa.schema([pa.field(name, kind, name != "path") for name, kind in columns.items()])


def write_listing(
    storage: Storage, previous: Generation | None, rows_per_part: int, listed: pyarrow.Table, gone: pyarrow.Table
) -> None:
    """Write the listing of the next generation, unless another process has just done so.

    Args:
        storage: the folder.
        previous: the newest generation; None: there is none.
        rows_per_part: pictures in a part.
        listed: the pictures to embed, by :func:`listing_schema`.
        gone: those to take out, by the same columns.

    Raises:
        StorageError: it cannot be written.

    """
    pa = load_pyarrow("A folder of embedded parts")
    number = 1 if previous is None else previous.number + 1
    first = 0 if previous is None else previous.first_part + previous.parts
    listed, gone = listed.combine_chunks(), gone.combine_chunks()
    parts, digest = -(-len(listed) // rows_per_part), _digest(listed, gone)
    generation = Generation(number, first, parts, len(listed), len(gone), rows_per_part, digest)
    schema = with_header(listing_schema(), asdict(generation))
    content = packed(pa.concat_tables([listed, gone]), schema, rows_per_part, rest=len(gone))
    storage.create(listing_name(number), content)


class _Digest:
    """A file that hashes what is written to it."""

    closed = False

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        """Keep nothing back."""


def _digest(*tables: pyarrow.Table) -> str:
    pa = load_pyarrow("A folder of embedded parts")
    digest = _Digest()
    for table in tables:
        with pa.ipc.new_stream(digest, table.schema) as stream:
            stream.write_table(table)
    return digest.sha256.hexdigest()


def generations_in(storage: Storage) -> list[Generation]:
    """Return the generations of a folder, oldest first.

    Raises:
        EmbeddedFolderError: a listing is missing or damaged.
        StorageError: the folder cannot be read.

    """
    numbers = {int(match[1]) for name in storage.sizes() if (match := _LISTING.fullmatch(name))}
    lost = next((number for number in range(1, max(numbers, default=0)) if number not in numbers), None)
    if lost is not None:
        raise EmbeddedFolderError(f"{storage.shown(listing_name(lost))} is missing; {_ADVICE}.")
    generations: list[Generation] = []
    for number in sorted(numbers):
        name = listing_name(number)
        with opened_parquet(storage, name, listing_schema(), _ADVICE) as file:
            generation = _generation(header_of(file))
            first = generations[-1].first_part + generations[-1].parts if generations else 0
            if (
                generation is None
                or (generation.number, generation.first_part) != (number, first)
                or file.metadata.num_rows != generation.rows + generation.gone
            ):
                raise damaged(storage, name, _ADVICE)
            generations.append(generation)
    return generations


def _generation(header: Mapping[str, Any]) -> Generation | None:
    try:
        generation = Generation(**{field.name: header[field.name] for field in fields(Generation)})
    except KeyError:
        return None
    return generation if generation.is_sound() else None


def read_listed(storage: Storage, generation: Generation, parts: list[PartName]) -> Iterator[pyarrow.Table]:
    """Yield the pictures that each part lists, by :func:`listing_schema`.

    Raises:
        EmbeddedFolderError: the listing is damaged, has changed, or lists a path outside of the source.
        StorageError: it cannot be read.

    """
    name = listing_name(generation.number)
    with opened_parquet(storage, name, listing_schema(), _ADVICE) as file:
        if _generation(header_of(file)) != generation:
            raise EmbeddedFolderError(f"{storage.shown(name)} has changed since this command began; run it again.")
        for part in parts:
            table = file.read_row_group(part.number - generation.first_part, use_threads=False)
            table.validate(full=True)
            if len(table) != generation.listed(part) or not all(map(is_inside, table["path"].to_pylist())):
                raise damaged(storage, name, _ADVICE)
            yield table


def read_replaced(storage: Storage, generation: Generation) -> Any:
    """Return the ids that a generation takes out, for pictures that changed and those that are gone, in order.

    Returns:
        int64 ``[n]``, ascending.

    """
    import numpy as np

    with opened_parquet(storage, listing_name(generation.number), listing_schema(), _ADVICE) as file:
        column = file.read(["replaces"], use_threads=False)["replaces"]
    return np.sort(column.drop_null().to_numpy().astype(np.int64))


def is_inside(path: object) -> bool:
    """Tell whether a path, from a file, is relative and leads to no place outside of its folder."""
    return isinstance(path, str) and bool(path) and "\0" not in path and not {"", ".", ".."} & set(path.split("/"))

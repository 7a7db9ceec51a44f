"""What a new generation has to embed and to take out: the source against the folder's current state."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import EmbeddedFolderError
from ..parts.embedded_folder import EmbeddedFolder
from ..parts.listing import listing_schema
from ..parts.storage import load_pyarrow
from ..text import display_path

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Difference", "check_losses", "difference"]

# As a sync guards its folders: of this many pictures, no more than this share may be lost.
_GUARDED = 20
_MAX_LOST = 0.5
_STATE = ("id", "path", "size", "mtime_ns")


class Difference(NamedTuple):
    """What a source and a folder do not have in common.

    Attributes:
        known: pictures of the folder, embedded or skipped.
        here: pictures of the source.
        listed: those to embed, by the columns of a listing.
        gone: those to take out, likewise.

    """

    known: int
    here: int
    listed: pyarrow.Table
    gone: pyarrow.Table


def difference(folder: EmbeddedFolder, files: pyarrow.Table, unread: list[str], retry_skipped: bool) -> Difference:
    """Compare a source with a folder whose generations are all complete.

    Sizes and mtimes that a listing does not tell count as unchanged. A picture that could not be read is tried again
    when its file has changed.

    Args:
        folder: the embedded folder.
        files: the pictures of the source, with their labels.
        unread: folders of it whose content is unknown.
        retry_skipped: try all pictures again that could not be read.
    """
    pa = load_pyarrow("A folder of embedded parts")
    pc = pa.compute
    here = files.append_column("here", pa.array([True] * len(files), pa.bool_())).drop_columns(["replaces"])
    both = here.join(_state(folder), "path", join_type="full outer", right_suffix="_then").combine_chunks()
    is_gone, is_new = pc.is_null(both["here"]), pc.is_null(both["id"])
    is_skipped = pc.fill_null(both["skipped"], False)
    is_changed = pc.or_(_differs(pc, both, "size"), _differs(pc, both, "mtime_ns"))
    label, label_then = (pc.fill_null(both[name], "") for name in ("label", "label_then"))
    is_relabelled = pc.and_not(pc.not_equal(label, label_then), is_skipped)
    has_problem = pc.and_not(pc.is_valid(both["problem"]), is_skipped)
    again = is_skipped if retry_skipped else pa.array([False] * len(both))
    is_listed = pc.or_(is_new, pc.or_(pc.or_(is_changed, is_relabelled), pc.or_(has_problem, again)))
    listed = both.filter(pc.and_not(is_listed, is_gone))
    gone = both.filter(is_gone)
    if unread:  # pictures in folders that cannot be read now may still be there
        hidden = tuple(f"{name}/" for name in unread)
        gone = gone.filter(pa.array([not path.startswith(hidden) for path in gone["path"].to_pylist()], pa.bool_()))
    return Difference(len(both) - (pc.sum(is_new).as_py() or 0), len(files), _listing(listed), _listing(gone, "_then"))


def _state(folder: EmbeddedFolder) -> pyarrow.Table:
    """Return the current pictures: id, path, size, mtime_ns, label and whether it could not be read."""
    pa = load_pyarrow("A folder of embedded parts")
    rows, skipped = folder.table([*_STATE, "label"]), folder.skipped().select(_STATE)
    return pa.concat_tables(
        [
            rows.append_column("skipped", pa.array([False] * len(rows), pa.bool_())),
            skipped.append_column("skipped", pa.array([True] * len(skipped), pa.bool_())),
        ],
        promote_options="default",
    )


def _differs(pc: pyarrow.compute, both: pyarrow.Table, name: str) -> pyarrow.Array:
    now, then = both[name], both[f"{name}_then"]
    return pc.and_(pc.is_valid(now), pc.fill_null(pc.not_equal(now, then), True))


def _listing(both: pyarrow.Table, state: str = "") -> pyarrow.Table:
    names = listing_schema().names
    sources = {"replaces": "id", **{name: name + state for name in ("size", "mtime_ns", "label")}}
    columns = [both[sources.get(name, name)] for name in names]
    table = load_pyarrow("A folder of embedded parts").Table.from_arrays(columns, names=names)
    return table.cast(listing_schema()).sort_by("path")


def check_losses(source: str, change: Difference) -> None:
    """Refuse a generation that looks like a drive that is not mounted, or like a mistake.

    Args:
        source: its location.
        change: what the generation would do.

    Raises:
        EmbeddedFolderError: the source is empty, or has lost most of the known pictures.

    """
    advice = "Nothing was changed; if they are really gone, run it with --allow-mass-removal."
    known, gone = change.known, change.gone
    if known and not change.here:
        raise EmbeddedFolderError(
            f"{display_path(source)} holds no pictures, but {known:,} of the folder come from there: is a drive not "
            f"mounted? {advice}"
        )
    lost = len(gone) - _likely_moves(change.listed, gone)
    if known >= _GUARDED and lost > _MAX_LOST * known:
        raise EmbeddedFolderError(
            f"{display_path(source)} has lost {lost:,} of its {known:,} pictures: is a drive not mounted? {advice}"
        )


def _likely_moves(listed: pyarrow.Table, gone: pyarrow.Table) -> int:
    """Count what is gone beside a new picture of equal size and mtime: a renamed folder."""
    keys = ["size", "mtime_ns"]
    new = listed.filter(load_pyarrow("A folder of embedded parts").compute.is_null(listed["replaces"]))
    counts = new.group_by(keys).aggregate([([], "count_all")])
    lost = gone.group_by(keys).aggregate([([], "count_all")])
    both = counts.join(lost, keys, join_type="inner", right_suffix="_lost")
    return sum(map(min, both["count_all"].to_pylist(), both["count_all_lost"].to_pylist()))

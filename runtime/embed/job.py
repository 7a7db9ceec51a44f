"""An embedding job: the folder's settings, the listing of each generation, its parts, and the report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.labels import label_rule
from ..errors import ClusterError, DataError, EmbeddedFolderError, ModelFileError
from ..files import prepared_for
from ..index.patterns import RootFilters
from ..index.root_labels import parse_labels
from ..model.pretrained import describe_model, find_model
from ..modelfile import OpenModel, open_model
from ..parts.embedded_folder import MODEL, EmbeddedFolder
from ..parts.listing import Generation, PartName, write_listing
from ..parts.part import read_skipped
from ..parts.settings import SETTINGS, EmbeddedSettings
from ..parts.storage import Storage, is_uri, storage_errors
from ..progress import StartProgress, start_nothing
from ..text import display_path
from .difference import check_losses, difference
from .options import DEFAULT_PART_SIZE, EmbedOptions
from .source import Source
from .survey import LISTED_LABELS, Survey, labels_of, survey
from .work import PartDone, embed_parts

if TYPE_CHECKING:
    import pyarrow

__all__ = ["EmbedReport", "SkippedPicture", "embed"]


@dataclass(frozen=True)
class SkippedPicture:
    """A picture that could not be read: its path in the source, the reason, and the kind of fault."""

    path: str
    reason: str
    kind: str


@dataclass
class EmbedReport:
    """What a run has done.

    Attributes:
        out: the embedded folder.
        source: the folder of the pictures.
        generation: the number of the newest generation.
        is_complete: whether all its parts are done.
        missing: parts that are not, of other workers.
        parts: parts that this run has written.
        embedded: pictures that this run has embedded.
        removed: pictures that are gone from the source, by the generation that this run has begun.
        skipped: pictures that could not be read: of the whole folder if it is complete, else of this run's parts.
        items: pictures with a vector; None: the folder is not complete.
        left_out: see :class:`~.survey.Survey`; 0 if the source was not looked at.
        seconds: duration.

    """

    out: str
    source: str
    generation: int = 0
    is_complete: bool = False
    missing: int = 0
    parts: int = 0
    embedded: int = 0
    removed: int = 0
    skipped: tuple[SkippedPicture, ...] = ()
    items: int | None = None
    left_out: int = 0
    seconds: float = 0.0


def embed(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: EmbedOptions | None = None,
    *,
    progress: StartProgress = start_nothing,
    say: Callable[[str], None] = lambda _: None,
) -> EmbedReport:
    """Bring an embedded folder up to date with its source.

    An unfinished generation is completed first. Then a new one is listed, if the source has changed, and embedded. A
    run that is killed at any moment loses no part that it has written.

    Args:
        source: a folder, a Parquet listing, or a URI of either.
        out: the embedded folder, a path or a URI; made if it does not exist.
        options: how.
        progress: shows how far the work is.
        say: gets messages for the user at once.

    Raises:
        EmbeddedFolderError: the folder was made with other settings, or is damaged, or the source has lost most of its
            pictures.
        DataError: the source is missing, holds no pictures, or its listing is none.
        StorageError: a disk or object storage cannot be read or written.
        ClusterError: the cluster cannot be reached, or cannot go on.
        ModelFileError, DeviceError, QueryError: the model, the device or a pattern cannot be used.

    """
    start = time.monotonic()
    job = _Job(
        Source.of(source, (options or EmbedOptions()).root), Storage(out), options or EmbedOptions(), progress, say
    )
    report = job.run()
    report.seconds = time.monotonic() - start
    return report


class _Job:
    """One run of :func:`embed`."""

    def __init__(
        self, source: Source, out: Storage, options: EmbedOptions, progress: StartProgress, say: Callable[[str], None]
    ) -> None:
        self._source, self._out, self._options = source, out, options
        self._progress, self._say = progress, say
        self._surveyed: Survey | None = None
        self._done: list[PartDone] = []

    def run(self) -> EmbedReport:
        if self._options.engine == "ray":
            from .ray_engine import load_ray

            load_ray()  # before any work, should it be missing
        folder = self._begun()
        report = EmbedReport(self._out.uri, folder.settings.source)
        unfinished = folder.generations[len(folder.complete) :]
        for generation in unfinished:
            self._finish(folder, generation)
        # Beside others, the parts of the rest may still be missing: a new generation is for the next run.
        if not (unfinished and self._options.share):
            folder = EmbeddedFolder(self._out)
            report.removed = self._list(folder)
            folder = EmbeddedFolder(self._out)
            for generation in folder.generations[len(folder.complete) :]:
                self._finish(folder, generation)
        return self._reported(report, EmbeddedFolder(self._out))

    def _begun(self) -> EmbeddedFolder:
        """Return the folder; a new one gets its model and its settings, in this order."""
        if not self._out.has(SETTINGS):
            _check_free(self._out)
            path = find_model(self._options.model)
            model = open_model(path)
            settings = self._settings(model)
            self._out.make()
            _install(self._out, model)
            self._out.create(SETTINGS, settings.to_json())
            self._say(f"The new folder {self._out.shown()} uses {describe_model(path, model.info)}.")
        folder = EmbeddedFolder(self._out)
        self._check(folder.settings)
        return folder

    def _settings(self, model: OpenModel) -> EmbeddedSettings:
        """Return the settings of a new folder; the source decides about its labels."""
        options = self._options
        settings = EmbeddedSettings(
            model_sha256=model.sha256,
            dim=model.info.embedding_dim,
            rule=model.info.picture.values(),
            source=self._source.uri,
            rows_per_part=options.part_size or DEFAULT_PART_SIZE,
            listing=self._source.listing,
            include=options.include or (),
            exclude=options.exclude or (),
        )
        surveyed = self._surveyed = survey(settings, self._out, may_be_empty=False)
        if not len(surveyed.files):
            filters = RootFilters(settings.include, settings.exclude)
            why = f"{filters} leaves none" if surveyed.left_out and filters else "it holds none"
            raise DataError(
                f"{display_path(self._source.uri)} has no pictures to embed ({why}); expected JPEG, PNG, WebP, GIF, "
                "BMP, TIFF, AVIF or HEIC files in it or below it."
            )
        labels = _labels(options.labels) or (LISTED_LABELS if surveyed.has_labels else "top")
        is_rule = labels != LISTED_LABELS and label_rule(labels) is not None
        if not is_rule and labels != LISTED_LABELS and is_uri(self._source.uri):
            raise DataError("A table of labels goes with a folder on a disk; put the labels into a Parquet listing.")
        return replace(settings, labels=labels, splits=is_rule and surveyed.is_split)

    def _check(self, settings: EmbeddedSettings) -> None:
        """Refuse a folder that was made with other settings than this run asks for."""
        options, out = self._options, self._out.shown()
        asked: list[tuple[str, object, object]] = [
            ("pictures of", self._source.listing or self._source.uri, settings.listing or settings.source),
            ("paths that begin at", self._source.uri, settings.source),
            ("--part-size", options.part_size, settings.rows_per_part),
            ("--labels", _labels(options.labels), settings.labels),
            ("--include", options.include, settings.include),
            ("--exclude", options.exclude, settings.exclude),
        ]
        for what, wanted, made in asked:
            if wanted is not None and wanted != made:
                raise EmbeddedFolderError(
                    f"{out} was made with {what} {_shown(made)}, not {_shown(wanted)}; run it as before, or embed into "
                    "another folder."
                )
        if options.model is not None and open_model(find_model(options.model)).sha256 != settings.model_sha256:
            raise EmbeddedFolderError(
                f"{out} was made with another model than {display_path(options.model)}; leave --model "
                "out to use its own, or embed into another folder."
            )

    def _list(self, folder: EmbeddedFolder) -> int:
        """List a new generation if the source has changed; return how many pictures are gone."""
        if len(folder.complete) < len(folder.generations):  # another process has just begun one
            return 0
        folder_is_new = not folder.generations
        may_be_empty = self._options.allow_mass_removal and not folder_is_new
        surveyed = self._surveyed = self._surveyed or survey(folder.settings, self._out, may_be_empty)
        files = labels_of(folder.settings, surveyed)
        change = difference(folder, files, surveyed.unread, self._options.retry_skipped)
        if not self._options.allow_mass_removal:
            check_losses(folder.settings.source, change)
        if folder_is_new or len(change.listed) or len(change.gone):
            previous = folder.generations[-1] if folder.generations else None
            write_listing(self._out, previous, folder.settings.rows_per_part, change.listed, change.gone)
        return len(change.gone)

    def _finish(self, folder: EmbeddedFolder, generation: Generation) -> None:
        """Embed the missing parts of a generation, or this worker's share; end it if no other is missing."""
        share = self._options.share
        mine = [part for part in generation.part_names if share is None or share.takes(part)]
        missing = set(folder.missing(generation)).intersection(mine)
        if missing:
            total, left = (sum(map(generation.listed, parts)) for parts in (mine, missing))
            advance = self._progress("embedding", total, "pictures", total - left)
            for done in self._embedded(folder, generation, sorted(missing), advance):
                self._done.append(done)
        still = folder.missing(generation)
        lost = len(missing.intersection(still))
        if lost:
            raise ClusterError(
                f"{lost:,} parts that the workers have written are not in {self._out.shown()}; expected a folder that "
                "every node sees under this name, or object storage."
            )
        if not still:
            folder.end(generation)

    def _embedded(
        self, folder: EmbeddedFolder, generation: Generation, parts: list[PartName], advance: Any
    ) -> Iterator[PartDone]:
        if self._options.engine == "ray":
            from .ray_engine import embed_on_ray

            yield from embed_on_ray(folder, generation, parts, self._options, advance)
            return
        from .worker import open_embedder

        with tempfile.TemporaryDirectory(prefix="deeprank-") as place:
            embedder = open_embedder(folder, Path(place), self._options)
            lost = self._options.allow_mass_removal
            yield from embed_parts(folder, generation, parts, embedder, may_be_lost=lost, advance=advance)

    def _reported(self, report: EmbedReport, folder: EmbeddedFolder) -> EmbedReport:
        report.generation = len(folder.generations)
        report.is_complete = len(folder.complete) == len(folder.generations)
        report.missing = sum(len(folder.missing(each)) for each in folder.generations[len(folder.complete) :])
        report.parts = len(self._done)
        report.embedded = sum(done.embedded for done in self._done)
        report.left_out = self._surveyed.left_out if self._surveyed is not None else 0
        if report.is_complete:
            report.items = folder.count()
            report.skipped = tuple(_skipped([folder.skipped()]))
        else:
            parts = [done.part for done in self._done if done.skipped]
            by_number = {each.number: each for each in folder.generations}
            tables = (read_skipped(self._out, folder.settings, by_number[part.generation], part) for part in parts)
            report.skipped = tuple(_skipped(tables))
        return report


def _skipped(tables: Iterable[pyarrow.Table]) -> Iterator[SkippedPicture]:
    for table in tables:
        for row in table.select(["path", "reason", "kind"]).to_pylist():
            yield SkippedPicture(**row)


def _labels(text: str | None) -> str | None:
    """Return a rule's name, or the absolute path of a table of labels."""
    if text is None:
        return None
    labels = parse_labels(text)
    return labels.table or labels.rule


def _shown(value: object) -> str:
    return " ".join(map(display_path, value)) or "none" if isinstance(value, tuple) else display_path(str(value))


def _check_free(out: Storage) -> None:
    """Make sure that a new folder can be made: there is none, or it is empty, or a killed run has begun it."""
    if out.path is not None and out.path.exists() and not out.path.is_dir():
        raise EmbeddedFolderError(f"{out.shown()} is a file; expected a folder or a new name for --out.")
    names = list(out.sizes())
    if out.path is not None and out.path.is_dir():
        with storage_errors(out.shown(), "read"):
            names = [path.name for path in out.path.iterdir()]
    others = sorted(name for name in names if name != MODEL and prepared_for(name) is None)
    if others:
        raise EmbeddedFolderError(
            f"{out.shown()} holds other files ({display_path(others[0])}); expected an embedded or empty folder, or "
            "a new name for --out."
        )


def _install(out: Storage, model: OpenModel) -> None:
    """Put the model into a new folder; another one there stays, and is refused."""
    with storage_errors(display_path(model.path), "read"):
        content = model.path.read_bytes()
    out.create(MODEL, content)
    if out.sha256(MODEL) != model.sha256:
        raise ModelFileError(
            f"{out.shown(MODEL)} is another model than {display_path(model.path)}; expected an empty folder, or the "
            "same --model as the run that began this one."
        )

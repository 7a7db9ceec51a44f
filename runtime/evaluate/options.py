"""The options of ``deeprank-eval``: their declarations and values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..devices import Device

__all__ = [
    "DEFAULT_K",
    "Asked",
    "DataOption",
    "DemoKOption",
    "DemoOption",
    "FilesArgument",
    "GalleryOption",
    "JsonOption",
    "KOption",
    "ModelOption",
    "ModelsOption",
    "OutOption",
    "QueriesOption",
    "ReferenceOption",
    "SaveOption",
    "SplitOption",
    "TripletsOption",
]

DEFAULT_K = 30


@dataclass(frozen=True)
class Asked:
    """The options' values; see the help of each. ``files`` belong to ``models``."""

    files: tuple[Path, ...]
    models: bool
    model: Path | None
    data: str | None
    reference: Path | None
    triplets: Path | None
    k: int | None
    save_embeddings: Path | None
    demo: int
    demo_k: int
    out: Path
    as_json: bool
    device: Device
    threads: int | None
    max_pixels: int
    split: str | None = None
    labels: str | None = None
    queries: str | None = None
    gallery: str | None = None
    yes: bool = False

    @property
    def names_pictures(self) -> bool:
        """Whether labelled pictures are given."""
        return self.data is not None or self.queries is not None


FilesArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="FILE", help="With --models: the models, the first to compare with.")
]
ModelsOption = Annotated[
    bool, typer.Option("--models", help="Compare the model files that are named, in ranking and in speed.")
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model", help="The exported model. Default: ./model.onnx, else the one that ships (the word pretrained)."
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DATA",
        help="Folder or zip of class folders, or of train, val and test folders with class folders in them; CSV of "
        "path,label[,split]; or the word digits.",
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", metavar="val|test", help="The split of DATA whose pictures are the queries. Default: val."),
]
QueriesOption = Annotated[
    str | None,
    typer.Option(
        "--queries", metavar="DATA", help="In the place of --data: a data set, all of whose pictures are the queries,"
    ),
]
GalleryOption = Annotated[
    str | None,
    typer.Option("--gallery", metavar="DATA", help="and another one, all of whose pictures are the gallery."),
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        help="The run (needs PyTorch) or its *.reference.npz (does not) to compare with; pretrained: what ships.",
    ),
]
TripletsOption = Annotated[
    Path | None,
    typer.Option(
        "--triplets",
        metavar="CSV",
        help="Rated triplets, query,positive,negative[,label]: paths in DATA, else below the CSV's folder. "
        "Score-at-top-k needs --data: its gallery, or what is of the triplet's label there, is what is ranked.",
    ),
]
KOption = Annotated[
    int | None,
    typer.Option(
        "-k",
        "--k",
        metavar="K",
        min=1,
        help=f"Neighbours of each query. Default: {DEFAULT_K}, or the whole gallery where that is smaller.",
    ),
]
SaveOption = Annotated[
    Path | None, typer.Option("--save-embeddings", metavar="DIR", help="Keep vectors, labels and paths as npz.")
]
DemoOption = Annotated[
    int, typer.Option("--demo", min=0, metavar="N", help="Draw the nearest and farthest of N queries as sheets.")
]
DemoKOption = Annotated[int, typer.Option("--demo-k", metavar="K", min=1, help="Hits on each sheet of --demo.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where --demo writes its sheets.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

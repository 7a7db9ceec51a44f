"""The copies that the page of ``deeprank-serve`` sends of large photographs: their bytes, and how far they are.

Photographs of twelve megapixels are made of those of a data set, see ``photos.py``. ``shrink.js`` copies them in
Chromium, as the page does. The bundled model embeds the photographs and their copies. The table has the squared
distance between the two vectors, and how many of the ten nearest pictures of the data set are the same.

    python benchmarks/page_copies.py --photos photos.zip
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import machine, write_pictures
from photos import write_photos
from playwright.sync_api import sync_playwright

from deeprank.runtime import Embedder, pretrained_model
from deeprank.runtime.text import markdown_table

SIDES = (320, 1024, 1536, 2048)
NEIGHBOURS, GALLERY = 10, 400
COPY = """async ([source, content, side]) => {
    const { shrink } = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    const file = new Blob([Uint8Array.from(atob(content), (character) => character.charCodeAt(0))]);
    const { copy } = await shrink(file, Infinity, [side]);
    const bytes = new Uint8Array(await copy.arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""


def main() -> None:
    """Make the photographs, copy and embed them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="a labelled data set of photographs")
    parser.add_argument("--count", type=int, default=20, help="photographs to make")
    given = parser.parse_args()
    embedder = Embedder(pretrained_model())
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(given.photos, Path(folder) / "large", given.count)
        gallery = embedder.embed(write_pictures(given.photos, Path(folder) / "gallery", limit=GALLERY))
        size = sum(path.stat().st_size for path in photos) / len(photos)
        print(f"{machine()}; {embedder.info.precision}, {len(photos)} photographs of {size / 1e6:.1f} MB")
        originals = embedder.embed(photos)
        rows = [row(embedder, side, originals, gallery, copies(photos, side)) for side in SIDES]
    head = ["side", "copy, KB", "distance: mean", "largest", "equal neighbours", "equal first"]
    print(*markdown_table(head, rows), sep="\n")


def copies(photos: list[Path], side: int) -> list[bytes]:
    """Return the copies that the page makes."""
    source = (resources.files("deeprank.runtime.serve") / "page" / "shrink.js").read_text("utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        made = [
            base64.b64decode(page.evaluate(COPY, [source, base64.b64encode(path.read_bytes()).decode(), side]))
            for path in photos
        ]
        browser.close()
    return made


def row(
    embedder: Embedder,
    side: int,
    originals: npt.NDArray[np.float32],
    gallery: npt.NDArray[np.float32],
    made: list[bytes],
) -> list[str]:
    """Return the figures of one side."""
    vectors = embedder.embed([io.BytesIO(copy) for copy in made])
    distances = ((vectors - originals) ** 2).sum(axis=1)
    nearest = [np.argsort(-(each @ gallery.T), axis=1)[:, :NEIGHBOURS] for each in (originals, vectors)]
    equal = np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(*nearest, strict=True)])
    first = np.mean(nearest[0][:, 0] == nearest[1][:, 0])
    size = sum(map(len, made)) / len(made) / 1000
    return [
        f"{side:,}",
        f"{size:.0f}",
        f"{distances.mean():.4f}",
        f"{distances.max():.4f}",
        f"{equal:.3f}",
        f"{first:.2f}",
    ]


if __name__ == "__main__":
    main()

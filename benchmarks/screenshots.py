"""The pictures of README and docs: screenshots of the program, in light and dark.

They show the photographs of the Clothing dataset (https://github.com/alexeygrigorev/clothing-dataset-small, CC0) and a
network trained on them:

    deeprank-train clothing --out clothing.run
    deeprank-export clothing.run --out clothing.onnx
    deeprank-index sync clothing --index clothing.index --model clothing.onnx
    python benchmarks/screenshots.py --index clothing.index --run clothing.run --out docs/images
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from gallery_page import browser
from PIL import Image
from serving import Way, server

WIDTH, HEIGHT = 1200, 780
SCHEMES = ("light", "dark")
QUALITY = 82


def main() -> None:
    """Visit the page and the report in both colour schemes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="a finished run of deeprank-train")
    parser.add_argument("--query", default="test/skirt/", help="the query is the first picture below this folder")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with browser() as chromium, server(arguments.index, Way("page")) as port:
        for scheme in SCHEMES:
            page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
            address = f"http://127.0.0.1:{port}/"
            item = page.request.get(f"{address}v1/items?folder={arguments.query}&limit=1").json()["items"][0]
            for name, place in (("page", f"?id={item['id']}"), ("wall", "?order=shuffle&seed=4")):
                show(page, address + place, arguments.out / f"{name}-{scheme}.webp")
            page.goto(arguments.run.resolve().joinpath("report.html").as_uri())
            save(
                page.screenshot(full_page=True, clip=clip_of_effect(page)),
                arguments.out / f"before-after-{scheme}.webp",
            )
            page.close()


def show(page: Any, address: str, target: Path) -> None:
    """Open an address, and save the screen once all its pictures are there."""
    page.goto(address)
    page.wait_for_selector(".tile img")
    page.wait_for_load_state("networkidle")
    save(page.screenshot(), target)


def clip_of_effect(page: Any) -> dict[str, float]:
    """Return the part of a report from its first figures to its second pair of neighbours."""
    top, bottom = page.evaluate(
        """() => { const examples = document.querySelectorAll("article");
            return [document.querySelector("h2").getBoundingClientRect().top - 16,
                examples[1].getBoundingClientRect().bottom + 16]; }"""
    )
    return {"x": 0, "y": top, "width": WIDTH, "height": bottom - top}


def save(screenshot: bytes, target: Path) -> None:
    with Image.open(io.BytesIO(screenshot)) as image:
        image.convert("RGB").save(target, "WEBP", quality=QUALITY, method=6)


if __name__ == "__main__":
    main()

"""The pages of answers and of near-duplicates in a real browser: rows of equal height, phones, both colour schemes."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_command
from page_visit import draw, expect
from PIL import Image
from tiny_model import distances, write_model

from deeprank.runtime.index.sync.sync import sync

# Of each tile: left, top, width and height of its picture.
TILES = """[...document.querySelectorAll(".hits .tile")].map(tile => {
    const box = tile.querySelector(".picture").getBoundingClientRect();
    return [box.x, box.y, box.width, box.height];
})"""
ROW = """(probe => {
    probe.style.height = "var(--row)";
    document.querySelector(".hits").append(probe);
    const { height } = probe.getBoundingClientRect();
    probe.remove();
    return height;
})(document.createElement("div"))"""
WIDE = "document.documentElement.scrollWidth > innerWidth"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An answer with a line where similarity ends, and groups of near-duplicates."""
    folder = tmp_path_factory.mktemp("pages")
    pictures = [folder / "photos" / label / f"{n}.png" for label in ("a cat", "dog" * 30) for n in range(15)]
    for seed, picture in enumerate(pictures):
        draw(picture, seed)
    for name in ("copy.png", "again.png"):  # other files, the same picture
        with Image.open(pictures[0]) as image:
            image.save(folder / "photos" / name, compress_level=0)
    with Image.open(pictures[1]) as image:
        image.resize((300, 20)).save(folder / "photos" / "panorama.png")
        image.resize((10, 200)).save(folder / "photos" / "tower.png")
    draw(folder / "query.png", 100)
    ordered = sorted(distances(folder / "query.png", pictures))
    model = write_model(folder / "model.onnx", unrelated_distance=round(float(np.mean(ordered[13:15])), 4))
    sync(folder / "deeprank.index", [folder / "photos"], model=model)
    run_command("deeprank-query", "query.png", "--k", "40", "--html", "query.html", cwd=folder)
    run_command("deeprank-index", "dedupe", "--html", "dedupe.html", cwd=folder)
    return {name: folder / f"{name}.html" for name in ("query", "dedupe")}


def opened(browser: Any, file: Path, width: int, scheme: str = "light", said: list[str] | None = None) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    if said is not None:
        page.on("console", lambda message: said.append(message.text))
    page.goto(file.as_uri())
    return page


@pytest.mark.thorough
def test_pictures_stand_in_rows_of_equal_height(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["query"], 1400)
    for width in (1400, 768, 390):
        page.set_viewport_size({"width": width, "height": 900})
        check_rows(page)
    page.close()


def check_rows(page: Any) -> None:
    rows: dict[int, list[list[float]]] = defaultdict(list)
    for tile in page.evaluate(TILES):
        rows[round(tile[1])].append(tile)
    assert sum(map(len, rows.values())) == 34
    assert len(rows) > 3
    left, right = page.evaluate("(r => [r.left, r.right])(document.querySelector('main').getBoundingClientRect())")
    line = page.locator("p.line").bounding_box()
    last = {max(y for y in rows if y < line["y"]), max(rows)}
    for y, row in rows.items():
        assert max(height for *_, height in row) - min(height for *_, height in row) < 1.5
        assert row[0][0] == pytest.approx(left, abs=0.5)
        end = row[-1][0] + row[-1][2]
        assert end <= right + 0.5
        if y not in last:
            assert end == pytest.approx(right, abs=0.5)
        else:  # not stretched: as high as the row of the style sheet says
            assert row[0][3] <= page.evaluate(ROW) + 0.5


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["query", "dedupe"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1400, "light")])
def test_pages_are_accessible_and_fit(browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    errors: list[str] = []
    page = opened(browser, pages[name], width, scheme, errors)
    assert not page.evaluate(WIDE)
    assert errors == []
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()
    page.close()


@pytest.mark.thorough
def test_facts_show_under_the_pointer_with_focus_and_on_phones(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["query"], 1400)
    facts = page.locator(".hits .tile-facts").nth(1)
    expect(facts).to_have_css("opacity", "0")
    page.locator(".hits .tile").nth(1).hover()
    expect(facts).to_have_css("opacity", "1")
    page.mouse.move(0, 0)
    expect(facts).to_have_css("opacity", "0")
    page.locator(".hits a.picture").nth(1).focus()
    expect(facts).to_have_css("opacity", "1")
    page.close()
    phone = browser.new_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    phone.goto(pages["query"].as_uri())
    expect(phone.locator(".hits .tile-facts").first).to_have_css("opacity", "1")
    phone.close()


def test_one_click_selects_the_removable_paths(browser: Any, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["dedupe"], 1400)
    page.locator("summary").click()
    page.locator("pre.copied").click()
    paths = run_command("deeprank-index", "dedupe", "--paths-only", cwd=pages["dedupe"].parent).stdout
    assert page.evaluate("getSelection().toString()").splitlines() == paths.splitlines()
    page.close()

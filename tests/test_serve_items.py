"""``deeprank-serve``: lists of pictures, sizes, renditions, originals, searches for several pictures and for parts."""

import base64
import hashlib
import io
import itertools
import os
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageOps
from prometheus_client.parser import text_string_to_metric_families
from server_process import Server, serving, with_sizes
from tiny_model import write_model, write_picture, write_pictures

from deeprank.runtime import Index
from deeprank.runtime.errors import ListReplacedError, QueryError
from deeprank.runtime.index.maintenance.reembed import reembed
from deeprank.runtime.index.search import catalogue
from deeprank.runtime.index.search.listing import ORDERS, ListRequest
from deeprank.runtime.index.sync.options import SyncOptions
from deeprank.runtime.index.sync.sync import sync

NAMES = [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(8)]
ODD = b"caf\xe9/deep/\xff'\"\r\n<b>.png"
TURNED, LARGE = "turned.jpg", "large.jpg"


def photograph(path: Path, size: tuple[int, int], orientation: int = 1) -> Path:
    """Write a JPEG with a gradient and an edge, so that each part of it looks different."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([across, down, np.where(across > down, 255, 0)], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8825)[29] = "2024:SECRETPLACE"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=90, exif=exif)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    photos = folder / "photos"
    write_pictures(photos, NAMES)
    write_pictures(photos / "fate", ["gone.png", "changed.png", "touched.png"], first_seed=50)
    write_picture(os.fsencode(photos) + b"/" + ODD, 60)
    write_pictures(folder / "more", ["dogs/0.png", "dogs/new.png"], first_seed=70)
    photograph(photos / TURNED, (900, 300), 6)
    photograph(photos / LARGE, (3000, 2000))
    for number, path in enumerate(sorted([*photos.rglob("*.*"), *(folder / "more").rglob("*.*")])):
        moment = 1_600_000_000_000_000_000 + (number * 7 % 5) * 10**9  # several have the same
        os.utime(path, ns=(moment, moment))
    model = write_model(folder / "model.onnx")
    sync(folder / "my.index", [photos, folder / "more"], model=model)
    (photos / "fate/gone.png").unlink()
    changed = photos / "fate/changed.png"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\0")
    os.utime(photos / "fate/touched.png")
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    with serving("--index", place / "my.index", "--originals") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as asking:
        yield asking


def refused(answer: httpx.Response, status: int, sentence: str) -> None:
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]


def pages(client: httpx.Client, **parameters: object) -> list[dict[str, Any]]:
    """Return the items of all pages."""
    items: list[dict[str, Any]] = []
    cursor = None
    while True:
        answer = client.get("/v1/items", params=parameters | ({"cursor": cursor} if cursor else {}))  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert len(document["items"]) == parameters["limit"] or document["next"] is None
        items += document["items"]
        cursor = document["next"]
        if cursor is None:
            assert document["total"] == len(items)
            return items


def number_of(client: httpx.Client, path: str) -> int:
    (number,) = [item["id"] for item in pages(client, limit=500) if (item["root"], item["path"]) == ("photos", path)]
    return int(number)


# Lists


def test_orders(place: Path, client: httpx.Client) -> None:
    with Index.open(place / "my.index") as index:
        rows = [index.item(number) for number in range(1, len(index) + 1)]
    names = [(row.root, os.fsencode(row.relative)) for row in rows]
    expected = {
        "folder": [
            row.id
            for _, row in sorted(
                zip(names, rows, strict=True), key=lambda each: (each[0][0][-6:] != "photos", each[0][1])
            )
        ],
        "newest": [row.id for row in sorted(rows, key=lambda row: (-row.mtime_ns, row.id))],
        "id": [row.id for row in rows],
    }
    assert len({row.mtime_ns for row in rows}) < len(rows) / 2
    for order, limit in itertools.product(expected, (1, 4, 500)):
        assert [item["id"] for item in pages(client, order=order, limit=limit)] == expected[order], order
    shuffled = [[item["id"] for item in pages(client, order="shuffle", seed=s, limit=5)] for s in (1, 1, 2, 2**53)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    assert all(sorted(each) == expected["id"] != each for each in shuffled)
    assert client.get("/v1/items?limit=500").json()["items"] == pages(client, order="folder", limit=500)
    assert client.get("/v1/info").json()["supports"]["orders"] == list(ORDERS)


@pytest.mark.parametrize("order", ORDERS)
def test_filters(client: httpx.Client, order: str) -> None:
    every = pages(client, order=order, limit=500)

    def listed(**parameters: object) -> list[str]:
        return [f"{item['root']}/{item['path']}" for item in pages(client, order=order, limit=3, **parameters)]

    def of(*beginnings: str) -> list[str]:
        paths = [(f"{item['root']}/{item['path']}", item) for item in every]
        return [path for path, item in paths if item["path"].startswith(beginnings)]

    assert listed(label="cats") == of("cats/")
    assert listed(label=["dogs", "fate"]) == of("dogs/", "fate/")
    assert len(listed(label="dogs")) == 10
    assert listed(folder="cats") == listed(folder="/cats/") == of("cats/")
    assert listed(folder="dogs", label=["dogs", "cats"]) == of("dogs/")
    shown = ODD.decode("utf-8", "backslashreplace")
    assert [path.partition("/")[2] for path in listed(folder="caf\\xe9/deep")] == [shown]
    assert listed(folder="caf\\xe9") == listed(label="caf\\xe9")
    for folder in ("cat", "cats/0.png", "nothing", "../cats", "%", "cats/*"):
        refused(client.get("/v1/items", params={"order": order, "folder": folder}), 422, "No picture is in the folder")
    refused(client.get("/v1/items", params={"order": order, "label": "mice"}), 422, "No picture has the label 'mice'")
    refused(client.get("/v1/items", params={"order": order, "label": "cats", "folder": "dogs"}), 422, "both")


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("order=oldest", 422, "order"),
        ("limit=0", 422, "limit"),
        ("limit=501", 422, "limit"),
        ("seed=-1", 422, "seed"),
        (f"seed={2**53 + 1}", 422, "seed"),
        ("offset=5", 422, "unknown"),
        ("limit=5&limit=6", 422, "The parameter limit is given several times; expected it once."),
        ("cursor=abc", 422, "The cursor is not one of this server"),
        ("cursor=%FF", 422, "The cursor is not one of this server"),
        ("cursor=" + "A" * 6000, 422, "The cursor"),
        ("cursor=" + "A" * 9000, 422, "cursor"),
    ],
)
def test_what_is_no_list(client: httpx.Client, query: str, status: int, sentence: str) -> None:
    refused(client.get(f"/v1/items?{query}"), status, sentence)


def test_a_cursor_goes_with_its_list(client: httpx.Client) -> None:
    cursors = {order: client.get(f"/v1/items?order={order}&limit=1").json()["next"] for order in ORDERS}
    for order, other in itertools.permutations(ORDERS, 2):
        refused(client.get(f"/v1/items?order={other}&cursor={cursors[order]}"), 422, "belongs to another list")
    for more in ("label=cats", "folder=cats", "seed=1"):
        refused(client.get(f"/v1/items?order=shuffle&cursor={cursors['shuffle']}&{more}"), 422, "another list")
    assert client.get(f"/v1/items?order=newest&cursor={cursors['newest']}&limit=9").status_code == 200
    raw = base64.urlsafe_b64decode(cursors["folder"] + "==")
    rng = random.Random(1)
    for _ in range(200):  # bytes changed and cut off anywhere
        changed = bytearray(raw)
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        cut = bytes(changed[: rng.choice([len(raw), rng.randrange(len(raw))])])
        answer = client.get("/v1/items", params={"cursor": base64.urlsafe_b64encode(cut).decode().rstrip("=") or "-"})
        assert answer.status_code in (200, 409, 422), answer.text


# Lists of an index that changes


@pytest.fixture
def changing(tmp_path: Path) -> Path:
    """A folder with ``photos`` and their index."""
    names = [f"{label}/{number:02}.png" for label in ("a", "b", "c") for number in range(12)]
    write_pictures(tmp_path / "photos", names)
    for number, name in enumerate(names):
        moment = 1_500_000_000_000_000_000 + (number * 7 % 36) * 10**9
        os.utime(tmp_path / "photos" / name, ns=(moment, moment))
    sync(tmp_path / "my.index", [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    return tmp_path


def change(folder: Path, turn: int) -> set[str]:
    """Add, remove and touch pictures, and return the names of those removed."""
    photos = folder / "photos"
    present = sorted(photos.rglob("?/??.png"))
    gone = present[turn % 3 :: 9]
    for path in gone:
        path.unlink()
    for path in set(present[1 + turn % 3 :: 5]) - set(gone):  # into the future, and far into the past
        moment = (1_700_000_000 + turn if turn % 2 else 1_400_000_000 - turn) * 10**9
        os.utime(path, ns=(moment, moment))
    for label in "abc":
        write_picture(photos / label / f"{turn:02}x.png", 1000 + 10 * turn + ord(label))
    sync(folder / "my.index", [photos], model=folder / "model.onnx")
    return {str(path.relative_to(photos)) for path in gone}


@pytest.mark.parametrize("filters", [{}, {"label": ("a", "c"), "folder": ("a", "b")}], ids=["all", "some"])
@pytest.mark.parametrize("order", ORDERS)
def test_pictures_that_stay_are_listed_once(changing: Path, order: Any, filters: dict[str, Any]) -> None:
    request = ListRequest(order=order, seed=4, limit=5, **filters)
    with Index.open(changing / "my.index") as index:
        all_before = index.page(ListRequest(order=order, seed=4, limit=500, **filters)).items
        seen, cursor, gone = [], None, set[str]()
        for turn in range(20):
            page = index.page(request, cursor)
            seen += [image.relative for image in page.items]
            cursor = page.cursor
            if cursor is None:
                break
            gone |= change(changing, turn)
        assert cursor is None
        stayed = [image.relative for image in all_before if image.relative not in gone]
        assert len(stayed) >= 4
        assert len(seen) == len(set(seen))
        old = {image.relative for image in all_before}
        assert [name for name in seen if name in old and name not in gone] == stayed


def test_the_server_lists_what_a_sync_has_changed(changing: Path) -> None:
    with serving("--index", changing / "my.index") as server, server.client() as client:
        first = client.get("/v1/items?order=newest&limit=5").json()
        change(changing, 1)
        present = {str(path.relative_to(changing / "photos")) for path in (changing / "photos").rglob("*.png")}
        assert {item["path"] for item in pages(client, order="newest", limit=7)} == present
        assert client.get("/v1/info").json()["items"] == len(present)
        # The index is replaced: ids may mean other pictures.
        reembed(changing / "my.index", SyncOptions(model=changing / "model.onnx"))
        again = f"/v1/items?order=newest&limit=5&cursor={first['next']}"
        refused(client.get(again), 409, "The index was replaced since the page before; list it again")
        assert {item["path"] for item in pages(client, order="newest", limit=7)} == present


def test_a_picture_is_embedded_by_the_model_that_the_index_has_now(changing: Path) -> None:
    """Even where nobody searches meanwhile."""
    picture = next((changing / "photos").rglob("*.png")).read_bytes()
    with serving("--index", changing / "my.index") as server, server.client() as client:
        for seed in (1, 2):
            model = write_model(changing / f"{seed}.onnx", seed=seed)
            reembed(changing / "my.index", SyncOptions(model=model))
            embedded = client.post("/v1/embed", files={"image": ("a.png", picture)}).json()
            assert embedded["model"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()


def test_an_earlier_state_is_listed_while_a_later_one_is_read(changing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Index.open(changing / "my.index") as index:
        request = ListRequest(order="newest", limit=500)
        before = [image.relative for image in index.page(request).items]
        monkeypatch.setattr(catalogue, "_PATIENCE_S", 0.0)
        gone = change(changing, 2)
        now = [image.relative for image in index.page(request).items]
        # What was removed is not shown, what was added is not known yet.
        assert now == [name for name in before if name not in gone]
        monkeypatch.undo()
        assert len(index.page(request).items) == len(now) + 3 == index.summary().items


def test_an_empty_index(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    model = write_model(tmp_path / "model.onnx")
    sync(tmp_path / "my.index", [tmp_path / "none"], model=model, allow_mass_removal=True)
    with Index.open(tmp_path / "my.index") as index:
        for order in ORDERS:
            page = index.page(ListRequest(order=order))
            assert (page.items, page.total, page.cursor) == ([], 0, None)
        with pytest.raises(QueryError, match="no picture is in the folder"):
            index.page(ListRequest(folder=("a",)))


def test_cursors_of_another_index(changing: Path, tmp_path: Path) -> None:
    request = ListRequest(limit=5)
    with Index.open(changing / "my.index") as index:
        cursor = index.page(request).cursor
    shutil.copytree(changing / "my.index", tmp_path / "copy.index")
    with Index.open(tmp_path / "copy.index") as index, pytest.raises(ListReplacedError):
        index.page(request, cursor)


# Sizes


def test_sizes(place: Path, client: httpx.Client) -> None:
    items = {(item["root"], item["path"]): item for item in with_sizes(lambda: pages(client, limit=10), 2)}
    for (root, path), item in items.items():
        if path in ("fate/gone.png", "fate/changed.png"):
            assert (item["width"], item["height"]) == (None, None)
            continue
        file = os.fsencode(place / root) + b"/" + (ODD if path.startswith("caf") else path.encode())
        with Image.open(io.BytesIO(Path(os.fsdecode(file)).read_bytes())) as opened:
            assert (item["width"], item["height"]) == ImageOps.exif_transpose(opened).size
    assert (items["photos", TURNED]["width"], items["photos", TURNED]["height"]) == (300, 900)
    with (place / "photos/cats/0.png").open("rb") as file:
        found = client.post("/v1/search?sizes=1&k=100", files={"image": file}).json()["results"][0]["hits"]
    sizes = {key: (item["width"], item["height"]) for key, item in items.items()}
    assert {(hit["root"], hit["path"]): (hit["width"], hit["height"]) for hit in found} == sizes
    assert "width" not in client.post("/v1/search?id=1").json()["results"][0]["hits"][0]


# Renditions


def made(client: httpx.Client, source: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name == "deeprank_thumbnails_total" and s.labels["source"] == source)


@pytest.mark.parametrize("size", [128, 512, 2048])
def test_renditions(client: httpx.Client, size: int) -> None:
    for path, whole in ((LARGE, (3000, 2000)), (TURNED, (300, 900))):
        answer = client.get(f"/v1/items/{number_of(client, path)}/thumbnail?size={size}")
        with Image.open(io.BytesIO(answer.content)) as opened:
            scale = min(1.0, size / max(whole))
            assert opened.size == pytest.approx([side * scale for side in whole], abs=0.51)
            assert not opened.getexif()
            assert b"SECRETPLACE" not in answer.content


def test_a_rendition_is_made_once_for_all_who_ask(place: Path, server: Server) -> None:
    with server.client() as client, ThreadPoolExecutor(8) as threads:
        address = f"/v1/items/{number_of(client, LARGE)}/thumbnail?size=1024"
        before = made(client, "made")
        answers = list(threads.map(lambda _: client.get(address), range(16)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert made(client, "made") == before + 1


# Originals


def test_originals(place: Path, client: httpx.Client) -> None:
    assert client.get("/v1/info").json()["originals"] is True
    for path, kind in ((LARGE, "image/jpeg"), ("cats/0.png", "image/png")):
        address = f"/v1/items/{number_of(client, path)}/original"
        answer = client.get(address)
        assert answer.content == (place / "photos" / path).read_bytes()
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"].startswith(f'attachment; filename="{Path(path).name}"')
        assert client.get(address, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    odd = client.get(f"/v1/items/{number_of(client, ODD.decode('utf-8', 'backslashreplace'))}/original")
    assert odd.headers["content-disposition"] == (
        "attachment; filename=\"_xff_____b_.png\"; filename*=UTF-8''%5Cxff%27%22%0D%0A%3Cb%3E.png"
    )
    refused(client.get(f"/v1/items/{number_of(client, 'fate/gone.png')}/original"), 410, "no longer exists")
    refused(client.get(f"/v1/items/{number_of(client, 'fate/changed.png')}/original"), 410, "has changed")
    refused(client.get("/v1/items/9999/original"), 404, "no picture with the id 9999")


def test_a_server_without_originals_and_without_a_cache(place: Path, client: httpx.Client) -> None:
    address = f"/v1/items/{number_of(client, LARGE)}/thumbnail"
    with serving("--index", place / "my.index", "--rendition-cache", 0) as server, server.client() as other:
        refused(other.get("/v1/items/1/original"), 404, "--originals")
        assert other.get("/v1/info").json()["originals"] is False
        assert "/v1/items/{id}/original" not in other.get("/openapi.json").json()["paths"]
        for _ in range(2):
            assert other.get(address).content == client.get(address).content
        assert made(other, "made") == 2


# Searches for several pictures, and for a part of one


def result(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    (only,) = answer.json()["results"]
    return dict(only)


def form(**fields: str | list[str]) -> list[tuple[str, tuple[None, str]]]:
    pairs = [(name, each) for name, value in fields.items() for each in ([value] if isinstance(value, str) else value)]
    return [(name, (None, value)) for name, value in pairs]


def test_several_pictures(client: httpx.Client) -> None:
    ids = [number_of(client, f"{label}/3.png") for label in ("cats", "dogs")] + [number_of(client, LARGE)]
    texts = [str(number) for number in ids]
    vectors = [client.post("/v1/embed", files=form(id=text)).json()["embedding"] for text in texts]
    mean = np.mean(vectors, axis=0)
    vector = base64.b64encode((mean / np.linalg.norm(mean)).astype("<f4").tobytes()).decode()
    of_vector = result(client.post("/v1/search", files=form(vector=vector)))["hits"]
    for answer in (
        client.post("/v1/search", files=form(id=texts)),
        client.post("/v1/search", params={"id": texts}),
        client.post("/v1/search", files=form(id=[*texts, texts[0]])),  # twice counts once
    ):
        found = result(answer)
        assert (found["query"], found["ids"], "id" in found) == ("mean of 3 pictures", ids, False)
        assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in of_vector]
        distances = [hit["distance"] for hit in of_vector]
        assert [hit["distance"] for hit in found["hits"]] == pytest.approx(distances, abs=1e-5)
    others = result(client.post("/v1/search?leave_out_query=1&k=100", files=form(id=texts)))["hits"]
    assert not set(ids) & {hit["id"] for hit in others}
    assert len(others) == client.get("/v1/info").json()["items"] - 3
    refused(client.post("/v1/search", files=form(id=[texts[0], "9999"])), 404, "9999")
    refused(client.post("/v1/search", files=form(id=[str(n) for n in range(1, 102)])), 422, "101 ids; expected at most")
    refused(client.post("/v1/search?id=1", files=form(id="2")), 422, "in one of them")
    refused(client.post("/v1/embed", files=form(id=texts)), 422, "holds 3 ids")
    refused(client.post("/v1/embed", files={}), 422, "no picture")


BOX = "0.1,0.2,0.5,0.9"
PARTS = [
    *((TURNED, box) for box in (BOX, "0,0,0.25,0.25", "0.5,0,1,1")),
    (LARGE, BOX),
    ("cats/0.png", "0,0.5,1,1"),
    ("cats/0.png", "0.333,0.6,0.335,0.61"),
]


@pytest.mark.parametrize(("name", "box"), PARTS)
def test_a_part_is_searched_for_as_if_it_were_cut_out(place: Path, client: httpx.Client, name: str, box: str) -> None:
    with Image.open(place / "photos" / name) as opened:
        upright = ImageOps.exif_transpose(opened)
    edges = [round(float(edge) * side) for edge, side in zip(box.split(","), 2 * upright.size, strict=True)]
    content = (place / "photos" / name).read_bytes()
    number = str(number_of(client, name))
    ways = [
        {"files": {"image": content}, "params": {"box": box}},
        {"files": [("image", ("a.jpg", content)), *form(box=box)]},
        {"files": form(id=number, box=box)},
        {"params": {"id": number, "box": box}},
    ]
    if edges[0] == edges[2] or edges[1] == edges[3]:
        for way in ways:
            refused(client.post("/v1/embed", **way), 422, "the box holds none of them")  # type: ignore[arg-type]
        return
    part = io.BytesIO()
    upright.crop(tuple(edges)).save(part, "PNG")
    expected = client.post("/v1/embed", files={"image": part.getvalue()}).json()
    whole = client.post("/v1/embed", files=form(id=number)).json()
    for way in ways:
        vector = client.post("/v1/embed", **way).json()["embedding"]  # type: ignore[arg-type]
        assert vector == pytest.approx(expected["embedding"], abs=1e-6)
        assert vector != pytest.approx(whole["embedding"], abs=1e-3)
    of_part = result(client.post("/v1/search?k=5", files=form(vector=expected["base64"])))["hits"]
    found = result(client.post("/v1/search?k=5", files=form(id=number, box=box)))
    assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in of_part]
    assert (found["id"], found["query"]) == (int(number), name)
    for way in ways:
        others = result(
            client.post("/v1/search", **way | {"params": {"leave_out_query": 1, "k": 100, **way.get("params", {})}})
        )  # type: ignore[arg-type]
        assert int(number) not in {hit["id"] for hit in others["hits"]}


@pytest.mark.parametrize(
    "box",
    [
        "",
        "0,0,1",
        "0,0,1,1,1",
        "a,0,1,1",
        "0.5,0,0.5,1",
        "0.6,0,0.5,1",
        "0,1,1,0",
        "-0.1,0,1,1",
        "0,0,1.1,1",
        "nan,0,1,1",
        "0,0,inf,1",
    ],
)
def test_boxes_of_nothing(client: httpx.Client, box: str) -> None:
    if box:
        refused(client.post("/v1/search", params={"id": 1, "box": box}), 422, "left, top, right and bottom")
        refused(client.post("/v1/embed", files=form(id="1", box=box)), 422, "left, top, right and bottom")
    else:
        assert client.post("/v1/search", params={"id": 1, "box": box}).status_code == 200


def test_a_box_goes_with_one_picture(client: httpx.Client) -> None:
    vector = client.post("/v1/embed", files=form(id="1")).json()["base64"]
    for fields in (form(id=["1", "2"], box=BOX), form(vector=vector, box=BOX)):
        refused(client.post("/v1/search", files=fields), 422, "A box goes with an 'image' or with one 'id'")
    refused(client.post(f"/v1/search?box={BOX}", files=form(id="1", box=BOX)), 422, "only once")
    gone = str(number_of(client, "fate/gone.png"))
    refused(client.post("/v1/search", files=form(id=gone, box=BOX)), 410, "no longer exists")
    assert client.post("/v1/search", files=form(id=gone, box="0,0,1,1")).status_code == 200  # the whole picture


def test_every_status_that_was_answered_is_described(server: Server, client: httpx.Client) -> None:
    """Of all that the tests above were answered."""
    described = client.get("/openapi.json").json()["paths"]
    for method, path, status in server.answers:
        template = "/v1/items/{id}" + path.partition("/items/")[2].lstrip("0123456789") if "/items/" in path else path
        if template in described:
            assert str(status) in described[template][method.lower()]["responses"], (method, path, status)

"""``deeprank-serve`` over a real socket: its answers, its refusals and its endurance."""

import base64
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import zlib
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import run_command
from fastapi.openapi.models import OpenAPI
from PIL import Image, ImageOps
from prometheus_client.parser import text_string_to_metric_families
from server_process import COMMAND, IMPATIENT, Server, serving, with_sizes
from tiny_model import DIM, distances, expected, square, write_model, write_picture, write_pictures

from deeprank.runtime import Embedder, Index
from deeprank.runtime.index.search.request import SearchRequest
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.query.arguments import read_arguments
from deeprank.runtime.serve.schemas import SearchParameters

MOST_BYTES, MOST_PIXELS = 300_000, 2_000_000
NAMES = [f"{label}/{i}.png" for label in ("cats", "dogs") for i in range(10)]
ODD = [b"caf\xe9/\xff'\"<script>alert(1)<.png", b"new\nline/a\nb\x1b[31m.png", "größe/日本.png".encode()]
FATES = ("changed", "linked", "gone", "fifo", "folder")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of ``photos``; ``outside.png`` has the content of two of them, ``query.png`` of none."""
    folder = tmp_path_factory.mktemp("place")
    photos = folder / "photos"
    write_pictures(photos, NAMES)
    write_pictures(photos / "fate", [f"{fate}.png" for fate in FATES], first_seed=100)
    for seed, name in enumerate(ODD, 200):
        write_picture(os.fsencode(photos) + b"/" + name, seed)
    for copy in (photos / "dogs/copy.png", folder / "outside.png"):
        shutil.copy(photos / "cats/0.png", copy)
    write_picture(folder / "query.png", 300)
    turned_picture(photos / "turned.jpg")
    model = write_model(folder / "model.onnx", license="CC-BY-4.0 — ours", unrelated_distance=1.75)
    sync(folder / "my.index", [photos], model=model)
    return folder


def turned_picture(path: Path) -> None:
    """Write a photograph of 900 x 300 pixels that is to be shown upright, with the place where it was taken."""
    across, down = np.meshgrid(np.linspace(0, 255, 900), np.linspace(0, 255, 300))
    pixels = np.stack([across, down, 255 - across], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it a quarter to the right
    exif.get_ifd(0x8825)[29] = "2024:SECRETPLACE"
    Image.fromarray(pixels).save(path, quality=95, exif=exif, comment=b"SECRETPLACE")


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    options = ("--max-upload", MOST_BYTES, "--max-pixels", MOST_PIXELS, "--log-requests")
    with serving("--index", place / "my.index", *options, program=IMPATIENT) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as asking:
        yield asking


def image(content: Path | bytes, name: str = "query.png") -> dict[str, tuple[str, bytes]]:
    return {"image": (name, content.read_bytes() if isinstance(content, Path) else content)}


def text(**fields: str) -> dict[str, tuple[None, str]]:
    return {name: (None, value) for name, value in fields.items()}


def hits(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    return result["hits"]


def refused(answer: httpx.Response, status: int, sentence: str) -> None:
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]


def shown(name: str) -> str:
    r"""Return a name as the API shows it: bytes that are not UTF-8 as ``\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def files(place: Path) -> dict[str, Path]:
    """Return the pictures that were indexed, by the path that the API shows."""
    photos = place / "photos"
    return {shown(str(path.relative_to(photos))): path for path in photos.rglob("*") if path.suffix in (".png", ".jpg")}


def facts(path: Path) -> dict[str, Any]:
    """Return what the API says of the file of a picture, but for its time."""
    with Image.open(path) as opened:
        width, height = ImageOps.exif_transpose(opened).size
    return {"bytes": path.stat().st_size, "width": width, "height": height}


# What is found


@pytest.mark.parametrize("farthest", [False, True])
def test_hits_are_those_of_a_plain_computation(place: Path, client: httpx.Client, farthest: bool) -> None:
    gallery = {name: path for name, path in files(place).items() if name.split("/")[0] in ("cats", "dogs")}
    wanted = distances(place / "query.png", gallery.values())
    options = {"k": 12, "label": ["cats", "dogs"], "farthest": farthest}
    found = hits(client.post("/v1/search", params=options, files=image(place / "query.png")))
    order = np.argsort(-wanted if farthest else wanted, kind="stable")[:12]
    # Of two with the same content, either may come first.
    assert [hit["distance"] for hit in found] == pytest.approx([wanted[i] for i in order], abs=1e-5)
    of = dict(zip(gallery, wanted, strict=True))
    assert [of[hit["path"]] for hit in found] == pytest.approx([wanted[i] for i in order], abs=1e-9)
    assert [hit["rank"] for hit in found] == list(range(1, 13))


OPTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"k": 3, "farthest": True}, ["--k", "3", "--farthest"]),
    ({"k": 1000, "label": ["cats", "fate"]}, ["--k", "1000", "--label", "cats", "--label", "fate"]),
    ({"k": 1000, "max_distance": 1.9}, ["--k", "1000", "--max-distance", "1.9"]),
    ({"max_distance": 1e-9, "label": "fate"}, ["--max-distance", "1e-9", "--label", "fate"]),
    ({"exact": True, "k": 7}, ["--exact", "--k", "7"]),
    ({"unique": 0.05, "k": 1000}, ["--unique", "0.05", "--k", "1000"]),
    ({"leave_out_query": True, "k": 1000}, ["--leave-out-query", "--k", "1000"]),
]


@pytest.mark.parametrize(("options", "arguments"), OPTIONS)
def test_the_command_and_http_make_the_same_request(options: dict[str, Any], arguments: list[str]) -> None:
    label = {"label": [options["label"]]} if isinstance(options.get("label"), str) else {}
    served = SearchParameters(**options | label)
    assert served.request() == read_arguments(["a.png", *arguments]).request
    # Patterns of paths are the command's alone, and HTTP calls the method "exact".
    assert {option.name for option in fields(SearchRequest)} - {"path", "method"} == set(served.model_dump()) - {
        "exact",
        "id",
        "hashes",
        "sizes",
        "box",
    }


@pytest.fixture(scope="module")
def number(place: Path) -> int:
    """The id of the picture that ``outside.png`` has the content of."""
    with Index.open(place / "my.index") as index:
        return index.item(place / "photos/cats/0.png").id


@pytest.mark.parametrize(("options", "arguments"), OPTIONS)
def test_the_document_is_that_of_the_command(
    place: Path, client: httpx.Client, number: int, options: dict[str, Any], arguments: list[str]
) -> None:
    command = ["deeprank-query", "outside.png", "--item", number, "--index", "my.index", "--json", *arguments]
    document = json.loads(run_command(*command, cwd=place).stdout)
    for result in document["results"]:
        result.pop("reason", None)  # it names options of the command
        for hit in result["hits"]:
            hit["path"] = hit["relative"] = shown(hit["relative"])
            hit["root"], hit["label"] = "photos", hit["label"] and shown(hit["label"])
    of_file, of_item = document["results"]
    of_item["query"] = "cats/0.png"
    sent = client.post("/v1/search", params=options, files=image(place / "outside.png", "outside.png"))
    assert sent.json() == document | {"results": [of_file]}
    assert list(sent.json()) == list(document) == ["schema", "index", "k", "unrelated_distance", "results"]
    assert document["unrelated_distance"] == 1.75
    names = ["rank", "path", "root", "relative", "label", "distance", "similarity", "id"] + ["near_duplicates"] * (
        "unique" in options
    )
    assert all(list(hit) == names for hit in sent.json()["results"][0]["hits"])
    asked = [
        client.post("/v1/search", params=options, files=text(id=str(number))),
        client.post("/v1/search", params=options | {"id": number}),
    ]
    for answer in asked:
        assert answer.json() == document | {"results": [of_item]}
    # The command's answer is not only the same but that of the question.
    itself = "leave_out_query" not in options and "farthest" not in options and options.get("label") != "fate"
    assert ("cats/0.png" in [hit["path"] for hit in of_file["hits"]]) == itself
    assert all(("near_duplicates" in hit) == ("unique" in options) for hit in hits(sent))


def test_a_vector_is_searched_for_as_the_picture_that_it_comes_from(place: Path, client: httpx.Client) -> None:
    embedded = client.post("/v1/embed", files=image(place / "query.png")).json()
    vector = np.frombuffer(base64.b64decode(embedded["base64"]), dtype="<f4")
    assert embedded["dim"] == DIM == len(vector)
    assert np.array_equal(vector, np.array(embedded["embedding"], dtype=np.float32))
    assert np.allclose(vector, Embedder(place / "model.onnx").embed([place / "query.png"])[0], atol=1e-6)
    assert np.allclose(vector, expected(square(place / "query.png")[None])[0], atol=1e-5)
    sha256 = hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest()
    assert embedded["model"] == {"name": "tiny-0", "sha256": sha256}
    asked = hits(client.post("/v1/search", files=image(place / "query.png")))
    for model in ({}, {"model": sha256}, {"model": sha256[:12]}):
        answer = client.post("/v1/search", files=text(vector=embedded["base64"], **model))
        assert hits(answer) == asked
        assert answer.json()["results"][0]["query"] == "vector"
    refused(client.post("/v1/search", files=text(vector=embedded["base64"], model="0" * 12)), 409, "another model")
    refused(client.post("/v1/search", files=text(vector=embedded["base64"], model=sha256[:11])), 422, "12 hex digits")


def encoded(numbers: list[float], dtype: str = "<f4") -> str:
    return base64.b64encode(np.array(numbers, dtype=dtype).tobytes()).decode()


@pytest.mark.parametrize(
    ("vector", "sentence"),
    [
        ("?", "not base64"),
        ("ü" * 8, "not base64"),
        ("", "has 0 bytes; expected base64 of 16"),
        (encoded([1.0] + [0.0] * 14), "has 60 bytes"),
        (encoded([0.0] * 16), "not of unit length"),
        (encoded([float("nan")] * 16), "not of unit length"),
        (encoded([float("inf")] + [0.0] * 15), "not of unit length"),
        (encoded([3e38] * 16), "not of unit length"),
    ],
)
def test_a_vector_that_is_none(client: httpx.Client, vector: str, sentence: str) -> None:
    refused(client.post("/v1/search", files=text(vector=vector)), 422, sentence)


def test_fields_that_were_left_empty_count_as_not_sent(place: Path, client: httpx.Client) -> None:
    empty = text(id="", vector="", model="")
    plain = hits(client.post("/v1/search", files=image(place / "query.png")))
    assert hits(client.post("/v1/search", files=image(place / "query.png") | empty)) == plain
    number = plain[0]["id"]
    by_id = client.post("/v1/search", files=empty | text(id=str(number)))
    assert hits(by_id) == hits(client.post("/v1/search", params={"id": number}))


def test_items_and_the_summary(place: Path, client: httpx.Client) -> None:
    gallery = files(place)
    found = hits(client.post("/v1/search?k=1000", files=image(place / "query.png")))
    assert sorted(hit["path"] for hit in found) == sorted(gallery)
    for hit in found:
        item = with_sizes(lambda number=hit["id"]: client.get(f"/v1/items/{number}").json())
        content = gallery[hit["path"]].read_bytes()
        modified = datetime.fromisoformat(item.pop("modified"))
        assert modified.timestamp() == pytest.approx(gallery[hit["path"]].stat().st_mtime, abs=1e-5)
        assert item == {
            "schema": 1,
            "index": "my.index",
            "id": hit["id"],
            "path": hit["path"],
            "root": "photos",
            "relative": hit["path"],
            "label": hit["path"].split("/")[0] if "/" in hit["path"] else None,
            "sha256": hashlib.sha256(content).hexdigest(),
            **facts(gallery[hit["path"]]),
        }
    info = client.get("/v1/info").json()
    labels = [name.split("/")[0] for name in gallery if "/" in name]
    assert info["labels"] == {label: labels.count(label) for label in labels}
    assert (info["items"], info["unlabelled"]) == (len(gallery), len(gallery) - len(labels))
    assert info["roots"] == [{"name": "photos", "items": len(gallery)}]
    model = info["model"]
    assert model["sha256"] == hashlib.sha256((place / "model.onnx").read_bytes()).hexdigest()
    assert (model["name"], model["backbone"], model["dim"], model["picture_size"]) == ("tiny-0", "projection", DIM, 8)
    assert (model["license"], model["unrelated_distance"]) == ("CC-BY-4.0 — ours", 1.75)
    assert info["graph"]["items"] == len(gallery)
    assert info["limits"] == {"max_upload_bytes": MOST_BYTES, "max_pixels": MOST_PIXELS, "max_k": 3000}
    assert info["writes"] is False
    assert client.get("/v1/session").json() == {"token_required": False, "authenticated": True, "links": False}


@pytest.mark.parametrize(
    ("label", "name"),
    [("caf\\xe9", ODD[0]), ("new\nline", ODD[1]), ("größe", ODD[2])],
)
def test_a_label_is_asked_for_as_it_is_shown(client: httpx.Client, label: str, name: bytes) -> None:
    assert client.get("/v1/info").json()["labels"][label] == 1
    (hit,) = hits(client.post("/v1/search", params={"label": label, "id": 1}))
    assert hit["path"] == name.decode("utf-8", "backslashreplace")
    assert hit["label"] == label


# Thumbnails


def number_of(client: httpx.Client, name: str) -> int:
    found = hits(client.post("/v1/search", params={"k": 1000, "id": 1}))
    return next(hit["id"] for hit in found if hit["path"] == name)


@pytest.mark.parametrize("size", [128, 256, 512])
def test_a_thumbnail_is_upright_and_tells_nothing_of_its_file(place: Path, client: httpx.Client, size: int) -> None:
    address = f"/v1/items/{number_of(client, 'turned.jpg')}/thumbnail"
    answer = client.get(address, params={"size": size})
    assert answer.headers["content-type"] == "image/jpeg"
    assert "private" in answer.headers["cache-control"]
    made = Image.open(io.BytesIO(answer.content), formats=["JPEG"])
    assert b"SECRETPLACE" in (place / "photos/turned.jpg").read_bytes()
    assert b"SECRETPLACE" not in answer.content
    assert not made.getexif()
    upright = ImageOps.exif_transpose(Image.open(place / "photos/turned.jpg")).convert("RGB")
    assert made.height == size
    assert abs(made.width - size / 3) < 1
    difference = np.abs(np.asarray(made, dtype=float) - np.asarray(upright.resize(made.size), dtype=float))
    assert difference.mean() < 3
    if size == 256:
        assert client.get(address).content == answer.content
    tag = answer.headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        same = client.get(address, params={"size": size}, headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    other = client.get(address, params={"size": 1024}, headers={"If-None-Match": tag})
    assert other.status_code == 200
    assert Image.open(io.BytesIO(other.content)).size == (300, 900)  # never enlarged


@pytest.mark.parametrize("fate", FATES)
def test_only_what_was_indexed_is_shown(place: Path, client: httpx.Client, fate: str) -> None:
    number = number_of(client, f"fate/{fate}.png")
    path = place / "photos" / "fate" / f"{fate}.png"
    content = path.read_bytes()
    path.unlink()
    if fate == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif fate == "linked":
        write_picture(place / "letters.png", 999)
        assert (place / "letters.png").stat().st_size == len(content)
        path.symlink_to(place / "letters.png")
    elif fate == "fifo":
        os.mkfifo(path)
    elif fate == "folder":
        path.mkdir()
    refused(client.get(f"/v1/items/{number}/thumbnail"), 410, "sync its folder again")
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    known = client.get(f"/v1/items/{number}/thumbnail")
    assert known.status_code == 200
    # Nor is one that is known, here or by the browser, once its file is not there.
    with put_aside(path, place / "aside.png"):
        for headers in ({}, {"If-None-Match": known.headers["etag"]}):
            refused(client.get(f"/v1/items/{number}/thumbnail", headers=headers), 410, "sync its folder again")


# What is refused


@pytest.mark.parametrize("size", ["100", "0", "-128", "abc", "", "1" * 5000])
def test_sizes_of_thumbnails(client: httpx.Client, size: str) -> None:
    refused(client.get("/v1/items/1/thumbnail", params={"size": size}), 422, "xpected")


@pytest.mark.parametrize(
    ("number", "status"),
    [("0", 422), ("-1", 422), (str(2**63), 422), (str(2**63 - 1), 404), ("abc", 422), ("9" * 5000, 422), ("1.5", 422)],
)
def test_numbers_of_no_picture(client: httpx.Client, number: str, status: int) -> None:
    answers = [
        client.get(f"/v1/items/{number}"),
        client.get(f"/v1/items/{number}/thumbnail"),
        client.post("/v1/search", params={"id": number}),
    ]
    assert [answer.status_code for answer in answers] == [status] * 3
    # In a form it is any text; 0 is a number there, and that of no picture.
    field = client.post("/v1/search", files=text(id=number)).status_code
    assert field == (404 if number == "0" else status)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("k=0", "k is '0'"),
        ("k=3001", "less than or equal to 3000"),
        ("k=ten", "k is 'ten'"),
        ("k=2.5", "k is '2.5'"),
        ("k=", "k is ''"),
        ("max_distance=nan", "finite"),
        ("max_distance=inf", "finite"),
        ("max_distance=4.01", "less than or equal to 4"),
        ("max_distance=-0.1", "greater than or equal to 0"),
        ("unique=nan", "finite"),
        ("farthest=maybe", "farthest is 'maybe'"),
        ("colour=red", "colour is 'red'; this parameter is unknown"),
        ("label=wolves", "No picture has the label 'wolves'"),
        ("label=a%00b", "No picture has the label"),
        ("label=%ff%fe", "No picture has the label"),
        (f"label={'x' * 5000}", "at most 4096 characters"),
        ("&".join(["label=cats"] * 1001), "at most 1000 items"),
    ],
)
def test_parameters_of_a_search(place: Path, client: httpx.Client, query: str, sentence: str) -> None:
    refused(client.post(f"/v1/search?{query}", files=image(place / "query.png")), 422, sentence)


def bomb() -> bytes:
    """Return a whole PNG file of 30,000 x 30,000 pixels, black; it has some thousand bytes for each gigapixel."""
    side = 30_000
    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes((side // 8 + 1) * side), 9)), (b"IEND", b"")]
    parts = [
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def encode(kind: str, size: tuple[int, int] = (300, 200)) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", size, "red").save(encoded, kind)
    return encoded.getvalue()


def jpeg() -> bytes:
    return encode("JPEG")


UNREADABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a picture"),
    "text": (b"dear diary, today I was indexed", "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
    "truncated": (jpeg()[:700], "damaged JPEG"),
    "header": (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
    "bomb": (bomb(), "900,000,000 pixels"),
    "large": (encode("PNG", (2001, 1000)), "2,000,000"),
}


@pytest.mark.parametrize("which", UNREADABLE)
@pytest.mark.parametrize("address", ["/v1/search", "/v1/embed"])
def test_what_is_no_picture(client: httpx.Client, address: str, which: str) -> None:
    content, sentence = UNREADABLE[which]
    refused(client.post(address, files=image(content, "holiday.jpg")), 422, sentence)


HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("kind", "body", "sentence"),
    [
        (None, b"", "no picture"),
        (FORM, b"", "no picture"),
        (FORM, b"--b--\r\n", "no picture"),
        (None, b"xyz", "not multipart/form-data"),
        ("image/png", b"xyz", "not multipart/form-data"),
        ("application/json", b'{"id": 1}', "not multipart/form-data"),
        ("application/x-www-form-urlencoded", b"id=1", "not multipart/form-data"),
        ("multipart/form-data", HEAD + b"x\r\n--b--\r\n", "boundary"),
        ("multipart/form-data; boundary=", HEAD + b"x\r\n--b--\r\n", "cannot be read"),
        ("multipart/form-data; boundary=other", HEAD + b"x\r\n--b--\r\n", "cannot be read"),
        ("multipart/form-data; boundary=" + "b" * 3000, HEAD, "cannot be read"),
        (FORM, HEAD + b"x", "no picture"),  # it does not end
        (FORM, HEAD + b"x\r\n" + HEAD + b"y\r\n--b--\r\n", "Too many files"),
        (FORM, HEAD.replace(b"image", b"picture") + b"x\r\n--b--\r\n", "an unexpected or a repeated field"),
        (FORM, HEAD.replace(b'; filename="a.png"', b"") + b"x\r\n--b--\r\n", "an unexpected or a repeated field"),
        (FORM, HEAD + b'x\r\n--b\r\nContent-Disposition: form-data; name="id"\r\n\r\n1\r\n--b--\r\n', "id and image"),
        (
            FORM,
            b'--b\r\nContent-Disposition: form-data; name="box"\r\n\r\n1\r\n' * 2 + b"--b--\r\n",
            "an unexpected or a repeated field",
        ),
        (FORM, b"--b\r\nContent-Disposition: form-data\r\n\r\n1\r\n--b--\r\n", "name"),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="id"\r\n\r\n\xff\r\n--b--\r\n', "not a number"),
        (FORM, HEAD.replace(b"image", b"k") * 20 + b"--b--\r\n", "an unexpected or a repeated field"),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="id"\r\n\r\n' + b"1" * 200_000, "cannot be read"),
        (FORM + "; charset=unicode_escape", HEAD.replace(b"a.png", b"\\ud800") + b"x\r\n--b--\r\n", "not a picture"),
        (FORM + "; charset=no-such", HEAD.replace(b"a.png", b"\xff\xfe") + b"x\r\n--b--\r\n", "not a picture"),
    ],
)
def test_forms_that_are_none(client: httpx.Client, kind: str | None, body: bytes, sentence: str) -> None:
    refused(client.post("/v1/search", content=body, headers={"Content-Type": kind} if kind else {}), 422, sentence)


@pytest.mark.parametrize(
    ("kind", "name", "seen"),
    [
        (FORM, b"a\x01\x1b[31m.png", "a\x01\x1b[31m.png"),
        (FORM, b"/etc/<b>passwd", "/etc/<b>passwd"),
        (FORM, "größe.png".encode(), "größe.png"),
        (FORM, b"", "image"),
        (FORM + "; charset=unicode_escape", b"\\ud800", "\\ud800"),
    ],
)
def test_names_of_uploads(place: Path, client: httpx.Client, kind: str, name: bytes, seen: str) -> None:
    body = HEAD.replace(b"a.png", name) + (place / "query.png").read_bytes() + b"\r\n--b--\r\n"
    answer = client.post("/v1/search", content=body, headers={"Content-Type": kind})
    assert answer.json()["results"][0]["query"] == seen


def test_an_upload_that_is_too_large_is_answered(place: Path, server: Server, client: httpx.Client) -> None:
    refused(client.post("/v1/search", files=image(bytes(MOST_BYTES + 1))), 413, "300,000 bytes")
    chunks = itertools.repeat(bytes(65536), 40)
    refused(client.post("/v1/search", content=chunks, headers={"Content-Type": FORM}), 413, "300,000 bytes")
    assert hits(client.post("/v1/search", files=image(place / "query.png")))
    # One that only announces it is not waited for.
    head = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    # Just as large as is allowed.
    form = HEAD + bytes(MOST_BYTES - len(HEAD) - len(b"\r\n--b--\r\n")) + b"\r\n--b--\r\n"
    refused(client.post("/v1/search", content=form, headers={"Content-Type": FORM}), 422, "not a picture")


@pytest.mark.thorough
def test_a_body_that_does_not_arrive(server: Server) -> None:
    head = b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    assert b" 408 " in server.raw(head, b"some of it").split(b"\r\n")[0]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head)
    with server.client() as client:
        server.wait_for(lambda: sample(client, "deeprank_requests_in_flight") == 0, "that nothing is in flight")
        assert sample(client, "deeprank_body_bytes") == 0


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/info/", 404),
        ("GET", "//v1/info", 404),
        ("GET", "/v1/items/../../../etc/passwd", 404),
        ("GET", "/v1/items/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/v1/items/%2e%2e/thumbnail", 422),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/..%2fapp.py", 404),
        ("GET", "/static/%2e%2e%2fapp.py", 404),
        ("GET", "/static/app.py", 404),
        ("GET", "/static/", 404),
        ("GET", "/static//etc/passwd", 404),
        ("GET", "/docs/../cli.py", 404),
        ("GET", "/static/%00", 404),
        ("GET", "/static/%ff", 404),
        ("GET", "/v1/search", 405),
        ("PUT", "/v1/info", 405),
        ("OPTIONS", "/v1/search", 405),
        ("DELETE", "/v1/items/1", 405),
        ("POST", "/v1/items", 405),
        ("POST", "/", 405),
        ("TRACE", "/", 405),
        ("POST", "/v1/session", 422),
    ],
)
def test_addresses(server: Server, method: str, address: str, status: int) -> None:
    """httpx tidies paths up; what a client sends that does not is as it stands here."""
    head = f"{method} {address} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    answer = server.raw(head.encode())
    start, _, rest = answer.partition(b"\r\n")
    assert start.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nx-content-type-options: nosniff\r\n" in rest
    assert set(json.loads(rest.partition(b"\r\n\r\n")[2])) == {"error"}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v1/info HTTP/1.1\r\nConnection: close\r\n\r\n", 403),
        (b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n", 403),
        (b"GET /v1/info HTTP/1.0\r\n\r\n", 403),
        (b"GET http://localhost/v1/info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200),
        (b"GET http://localhost/v1/info HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 403),
        (b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nA: b\rc\r\nConnection: close\r\n\r\n", 400),
        (b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # somebody tries https
    ],
)
def test_requests_that_browsers_do_not_send(server: Server, request_: bytes, status: int) -> None:
    assert server.raw(request_).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (b"HTTP/1.1", "has no Host header"),
        (b"HTTP/1.0", "has no Host header"),
        (b"HTTP/1.1\r\nHost:", "has an empty Host header"),
        (b"HTTP/1.1\r\nHost: localhost\r\nhost: localhost", "has 2 Host headers"),
        (b"HTTP/1.1\r\nHost: evil.example", "is for a name that this server does not have"),
    ],
)
def test_what_is_wrong_with_the_host_is_said(server: Server, head: bytes, sentence: str) -> None:
    answer = server.raw(b"GET /v1/info %b\r\nConnection: close\r\n\r\n" % head)
    assert f"The request {sentence}; " in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def form_of(picture: bytes) -> tuple[bytes, bytes]:
    """Return a form as a client that is not httpx sends it: its type and itself."""
    disposition = b'Content-Disposition: form-data; name="image"; filename="a.png"'
    body = b"--line\r\n%b\r\n\r\n%b\r\n--line--\r\n" % (disposition, picture)
    return b"Content-Type: multipart/form-data; boundary=line\r\n", body


# How clients offer another protocol beside a body.
OFFERS = {
    "Java": b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\nUpgrade: h2c\r\n",
    "curl": b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nConnection: upgrade, http2-settings\r\n",
    "WebSocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "several": b"Connection: Upgrade\r\nUpgrade: TLS/1.0, h2c\r\nUpgrade: IRC/6.9\r\n",
    "empty": b"Connection: Upgrade\r\nUpgrade: \r\n",
    "without Connection": b"Upgrade: h2c\r\n",
    "without Upgrade": b"Connection: Upgrade\r\n",
}


@pytest.mark.parametrize("way", ["length", "chunked", "expect", "byte by byte"])
@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_of_another_protocol_is_ignored(
    place: Path, server: Server, client: httpx.Client, offer: str, way: str
) -> None:
    """As RFC 9110 (7.8) has it: the request is answered as it would be without, and so is the next one."""
    kind, body = form_of((place / "query.png").read_bytes())
    length = b"Content-Length: %d\r\n" % len(body)
    if way == "chunked":
        length = b"Transfer-Encoding: chunked\r\n"
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:100], body[100:])) + b"0\r\n\r\n"
    elif way == "expect":
        length += b"Expect: 100-continue\r\n"
    head = b"POST /v1/search?k=3 HTTP/1.1\r\nHost: localhost\r\n" + OFFERS[offer] + kind + length + b"\r\n"
    last = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    sent = head + body + head + body + last
    answer = server.raw(*(sent[i : i + 1] for i in range(len(sent))) if way == "byte by byte" else (sent,))
    assert answer.count(b"HTTP/1.1 100 Continue\r\n\r\n") <= (2 if way == "expect" else 0)
    parts = answer.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").split(b"HTTP/1.1 ")[1:]
    assert [part[:4] for part in parts] == [b"200 "] * 3, answer
    expected_hits = hits(client.post("/v1/search?k=3", files=image(place / "query.png")))
    for part in parts[:2]:
        assert json.loads(part.partition(b"\r\n\r\n")[2])["results"][0]["hits"] == expected_hits
    assert "WebSocket" not in server.stderr


@pytest.mark.thorough
def test_an_offer_changes_nothing_else(place: Path, server: Server) -> None:
    offer = b"Host: localhost\r\n" + OFFERS["Java"]
    end = b"Connection: close\r\n\r\n"
    handshake = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    last = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n" + end
    for request_, status in {
        b"GET /v1/info HTTP/1.1\r\n" + offer + b"\r\n": 200,
        b"GET /v1/info HTTP/1.1\r\n" + OFFERS["WebSocket"] + handshake + b"Host: localhost\r\n\r\n": 200,
        b"GET /v1/info HTTP/1.1\r\nHost: evil.example\r\n" + OFFERS["Java"] + b"\r\n": 403,
        b"POST /v1/embed HTTP/1.1\r\n" + offer + b"Content-Length: 0\r\n\r\n": 422,
        b"POST /v1/embed HTTP/1.1\r\n" + offer + b"Content-Length: 900000\r\n\r\n": 413,
        b"GET /v1/info HTTP/1.0\r\n" + offer + b"\r\n": 200,
    }.items():
        answer = server.raw(request_ + last)
        assert answer.startswith(b"HTTP/1.1 %d " % status), (request_, answer)
    assert server.raw(b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 4")
    # Not a way around the bounds of a head, of requests that are sent ahead, or of the time that one may take.
    with contextlib.suppress(ConnectionResetError):  # while it was still sending
        assert b" 200 " not in server.raw(b"GET / HTTP/1.1\r\n" + offer + b"A: long enough\r\n" * 20_000 + b"\r\n")
    with contextlib.suppress(OSError):
        server.raw((b"GET /v1/info HTTP/1.1\r\n" + offer + b"\r\n") * 5_000)
    head = b"POST /v1/embed HTTP/1.1\r\n" + offer + b"Content-Length: 1000\r\n\r\n"
    assert b" 408 " in server.raw(head, b"some of it").split(b"\r\n")[0]
    kind, body = form_of((place / "query.png").read_bytes())
    smuggled = (
        b"POST /v1/embed HTTP/1.1\r\n" + offer + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(body)
    )
    assert server.raw(smuggled + kind + b"\r\n" + body).startswith(b"HTTP/1.1 400 ")


CURL = shutil.which("curl")


@pytest.mark.skipif(CURL is None, reason="there is no curl")
@pytest.mark.parametrize("options", [("--http1.1",), ("--http2",), ("--http2", "-H", "Transfer-Encoding: chunked")])
def test_curl(place: Path, server: Server, client: httpx.Client, options: tuple[str, ...]) -> None:
    command = [CURL, "-sS", "--noproxy", "*", *options, "-F", f"image=@{place / 'query.png'}"]
    answer = subprocess.run([*command, f"{server.url}/v1/search?k=3"], capture_output=True, check=True, timeout=60)
    got = json.loads(answer.stdout)["results"][0]["hits"]
    assert got == hits(client.post("/v1/search?k=3", files=image(place / "query.png")))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 9_000,
        b'{"token": 5}',
        b'{"token": ""}',
        b'{"token": "x", "more": 1}',
        b'"\\ud800"',
        b"\xff",
        b"NaN",
    ],
)
def test_what_is_no_token(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/session", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)


# What describes it


def sample(client: httpx.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    found = [s.value for family in families for s in family.samples if s.name == name and s.labels == labels]
    return found[0] if found else 0.0


def test_what_is_counted(place: Path, client: httpx.Client) -> None:
    asked = {"method": "POST", "route": "/v1/search", "status": "200"}
    unknown = {"method": "GET", "route": "none", "status": "404"}
    before = [sample(client, "deeprank_requests_total", **labels) for labels in (asked, unknown)]
    embedded = sample(client, "deeprank_batch_pictures_sum")
    for _ in range(3):
        hits(client.post("/v1/search", files=image(place / "query.png")))
    for name in ("a", "b"):
        client.get(f"/{name}")
    after = [sample(client, "deeprank_requests_total", **labels) for labels in (asked, unknown)]
    assert after == [before[0] + 3, before[1] + 2]
    assert sample(client, "deeprank_batch_pictures_sum") == embedded + 3
    assert sample(client, "deeprank_index_items") == len(files(place))
    assert sample(client, "deeprank_ready") == 1
    assert sample(client, "process_resident_memory_bytes") < 1e9  # after a bomb, and everything else


ROUTES = {
    ("post", "/v1/search"),
    ("post", "/v1/embed"),
    ("get", "/v1/items"),
    ("get", "/v1/items/{id}"),
    ("get", "/v1/items/{id}/thumbnail"),
    ("get", "/v1/info"),
    ("get", "/v1/near-duplicates"),
    ("post", "/v1/near-duplicates"),
    ("get", "/v1/ratings"),
    ("get", "/v1/ratings/questions"),
    ("get", "/v1/session"),
    ("post", "/v1/session"),
    ("delete", "/v1/session"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
}


def fits(value: object, schema: dict[str, Any], parts: dict[str, Any]) -> bool:
    """Tell whether a document is what a schema says; of JSON schema, what ours use."""
    if "$ref" in schema:
        return fits(value, parts[schema["$ref"].removeprefix("#/components/schemas/")], parts)
    if "anyOf" in schema:
        return any(fits(value, choice, parts) for choice in schema["anyOf"])
    kinds = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "null": type(None)}
    if schema.get("type") == "array":
        return isinstance(value, list) and all(fits(part, schema["items"], parts) for part in value)
    if schema.get("type") == "object":
        known, more = schema.get("properties", {}), schema.get("additionalProperties", False)
        return (
            isinstance(value, dict)
            and set(value) >= set(schema.get("required", ()))
            and all(fits(part, known.get(name, more), parts) for name, part in value.items())
            and (bool(more) or set(value) <= set(known))
        )
    return isinstance(value, kinds[schema["type"]]) and (not isinstance(value, bool) or schema["type"] == "boolean")


def test_the_description_is_right(place: Path, client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    OpenAPI.model_validate(document)
    assert {(method, path) for path, ways in document["paths"].items() for method in ways} == ROUTES
    parts = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert name in parts
    some = image(place / "query.png")
    answers = {
        ("post", "/v1/search"): [
            client.post("/v1/search?unique=0.1", files=some),
            client.post("/v1/search?id=1", files={}),
            client.post("/v1/search?k=0", files=some),
        ],
        ("post", "/v1/embed"): [client.post("/v1/embed", files=some)],
        ("get", "/v1/items/{id}"): [client.get("/v1/items/1"), client.get("/v1/items/99999")],
        ("get", "/v1/info"): [client.get("/v1/info")],
        ("get", "/v1/session"): [client.get("/v1/session")],
        ("post", "/v1/near-duplicates"): [client.post("/v1/near-duplicates?max_distance=4")],
        ("get", "/v1/ratings"): [client.get("/v1/ratings"), client.get("/v1/ratings?query=1")],
        ("get", "/v1/ratings/questions"): [client.get("/v1/ratings/questions?count=3")],
        ("get", "/v1/near-duplicates"): [near_duplicates(client), client.get("/v1/near-duplicates?max_distance=3")],
    }
    for (method, path), given in answers.items():
        for answer in given:
            described = document["paths"][path][method]["responses"][str(answer.status_code)]
            assert fits(answer.json(), described["content"]["application/json"]["schema"], parts), (path, answer.text)


def near_duplicates(client: httpx.Client) -> httpx.Response:
    """Return the groups of a search that has ended."""
    while (answer := client.get("/v1/near-duplicates?max_distance=4")).json()["state"] != "done":
        time.sleep(0.02)
    return answer


def test_the_page_and_the_manual_ask_no_other_host(client: httpx.Client) -> None:
    for address in ("/", "/docs"):
        page = client.get(address)
        assert page.headers["content-type"].startswith("text/html")
        addresses = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        assert addresses
        for found in addresses:
            assert not re.match(r"(https?:)?//|data:", found), found
            if not found.startswith("#"):
                got = client.get(found)
                assert got.status_code == 200
                if "etag" in got.headers:
                    assert client.get(found, headers={"If-None-Match": got.headers["etag"]}).status_code == 304
    assert "<script>" not in client.get("/").text
    assert 'style="' not in client.get("/").text
    assert "url(http" not in client.get("/static/style.css").text
    assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert client.head("/").status_code == 200


def test_lines_of_the_log_cannot_be_forged(server: Server, client: httpx.Client) -> None:
    forged = "2026-01-01 00:00:00,000 WARNING forged"
    client.get("/v1/info", params={"x": f"a\n{forged}\x1b[31m"}, headers={"X-Forwarded-For": f"1.2.3.4 {forged}"})
    client.get(f"/nothing%0a{forged}%1b")
    client.get("/v1/info", headers={"User-Agent": f"a {forged}", "X-Forwarded-Proto": "\\n" + forged})
    rest = b"\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    server.raw(f"GET /raw?\x1b[31m\x85{forged} HTTP/1.1".encode() + rest)
    server.raw(b"GET /last HTTP/1.1\r\nX-Forwarded-For: 1.2.3.4\x85 WARNING forged" + rest)
    server.wait_for(lambda: "/last" in server.stderr, "a line of the log")
    first, *lines = server.stderr.splitlines()
    assert first.startswith("Serving ")
    for line in lines:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) ", line)
        assert not re.match(r".{20,32}forged", line)
        assert line.isprintable()
    assert any('"GET /v1/info?x=' in line for line in lines)


def test_every_status_that_was_answered_is_described(server: Server, client: httpx.Client) -> None:
    """Of all that the tests above were answered."""
    described = client.get("/openapi.json").json()["paths"]
    ways = {re.compile(re.sub(r"\{\w+\}", "[^/]+", path)): path for path in described}
    missing = set()
    for method, path, status in server.answers:
        for way, template in ways.items():
            operation = described[template].get(method.lower())
            if way.fullmatch(path) and operation is not None and str(status) not in operation["responses"]:
                missing.add((method, template, status))
    assert not missing


# What it lives through


@contextlib.contextmanager
def put_aside(path: Path, aside: Path) -> Iterator[None]:
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextlib.contextmanager
def overwritten(path: Path, content: bytes) -> Iterator[None]:
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.mark.thorough
def test_an_index_that_is_away_for_a_while(place: Path, tmp_path: Path) -> None:
    index = tmp_path / "my.index"
    shutil.copytree(place / "my.index", index)
    database = index / "items.sqlite"
    content = database.read_bytes()
    with serving("--index", index, program=IMPATIENT) as server, server.client() as client:

        def is_ready() -> bool:
            return client.get("/readyz").status_code == 200

        assert is_ready()
        troubles = [
            put_aside(index, tmp_path / "elsewhere"),
            overwritten(database, b""),
            overwritten(database, bytes(len(content))),
        ]
        for trouble in troubles:
            with trouble:
                server.wait_for(lambda: not is_ready(), "that it is not ready")
                answer = client.post("/v1/search", files=image(place / "query.png"))
                refused(answer, 503, "the server's log says why")
                assert sample(client, "deeprank_ready") == 0
                assert client.get("/healthz").status_code == 200
            server.wait_for(is_ready, "that it is ready again")
            assert len(hits(client.post("/v1/search", files=image(place / "query.png")))) == 10
        assert str(index) in server.stderr  # whoever runs it sees which


def test_an_empty_index(place: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    model = write_model(tmp_path / "model.onnx")
    sync(tmp_path / "my.index", [tmp_path / "none"], model=model, allow_mass_removal=True)
    with serving("--index", tmp_path / "my.index") as server, server.client() as client:
        assert "Serving 0 pictures" in server.stderr
        answer = client.post("/v1/search", files=image(place / "query.png"))
        assert hits(answer) == []
        assert list(answer.json()) == ["schema", "index", "k", "results"]
        info = client.get("/v1/info").json()
        assert (info["model"]["license"], info["model"]["unrelated_distance"]) == (None, None)
        assert (info["items"], info["labels"], info["graph"]) == (0, {}, None)
        refused(client.post("/v1/search?label=cats", files=image(place / "query.png")), 422, "expected none")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_flight_at_the_end_is_finished(place: Path, number: int) -> None:
    form = HEAD + (place / "query.png").read_bytes() + b"\r\n--b--\r\n"
    head = f"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\nContent-Length: {len(form)}\r\n\r\n"
    with Server("--index", place / "my.index") as server, server.client() as client, contextlib.ExitStack() as open_:
        address = ("127.0.0.1", server.port)
        connections = [open_.enter_context(socket.create_connection(address, timeout=60)) for _ in range(5)]
        for connection in connections:
            connection.sendall(head.encode() + form[:100])
        server.wait_for(lambda: sample(client, "deeprank_requests_in_flight") == 5, "that all are in flight")
        server.process.send_signal(number)
        server.wait_for(lambda: not reaches(address), "that nobody else is let in")
        for connection in connections:
            connection.sendall(form[100:])
        answers = [b"".join(iter(lambda: connection.recv(1 << 16), b"")) for connection in connections]  # noqa: B023
        found = [json.loads(answer.partition(b"\r\n\r\n")[2])["results"][0]["hits"] for answer in answers]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        assert [len(hits) for hits in found] == [10] * 5
        assert server.wait() == 0
        assert "Traceback" not in server.stderr


def reaches(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=60):
        return True
    return False


@pytest.mark.thorough
@pytest.mark.parametrize("signals", [1, 2])
def test_one_who_does_not_end_is_not_waited_for_forever(place: Path, signals: int) -> None:
    """One signal: as long as requests are waited for at the end; a second one: not at all."""
    with Server("--index", place / "my.index", program=IMPATIENT if signals == 1 else COMMAND) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection, server.client() as client:
            connection.sendall(b"POST /v1/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
            server.wait_for(lambda: sample(client, "deeprank_requests_in_flight") == 1, "that it is in flight")
            for _ in range(signals):
                server.process.send_signal(signal.SIGINT)
                server.wait_for(lambda: not reaches(("127.0.0.1", server.port)), "that nobody is let in")
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 5\r\n" in answer
            assert b"\r\nx-content-type-options: nosniff\r\n" in answer
            assert server.wait() == 0
        assert "Traceback" not in server.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("head", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: "])
def test_a_connection_on_which_no_request_comes_is_closed(server: Server, head: bytes) -> None:
    assert server.raw(head) == b""
    if head:  # after an answer, a connection may lie idle for longer
        whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert server.raw(whole, head).count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_a_head_request_gets_the_head_of_the_answer(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_a_head_that_grows_without_end_is_refused(server: Server) -> None:
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    assert server.raw(head, b"X-A: " + b"a" * 60_000 + b"\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    for more in (b"X-A: " + b"a" * 70_000, b"".join(b"X-%d: a\r\n" % number for number in range(20_000))):
        with contextlib.suppress(ConnectionResetError):  # while it was still sending
            assert b"HTTP/1.1 200" not in server.raw(head, more + b"\r\n\r\n")


def dribble(connection: socket.socket) -> None:
    for _ in range(600):
        connection.sendall(b"a")
        time.sleep(0.02)


@pytest.mark.thorough
def test_what_follows_an_answer_that_did_not_wait_for_it_is_not_read_for_ever(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 405 ")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            dribble(connection)


def test_many_requests_sent_ahead_do_not_keep_others_waiting(server: Server, client: httpx.Client) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert (
        server.raw(one * 10 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).count(b"HTTP/1.1 200") == 11
    )
    with contextlib.suppress(OSError):
        assert server.raw(one * 10_000).count(b"HTTP/1.1 200") < 200
    assert client.get("/healthz").status_code == 200


def test_those_who_read_nothing_are_let_go(server: Server, client: httpx.Client) -> None:
    before = sample(client, "deeprank_connections")
    hungry = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(5)]
    for connection in hungry:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 12)
    server.wait_for(lambda: sample(client, "deeprank_connections") > before, "that some are connected")
    server.wait_for(lambda: sample(client, "deeprank_connections") <= before, "that they are let go")
    for connection in hungry:
        connection.close()


def modules(name: str) -> set[str]:
    """Return the modules that a module of the page imports, and those that they import."""
    page = Path(__file__).parents[1] / "runtime" / "serve" / "page"
    reached, left = set(), [name]
    while left:
        module = left.pop()
        for imported in re.findall(r'^(?:import|export)[^;]*? from "(\.[^"]+)";', (page / module).read_text(), re.M):
            path = os.path.normpath(Path(module).parent / imported)
            if path not in reached:
                reached.add(path)
                left.append(path)
    return reached


def test_the_page_is_sent_compressed_and_asks_for_its_modules_at_once(client: httpx.Client) -> None:
    page = client.get("/")
    assert (page.headers["content-encoding"], page.headers["vary"]) == ("gzip", "Accept-Encoding")
    plain = client.get("/", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == page.content
    assert set(re.findall(r'modulepreload" href="static/([^"]+)"', page.text)) == modules("app.js")

"""Bad input by kind: how to make it, the command that meets it, and what must be said.

``tests/test_bad_input.py`` checks each case; ``python tests/bad_input.py MODEL`` writes the table of
docs/error-messages.md again.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from deeprank.runtime.index.ratings import NewComparison, add_comparisons
from deeprank.runtime.index.sync.sync import sync

INDEX, PHOTOS = "my.index", "photos"
THREE = ",".join(f"{PHOTOS}/label{number}/{number}.png" for number in range(3))
FIRST = f"{PHOTOS}/label0/0.png"

DOCUMENT = Path(__file__).parents[1] / "docs" / "error-messages.md"
BEGIN, END = "<!-- made by tests/bad_input.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Case:
    """``make(folder)`` prepares and returns the command's words; ``says`` must be in the last line of stderr.

    ``needs``: a module without which the case cannot be met.
    """

    what: str
    make: Callable[[Path], list[str]]
    says: str
    status: int = 1
    needs: str | None = None


def picture(path: Path, seed: int = 0, side: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def photos(folder: Path, count: int = 24) -> Path:
    for number in range(count):
        picture(folder / PHOTOS / f"label{number % 3}" / f"{number}.png", number)
    return folder / PHOTOS


# A copy of the pictures and the index that were made in a folder, by that folder.
_INDEXED: dict[Path, Path] = {}


def indexed(folder: Path) -> Path:
    """An index of a few pictures, made with ``model.onnx`` of the folder; a copy if one was made in this place."""
    kept = _INDEXED.get(folder)
    if kept is None or not kept.is_dir():
        sync(folder / INDEX, [photos(folder)], model=folder / "model.onnx")
        kept = _INDEXED[folder] = Path(tempfile.mkdtemp(prefix="kept-", dir=folder.parent))
        for name in (PHOTOS, INDEX):
            shutil.copytree(folder / name, kept / name)
    else:
        for name in (PHOTOS, INDEX):
            shutil.copytree(kept / name, folder / name, dirs_exist_ok=True)
    return folder / INDEX


def query(folder: Path, name: str, content: bytes | None) -> list[str]:
    indexed(folder)
    if content is not None:
        (folder / name).write_bytes(content)
    return ["deeprank-query", name, "--index", INDEX]


def asked(folder: Path, *words: str) -> list[str]:
    indexed(folder)
    return ["deeprank-query", *words, "--index", INDEX]


def sync_more(folder: Path, *words: str) -> list[str]:
    indexed(folder)
    return ["deeprank-index", "sync", *words, "--index", INDEX]


def linked_graph(folder: Path) -> list[str]:
    graph = indexed(folder) / "graph.hnsw"
    graph.rename(folder / "elsewhere.hnsw")
    graph.symlink_to(folder / "elsewhere.hnsw")
    return ["deeprank-query", FIRST, "--index", INDEX]


def piped_model(folder: Path) -> list[str]:
    model = indexed(folder) / "model.onnx"
    model.unlink()
    os.mkfifo(model)
    return ["deeprank-query", FIRST, "--index", INDEX]


def linked_uploads(folder: Path) -> list[str]:
    (folder / "pictures").mkdir()
    (indexed(folder) / "uploads").symlink_to(folder / "pictures")
    return ["deeprank-index", "remove", FIRST, "--yes", "--index", INDEX]


def cared(folder: Path, *words: str, index: str = INDEX) -> list[str]:
    indexed(folder)
    return ["deeprank-index", *words, "--index", index]


def encoded(image: Image.Image, image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    place = int(len(content) * at)
    for offset in range(place, min(place + 64, len(content))):
        content[offset] ^= 0x5A
    path.write_bytes(content)


def without_metadata(folder: Path) -> list[str]:
    import onnx

    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "other.onnx")
    photos(folder)
    return ["deeprank-index", "sync", PHOTOS, "--index", INDEX, "--model", "other.onnx"]


def another_model(folder: Path) -> list[str]:
    from tiny_model import write_model

    indexed(folder)
    write_model(folder / "better.onnx", dim=7)
    return ["deeprank-index", "sync", PHOTOS, "--index", INDEX, "--model", "better.onnx"]


def damaged_graph(folder: Path) -> list[str]:
    flip(indexed(folder) / "graph.hnsw", 0.5)
    return ["deeprank-query", f"{PHOTOS}/label0/0.png", "--index", INDEX]


def truncated_graph(folder: Path) -> list[str]:
    graph = indexed(folder) / "graph.hnsw"
    os.truncate(graph, graph.stat().st_size // 2)
    return ["deeprank-query", f"{PHOTOS}/label0/0.png", "--index", INDEX, "--search", "hnsw"]


def damaged_database(folder: Path) -> list[str]:
    database = indexed(folder) / "items.sqlite"
    for twentieth in range(1, 20):
        flip(database, twentieth / 20)
    return ["deeprank-query", f"{PHOTOS}/label0/0.png", "--index", INDEX]


def foreign_database(folder: Path) -> list[str]:
    with sqlite3.connect(indexed(folder) / "items.sqlite") as connection:
        connection.execute("CREATE TRIGGER mine AFTER DELETE ON items BEGIN UPDATE items SET label = 'x'; END")
    return ["deeprank-query", f"{PHOTOS}/label0/0.png", "--index", INDEX]


def linked_database(folder: Path) -> list[str]:
    database = indexed(folder) / "items.sqlite"
    database.rename(folder / "elsewhere.sqlite")
    database.symlink_to(folder / "elsewhere.sqlite")
    return ["deeprank-query", f"{PHOTOS}/label0/0.png", "--index", INDEX]


def changed_hit(folder: Path) -> list[str]:
    indexed(folder)
    picture(folder / PHOTOS / "label0" / "3.png", 77)
    return ["deeprank-query", FIRST, "--k", "24", "--copy-to", "hits", "--index", INDEX]


def unmounted(folder: Path) -> list[str]:
    indexed(folder)
    shutil.rmtree(folder / PHOTOS)
    (folder / PHOTOS).mkdir()
    return ["deeprank-index", "sync", PHOTOS, "--index", INDEX]


def gone(folder: Path) -> list[str]:
    indexed(folder)
    shutil.rmtree(folder / PHOTOS)
    return ["deeprank-index", "sync", PHOTOS, "--index", INDEX]


def other_files(folder: Path) -> list[str]:
    for name in ("films/a.mp4", "films/b.mp4", "films/README"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("nothing to see")
    return ["deeprank-index", "sync", "films", "--index", INDEX, "--model", "model.onnx"]


def wrong_table(folder: Path) -> list[str]:
    (folder / "labels.csv").write_text("name,colour\na.png,red\n")
    return sync_more(folder, PHOTOS, "--labels", "labels.csv")


def empty_folder(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["deeprank-index", "sync", "empty", "--index", INDEX, "--model", "model.onnx"]


def empty_data(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return ["deeprank-train", "empty"]


def one_class(folder: Path) -> list[str]:
    for number in range(5):
        picture(folder / "data" / "only" / f"{number}.png", number)
    return ["deeprank-train", "data", "--config", "digits"]


class Code:
    """A pickle that writes a file when it is read without care."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("the-code-ran",)


def foreign_checkpoint(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text("{}")
    (folder / "run" / "best.pt").write_bytes(pickle.dumps({"model": Code()}))
    return ["deeprank-export", "run"]


def foreign_weights(folder: Path) -> list[str]:
    (folder / "weights.pth").write_bytes(pickle.dumps({"conv1.weight": Code()}))
    return ["deeprank-train", "digits", "--backbone", "resnet18", "--weights", "weights.pth"]


def k_beyond(folder: Path) -> list[str]:
    indexed(folder)
    return ["deeprank-query", f"{PHOTOS}/label0/0.png", "--index", INDEX, "--k", "1000", "--json"]


def triplets(folder: Path, text: str) -> list[str]:
    photos(folder)
    (folder / "rated.csv").write_bytes(text.encode("latin-1"))
    return ["deeprank-eval", "--model", "model.onnx", "--triplets", "rated.csv"]


def laid_out(folder: Path, *names: str) -> list[str]:
    for name in names:
        for number in range(3):
            picture(folder / "data" / name / f"{number}.png", number)
    return ["deeprank-eval", "--model", "model.onnx", "--data", "data"]


def two_sets(folder: Path) -> list[str]:
    sets = [f"{name}/{split}/{label}" for name in ("cars", "pets") for split in ("train", "test") for label in "ab"]
    return laid_out(folder, *sets)


def tabled(folder: Path, text: str) -> list[str]:
    picture(folder / "0.png")
    (folder / "table.csv").write_text(text)
    return ["deeprank-eval", "--model", "model.onnx", "--data", "table.csv"]


def compared(folder: Path, *words: str) -> list[str]:
    (folder / "script.pt").write_bytes(b"PK\x03\x04 and no more")
    return ["deeprank-eval", *words, "--data", str(photos(folder))]


NETWORK = """
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 8, 3)

    def forward(self, pictures):
        maps = self.layer(pictures)
        return {vectors}
"""


POOLED = "maps.mean((2, 3))"
DROPOUT = f"torch.nn.functional.dropout({POOLED}, training=True)"
MINUS_MEAN = f"{POOLED} - {POOLED}.mean(0)"
TWO = ["--data", "digits", "--mean", "0.5,0.5"]


def network(folder: Path, vectors: str, *words: str) -> list[str]:
    """A network of somebody else's, which gives what the expression ``vectors`` makes of its ``maps``."""
    (folder / "mine.py").write_text(NETWORK.format(vectors=vectors))
    command = ["deeprank-export", "--module", "mine:Network", "--image-size", "16", *words]
    return command if words else [*command, "--data", str(photos(folder))]


def adopted(folder: Path, kind: str | None, *words: str) -> list[str]:
    """An ONNX file of somebody else's, which takes pictures of 16 x 16 pixels of a kind; None: no ONNX file."""
    from onnx import TensorProto, helper, save

    path = folder / ("notes.onnx" if kind is None else "theirs.onnx")
    if kind is None:
        path.write_text("my notes\n")
    else:
        given = TensorProto.FLOAT if kind == "float" else TensorProto.UINT8
        shape = ["n", 3, 16, 16] if kind == "float" else ["n", 16, 16, 3]
        nodes = [
            helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["x"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes,
            "theirs",
            [helper.make_tensor_value_info("pixels", given, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 768])],
        )
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return ["deeprank-export", "--from-onnx", path.name, *words]


def damaged_triplets(folder: Path) -> list[str]:
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(encoded(NOISE)[:99])
    return triplets(folder, f"{TRIPLET}a.png,b.png,c.png\n")


def ratings(folder: Path, *rows: str, columns: str = "query,positive,negative", word: str = "import") -> list[str]:
    """An import of ratings of an index's pictures, or their export."""
    indexed(folder)
    (folder / "rated.csv").write_text("\n".join([columns, *rows]) + "\n", "utf-8")
    return ["deeprank-index", "ratings", word, "rated.csv", "--index", INDEX]


def rated(folder: Path, damage: str) -> list[str]:
    """An index with a rating, whose database is then changed."""
    index = indexed(folder)
    contents = (hashlib.sha256((folder / name).read_bytes()).digest() for name in THREE.split(","))
    add_comparisons(index, [NewComparison(*contents)])
    with sqlite3.connect(index / "ratings.sqlite") as connection:
        connection.execute(damage)
    return ["deeprank-index", "ratings", "info", "--index", INDEX]


def linked_ratings(folder: Path) -> list[str]:
    (folder / "elsewhere.sqlite").write_bytes(b"")
    (indexed(folder) / "ratings.sqlite").symlink_to(folder / "elsewhere.sqlite")
    return ["deeprank-index", "ratings", "info", "--index", INDEX]


def taught(folder: Path, *words: str) -> list[str]:
    indexed(folder)
    return ["deeprank-teach", "--index", INDEX, *words]


def foreign_head(folder: Path) -> list[str]:
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text('{"schema": 1, "kind": "ratings"}')
    shutil.copy(folder / "model.onnx", folder / "run" / "start.onnx")
    (folder / "run" / "head.safetensors").write_bytes(pickle.dumps(Code()))
    return ["deeprank-export", "run"]


MODELS = ("--models", "model.onnx")
TRAIN = ("deeprank-train", "digits", "--config", "default")
NOWHERE = ("--weights", "none", "--unfreeze", "1", "--start-share", "0.5")
TRIPLET = "query,positive,negative\n"
TWO_OF_THREE = THREE.rpartition(",")[0]
HASHED = "query,positive,negative,query_sha256"
CHANGED = (f"{THREE},{'0' * 64}",)
NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))

CASES = [
    Case("a missing picture", lambda f: query(f, "gone.jpg", None), "gone.jpg does not exist"),
    Case("a text file called .jpg", lambda f: query(f, "notes.jpg", b"my notes"), "is not a picture that can be read"),
    Case("a truncated JPEG", lambda f: query(f, "cut.jpg", encoded(NOISE, "JPEG")[:900]), "is a damaged JPEG file"),
    Case("a damaged PNG", lambda f: query(f, "cut.png", encoded(NOISE)[:900]), "is a damaged PNG file"),
    Case("a decompression bomb", lambda f: query(f, "bomb.png", bomb()), "bomb.png"),
    Case("a folder in place of a picture", lambda f: query(f, PHOTOS, None), "is a folder; expected a picture file"),
    Case(
        "an address in place of a picture", lambda f: query(f, "https://example.com/a.jpg", None), "| deeprank-query -"
    ),
    Case("a pattern that matches nothing", lambda f: query(f, "*.jpeg", None), "matches no file here"),
    Case("a largest distance of nan", lambda f: asked(f, FIRST, "--max-distance", "nan"), "squared distance", 2),
    Case("an option by another name", lambda f: asked(f, FIRST, "--top", "3"), "here it is called --k", 2),
    Case("an unknown command", lambda f: ["deeprank", "serach"], "did you mean deeprank query?", 2),
    Case("k = 0", lambda f: [*query(f, f"{PHOTOS}/label0/0.png", None), "--k", "0"], "0", 2),
    Case("k larger than the index", k_beyond, "1000 pictures were requested, 24 exist", 0),
    Case("a name with an escape and a newline", lambda f: query(f, "a\x1b[31m\nb.jpg", b"x"), r"a\x1b[31m\nb.jpg"),
    Case("no index", lambda f: ["deeprank-query", "x.jpg", "--index", "nowhere"], "nowhere does not exist"),
    Case("an empty folder to index", empty_folder, "no pictures"),
    Case("a model without our metadata", without_metadata, "has no 'deeprank' metadata"),
    Case("a model of another dimension than the index's", another_model, "sync --reembed --model"),
    Case("a damaged graph", damaged_graph, "The vectors were scanned instead", 0),
    Case("a truncated graph", truncated_graph, "The vectors were scanned instead", 0),
    Case("a damaged database", damaged_database, "is damaged"),
    Case("a database that holds a trigger", foreign_database, "it holds the trigger 'mine', which no index has"),
    Case("a database that is a link", linked_database, "is a link; expected a file of the index itself"),
    Case("--copy-to of a changed picture", changed_hit, "was not copied: it has changed since it was indexed"),
    Case("an unmounted drive (an empty root)", unmounted, "--allow-mass-removal"),
    Case("a root that is gone", gone, "--allow-mass-removal"),
    Case("a moved root that the index lacks", lambda f: sync_more(f, "--root", f"elsewhere={PHOTOS}"), "elsewhere"),
    Case("an unknown rule for labels", lambda f: sync_more(f, PHOTOS, "--labels", "folder"), "expected top, leaf"),
    Case("a table without labels", wrong_table, "labels.csv"),
    Case("a folder with other files only", other_files, "2 .mp4"),
    Case("a filter that is empty", lambda f: sync_more(f, PHOTOS, "--exclude", ""), "expected"),
    Case("an item that is not there", lambda f: asked(f, "--item", "99"), "no picture with the id 99"),
    Case("a path that nothing matches", lambda f: asked(f, FIRST, "--path", "x/*"), "matches 'x/*'"),
    Case("a removal that nothing matches", lambda f: cared(f, "remove", "l*0.png", "--yes"), "'l*/**/*0.png' matches"),
    Case("--copy-to a folder with files", lambda f: asked(f, FIRST, "--copy-to", PHOTOS), "expected"),
    Case("a copy over something else", lambda f: cared(f, "copy", PHOTOS), "expected"),
    Case("an index with a link in it", linked_graph, "graph.hnsw is a link; expected a file of the index itself"),
    Case("an index with a pipe in it", piped_model, "model.onnx is a pipe; expected a file of the index itself"),
    Case("uploads that are a link", linked_uploads, "uploads is a link; expected the folder of the uploads"),
    Case("--shared for an index that is private", lambda f: sync_more(f, PHOTOS, "--shared"), "chmod -R g+rX my.index"),
    Case("an import of no export", lambda f: cared(f, "import", FIRST, index="new.index"), "deeprank-index export"),
    Case("an import over an index", lambda f: cared(f, "import", FIRST), "expected"),
    Case("ratings where there are none", lambda f: ratings(f, word="export"), "has no ratings yet"),
    Case("ratings without a column", lambda f: ratings(f, columns="query,positive"), "the columns query, positive"),
    Case("a rating of a picture that is not in the index", lambda f: ratings(f, f"{TWO_OF_THREE},x.png"), "line 2"),
    Case("a rating of a changed picture", lambda f: ratings(f, *CHANGED, columns=HASHED), "has another content now"),
    Case("a rating of one picture twice", lambda f: ratings(f, f"{TWO_OF_THREE},{FIRST}"), "three different pictures"),
    Case("damaged ratings", lambda f: rated(f, "UPDATE comparisons SET time = 1"), "no rating is read from it"),
    Case("ratings of a newer version", lambda f: rated(f, "PRAGMA user_version = 2"), "upgrade deep-ranking"),
    Case("ratings that are a link", linked_ratings, "is a link; expected a file of the index itself"),
    Case("two data sets in one folder", two_sets, "holds 2 data sets: cars (test, train), pets (test, train)"),
    Case("splits without class folders", lambda f: laid_out(f, "train", "val"), "are outside class folders"),
    Case("a test split alone", lambda f: laid_out(f, "test/cat", "test/dog"), "has the name of a split"),
    Case("pictures with boxes", lambda f: laid_out(f, "train/images", "valid/images"), "The only class folder"),
    Case("a table with an unknown split", lambda f: tabled(f, "path,label,split\n0.png,cat,maybe\n"), "line 2: split"),
    Case("a CSV without labels", lambda f: tabled(f, "path,caption\n0.png,a cat\n"), "expected path,label"),
    Case("labels from nowhere", lambda f: [*laid_out(f, "cat", "dog"), "--labels", "none"], "--labels none"),
    Case("queries without a gallery", lambda f: compared(f, "--queries", PHOTOS)[:-2], "without --gallery"),
    Case("an empty data set", empty_data, "holds no train pictures"),
    Case("a data set of one class", one_class, "class"),
    Case("a checkpoint from elsewhere, with code in it", foreign_checkpoint, "best.pt"),
    Case("weights from elsewhere, with code in them", foreign_weights, "weights.pth"),
    Case("options that contradict each other", lambda f: [*TRAIN, "--freeze-last", "2"], "--no-freeze-backbone"),
    Case("a way back to no weights", lambda f: [*TRAIN, *NOWHERE], "these are random numbers"),
    Case("a missing run", lambda f: ["deeprank-export", "runs/mine"], "runs/mine"),
    Case("a missing model", lambda f: ["deeprank-eval", "--model", "no.onnx", "--data", "digits"], "does not exist"),
    Case("a missing data set", lambda f: ["deeprank-train", "no-such-folder"], "does not exist"),
    Case("no file of triplets", lambda f: [*triplets(f, "")[:-1], "mine.csv"], "mine.csv does not exist"),
    Case("triplets without a column", lambda f: triplets(f, "query,positive\na,b\n"), "the columns query, positive"),
    Case("a file of triplets with none in it", lambda f: triplets(f, TRIPLET), "holds no triplets"),
    Case("triplets in another encoding", lambda f: triplets(f, f"{TRIPLET}\xfc.png,b,c\n"), "not a CSV in UTF-8"),
    Case("a triplet with a picture that is gone", lambda f: triplets(f, f"{TRIPLET}gone.png,b,c\n"), "line 2: query"),
    Case("a triplet that leaves its folder", lambda f: triplets(f, f"{TRIPLET}../x.png,b,c\n"), "leaves the folder"),
    Case("a triplet of damaged pictures alone", damaged_triplets, "No triplet (of 1) has"),
    Case("files without --models", lambda f: compared(f, "model.onnx"), "was given without --models"),
    Case("--models without files", lambda f: compared(f, "--models"), "expected --models FILE..."),
    Case("sheets of several models", lambda f: compared(f, *MODELS, "--demo", "3"), "--demo is for one model"),
    Case("a missing file among --models", lambda f: compared(f, *MODELS, "no.onnx"), "no.onnx does not exist"),
    Case("TorchScript among --models", lambda f: compared(f, *MODELS, "script.pt"), "deeprank-export --format all"),
    Case("a network that gives maps", lambda f: network(f, "maps"), "expected float of shape [2, d]"),
    Case("a network with dropout left on", lambda f: network(f, DROPOUT), "Is dropout or another random layer"),
    Case("a network that looks at the batch", lambda f: network(f, MINUS_MEAN), "for a picture alone and in a batch"),
    Case("a text in place of an ONNX file", lambda f: adopted(f, None), "notes.onnx cannot be adopted"),
    Case("an ONNX file without a stated preparation", lambda f: adopted(f, "float"), "and how is not known. Give"),
    Case(
        "an output that an ONNX file lacks", lambda f: adopted(f, "uint8", "--output", "logits"), "There is no output"
    ),
    Case("a network without pictures", lambda f: network(f, "maps", "--name", "mine"), "name them with --data"),
    Case("a mean of two numbers", lambda f: network(f, "maps", *TWO), "expected three numbers, such as 0.485"),
]


def learning(folder: Path, *words: str) -> list[str]:
    indexed(folder)
    return ["deeprank-train", *words]


CASES += [
    Case("an index without ratings", lambda f: learning(f, "--index", INDEX), "holds no ratings of pictures"),
    Case(
        "a few ratings",
        lambda f: ["deeprank-train", *ratings(f, THREE)[-2:], "--ratings", "rated.csv"],
        "too few: 1 to learn from and 0",
    ),
    Case("ratings without pictures", lambda f: learning(f, "--ratings", "rated.csv"), "needs the rated pictures"),
    Case("pictures beside an index", lambda f: learning(f, PHOTOS, "--index", INDEX), "Both pictures and --index"),
    Case("epochs for ratings", lambda f: learning(f, "--index", INDEX, "--epochs", "3"), "--epochs belongs to the"),
    Case("a model to train", lambda f: learning(f, PHOTOS, "--model", "model.onnx"), "named with --backbone"),
]


def served(folder: Path, *words: str, token: str | None = None) -> list[str]:
    indexed(folder)
    if token is not None:
        (folder / "token").write_text(token)
    return ["deeprank-serve", "--index", INDEX, "--port", "0", *words]


CASES += [
    Case("a server for others without a token", lambda f: served(f, "--host", "0.0.0.0"), "no token was given"),
    Case("writing without a token", lambda f: served(f, "--allow-writes"), "expected --token-file"),
    Case("a short token", lambda f: served(f, "--token-file", "token", token="letmein"), "has 7 characters"),
    Case(
        "a token that is easy to guess",
        lambda f: served(f, "--token-file", "token", token="passwordpassword"),
        "is easy to guess: it repeats its first 8 characters",
    ),
    Case("no file of a token", lambda f: served(f, "--token-file", "no-token"), "cannot be read"),
    Case("an address of another machine", lambda f: served(f, "--host", "192.0.2.1", "--insecure"), "192.0.2.1"),
    Case("a server without an index", lambda f: ["deeprank-serve", "--index", "nowhere", "--port", "0"], "nowhere"),
]


def parts_of(folder: Path, *words: str, spoil: Callable[[Path], object] = lambda parts: None) -> list[str]:
    """Pictures that are embedded into parts, which ``spoil`` changes, and the command that goes on."""
    from deeprank.runtime.embed.job import embed
    from deeprank.runtime.embed.options import EmbedOptions

    embed(photos(folder), folder / "parts", EmbedOptions(model=str(folder / "model.onnx"), part_size=8))
    spoil(folder / "parts")
    return ["deeprank-embed", PHOTOS, "--out", "parts", *words]


def cut_part(parts: Path) -> None:
    part = parts / "vectors" / "0001-000001.parquet"
    part.write_bytes(part.read_bytes()[:500])


def emptied(parts: Path) -> None:
    shutil.rmtree(parts.parent / PHOTOS)
    (parts.parent / PHOTOS).mkdir()


def no_listing(folder: Path) -> list[str]:
    (folder / "list.parquet").write_text("path\n0.png\n")
    return ["deeprank-embed", "list.parquet", "--out", "parts"]


def embedded_into(folder: Path, out: str, *words: str) -> list[str]:
    photos(folder)
    return ["deeprank-embed", PHOTOS, "--out", out, *words]


CASES += [
    Case(
        "parts of another model",
        lambda f: parts_of(f, "--model", "pretrained"),
        "was made with another model than",
        needs="pyarrow",
    ),
    Case("parts of another size", lambda f: parts_of(f, "--part-size", "9"), "--part-size 8, not 9", needs="pyarrow"),
    Case(
        "parts of another source",
        lambda f: [word if word != PHOTOS else f"{PHOTOS}/label0" for word in parts_of(f)],
        "was made with pictures of",
        needs="pyarrow",
    ),
    Case(
        "a part that is cut", lambda f: parts_of(f, spoil=cut_part), "0001-000001.parquet is damaged", needs="pyarrow"
    ),
    Case(
        "parts whose source is empty", lambda f: parts_of(f, spoil=emptied), "is a drive not mounted", needs="pyarrow"
    ),
    Case("a listing that is no Parquet", no_listing, "is no listing of pictures", needs="pyarrow"),
    Case("parts in a folder of other files", lambda f: embedded_into(f, "."), "holds other files", needs="pyarrow"),
    Case("an invalid share", lambda f: embedded_into(f, "p", "--parts", "5/4"), "expected I/N with I from 1 to N"),
    Case("a key in a URI", lambda f: embedded_into(f, "s3://a:b@c/d"), "URI holds a key", needs="pyarrow"),
    Case(
        "no Ray cluster",
        lambda f: embedded_into(f, "parts", "--engine", "ray", "--address", "127.0.0.1:9"),
        "There is no Ray cluster at 127.0.0.1:9",
        needs="ray",
    ),
]


def no_export(folder: Path) -> list[str]:
    (folder / "photos.parquet").write_bytes(b"PAR1")
    return ["deeprank-index", "import", "photos.parquet", "--index", "new.index"]


def loaded(folder: Path, target: str, source: str = INDEX, *words: str) -> list[str]:
    if source == INDEX:
        indexed(folder)
    return ["deeprank-index", "load", source, "--to", target, *words]


STORE = "milvus://127.0.0.1:1/photos"
CASES += [
    Case("an import of no export to Parquet", no_export, "not a Parquet file", needs="pyarrow"),
    Case("a store that is down", lambda f: loaded(f, STORE), "127.0.0.1:1 does not answer", needs="pymilvus"),
    Case("a load of something else", lambda f: loaded(f, STORE, "."), "neither an index nor", needs="pymilvus"),
    Case(
        "a password in the address of a store",
        lambda f: loaded(f, "milvus://ann:secret@store/photos"),
        "the password in a file",
        needs="pymilvus",
    ),
    Case("no name in the address of a store", lambda f: loaded(f, "milvus://store"), "needs a NAME", needs="pymilvus"),
    Case(
        "no password for the user of a store",
        lambda f: loaded(f, "milvus://ann@store/photos"),
        "no password is given",
        needs="pymilvus",
    ),
    Case("a query to no address", lambda f: ["deeprank-query", "a.png", "--index", "milvus:/store/a"], "no valid host"),
    Case(
        "`--allow-writes` with a store",
        lambda f: served(f, "--index", STORE, "--allow-writes", "--token-file", "token", token="tZ4nq81LwKcVhE0sYbRj"),
        "deeprank-index load",
    ),
    Case("`verify` of a store", lambda f: ["deeprank-index", "verify", "--index", STORE], "folder", 2),
    Case("a place of pictures, and a folder", lambda f: asked(f, FIRST, "--pictures", "x"), "goes with a store", 2),
    Case("a model, and a folder", lambda f: asked(f, FIRST, "--model", "x"), "model that it was built with", 2),
]

CASES += [
    Case("teaching without ratings", taught, "holds no ratings of pictures", needs="torch"),
    Case("an undo where nothing was taught", lambda f: taught(f, "--undo"), "nothing to undo", needs="torch"),
    Case("`--undo` with `--force`", lambda f: taught(f, "--undo", "--force"), "--undo goes back", 2, needs="torch"),
    Case("a page of another kind", lambda f: taught(f, "--html", "a.txt"), "ends in .html", 2, needs="torch"),
    Case("a head from elsewhere, with code in it", foreign_head, "head.safetensors", needs="safetensors"),
]


def say(case: Case, folder: Path) -> subprocess.CompletedProcess[str]:
    """Prepare the case in ``folder``, where ``model.onnx`` is, and run its command there."""
    words = case.make(folder)
    command = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})


def row(case: Case, model: Path) -> str:
    """Return the case's row of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(model, Path(scratch) / "model.onnx")
        result = say(case, Path(scratch))
    lines = [line.strip("│ ") for line in result.stderr.strip().splitlines() if case.says in line]
    shown = (lines or result.stderr.strip().splitlines())[-1].replace(scratch, "…").replace("|", "\\|")
    return f"| {case.what} | {result.returncode} | `{shown}` |"


def main() -> None:
    """Write the table into the document."""
    text = DOCUMENT.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    rows = [row(case, Path(sys.argv[1])) for case in CASES]
    table = "\n".join(["| bad input | exit | message |", "|---|---|---|", *rows])
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()

"""The memory that ``deeprank-index sync`` takes at most for folders of pictures of 50 megapixels, one of each format.

python benchmarks/large_pictures.py --model pretrained
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import machine
from PIL import Image, features

from deeprank.runtime.model.pretrained import find_model

WIDTH, HEIGHT = 8660, 5774

RUN = """
import json, resource, subprocess, sys
done = subprocess.run(json.loads(sys.argv[1]), capture_output=True, text=True)
if done.returncode:
    sys.stderr.write(done.stderr)
print(json.dumps([done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]))
"""

Change = Callable[[Image.Image], Image.Image]


def plain(picture: Image.Image) -> Image.Image:
    """Return it as it is."""
    return picture


def with_alpha(picture: Image.Image) -> Image.Image:
    """Return it with an alpha channel."""
    result = picture.copy()
    result.putalpha(Image.linear_gradient("L").resize(picture.size))
    return result


def coarse_with_alpha(picture: Image.Image) -> Image.Image:
    """Return flat squares with alpha, which are encoded in seconds rather than minutes."""
    return with_alpha(picture.reduce(100)).resize(picture.size, Image.Resampling.NEAREST)


KINDS: dict[str, tuple[str, Change, dict[str, Any]]] = {
    "JPEG": ("jpg", plain, {"quality": 90}),
    "JPEG, progressive, 4:4:4": ("jpg", plain, {"quality": 90, "progressive": True, "subsampling": 0}),
    "PNG": ("png", plain, {"compress_level": 1}),
    "PNG with alpha": ("png", with_alpha, {"compress_level": 1}),
    "TIFF with alpha, LZW": ("tif", with_alpha, {"compression": "tiff_lzw"}),
    "BMP": ("bmp", plain, {}),
    "GIF": ("gif", lambda picture: picture.quantize(16, method=Image.Quantize.FASTOCTREE), {}),
    "WebP with alpha": ("webp", coarse_with_alpha, {"method": 0}),
    "AVIF": ("avif", plain, {"speed": 10}),
}


def picture() -> Image.Image:
    """Return ramps of 50 megapixels."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.dstack([x % 251, y % 241, (x + y) % 256]).astype(np.uint8))


def peak(folder: Path, index: Path, model: Path) -> int:
    """Return the bytes that the command took at most."""
    command = [str(Path(sys.executable).parent / "deeprank-index"), "sync", str(folder)]
    command += ["--index", str(index), "--model", str(model), "--strict"]
    ran = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(command)], check=True, stdout=subprocess.PIPE, text=True
    )
    status, most = json.loads(ran.stdout)
    if status:
        sys.exit(f"error: {command} ended with {status}.")
    return int(most)


def main() -> None:
    """Make a folder of each kind and one of all, sync each, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained")
    parser.add_argument("--copies", type=int, default=8, help="of each picture (one byte longer each)")
    arguments = parser.parse_args()
    model = find_model(arguments.model)
    original = picture()
    print(f"{arguments.model}, {arguments.copies} of each; {machine()}")
    print("| pictures of 50 megapixels | MB at most |\n|---|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        everything = Path(scratch, "all")
        everything.mkdir()
        for number, (name, (extension, change, options)) in enumerate(KINDS.items()):
            if extension == "avif" and not features.check("avif"):
                continue
            folder = Path(scratch, str(number))
            folder.mkdir()
            change(original).save(folder / f"0.{extension}", **options)
            content = (folder / f"0.{extension}").read_bytes()
            for copy in range(1, arguments.copies):
                (folder / f"{copy}.{extension}").write_bytes(content + bytes(copy))
            (everything / f"{number}.{extension}").write_bytes(content)
            print(f"| {name} | {peak(folder, Path(scratch, f'{number}.index'), model) / 1e6:.0f} |", flush=True)
            for path in folder.iterdir():
                path.unlink()
        print(f"| one of each | {peak(everything, Path(scratch, 'all.index'), model) / 1e6:.0f} |")


if __name__ == "__main__":
    main()

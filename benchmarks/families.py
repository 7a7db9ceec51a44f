"""Each family of networks through the whole line: trained, unfrozen in part, exported, indexed and queried.

Backbones have random weights except EfficientNet-Lite0, whose weights come from pip, and are as small as their family
has them. A step that fails is printed with its sentence. The result is the table in docs/models.md.

    python benchmarks/families.py --data photos/clothing/test --work families
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common import machine

from deeprank.runtime.text import markdown_table

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
TORCHVISION = """
import torchvision
from torch import nn

def build():
    network = torchvision.models.regnet_y_400mf(weights=None)
    network.fc = nn.Identity()
    return network
"""
PML = """
import pml_digits
from safetensors.torch import load_file

def build():
    network = pml_digits.build()
    network.load_state_dict(load_file("weights.safetensors"))
    return network
"""


@dataclass(frozen=True)
class Family:
    """A family, the name of a small member, and the side of its pictures."""

    name: str
    backbone: str
    side: int
    weights: str = "none"


FAMILIES = (
    Family("ResNet", "resnet18", 64),
    Family("EfficientNet-Lite", "efficientnet_lite0", 96, "auto"),
    Family("MobileNetV3", "timm:mobilenetv3_small_050", 64),
    Family("MobileNetV4", "timm:mobilenetv4_conv_small_050", 64),
    Family("ConvNeXt", "timm:convnext_atto", 64),
    Family("Swin", "timm:swin_tiny_patch4_window7_224", 112),
    Family("ViT", "timm:vit_tiny_patch16_224", 64),
    Family("DINOv2 with registers", "timm:vit_small_patch14_reg4_dinov2", 70),
    Family("DINOv3", "timm:vit_small_patch16_dinov3", 64),
    Family("CLIP, image tower", "timm:vit_base_patch32_clip_224", 64),
    Family("SigLIP, image tower", "timm:vit_base_patch16_siglip_224", 64),
)
MODULES = {
    "DINOv2 of transformers": ("dinov2_tower", ("--preprocessor", "dinov2/preprocessor_config.json")),
    "CLIP of open_clip": ("open_clip_tower", ("--size", "64", "--crop", "64", "--interpolation", "bicubic")),
    "RegNet of torchvision": ("of_torchvision", ("--image-size", "64")),
    "pytorch-metric-learning": ("of_pml", ("--image-size", "32", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")),
}
PRECISIONS = ("fp32", "fp16", "int8")


class Line:
    """The commands on one data set, in one folder; a failure is a sentence."""

    def __init__(self, data: Path, work: Path) -> None:
        self.data, self.work = data, work

    def run(self, *words: object) -> str:
        """Run a command; return an empty text, or its last line if it fails."""
        command = [str(Path(sys.executable).with_name(str(words[0]))), *map(str, words[1:])]
        done = subprocess.run(command, cwd=self.work, capture_output=True, text=True)
        return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    def trained(self, family: Family, *words: object, out: str) -> str:
        """Train an epoch; random weights only become useful features if all of them learn."""
        return self.run(
            *("deeprank-train", self.data, "--backbone", family.backbone, "--image-size", family.side, *words),
            *("--epochs", 1, "--head-epochs", 0, "--loss", "triplet+softmax", "--views", 0),
            *("--no-report", "--out", self.work / out),
        )

    def exported(self, *source: object) -> Iterator[tuple[str, str]]:
        """Export every precision: a figure, or the sentence of a failure; a part of the table for each."""
        for precision in PRECISIONS:
            out = self.work / f"{precision}.onnx"
            failure = self.run("deeprank-export", *source, "--precision", precision, "--out", out, "--data", self.data)
            report = {} if failure else json.loads(out.with_suffix(".parity.json").read_text())
            yield precision, failure or f"{report['mean_cosine']:.4f}"

    def answered(self) -> str:
        """Sync an index and query it with one of its pictures."""
        shutil.rmtree(self.work / "i", ignore_errors=True)
        failure = self.run("deeprank-index", "sync", self.data, "--index", "i", "--model", "fp32.onnx")
        picture = next(path for path in sorted(self.data.rglob("*")) if path.is_file())
        return failure or self.run("deeprank-query", picture, "-k", 5, "--index", "i") or "yes"

    def row(self, family: Family) -> list[str]:
        """Return the row of a backbone."""
        whole = self.trained(family, "--weights", family.weights, "--no-freeze-backbone", out="whole")
        part = self.trained(family, "--weights", self.work / "whole" / "best.pt", "--unfreeze", 1, out="part")
        steps = [whole or "yes", part or "yes"]
        figures = dict(self.exported(self.work / "part"))
        return [family.name, f"`{family.backbone}`", str(family.side), *steps, *figures.values(), self.answered()]

    def module_row(self, name: str, module: str, words: tuple[str, ...]) -> list[str]:
        """Return the row of a network that ``--module`` names."""
        texts = {"of_torchvision": TORCHVISION, "of_pml": PML}
        example = {"of_torchvision": None, "of_pml": "pml_digits"}.get(module, module)
        if module in texts:
            (self.work / f"{module}.py").write_text(texts[module])
        if example is not None:  # it makes the weights
            shutil.copy(EXAMPLES / f"{example}.py", self.work)
            subprocess.run([sys.executable, f"{example}.py"], cwd=self.work, check=True, capture_output=True)
        figures = dict(self.exported("--module", f"{module}:build", *words))
        return [name, f"`--module {module}:build`", "", "", "", *figures.values(), self.answered()]


def main() -> None:
    """Print the table, a row as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of class folders")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of families")
    arguments = parser.parse_args()
    header = ("family", "name", "px", "train", "`--unfreeze 1`", *PRECISIONS, "index, query")
    print(f"mean cosine of each precision with PyTorch; {machine()}")
    rows = []
    for family in (*FAMILIES, *MODULES):
        name = family.name if isinstance(family, Family) else family
        if arguments.only and name not in arguments.only:
            continue
        shutil.rmtree(arguments.work, ignore_errors=True)
        arguments.work.mkdir(parents=True)
        line = Line(arguments.data.resolve(), arguments.work.resolve())
        rows.append(line.row(family) if isinstance(family, Family) else line.module_row(name, *MODULES[name]))
        print(" | ".join(rows[-1]), flush=True)
    print(*markdown_table(header, rows), sep="\n")


if __name__ == "__main__":
    main()

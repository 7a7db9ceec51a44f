"""What one would write with PyTorch alone: a DataLoader with workers, torchvision's transforms, an eager network.

The other side of folder_embedding.py, which starts it with a model and a folder; for each line on stdin it prints the
seconds a picture of a round. The network is the model's backbone, with weights at random.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from deeprank.models.backbones import create_backbone
from deeprank.runtime.devices import usable_cores
from deeprank.runtime.modelfile import ModelInfo, open_model


class Folder(Dataset[torch.Tensor]):
    """Pictures, decoded whole, resized and normalised."""

    def __init__(self, paths: list[Path], info: ModelInfo) -> None:
        size, half = info.picture.size, (0.5, 0.5, 0.5)
        self._paths = paths
        self._transform = transforms.Compose(
            [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(half, half)]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        with Image.open(self._paths[row]) as image:
            return self._transform(image.convert("RGB"))


@torch.inference_mode()
def seconds_a_picture(network: torch.nn.Module, folder: Folder) -> float:
    """Embed the folder once."""
    start = time.perf_counter()
    for batch in DataLoader(folder, batch_size=32, num_workers=usable_cores()):
        torch.nn.functional.normalize(network(batch).flatten(1))
    return (time.perf_counter() - start) / len(folder)


def main() -> None:
    """Answer each line on stdin by one round."""
    model, folder = sys.argv[1:3]
    info = open_model(model, device="cpu").info
    network = create_backbone(info.backbone, info.picture.size).eval()
    pictures = Folder(sorted(path for path in Path(folder).rglob("*") if path.is_file()), info)
    seconds_a_picture(network, Folder(pictures._paths[:64], info))
    for _ in sys.stdin:
        print(json.dumps(seconds_a_picture(network, pictures)), flush=True)


if __name__ == "__main__":
    main()

"""A network of one's own, trained with pytorch-metric-learning on handwritten digits, then deployed with deeprank.

Run it in an empty folder: ``python pml_digits.py``. It takes ten seconds or so on one core, and downloads nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import TripletMarginMiner
from pytorch_metric_learning.samplers import MPerClassSampler
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from deeprank.export import export_onnx
from deeprank.runtime import Embedder, Index
from deeprank.runtime.datasets import write_digits
from deeprank.runtime.images import PictureRule
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.modelfile import ModelInfo

SIDE, DIM, EPOCHS = 32, 16, 3
MEAN, DEVIATION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def build() -> nn.Module:
    """Return the network: normalised float pictures [n, 3, 32, 32] to vectors [n, 16]."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, DIM),
    )


def loader(folder: Path) -> DataLoader:
    """Return batches of 10 pictures of each digit, in the way that torchvision reads and normalises them."""
    steps = [transforms.Resize((SIDE, SIDE)), transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    pictures = ImageFolder(str(folder), transforms.Compose(steps))
    sampler = MPerClassSampler(pictures.targets, m=10, batch_size=100, length_before_new_iter=len(pictures))
    return DataLoader(pictures, batch_size=100, sampler=sampler, drop_last=True)


def train(network: nn.Module, batches: DataLoader) -> None:
    """Train as with any other loss of pytorch-metric-learning."""
    loss, miner = TripletMarginLoss(margin=0.2), TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for pictures, labels in batches:
            vectors = network(pictures)
            value = loss(vectors, labels, miner(vectors, labels))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()


def main() -> None:
    """Train, export, index, ask."""
    torch.manual_seed(0)
    digits = Path("digits")
    write_digits(digits)  # digits/train/0/0000.png …, digits/val/…
    network, batches = build(), loader(digits / "train")
    train(network, batches)
    save_file(network.state_dict(), "weights.safetensors")

    examples, _ = next(iter(batches))
    info = ModelInfo("digits", embedding_dim=DIM, picture=PictureRule(SIDE, "stretch"), backbone="three convolutions")
    package = export_onnx(network, examples, info, data=digits, out="digits.onnx", mean=MEAN, deviation=DEVIATION)
    found = package.report
    print(f"{package.model}: cosines with PyTorch's vectors of at least {found.difference.min_cosine:.7f}")
    print(f"precision@30: PyTorch {found.evaluation.reference:.3f}, the file {found.evaluation.runtime_exact:.3f}")

    # From here on no PyTorch is needed: this is what runs on the deployment box.
    query = min((digits / "val" / "3").iterdir())
    print(f"one picture: vectors of shape {Embedder('digits.onnx').embed([query]).shape}")
    sync("digits.index", [digits / "train"], model="digits.onnx")
    with Index.open("digits.index") as index:
        for hit in index.search(query, k=5):
            print(f"{hit.distance:.4f}  {hit.label}  {hit.relative}")


if __name__ == "__main__":
    main()

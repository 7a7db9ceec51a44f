"""A bare PyTorch loop over one batch that lies in memory, with the options of a training run; prints pictures a second.

The floor of training_throughput.py, which calls it as: python benchmarks/bare_training.py RUN
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from deeprank.models.allocator import keep_freed_memory
from deeprank.models.weights import find_weights
from deeprank.train.data.inputs import train_mode
from deeprank.train.loop.setup import make_network
from deeprank.train.loop.step import make_optimizer
from deeprank.train.losses.objective import Objective
from deeprank.train.options.config import TrainConfig, config_from_dict
from deeprank.train.run.device import torch_device
from deeprank.train.run.folder import RunFolder


def bare_loop(config: TrainConfig, device: torch.device) -> float:
    """Do the steps of an epoch and return the pictures a second."""
    network = make_network(config, find_weights(config.backbone, config.weights)).to(device)
    objective = Objective(config, config.classes_per_batch).to(device)
    optimizer = make_optimizer(network, objective, config)
    labels = torch.arange(config.classes_per_batch, device=device).repeat_interleave(config.pictures_per_class)
    inputs, trained = _pictures(config, len(labels), device), [network.backbone]
    forward = network.forward
    if config.freeze_backbone:
        with torch.no_grad():
            inputs = network.eval().front(inputs)
        forward, trained = lambda rows: network.learned(network.pooled(rows), rows), network.back_modules()
    train_mode(network, trained, config.freeze_norms)
    generator = torch.Generator().manual_seed(config.seed)
    start = time.perf_counter()
    for _ in range(config.steps_per_epoch):
        optimizer.zero_grad(set_to_none=True)
        loss = objective(forward(inputs), labels, generator).loss
        torch.autograd.backward(loss)
        optimizer.step()
    float(loss.detach())  # a GPU is done only now
    return config.steps_per_epoch * len(labels) / (time.perf_counter() - start)


def _pictures(config: TrainConfig, count: int, device: torch.device) -> torch.Tensor:
    shape = (count, config.image_size, config.image_size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device)


if __name__ == "__main__":
    keep_freed_memory()
    options = RunFolder(Path(sys.argv[1])).read_config()["config"]
    print(bare_loop(config_from_dict(options, sys.argv[1]), torch_device(sys.argv[2])))

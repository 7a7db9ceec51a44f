"""BNNeck against its formula, by loops: trained and resumed, and no part of what is exported."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from deeprank.models.network import NetworkConfig, build_network
from deeprank.train.loop.step import make_optimizer
from deeprank.train.losses.objective import BNNeck, Objective
from deeprank.train.losses.triplet import MINERS, normalised_softmax, squared_distances, triplet_hinge
from deeprank.train.options.recipes import load_config


def a_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 3)
    rows = random.normal(size=(4, 6))[labels] + random.normal(size=(12, 6)) + 2.0  # off the origin, as before training
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(labels)


def by_loops(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    result = np.zeros_like(rows)
    for d in range(rows.shape[1]):
        mean = sum(rows[:, d]) / len(rows)
        variance = sum((value - mean) ** 2 for value in rows[:, d]) / len(rows)
        for i in range(len(rows)):
            result[i, d] = scale[d] * (rows[i, d] - mean) / math.sqrt(variance + 1e-5)
    return result / np.array([[math.sqrt(sum(value**2 for value in row))] for row in result])


def test_it_is_batch_normalisation_without_a_shift_on_the_sphere():
    rows, _ = a_batch()
    neck = BNNeck(6)
    assert torch.equal(neck.scale, torch.ones(6))
    with torch.no_grad():
        neck.scale.copy_(torch.linspace(0.5, 2, 6))
    expected = by_loops(rows.double().numpy(), neck.scale.detach().double().numpy())
    np.testing.assert_allclose(neck(rows).detach().numpy(), expected, atol=2e-5)
    assert list(neck.state_dict()) == ["scale"]


def objective(**options) -> Objective:
    torch.manual_seed(0)
    return Objective(load_config("default", {"embedding_dim": 6, "bnneck": True, "margin": 0.5, **options}), 4)


def test_the_hinge_is_before_it_and_the_softmax_term_after_it():
    rows, labels = a_batch()
    both = objective(softmax_weight=0.7)
    with torch.no_grad():
        both.neck.scale.copy_(torch.linspace(0.5, 2, 6))
    distances = squared_distances(rows)
    triplets = MINERS["semi-hard"](distances, labels, 0.5, torch.Generator())
    after = torch.from_numpy(by_loops(rows.double().numpy(), both.neck.scale.detach().double().numpy())).float()
    softmax = normalised_softmax(after, both.proxies, labels, both._config.temperature)
    expected = triplet_hinge(distances, triplets, 0.5).mean() + 0.7 * softmax
    assert both(rows, labels, torch.Generator()).loss.item() == pytest.approx(expected.item(), abs=1e-4)
    without = objective(bnneck=False)(rows, labels, torch.Generator()).loss.item()
    assert abs(without - expected.item()) > 0.01


def test_its_scale_is_trained_at_the_rate_of_the_head_and_is_no_part_of_the_network(tmp_path: Path):
    rows, labels = a_batch()
    config = load_config("default", {"embedding_dim": 6, "bnneck": True, "learning_rate": 0.02, "weight_decay": 0.1})
    network = build_network(NetworkConfig("timm:resnet10t", 32, 6, (), 0.0, 0.0, (0.0,) * 3, (1.0,) * 3))
    term = objective()
    optimizer = make_optimizer(network, term, config)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    scale, proxies = groups[id(term.neck.scale)], groups[id(term.proxies)]
    assert (scale["base_rate"], scale["weight_decay"]) == (0.02, 0.0)
    assert proxies["base_rate"] == config.proxy_learning_rate
    assert len(groups) == len([*network.head.parameters(), *network.backbone.parameters(), *term.parameters()])
    term(rows, labels, torch.Generator()).loss.backward()
    optimizer.step()
    assert not torch.equal(term.neck.scale, torch.ones(6))
    torch.save(term.state_dict(), tmp_path / "state.pt")
    again = objective()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        same = again(rows, labels, torch.Generator()).loss
        assert torch.equal(same, term(rows, labels, torch.Generator()).loss)
    assert not any("neck" in key for key in network.state_dict())


def test_a_run_that_does_not_use_it_has_no_state_of_it():
    assert list(objective(bnneck=False).state_dict()) == ["proxies"]
    assert list(objective().state_dict()) == ["proxies", "neck.scale"]

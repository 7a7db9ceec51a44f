"""Learning rates by their formulas, and the random numbers of a training step."""

import math

import pytest
import torch

from deeprank.train.loop.step import rate_factor, seeded
from deeprank.train.options.recipes import load_config


def test_schedules_by_their_formulas():
    cosine = load_config("default", {"epochs": 10, "warmup_epochs": 2.0, "schedule": "cosine"})
    factors = [rate_factor(step, 5, cosine) for step in range(50)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 40)) for step in range(40)])
    constant = load_config("default", {"epochs": 10, "warmup_epochs": 0.0, "schedule": "constant"})
    assert {rate_factor(step, 5, constant) for step in range(50)} == {1.0}


def test_a_seed_gives_the_same_draws_and_leaves_the_callers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    draws = []
    for place in ((0, 1, 2), (0, 1, 2), (0, 1, 3), (1, 1, 2)):
        with seeded(*place) as generator:
            draws.append((float(torch.rand(1)), float(torch.rand(1, generator=generator))))
    assert torch.equal(torch.rand(1), expected)
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert all(first != second for first, second in draws)

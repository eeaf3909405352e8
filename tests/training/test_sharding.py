"""Sharding refuses what it is not for; its parts take whole tensors of one process too.

`tests/faults/test_ranks.py` has two processes that share a model.
"""

from __future__ import annotations

import copy

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from medsam_tune import apply_method, build_sam
from medsam_tune.training.sharding import GatherWeights, OptimizerState, shard


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("decoder", "is for the method full, and this is decoder"),
        ("full", "needs several processes"),
    ],
)
def test_refused(method: str, error: str) -> None:
    network = apply_method(build_sam("nano", image_size=64), method)
    with pytest.raises(ValueError, match=error):
        shard(network, torch.device("cpu"))


def test_the_weights_are_those_of_the_learner() -> None:
    learner, network = nn.Linear(2, 3), nn.Linear(2, 3)
    validator = Engine(lambda *_: torch.equal(network.weight, learner.weight))
    GatherWeights(learner, network, torch.device("cpu")).attach(validator)
    validator.run([0])
    assert validator.state.output is True
    assert torch.equal(network.bias, learner.bias)
    assert network.weight is not learner.weight


def test_the_state_of_an_optimizer_comes_back() -> None:
    network = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = OptimizerState(optimizer).state_dict()
    assert state.keys() == optimizer.state_dict().keys()
    torch.testing.assert_close(state["state"], optimizer.state_dict()["state"])
    other = torch.optim.AdamW(copy.deepcopy(network).parameters(), lr=0.2)
    OptimizerState(other).load_state_dict(state)
    torch.testing.assert_close(other.state_dict(), optimizer.state_dict())

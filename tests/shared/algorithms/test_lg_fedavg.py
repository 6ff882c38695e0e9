"""LG-FedAvg: local representations under common later layers, trained together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.algorithms import hyperparameters
from shared.algorithms.lg_fedavg import LG_FEDAVG
from shared.errors import ConfigError
from shared.model_state import state_tensors
from shared.models import build_model
from shared.training import Split, sgd


def model() -> nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


def shared_modules(name: str, **settings: Any) -> set[str]:
    network = build_model(name, {}, seed=0)
    names = LG_FEDAVG.share(network, hyperparameters(LG_FEDAVG, settings))
    return {name.rpartition(".")[0] for name in names}


def test_by_default_the_linear_layers_are_global() -> None:
    assert shared_modules("lenet-small") == {"7", "9"}
    assert shared_modules("lenet5") == {"7", "9", "11"}
    assert shared_modules("har1d") == {"13"}
    assert shared_modules("resnet18") == {"fc"}


def test_the_authors_split_for_cifar10_is_a_setting() -> None:
    """Convolutions global, every linear layer local."""
    assert shared_modules("lenet5", local=("7", "9", "11")) == {"0", "3"}


def test_a_local_module_that_the_model_lacks() -> None:
    with pytest.raises(ConfigError, match=r"'convs'"):
        shared_modules("lenet5", local=("convs",))


def test_one_round_by_hand(make_fleet: Callable[..., Any]) -> None:
    """Local l, global g = (1, -1), input 1; the logits are (l, -l). With l = 0, p = (.5, .5): class 0 moves l by
    lr = .1 and class 1 by -.1, while g keeps its value, for its gradient is l times something. In the second round, at
    l = .1, p = softmax(.1, -.1) = .549834: g moves by .1 * (1 - p) * l = .0045017 outwards, on both devices alike."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))
    nn.init.zeros_(network[0].weight)  # type: ignore[arg-type]
    network[1].weight.data = torch.tensor([[1.0], [-1.0]])
    splits = [Split(torch.ones(1, 1), torch.tensor([label])) for label in (0, 1)]
    fleet = make_fleet(LG_FEDAVG, network, splits, local=("0",), epochs=1, lr=0.1)
    found = [state_tensors(round_.model)["0.weight"].item() for round_ in fleet.round([1.0, 1.0])]
    assert found == pytest.approx([0.1, -0.1])
    np.testing.assert_array_equal(fleet.aggregate.tensors["1.weight"].ravel(), [1.0, -1.0])
    fleet.round([1.0, 1.0])
    np.testing.assert_allclose(fleet.aggregate.tensors["1.weight"].ravel(), [1.0045017, -1.0045017], rtol=1e-6)


def test_both_parts_are_trained_together_with_momentum(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(LG_FEDAVG, model(), epochs=2)
    round_, *_ = fleet.round()
    expected = model()
    sgd(
        expected,
        fleet.splits[0],
        epochs=2,
        lr=0.05,
        batch_size=16,
        momentum=0.5,
        generator=torch.Generator().manual_seed(1000),
        check_time=lambda: None,
    )
    for name, array in state_tensors(expected).items():
        np.testing.assert_array_equal(state_tensors(round_.model)[name], array, err_msg=name)

"""FedAvg against numbers computed by hand, and FedAvg + fine-tuning."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.algorithms.device import personal_model
from shared.algorithms.fedavg import FEDAVG
from shared.model_state import state_tensors
from shared.models import build_model
from shared.training import Split

OPTIONS = {"width": 4, "classes": 4}


def linear() -> nn.Module:
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    return model


def constant(count: int, label: int) -> Split:
    return Split(torch.ones(count, 1), torch.full((count,), label))


@pytest.mark.parametrize(("weights", "expected"), [(None, [-0.025, 0.025]), ([1.0, 1.0], [0.0, 0.0])])
def test_one_round_by_hand(make_fleet: Callable[..., Any], weights: list[float] | None, expected: list[float]) -> None:
    """Softmax(0, 0) = (.5, .5). One example of class 0 makes the weights (.05, -.05), three of class 1 (-.05, .05):
    by examples the mean is (.05 - 3 * .05) / 4 = -.025, uniform 0."""
    fleet = make_fleet(FEDAVG, linear(), [constant(1, 0), constant(3, 1)], epochs=1, lr=0.1, batch_size=8)
    fleet.round(weights)
    np.testing.assert_allclose(fleet.aggregate.tensors["weight"].ravel(), expected, atol=1e-7)


def test_a_second_round_starts_from_the_mean(make_fleet: Callable[..., Any]) -> None:
    """Equal devices, so the mean is each of them: w = .05, then softmax(.05, -.05) = .52498 and one step more."""
    fleet = make_fleet(FEDAVG, linear(), [constant(2, 0)] * 3, epochs=1, lr=0.1, batch_size=8)
    fleet.round()
    fleet.round()
    second = 0.05 + 0.1 * (1 - 1 / (1 + np.exp(-0.1)))
    np.testing.assert_allclose(fleet.aggregate.tensors["weight"].ravel(), [second, -second], rtol=1e-6)


def test_batch_norm_statistics_are_averaged_like_the_weights_and_counters_are_not(
    make_fleet: Callable[..., Any],
) -> None:
    fleet = make_fleet(FEDAVG, build_model("digitscnn", OPTIONS, seed=0), epochs=1)
    rounds = fleet.round()
    examples = [len(round_.train) for round_ in rounds]
    means = np.stack([round_.model.state_dict()["1.running_mean"].numpy() for round_ in rounds])
    expected = np.average(means, axis=0, weights=examples)
    np.testing.assert_allclose(fleet.aggregate.tensors["1.running_mean"], expected, rtol=1e-4, atol=1e-6)
    counters = [int(round_.model.state_dict()["1.num_batches_tracked"]) for round_ in rounds]
    assert fleet.aggregate.tensors["1.num_batches_tracked"] == max(counters)


def test_local_batch_norm_stays(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(FEDAVG, build_model("digitscnn", OPTIONS, seed=0), batch_norm="local")
    trained = fleet.round()[0].model.state_dict()
    again = fleet.open(0).model.state_dict()
    assert not any(name.startswith("1.") for name in fleet.aggregate.tensors)
    assert torch.equal(again["1.running_mean"], trained["1.running_mean"])
    assert not torch.equal(again["0.weight"], trained["0.weight"])


def test_the_own_model_is_the_global_one_until_it_is_finetuned_after_the_last_round(
    make_fleet: Callable[..., Any],
) -> None:
    fleet = make_fleet(FEDAVG, build_model("digitscnn", OPTIONS, seed=0), finetune_epochs=2)
    fleet.round()
    during = state_tensors(personal_model(fleet.setup, fleet.open(0))[0])
    final = state_tensors(personal_model(fleet.setup, fleet.open(0, final=True))[0])
    assert all(np.array_equal(during[name], array) for name, array in fleet.aggregate.tensors.items())
    assert not np.array_equal(final["0.weight"], during["0.weight"])

"""FedRep: first the head under a frozen body, then the body under a frozen head, with the authors' optimizer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.algorithms.device import personal_model, remember
from shared.algorithms.fedrep import FEDREP
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Tensors
from shared.training import Split

HEAD = {"14.weight", "14.bias"}
"""The last layer of digitscnn."""
HARSH = {"momentum": 0.9, "weight_decay": 0.1}


def model() -> nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


def changed(before: Tensors, after: Tensors) -> set[str]:
    return {name for name, array in before.items() if not np.array_equal(array, after[name])}


def ones(count: int, label: int) -> Split:
    return Split(torch.ones(count, 1), torch.full((count,), label))


def test_one_round_by_hand(make_fleet: Callable[..., Any]) -> None:
    """Body b = 1, head h = (0, 0), input 1, class 0. The head first: p = (.5, .5), so h becomes (.05, -.05). Then the
    body under this head: p = .52498, the gradient is (p - 1) * .05 + (1 - p) * -.05 = -.047502, so b becomes 1.0047502.
    In the other order, or together, b would have stayed 1 for a head of zeros."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))
    nn.init.ones_(network[0].weight)  # type: ignore[arg-type]
    nn.init.zeros_(network[1].weight)  # type: ignore[arg-type]
    settings = {"head_epochs": 1, "epochs": 1, "lr": 0.1, "weight_decay": 0.0}
    fleet = make_fleet(FEDREP, network, [ones(1, 0)], **settings)
    (round_,) = fleet.round()
    found = state_tensors(round_.model)
    np.testing.assert_allclose(found["1.weight"].ravel(), [0.05, -0.05], rtol=1e-6)
    np.testing.assert_allclose(found["0.weight"], [[1.0047502]], rtol=1e-6)
    assert fleet.aggregate.tensors.keys() == {"0.weight"}


def test_weights_decay_and_biases_do_not(make_fleet: Callable[..., Any]) -> None:
    """Input 0, so only the bias has a gradient: (-.5, .5). With lr .1 and a decay of .5, weights of 1 become
    1 - .1 * .5 = .95, biases of 2 become 2.05 and 1.95; decayed too, they would be 1.95 and 1.85."""
    network = nn.Linear(1, 2)
    nn.init.ones_(network.weight)
    nn.init.constant_(network.bias, 2.0)
    data = Split(torch.zeros(1, 1), torch.tensor([0]))
    settings = {"head": ("weight", "bias"), "head_epochs": 1, "lr": 0.1, "weight_decay": 0.5}
    (round_,) = make_fleet(FEDREP, network, [data], **settings).round()
    np.testing.assert_allclose(network.weight.detach(), 1.0, err_msg="the initial model stays")
    np.testing.assert_allclose(round_.model.weight.detach().ravel(), [0.95, 0.95], rtol=1e-6)
    np.testing.assert_allclose(round_.model.bias.detach(), [2.05, 1.95], rtol=1e-6)


def test_is_the_authors_single_optimizer_whose_parts_are_frozen_in_turn(make_fleet: Callable[..., Any]) -> None:
    """torch.optim.SGD with two groups, momentum .5, a decay of 1e-4 on weights, on the same batches."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    data = Split(torch.randn(20, 64), torch.randint(0, 4, (20,)))
    (round_,) = make_fleet(FEDREP, network, [data], head_epochs=3, epochs=2).round()

    parts = {name: [value for key, value in network.named_parameters() if name in key] for name in ("weight", "bias")}
    optimizer = torch.optim.SGD(
        [{"params": parts["weight"], "weight_decay": 1e-4}, {"params": parts["bias"], "weight_decay": 0.0}],
        lr=0.05,
        momentum=0.5,
    )
    generator = torch.Generator().manual_seed(1000)
    for epoch in range(5):
        for name, value in network.named_parameters():
            value.requires_grad_(name.startswith("2.") == (epoch < 3))
        for inputs, labels in data.batches(16, generator):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    expected = state_tensors(network)
    for name, array in state_tensors(round_.model).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize(
    ("head_epochs", "epochs", "moves"), [(2, 0, HEAD), (0, 2, set(model().state_dict()) - HEAD)], ids=["head", "body"]
)
def test_what_is_frozen_is_bit_identical(
    make_fleet: Callable[..., Any], head_epochs: int, epochs: int, moves: set[str]
) -> None:
    """BatchNorm's parameters and statistics too, whatever momentum and weight decay would do."""
    fleet = make_fleet(FEDREP, model(), head_epochs=head_epochs, epochs=epochs, **HARSH)
    for _ in range(2):
        before = [state_tensors(fleet.open(device).model) for device in range(3)]
        after = [state_tensors(round_.model) for round_ in fleet.round()]
        assert [changed(*states) for states in zip(before, after, strict=True)] == [moves] * 3


def test_heads_drift_apart_and_bodies_are_one(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(FEDREP, model(), head_epochs=2)
    fleet.round([1.0, 1.0, 1.0])
    one, other = (state_tensors(fleet.open(device).model) for device in (0, 1))
    assert changed(one, other) == HEAD


def test_after_the_last_round_a_copy_of_the_head_is_trained_for_the_last_body(make_fleet: Callable[..., Any]) -> None:
    """On every device, also one that never took part; what it remembers is not touched."""
    fleet = make_fleet(FEDREP, model(), head_epochs=2, finetune_epochs=3, **HARSH)
    fleet.round()
    del fleet.remembered[2]
    for device in range(3):
        round_ = fleet.open(device, final=True)
        received, kept = state_tensors(round_.model), remember(fleet.setup, round_)
        assert changed(received, state_tensors(personal_model(fleet.setup, round_)[0])) == HEAD
        assert changed(kept, remember(fleet.setup, round_)) == set()


def test_defaults_are_the_authors(make_fleet: Callable[..., Any]) -> None:
    hp = FEDREP.hyperparameters()
    found = (hp.head_epochs, hp.epochs, hp.momentum, hp.weight_decay, hp.finetune_epochs)  # type: ignore[attr-defined]
    assert found == (10, 1, 0.5, 1e-4, 10)

"""FedBABU: a head that nobody trains until the end, and everything that the end may train."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.algorithms import hyperparameters
from shared.algorithms.device import personal_model
from shared.algorithms.fedbabu import FEDBABU
from shared.errors import ConfigError
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Tensors
from shared.training import Split, sgd

HEAD = {"14.weight", "14.bias"}
"""The last layer of digitscnn."""
EVERYTHING = set(build_model("digitscnn", {"width": 4, "classes": 4}, seed=0).state_dict())


def model() -> nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


def changed(before: Tensors, after: Tensors) -> set[str]:
    return {name for name, array in before.items() if not np.array_equal(array, after[name])}


def test_the_head_is_the_initial_one_on_every_device_in_every_round(make_fleet: Callable[..., Any]) -> None:
    """Whatever momentum and weight decay would do to it; the body moves."""
    fleet = make_fleet(FEDBABU, model(), momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        for device, round_ in enumerate(fleet.round()):
            assert changed(state_tensors(model()), state_tensors(round_.model)) == EVERYTHING - HEAD
            assert fleet.remembered[device].keys() == {f"local/{name}" for name in HEAD}


def step_of(make_fleet: Callable[..., Any], number: int, **settings: Any) -> float:
    """What one example of class 0 moves the body b = 0 by, in that round, under the head (1, -1): softmax(b, -b) is
    (.5, .5), so the gradient is -.5 * 1 + .5 * -1 = -1 and the step is the learning rate."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))
    nn.init.zeros_(network[0].weight)  # type: ignore[arg-type]
    network[1].weight.data = torch.tensor([[1.0], [-1.0]])
    data = Split(torch.ones(1, 1), torch.tensor([0]))
    fleet = make_fleet(FEDBABU, network, [data], epochs=1, lr=0.1, **settings)
    fleet.number = number - 1
    (round_,) = fleet.round()
    assert round_.number == number
    return float(round_.model.state_dict()["0.weight"])


@pytest.mark.parametrize(
    ("milestones", "steps"), [((), [0.1, 0.1, 0.1, 0.1]), ((1, 3), [0.1, 0.01, 0.01, 0.001]), ((2,), [0.1, 0.1, 0.01])]
)
def test_the_learning_rate_drops_after_each_milestone(
    make_fleet: Callable[..., Any], milestones: tuple[int, ...], steps: list[float]
) -> None:
    found = [step_of(make_fleet, number, lr_milestones=milestones) for number in range(1, len(steps) + 1)]
    assert found == pytest.approx(steps)


@pytest.mark.parametrize(
    ("part", "moves"), [("head", HEAD), ("body", EVERYTHING - HEAD), ("full", EVERYTHING)], ids=["head", "body", "full"]
)
def test_after_the_last_round_a_copy_is_finetuned(make_fleet: Callable[..., Any], part: str, moves: set[str]) -> None:
    """Only the part that is named, bit for bit; what the device has and the coordinator gets is untouched."""
    fleet = make_fleet(FEDBABU, model(), finetune_part=part, momentum=0.9, weight_decay=0.1)
    fleet.round()
    round_ = fleet.open(0, final=True)
    before = state_tensors(round_.model)
    assert changed(before, state_tensors(personal_model(fleet.setup, round_)[0])) == moves
    assert changed(before, state_tensors(round_.model)) == set()
    assert changed(before, state_tensors(personal_model(fleet.setup, fleet.open(0))[0])) == set(), "not before the end"


@pytest.mark.parametrize(("finetune_lr", "expected"), [(None, 0.05), (0.01, 0.01)])
def test_finetuning_has_a_learning_rate_of_its_own_and_no_schedule(
    make_fleet: Callable[..., Any], finetune_lr: float | None, expected: float
) -> None:
    fleet = make_fleet(FEDBABU, model(), lr_milestones=(1, 2), finetune_lr=finetune_lr)
    for _ in range(3):
        fleet.round()
    own, by_hand = personal_model(fleet.setup, fleet.open(0, final=True))[0], fleet.open(0).model
    generator = torch.Generator().manual_seed(3000)
    sgd(
        by_hand,
        fleet.splits[0],
        epochs=5,
        lr=expected,
        batch_size=16,
        generator=generator,
        check_time=lambda: None,
    )
    assert changed(state_tensors(own), state_tensors(by_hand)) == set()


def test_milestones_are_rounds() -> None:
    with pytest.raises(ConfigError, match="lr_milestones"):
        hyperparameters(FEDBABU, {"lr_milestones": (0,)})
    with pytest.raises(ConfigError, match=r"finetune_part.*head, body, full"):
        hyperparameters(FEDBABU, {"finetune_part": "all"})

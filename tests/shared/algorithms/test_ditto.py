"""Ditto: its vectors by the steps that devices take, and a global model that does not notice."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.algorithms import hyperparameters
from shared.algorithms.device import personal_model, remember
from shared.algorithms.ditto import DITTO
from shared.algorithms.fedavg import FEDAVG
from shared.errors import ConfigError
from shared.model_state import load_tensors, state_tensors
from shared.models import build_model
from shared.tensors import Tensors
from shared.training import Split, evaluate, sgd


def model() -> nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


def own(fleet: Any, device: int) -> Tensors:
    """v as the device remembers it."""
    prefix = "own/"
    return {path[len(prefix) :]: array for path, array in fleet.remembered[device].items() if path.startswith(prefix)}


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def far_away(make_fleet: Callable[..., Any], quadratic: Any, **hyperparameters: Any) -> Any:
    """F(x) = 2/2 (x - 3)^2, w = 1 and v = 5."""
    fleet = make_fleet(
        DITTO, quadratic(1.0), [quadratic.split((2.0, 3.0))], **{"lr": 0.1, "proximal": 0.5, **hyperparameters}
    )
    fleet.remembered[0] = {"own/weight": np.array([5.0])}
    return fleet


def test_one_step_by_hand(make_fleet: Callable[..., Any], quadratic: Any) -> None:
    """v: 5 - .1 (2 (5 - 3) + .5 (5 - 1)) = 4.4; 4.42 would be a pull after the step. w: 1 - .1 * 2 (1 - 3) = 1.4."""
    fleet = far_away(make_fleet, quadratic, epochs=1)
    fleet.round()
    assert own(fleet, 0)["weight"] == pytest.approx(4.4)
    assert fleet.aggregate.tensors["weight"] == pytest.approx(1.4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_where_it_comes_to_rest(make_fleet: Callable[..., Any], quadratic: Any, momentum: float) -> None:
    """2 (v - 3) + .5 (v - 1) = 0 at 2.6, whatever the momentum: 2.951 would be a pull outside the optimizer, 3 one to
    where w is by now."""
    fleet = far_away(make_fleet, quadratic, epochs=400, momentum=momentum)
    fleet.round()
    assert own(fleet, 0)["weight"] == pytest.approx(2.6)
    assert fleet.aggregate.tensors["weight"] == pytest.approx(3.0)


def test_the_anchor_of_the_next_round_is_what_is_received_then(make_fleet: Callable[..., Any], quadratic: Any) -> None:
    """w has come to rest at 3, which is where v is pulled now: (2 * 3 + .5 * 3) / 2.5 = 3."""
    fleet = far_away(make_fleet, quadratic, epochs=400)
    fleet.round()
    fleet.round()
    assert own(fleet, 0)["weight"] == pytest.approx(3.0)


def test_without_a_pull_the_own_model_is_trained_alone(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(DITTO, model(), proximal=0.0, momentum=0.5, weight_decay=0.01)
    alone = [model() for _ in fleet.splits]
    for number in (1, 2):
        fleet.round()
        for device, network in enumerate(alone):
            sgd(
                network,
                fleet.splits[device],
                epochs=2,
                lr=0.05,
                batch_size=16,
                momentum=0.5,
                weight_decay=0.01,
                generator=torch.Generator().manual_seed(1000 * number + device),
                check_time=lambda: None,
            )
            assert same(own(fleet, device), state_tensors(network)), "statistics included"


@pytest.mark.parametrize("proximal", [0.0, 0.1, 5.0, (0.1, 1.0)])
def test_what_travels_is_fedavg_bit_for_bit(make_fleet: Callable[..., Any], proximal: Any) -> None:
    """So v is in no upload, whatever the round."""
    ditto, fedavg = make_fleet(DITTO, model(), proximal=proximal), make_fleet(FEDAVG, model())
    for _ in range(3):
        rounds, plain = ditto.round(), fedavg.round()
        for round_, other in zip(rounds, plain, strict=True):
            uploaded = DITTO.upload(round_, ditto.setup.hp).tensors
            assert same(uploaded, state_tensors(other.model))
        assert same(ditto.aggregate.tensors, fedavg.aggregate.tensors)
    assert not same(own(ditto, 0), ditto.aggregate.tensors)


def test_the_own_model_is_what_is_remembered_and_what_was_received_before(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(DITTO, model(), finetune_epochs=1)
    fleet.round()
    fleet.remembered.pop(1)
    assert same(state_tensors(personal_model(fleet.setup, fleet.open(0))[0]), own(fleet, 0))
    assert same(state_tensors(personal_model(fleet.setup, fleet.open(1, final=False))[0]), fleet.aggregate.tensors)
    finetuned = state_tensors(personal_model(fleet.setup, fleet.open(0, final=True))[0])
    assert not np.array_equal(finetuned["0.weight"], own(fleet, 0)["0.weight"])


def test_a_device_that_missed_rounds_goes_on_from_its_own(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(DITTO, model())
    first = remember(fleet.setup, fleet.round()[0])
    fleet.round()
    fleet.remembered[0] = first
    round_ = fleet.open(0)
    assert same(state_tensors(round_.model), fleet.aggregate.tensors)
    assert same(state_tensors(personal_model(fleet.setup, round_)[0]), own(fleet, 0))


@pytest.mark.parametrize("order", [(0.0, 20.0), (20.0, 0.0)])
@pytest.mark.parametrize("shift", [0, 1])
def test_of_several_the_best_on_the_validation_split_is_kept(
    make_fleet: Callable[..., Any], order: tuple[float, float], shift: int
) -> None:
    """Labels that are true make it want no pull, labels that are wrong a strong one: it decides on them, not on the
    training split."""
    found = {}
    for proximal in (*order, order):
        fleet = make_fleet(DITTO, model(), proximal=proximal, lr=0.02, epochs=6)
        fleet.validation = Split(fleet.validation.inputs, (fleet.validation.labels + shift) % 4)
        fleet.round()
        found[proximal] = own(fleet, 0)
    losses = {}
    for proximal in order:
        network = model()
        load_tensors(network, found[proximal])
        losses[proximal] = evaluate(network, fleet.validation).loss
    best = min(order, key=losses.__getitem__)
    assert best == (0.0 if shift == 0 else 20.0)
    assert same(found[order], found[best])


def test_the_pull_is_checked() -> None:
    assert hyperparameters(DITTO, {"proximal": (0.1, 1, 2)}).model_dump()["proximal"] == (0.1, 1, 2)
    for wrong in (-0.1, (0.1, -1.0), ()):
        with pytest.raises(ConfigError, match="proximal"):
            hyperparameters(DITTO, {"proximal": wrong})

"""What holds for every algorithm that keeps a part of the model on the device, and between its two ends."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.algorithms import ALGORITHMS, Algorithm
from shared.algorithms.device import personal_model
from shared.algorithms.fedavg import FEDAVG
from shared.algorithms.fedbabu import FEDBABU
from shared.algorithms.fedper import FEDPER
from shared.algorithms.fedrep import FEDREP
from shared.algorithms.lg_fedavg import LG_FEDAVG
from shared.algorithms.local import LOCAL
from shared.model_state import state_tensors
from shared.models import build_model
from shared.tensors import Tensors


def model() -> nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


ALL = tuple(name for name, child in model().named_children() if child.state_dict())
HEAD = {"14.weight", "14.bias"}
LATER = HEAD | {"12.weight", "12.bias"}
EVERYTHING = frozenset(model().state_dict())

PLAIN = {"momentum": 0.5, "weight_decay": 0.0}


def same(found: Tensors, expected: Tensors) -> bool:
    """Bit for bit."""
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


split = pytest.mark.parametrize(
    ("algorithm", "settings", "local"),
    [
        (FEDPER, {}, HEAD),
        (FEDREP, {"head_epochs": 1}, HEAD),
        (FEDBABU, {}, HEAD),
        (LG_FEDAVG, {}, EVERYTHING - LATER),
        (LG_FEDAVG, {"local": ("12", "14")}, LATER),
        (LOCAL, {}, EVERYTHING),
    ],
    ids=lambda value: getattr(value, "name", ""),
)


@split
def test_no_local_name_is_uploaded_or_averaged(
    make_fleet: Callable[..., Any], algorithm: Algorithm, settings: dict[str, Any], local: set[str]
) -> None:
    fleet = make_fleet(algorithm, model(), **settings)
    for round_ in fleet.round():
        assert algorithm.upload(round_, fleet.setup.hp).tensors.keys() == EVERYTHING - local
    assert fleet.setup.local == local
    assert fleet.aggregate.tensors.keys() == EVERYTHING - local


@split
def test_who_sits_a_round_out_keeps_the_local_part_and_gets_the_newest_shared_one(
    make_fleet: Callable[..., Any], algorithm: Algorithm, settings: dict[str, Any], local: set[str]
) -> None:
    fleet = make_fleet(algorithm, model(), **settings)
    own = state_tensors(fleet.round()[0].model)
    remembered, before = fleet.remembered[0], fleet.aggregate.tensors
    fleet.round()
    fleet.remembered[0] = remembered
    assert not before or not same(before, fleet.aggregate.tensors)
    for final in (False, True):
        back = state_tensors(fleet.open(0, final=final).model)
        assert same({name: back[name] for name in local}, {name: own[name] for name in local})
        assert same({name: back[name] for name in EVERYTHING - local}, fleet.aggregate.tensors)


@split
def test_what_is_evaluated_is_the_newest_shared_part_and_the_own_local_one(
    make_fleet: Callable[..., Any], algorithm: Algorithm, settings: dict[str, Any], local: set[str]
) -> None:
    """And not the model that the device has just trained, nor one that is tuned to its data first."""
    fleet = make_fleet(algorithm, model(), **settings)
    trained = state_tensors(fleet.round()[1].model)
    personal = state_tensors(personal_model(fleet.setup, fleet.open(1))[0])
    assert same({name: personal[name] for name in local}, {name: trained[name] for name in local})
    assert same({name: personal[name] for name in EVERYTHING - local}, fleet.aggregate.tensors)


@split
def test_a_device_that_never_took_part_has_the_initial_local_part(
    make_fleet: Callable[..., Any], algorithm: Algorithm, settings: dict[str, Any], local: set[str]
) -> None:
    fleet = make_fleet(algorithm, model(), **settings)
    fleet.round()
    del fleet.remembered[2]
    late, initial = state_tensors(fleet.open(2, final=True).model), state_tensors(model())
    assert same({name: late[name] for name in local}, {name: initial[name] for name in local})
    assert same({name: late[name] for name in EVERYTHING - local}, fleet.aggregate.tensors)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (FEDREP, {"head": (), "head_epochs": 0}),
        (FEDREP, {"head": (), "head_epochs": 3}),
        (FEDBABU, {"head": ()}),
        (LG_FEDAVG, {"local": ()}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_without_a_local_part_it_is_fedavg_bit_for_bit(
    make_fleet: Callable[..., Any], algorithm: Algorithm, settings: dict[str, Any]
) -> None:
    ours = make_fleet(algorithm, model(), epochs=2, **PLAIN, **settings)
    plain = make_fleet(FEDAVG, model(), epochs=2, **PLAIN)
    for _ in range(3):
        ours.round()
        plain.round()
        assert same(ours.aggregate.tensors, plain.aggregate.tensors)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (FEDPER, {"head": ALL, "epochs": 2}),
        (FEDREP, {"head": ALL, "head_epochs": 2, "epochs": 3}),
        (LG_FEDAVG, {"local": ALL, "epochs": 2}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_with_nothing_but_a_local_part_it_is_training_alone_bit_for_bit(
    make_fleet: Callable[..., Any], algorithm: Algorithm, settings: dict[str, Any]
) -> None:
    ours, alone = make_fleet(algorithm, model(), **PLAIN, **settings), make_fleet(LOCAL, model(), epochs=2, **PLAIN)
    for _ in range(3):
        for mine, other in zip(ours.round(), alone.round(), strict=True):
            assert same(state_tensors(mine.model), state_tensors(other.model))
    assert ours.aggregate.tensors == alone.aggregate.tensors == {}


@pytest.mark.parametrize("algorithm", [FEDPER, FEDREP, FEDBABU, LG_FEDAVG], ids=lambda value: value.name)
def test_local_batch_norm_is_trained_with_its_part_and_stays(
    make_fleet: Callable[..., Any], algorithm: Algorithm
) -> None:
    fleet = make_fleet(algorithm, model(), batch_norm="local")
    trained, initial = fleet.round()[0].model.state_dict(), model().state_dict()
    for name in ("1.weight", "1.running_mean"):
        assert name in fleet.setup.local
        assert not torch.equal(trained[name], initial[name])
        assert torch.equal(fleet.open(0).model.state_dict()[name], trained[name])


def test_what_an_update_weighs() -> None:
    """As in the authors' code, where there is one; baselines weigh like FedAvg."""
    by_examples = {"fedavg", "fedavg-finetune", "fedper", "local", "hermes"}
    for algorithm in ALGORITHMS:
        expected = "samples" if algorithm.name in by_examples else "uniform"
        assert algorithm.hyperparameters().weighting == expected, algorithm.name

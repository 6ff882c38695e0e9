"""FedPer between its two ends: without a head it is FedAvg, with nothing else it is local training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from shared.algorithms import hyperparameters
from shared.algorithms.fedavg import FEDAVG
from shared.algorithms.fedper import FEDPER
from shared.errors import ConfigError
from shared.model_state import state_tensors
from shared.models import build_model
from shared.training import sgd

HEAD = "14"
"""The last layer of digitscnn."""


def model() -> torch.nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


def test_the_head_is_the_last_layer(make_fleet: Callable[..., Any]) -> None:
    setup = make_fleet(FEDPER, model()).setup
    assert setup.local == {f"{HEAD}.weight", f"{HEAD}.bias"}
    assert setup.shared == model().state_dict().keys() - setup.local


def test_the_head_stays_and_the_body_is_averaged(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(FEDPER, model())
    trained = [round_.model.state_dict() for round_ in fleet.round()]
    again = [fleet.open(device).model.state_dict() for device in range(3)]
    for device in range(3):
        assert torch.equal(again[device][f"{HEAD}.weight"], trained[device][f"{HEAD}.weight"])
        assert torch.equal(again[device]["0.weight"], torch.from_numpy(fleet.aggregate.tensors["0.weight"]))
    assert not torch.equal(again[0][f"{HEAD}.weight"], again[1][f"{HEAD}.weight"])
    assert f"{HEAD}.weight" not in fleet.aggregate.tensors


def test_body_and_head_are_trained_together(make_fleet: Callable[..., Any]) -> None:
    before = model().state_dict()
    after = make_fleet(FEDPER, model()).round()[0].model.state_dict()
    assert not torch.equal(after["0.weight"], before["0.weight"])
    assert not torch.equal(after[f"{HEAD}.weight"], before[f"{HEAD}.weight"])


def test_an_empty_head_is_fedavg_bit_for_bit(make_fleet: Callable[..., Any]) -> None:
    fedper, fedavg = make_fleet(FEDPER, model(), head=()), make_fleet(FEDAVG, model())
    for _ in range(3):
        fedper.round()
        fedavg.round()
        assert fedper.aggregate.tensors.keys() == fedavg.aggregate.tensors.keys()
        for name, array in fedavg.aggregate.tensors.items():
            assert np.array_equal(fedper.aggregate.tensors[name], array), name


def test_nothing_but_a_head_is_local_training(make_fleet: Callable[..., Any]) -> None:
    everything = tuple(name for name, child in model().named_children() if child.state_dict())
    fleet = make_fleet(FEDPER, model(), head=everything)
    alone = [model() for _ in fleet.splits]
    for number in (1, 2):
        rounds = fleet.round()
        for device, (round_, own) in enumerate(zip(rounds, alone, strict=True)):
            sgd(
                own,
                fleet.splits[device],
                epochs=2,
                lr=0.05,
                batch_size=16,
                generator=torch.Generator().manual_seed(1000 * number + device),
                check_time=lambda: None,
            )
            found = state_tensors(round_.model)
            assert all(np.array_equal(found[name], array) for name, array in state_tensors(own).items())
    assert fleet.aggregate.tensors == {}


def test_a_head_that_the_model_lacks() -> None:
    with pytest.raises(ConfigError, match="'1x'"):
        FEDPER.share(model(), hyperparameters(FEDPER, {"head": ("1x",)}))


def test_hyperparameters_are_named_with_the_nearest_and_the_allowed() -> None:
    with pytest.raises(ConfigError, match=r"(?s)epoch\b.*'epochs'"):
        hyperparameters(FEDPER, {"epoch": 2})
    with pytest.raises(ConfigError, match=r"(?s)batch_norm.*shared, local"):
        hyperparameters(FEDPER, {"batch_norm": "none"})
    with pytest.raises(ConfigError, match=r"(?s)lr = -1"):
        hyperparameters(FEDPER, {"lr": -1.0})
    assert hyperparameters(FEDPER, {"head": ("fc",), "epochs": 5}).model_dump()["head"] == ("fc",)

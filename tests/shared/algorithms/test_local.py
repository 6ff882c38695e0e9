"""Training alone: what a device learns, it learns from its own data, round after round."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shared.algorithms.device import personal_model
from shared.algorithms.local import LOCAL
from shared.model_state import state_tensors
from shared.models import build_model
from shared.training import sgd


def model() -> torch.nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


def test_every_device_goes_on_from_its_own_model_whatever_the_others_do(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(LOCAL, model(), epochs=1)
    alone = [model() for _ in fleet.splits]
    for number in (1, 2, 3):
        rounds = fleet.round()
        for device, (round_, own) in enumerate(zip(rounds, alone, strict=True)):
            generator = torch.Generator().manual_seed(1000 * number + device)
            sgd(
                own,
                fleet.splits[device],
                epochs=1,
                lr=0.05,
                batch_size=16,
                generator=generator,
                check_time=lambda: None,
            )
            found = state_tensors(round_.model)
            assert all(np.array_equal(found[name], array) for name, array in state_tensors(own).items())
    personal = state_tensors(personal_model(fleet.setup, fleet.open(0, final=True))[0])
    assert all(np.array_equal(personal[name], array) for name, array in state_tensors(alone[0]).items())


def test_nothing_is_sent_and_nothing_is_received(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet(LOCAL, model(), epochs=1)
    assert fleet.download.tensors == {}
    (round_, *_) = fleet.round()
    assert LOCAL.upload(round_, fleet.setup.hp).tensors == {}
    assert fleet.aggregate.tensors == {}

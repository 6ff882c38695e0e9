"""FedAvg + fine-tuning: FedAvg in the rounds, ten epochs of one's own after the last."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shared.algorithms.device import personal_model
from shared.algorithms.fedavg import FEDAVG
from shared.algorithms.fedavg_finetune import FEDAVG_FINETUNE
from shared.model_state import state_tensors
from shared.models import build_model
from shared.training import sgd


def model() -> torch.nn.Module:
    return build_model("digitscnn", {"width": 4, "classes": 4}, seed=0)


def test_the_rounds_are_those_of_fedavg_bit_for_bit(make_fleet: Callable[..., Any]) -> None:
    ours, plain = make_fleet(FEDAVG_FINETUNE, model()), make_fleet(FEDAVG, model())
    for _ in range(3):
        ours.round()
        plain.round()
        for name, array in plain.aggregate.tensors.items():
            assert np.array_equal(ours.aggregate.tensors[name], array), name


def test_the_end_is_ten_epochs_of_sgd_on_a_copy_of_the_global_model(make_fleet: Callable[..., Any]) -> None:
    settings = {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.01}
    fleet = make_fleet(FEDAVG_FINETUNE, model(), **settings)
    fleet.round()
    round_, expected = fleet.open(0, final=True), fleet.open(0).model
    generator = torch.Generator().manual_seed(1000)
    sgd(
        expected,
        fleet.splits[0],
        epochs=10,
        batch_size=16,
        generator=generator,
        check_time=lambda: None,
        **settings,
    )
    personal, received = state_tensors(personal_model(fleet.setup, round_)[0]), state_tensors(round_.model)
    for name, array in state_tensors(expected).items():
        assert np.array_equal(personal[name], array), name
        assert np.array_equal(received[name], fleet.aggregate.tensors[name]), "the model in hand is as received"

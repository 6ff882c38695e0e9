"""Every algorithm does what every algorithm must do, and the checks find those that do not."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shared.aggregation import Aggregate, Overlap, Update
from shared.algorithms import ALGORITHMS, Algorithm, DeviceRound, Hyperparameters, base, conformance
from shared.algorithms.apfl import APFL, APFLHyperparameters
from shared.algorithms.conformance import CHECKS, Check
from shared.algorithms.ditto import DITTO, DittoHyperparameters
from shared.algorithms.fedavg import FEDAVG
from shared.algorithms.fedbabu import FEDBABU, FedBABUHyperparameters
from shared.algorithms.fedper import FEDPER
from shared.algorithms.fedrep import FEDREP, FedRepHyperparameters
from shared.algorithms.head import HeadHyperparameters
from shared.algorithms.hermes import HERMES, HermesHyperparameters
from shared.algorithms.lg_fedavg import LG_FEDAVG, LGFedAvgHyperparameters
from shared.algorithms.per_fedavg import PER_FEDAVG, PerFedAvgHyperparameters
from shared.errors import MalformedPayload
from shared.model_state import state_tensors
from shared.tensors import Subnet, Tensors

VARIANTS = [(algorithm, algorithm.hyperparameters()) for algorithm in ALGORITHMS] + [
    (FEDAVG, Hyperparameters(momentum=0.9, weight_decay=0.01)),
    (FEDPER, HeadHyperparameters(head=())),
    (FEDPER, HeadHyperparameters(head=("0", "1", "12"))),
    (FEDREP, FedRepHyperparameters(head=(), head_epochs=1)),
    (FEDREP, FedRepHyperparameters(head=("0", "1", "4", "5", "7", "8", "12", "14"), head_epochs=1)),
    (FEDREP, FedRepHyperparameters(head_epochs=0, epochs=2)),
    (FEDBABU, FedBABUHyperparameters(lr_milestones=(1,), finetune_part="head", momentum=0.9, weight_decay=0.01)),
    (FEDBABU, FedBABUHyperparameters(head=("4", "14"), finetune_part="body", finetune_lr=0.01)),
    (LG_FEDAVG, LGFedAvgHyperparameters(local=("12", "14"))),
    (LG_FEDAVG, LGFedAvgHyperparameters(local=())),
    (APFL, APFLHyperparameters(mix="logits", alpha_update="round")),
    (APFL, APFLHyperparameters(alpha=0.0, alpha_update="fixed", batch_norm="local")),
    (DITTO, DittoHyperparameters(proximal=(0.1, 1.0, 2.0), momentum=0.9, weight_decay=0.01)),
    (PER_FEDAVG, PerFedAvgHyperparameters(variant="fo", adapt_steps=3)),
    (HERMES, HermesHyperparameters(overlap=Overlap.ALL, pruning_amount=0.4)),
    (HERMES, HermesHyperparameters(batch_norm="local", pruning_amount=0.4)),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("algorithm", "hp"), VARIANTS, ids=lambda value: value.name if isinstance(value, Algorithm) else ""
)
def test_conformance(algorithm: Algorithm, hp: Hyperparameters, check: Check) -> None:
    check(algorithm, hp)


def _upload_everything(round_: DeviceRound, hp: Any) -> Subnet:
    return Subnet(state_tensors(round_.model))


def _forget_what_came(round_: DeviceRound, hp: Any) -> None:
    """The download is ignored."""


def _personalize_in_place(round_: DeviceRound, hp: Any) -> nn.Module:
    base.train(round_, hp)
    return copy.deepcopy(round_.model)


def _say_fewer_channels(round_: DeviceRound, hp: Any) -> nn.Module:
    assert round_.layout is not None
    round_.held = {group: np.arange(units) == 0 for group, units in round_.layout.groups.items()}
    return copy.deepcopy(round_.model)


def _train_the_initial_model(round_: DeviceRound, hp: Any) -> None:
    round_.model = round_.initial
    base.train(round_, hp)


def _train_by_chance(round_: DeviceRound, hp: Any) -> None:
    round_.generator = torch.Generator()
    round_.generator.seed()
    base.train(round_, hp)


def _train_with_a_secret(round_: DeviceRound, hp: Any, secret: list[float] = []) -> None:  # noqa: B006
    """Remembers outside of the memory how often it was called."""
    base.train(round_, hp)
    secret.append(1.0)
    nn.init.constant_(next(round_.model.parameters()), len(secret))


def _ignore_the_clock(round_: DeviceRound, hp: Any) -> None:
    round_.check_time = lambda: None
    base.train(round_, hp)


def _train_nothing(round_: DeviceRound, hp: Any) -> None:
    round_.check_time()


class Sum:
    """An accumulator that forgets to divide."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}

    def add(self, update: Update) -> None:
        for name, array in update.subnet.tensors.items():
            self.tensors[name] = self.tensors.get(name, 0) + array

    def result(self, previous: Tensors) -> Aggregate:
        return Aggregate(self.tensors)


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (conformance.uploads_what_is_shared, replace(FEDPER, upload=_upload_everything)),
        (conformance.has_received_and_local_in_hand, replace(FEDAVG, receive=_forget_what_came)),
        (conformance.changes_nothing_by_personalizing, replace(FEDAVG, personalize=_personalize_in_place)),
        (conformance.changes_nothing_by_personalizing, replace(HERMES, personalize=_say_fewer_channels)),
        (conformance.leaves_the_run_alone, replace(FEDAVG, train=_train_the_initial_model)),
        (conformance.remembers_through_the_codec, replace(FEDAVG, train=_train_with_a_secret)),
        (conformance.repeats_with_the_same_seed, replace(FEDAVG, train=_train_by_chance)),
        (conformance.averages_equals_to_themselves, replace(FEDAVG, aggregate=lambda layout, hp, rule: Sum())),
        (conformance.stops_at_the_deadline, replace(FEDAVG, train=_ignore_the_clock)),
        (conformance.trains_on_few_examples, replace(FEDAVG, train=_train_nothing)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_checks_find_faults(check: Check, broken: Algorithm) -> None:
    with pytest.raises((AssertionError, MalformedPayload)):
        check(broken, broken.hyperparameters())

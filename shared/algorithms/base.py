"""What a federated algorithm is: a frozen record of plain functions, both sides in one file, FedAvg as the defaults."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from shared.aggregation import Accumulator, Overlap, WeightedMean
from shared.channels import ChannelLayout
from shared.tensors import Subnet, Tensors, state_tensors
from shared.training import Split, sgd


class Hyperparameters(BaseModel):
    """Settings that every algorithm has; an algorithm's own class adds to them. Validated in the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(2, ge=0, description="local epochs per round")
    lr: float = Field(0.05, gt=0, description="learning rate of the local SGD")
    batch_size: int = Field(16, ge=1, description="examples per local step; a device's profile may lower it")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum inside one round; never carried across rounds")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of the local SGD")
    weighting: Literal["samples", "uniform"] = Field(
        "samples", description="what an update weighs in the mean: its training examples, or 1"
    )
    batch_norm: Literal["shared", "local"] = Field(
        "shared", description="whether BatchNorm parameters and statistics travel or stay on the device"
    )


@dataclass
class DeviceRound:
    """Everything one device has in hand during one round.

    number      the round, from 1
    model       a module of the run's architecture: received shared tensors, and this device's own local ones
    received    the shared tensors as downloaded: the anchor for proximal terms
    layout      channel groups of the dense model; None unless the algorithm prunes
    memory      group -> tensors: what this device remembers between rounds. "local" (names that are not shared) is
                kept by the worker; every other group is the algorithm's own. Saved after every round; never travels
    train       training split; every decision taken on the device uses `validation`; the test split decides nothing
    generator   source of all randomness of this round
    check_time  called between batches; raises OutOfTime when the round's deadline has passed
    """

    number: int
    model: nn.Module
    received: Subnet
    layout: ChannelLayout | None
    memory: dict[str, Tensors]
    train: Split
    validation: Split
    generator: torch.Generator
    check_time: Callable[[], None]


@dataclass(frozen=True)
class Update:
    """What a device sends back.

    subnet  float32 tensors (integers for counters), cut down to the held channels
    weight  what the update weighs in the mean, >= 0
    """

    subnet: Subnet
    weight: float


def everything(model: nn.Module) -> frozenset[str]:
    """Every name of the model's state travels."""
    return frozenset(model.state_dict())


def as_received(round_: DeviceRound, hp: Any) -> None:
    """The model already holds what was received and what is local: nothing to do."""


def sgd_on_everything(round_: DeviceRound, hp: Any) -> None:
    """`epochs` epochs of SGD on every parameter (FedAvg's local update)."""
    sgd(
        round_.model,
        round_.train,
        epochs=hp.epochs,
        lr=hp.lr,
        batch_size=hp.batch_size,
        momentum=hp.momentum,
        weight_decay=hp.weight_decay,
        generator=round_.generator,
        check_time=round_.check_time,
    )


def upload_received(round_: DeviceRound, hp: Any) -> Subnet:
    """The names that were received, as they are in the model now: built from the shared names, never `all minus`."""
    return Subnet(state_tensors(round_.model, round_.received.tensors))


def as_trained(round_: DeviceRound, hp: Any) -> nn.Module:
    """The model in hand: shared tensors as received plus this device's own."""
    return copy.deepcopy(round_.model)


def weighted_mean(layout: ChannelLayout | None, hp: Any) -> Accumulator:
    """The weighted mean over the devices that hold each coordinate; without masks, FedAvg."""
    return WeightedMean(layout, overlap=Overlap.ANY)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One federated algorithm, both sides. Functions that take `hp` get the validated `hyperparameters`.

    share        which state_dict names travel; the rest never leave the device
    receive      device: turn what was received and remembered into `round.model`, before anything is trained
    train        device: one round of local work; mutates round.model and round.memory
    upload       device: what goes back
    personalize  device: the model to evaluate and export; a new module, the round untouched
    aggregate    coordinator: a fresh accumulator per round
    prunes       its subnets may hold only some channels, so the model's channel layout must be resolved
    """

    name: str
    paper: str
    hyperparameters: type[Hyperparameters] = Hyperparameters
    share: Callable[[nn.Module], frozenset[str]] = everything
    receive: Callable[[DeviceRound, Any], None] = as_received
    train: Callable[[DeviceRound, Any], None] = sgd_on_everything
    upload: Callable[[DeviceRound, Any], Subnet] = upload_received
    personalize: Callable[[DeviceRound, Any], nn.Module] = as_trained
    aggregate: Callable[[ChannelLayout | None, Any], Accumulator] = weighted_mean
    prunes: bool = False

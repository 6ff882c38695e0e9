"""What a federated algorithm is: a frozen record of plain functions, both sides in one file, FedAvg as the defaults."""

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from shared.aggregation import Accumulator, Overlap, Rule
from shared.channels import ChannelLayout
from shared.model_state import load_tensors, state_tensors
from shared.partition import batch_norm_names
from shared.tensors import Masks, Subnet, Tensors
from shared.training import Split, batches, sgd

# Settings for which algorithms have defaults of their own: `weighting: Weighting = "uniform"`.
Momentum: TypeAlias = Annotated[
    float, Field(ge=0, lt=1, description="momentum inside one round; never carried across rounds")
]
FinetuneEpochs: TypeAlias = Annotated[
    int,
    Field(ge=0, description="epochs on the device's own data after the last round, for its own model; never uploaded"),
]
Weighting: TypeAlias = Annotated[
    Literal["samples", "uniform"],
    Field(description="what an update weighs in the mean: its training examples, or 1"),
]


class Hyperparameters(BaseModel):
    """Settings that every algorithm has; an algorithm's own class adds to them, or gives them other defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(2, ge=0, description="local epochs per round")
    lr: float = Field(0.05, gt=0, description="learning rate of the local SGD")
    batch_size: int = Field(16, ge=1, description="examples per local step; a device's profile may lower it")
    momentum: Momentum = 0.0
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of the local SGD")
    finetune_epochs: FinetuneEpochs = 0
    weighting: Weighting = "samples"
    batch_norm: Literal["shared", "local"] = Field(
        "shared", description="whether BatchNorm parameters and statistics travel or stay on the device"
    )


@dataclass
class DeviceRound:
    """Everything one device has in hand during one round.

    number      the round, from 1
    final       after the last round: what is trained now is the device's own, and nothing will be uploaded
    initial     the run's initial model: dense, identical on every device, not to be changed
    model       the network in hand. It comes as the initial model, cut down to the channels of `held`, with this
                device's local tensors in it; `receive` adds what was received, and may cut it down further
    received    the shared tensors as downloaded: the anchor for proximal terms
    layout      channel groups of the dense model; None unless the algorithm prunes
    held        channels that `model` consists of; None: all. Remembered between rounds by the worker, which also
                decides with which a device starts that has no memory for all of them
    residual    what the encoding of the last update lost, cut as that update was; kept by the worker
    memory      group -> tensors: what the algorithm remembers between rounds. Saved after every round; never travels.
                The groups "local" (names that are not shared), "held" and "residual" are kept by the worker
    train       training split
    validation  what every decision taken on the device is taken on; the test split decides nothing
    multiple    channel counts are kept in multiples of this: what the device's runtime likes
    latency     milliseconds that inference of one example takes on this device with some of the channels, measured
                when it is called; None: it cannot be measured
    generator   source of all randomness of this round
    check_time  called between batches; raises OutOfTime when the round's deadline has passed
    """

    number: int
    final: bool
    initial: nn.Module
    model: nn.Module
    received: Subnet
    layout: ChannelLayout | None
    held: Masks | None
    residual: Subnet
    memory: dict[str, Tensors]
    train: Split
    validation: Split
    multiple: int
    latency: Callable[[Masks], float] | None
    generator: torch.Generator
    check_time: Callable[[], None]


def local_batches(
    model: nn.Module, round_: DeviceRound, hp: Hyperparameters, *, epochs: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """shared.training.batches of the round's training split, for algorithms with steps of their own."""
    return batches(
        model,
        round_.train,
        epochs=epochs,
        batch_size=hp.batch_size,
        generator=round_.generator,
        check_time=round_.check_time,
    )


def local_sgd(
    model: nn.Module,
    round_: DeviceRound,
    hp: Hyperparameters,
    *,
    epochs: int,
    only: Collection[str] | None = None,
    before_step: Callable[[], None] | None = None,
) -> None:
    """shared.training.sgd of a model on the round's training split, with the algorithm's hyperparameters."""
    sgd(
        model,
        round_.train,
        epochs=epochs,
        lr=hp.lr,
        batch_size=hp.batch_size,
        momentum=hp.momentum,
        weight_decay=hp.weight_decay,
        generator=round_.generator,
        check_time=round_.check_time,
        only=only,
        before_step=before_step,
    )


def everything(model: nn.Module, hp: Any) -> frozenset[str]:
    """Every name of the model's state travels."""
    return frozenset(model.state_dict())


def received_as_is(round_: DeviceRound, hp: Any) -> None:
    """What was received takes its place in the model."""
    load_tensors(round_.model, round_.received.tensors)


def train(round_: DeviceRound, hp: Any) -> None:
    """`epochs` epochs of SGD on every parameter (FedAvg's local update)."""
    local_sgd(round_.model, round_, hp, epochs=hp.epochs)


def upload_received(round_: DeviceRound, hp: Any) -> Subnet:
    """The names that were received, as they are in the model now: built from the shared names, never `all minus`."""
    return Subnet(state_tensors(round_.model, round_.received.tensors), round_.held)


def finetuned(round_: DeviceRound, hp: Any) -> nn.Module:
    """A copy of the model in hand; after the last round, `finetune_epochs` epochs of SGD on it."""
    model = copy.deepcopy(round_.model)
    if round_.final:
        local_sgd(model, round_, hp, epochs=hp.finetune_epochs)
    return model


def over_all_that_hold_it(layout: ChannelLayout | None, hp: Any, rule: Rule) -> Accumulator:
    """The run's rule, for each coordinate over the devices that hold it; with the mean and without masks, FedAvg."""
    return rule(layout, overlap=Overlap.ANY)


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One federated algorithm, both sides. Functions that take `hp` get the validated `hyperparameters`.

    share        which state_dict names travel; the rest never leave the device
    receive      device: what was received (and is remembered) becomes `round.model`; trains nothing
    train        device: one round of local work; mutates round.model, round.held and round.memory
    upload       device: what goes back, of the shared names only
    personalize  device: the model to evaluate and to put into service: a new module. Leaves model and memory untouched;
                 it gets a copy of the round, with a generator of its own, whose `held` it sets to the channels of what
                 it returns, where they are fewer
    aggregate    coordinator: a fresh accumulator per round, of the rule that the run's settings name
    prunes       its subnets may hold only some channels, so the model's channel layout must be resolved
    partial      whether `train` may be left between any two steps, by what check_time raises, and what is then in hand
                 uploaded: one loop trains everything that is uploaded or remembered
    synchronous  why the updates of a round must have started from the same tensors; empty: they need not, so rounds
                 can be buffered
    """

    name: str
    paper: str
    hyperparameters: type[Hyperparameters] = Hyperparameters
    share: Callable[[nn.Module, Any], frozenset[str]] = everything
    receive: Callable[[DeviceRound, Any], None] = received_as_is
    train: Callable[[DeviceRound, Any], None] = train
    upload: Callable[[DeviceRound, Any], Subnet] = upload_received
    personalize: Callable[[DeviceRound, Any], nn.Module] = finetuned
    aggregate: Callable[[ChannelLayout | None, Any, Rule], Accumulator] = over_all_that_hold_it
    prunes: bool = False
    partial: bool = False
    synchronous: str = ""


def shared_names(algorithm: Algorithm, model: nn.Module, hp: Hyperparameters) -> frozenset[str]:
    """The names that travel, on both sides: the algorithm's, without BatchNorm's where `batch_norm` is local."""
    names = algorithm.share(model, hp)
    return names - batch_norm_names(model) if hp.batch_norm == "local" else names

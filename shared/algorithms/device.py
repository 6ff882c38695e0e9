"""Around an algorithm's functions on a device: what is the same whatever the algorithm.

initial model + local tensors + received ones  -> DeviceRound -> what the device remembers
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from shared.algorithms.base import Algorithm, DeviceRound, Hyperparameters, shared_names
from shared.channel_trace import channel_layout
from shared.channels import ChannelLayout
from shared.errors import MalformedPayload, StateError
from shared.model_state import load_tensors, state_tensors
from shared.pruning import put
from shared.tensors import Array, Subnet, Tensors
from shared.training import Split

LOCAL, HELD = "local", "held"
"""The groups of a device's memory that are kept here; all others are the algorithm's."""


@dataclass(frozen=True)
class Setup:
    """What an algorithm makes of a model, the same on every device.

    model          the run's initial one, which nobody changes
    layout         its channel groups; None unless the algorithm prunes
    shared, local  state names that travel, and that stay on the device
    """

    algorithm: Algorithm
    hp: Hyperparameters
    model: nn.Module
    layout: ChannelLayout | None
    shared: frozenset[str]
    local: frozenset[str]


def set_up(algorithm: Algorithm, hp: Hyperparameters, model: nn.Module, example: torch.Tensor) -> Setup:
    """ModelError where the channels of the model cannot be resolved and the algorithm prunes."""
    shared = shared_names(algorithm, model, hp)
    layout = channel_layout(model, example) if algorithm.prunes else None
    return Setup(algorithm, hp, model, layout, shared, frozenset(model.state_dict()) - shared)


def check_fits(setup: Setup, subnet: Subnet) -> None:
    """MalformedPayload unless the tensors have the names, dtypes and (cut down) shapes of what is shared."""
    if subnet.tensors.keys() != setup.shared:
        odd = sorted(subnet.tensors.keys() ^ setup.shared)
        raise MalformedPayload(f"the tensors and what {setup.algorithm.name} shares differ in {', '.join(odd[:5])}")
    if subnet.held is not None:
        if setup.layout is None:
            raise MalformedPayload(f"only some channels are held, but {setup.algorithm.name} does not prune")
        setup.layout.check(subnet.held)
    state = setup.model.state_dict()
    for name, found in subnet.tensors.items():
        expected = state[name].numpy()
        shape = expected.shape
        if subnet.held is not None and setup.layout is not None:
            shape = setup.layout.shape(name, shape, subnet.held)
        if found.shape != shape or found.dtype != expected.dtype:
            raise MalformedPayload(
                f"{name} is {found.dtype}{list(found.shape)}, where {expected.dtype}{list(shape)} is needed"
            )


def open_round(
    setup: Setup,
    received: Subnet,
    remembered: Mapping[str, Array],
    *,
    number: int,
    final: bool,
    train: Split,
    validation: Split,
    multiple: int,
    generator: torch.Generator,
    check_time: Callable[[], None],
) -> DeviceRound:
    """The round with the received model in hand: `receive` is done. Arguments as in DeviceRound.

    received    fits the setup
    remembered  what `remember` gave after this device's last round of the run; empty the first time. StateError if it
                is of another model
    """
    memory: dict[str, Tensors] = {}
    for path, array in remembered.items():
        group, _, name = path.partition("/")
        memory.setdefault(group, {})[name] = array
    held = memory.pop(HELD, None)
    model = copy.deepcopy(setup.model)
    try:
        if held is not None and setup.layout is not None:
            setup.layout.check(held)
        _place(model, setup, Subnet(memory.pop(LOCAL, {}), held))
    except (MalformedPayload, KeyError, ValueError) as error:
        raise StateError(f"what this device remembers does not fit the model ({error}); remove it") from error
    round_ = DeviceRound(
        number=number,
        final=final,
        initial=setup.model,
        model=model,
        received=received,
        layout=setup.layout,
        held=held,
        memory=memory,
        train=train,
        validation=validation,
        multiple=multiple,
        generator=generator,
        check_time=check_time,
    )
    setup.algorithm.receive(round_, setup.hp)
    return round_


def remember(setup: Setup, round_: DeviceRound) -> Tensors:
    """Everything that the device needs to go on after this round, named `group/name`. It never travels."""
    groups = {**round_.memory, LOCAL: state_tensors(round_.model, sorted(setup.local)), HELD: round_.held or {}}
    return {f"{group}/{name}": array for group, members in groups.items() for name, array in members.items()}


def personal_model(setup: Setup, round_: DeviceRound) -> nn.Module:
    """The device's own model. What is drawn for it is drawn from a copy, so that training does not depend on it."""
    return setup.algorithm.personalize(replace(round_, generator=round_.generator.clone_state()), setup.hp)


def global_model(setup: Setup, received: Subnet) -> nn.Module:
    """The dense model of a device that has nothing of its own: initial tensors, and received ones where there are."""
    model = copy.deepcopy(setup.model)
    _place(model, setup, received)
    return model


def _place(model: nn.Module, setup: Setup, subnet: Subnet) -> None:
    """Write the subnet into the dense model."""
    if setup.layout is None:
        load_tensors(model, subnet.tensors)
    else:
        dense = state_tensors(model, subnet.tensors)
        put(dense, subnet, setup.layout)
        load_tensors(model, dense)

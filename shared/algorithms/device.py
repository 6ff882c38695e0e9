"""Around an algorithm's functions on a device: what is the same whatever the algorithm.

initial model + local tensors + received ones  -> DeviceRound -> what the device remembers
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from shared.algorithms.base import Algorithm, DeviceRound, Hyperparameters, shared_names
from shared.channel_trace import channel_layout
from shared.channels import ChannelLayout
from shared.errors import MalformedPayload, StateError
from shared.model_state import load_tensors, state_tensors, state_views
from shared.pruning import covers, narrow, put, shrink
from shared.selection import start
from shared.tensors import Array, Masks, Subnet, Tensors
from shared.training import Split

LOCAL, HELD, RESIDUAL = "local", "held", "residual"
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
    start_with: Masks | None = None,
    latency: Callable[[Masks], float] | None = None,
) -> DeviceRound:
    """The round with the received model in hand: `receive` is done. Arguments as in DeviceRound.

    received    fits the setup
    remembered  what `remember` gave after this device's last round of the run; empty the first time. StateError if it
                is of another model
    start_with  channels of a device that remembers none; None: all
    """
    memory: dict[str, Tensors] = {}
    for path, array in remembered.items():
        group, _, name = path.partition("/")
        memory.setdefault(group, {})[name] = array
    held = memory.pop(HELD, start_with)
    try:
        model = _network(setup, Subnet(memory.pop(LOCAL, {}), held))
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
        residual=Subnet(memory.pop(RESIDUAL, {}), held),
        memory=memory,
        train=train,
        validation=validation,
        multiple=multiple,
        latency=latency,
        generator=generator,
        check_time=check_time,
    )
    setup.algorithm.receive(round_, setup.hp)
    return round_


def starting_channels(setup: Setup, received: Subnet, width: float, multiple: int) -> Masks | None:
    """Of what was received the most important channels, a share `width` of each group's; None: everything received."""
    layout = setup.layout
    if width == 1 or layout is None:
        return None
    dense = received.tensors
    if received.held is not None:
        dense = {name: np.zeros_like(array) for name, array in state_views(setup.model).items() if name in dense}
        put(dense, received, layout)
    held = start(dense, layout, width, multiple)
    return held if received.held is None else {group: mask & received.held[group] for group, mask in held.items()}


def remember(setup: Setup, round_: DeviceRound) -> Tensors:
    """Everything that the device needs to go on after this round, named `group/name`. It never travels.

    Of a pruned device all of it is cut down to the channels held: what is gone costs no storage either.
    """
    local = state_tensors(round_.model, sorted(setup.local))
    groups = {**round_.memory, LOCAL: local, HELD: round_.held or {}, RESIDUAL: round_.residual.tensors}
    return {f"{group}/{name}": array for group, members in groups.items() for name, array in members.items()}


def personal_model(setup: Setup, round_: DeviceRound) -> tuple[nn.Module, Masks | None]:
    """The device's own model, and its channels. What is drawn for it is drawn from a copy, so that training does not
    depend on it."""
    own = replace(round_, generator=round_.generator.clone_state())
    return setup.algorithm.personalize(own, setup.hp), own.held


def global_model(setup: Setup, round_: DeviceRound) -> nn.Module:
    """A model with nothing of this device in it: initial tensors, and received ones where there are. Of the channels
    that the device holds if it received them all, so that it costs no more than its own; else of what it received."""
    received = round_.received
    if setup.layout is not None and covers(received.held, round_.held):
        received = narrow(received, setup.layout, round_.held)
    return _network(setup, received)


def _network(setup: Setup, subnet: Subnet) -> nn.Module:
    """The initial model, cut down to the subnet's channels, with the subnet's tensors in it."""
    if subnet.held is None:
        model = copy.deepcopy(setup.model)
    elif setup.layout is not None:
        model = shrink(setup.model, setup.layout, subnet.held)
    else:
        raise ValueError(f"some channels are held, but {setup.algorithm.name} does not prune")
    load_tensors(model, subnet.tensors)
    return model

"""What a plan means on this device: algorithm, model and data, ready to work with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from edge_agent.data import DeviceData
from edge_agent.job import Job
from shared.algorithms import Algorithm, Hyperparameters, algorithm, hyperparameters, shared_names
from shared.channel_trace import channel_layout
from shared.channels import ChannelLayout
from shared.config import DataSettings
from shared.errors import ConfigError, DataError, MalformedPayload, ModelError
from shared.models import build_model, example_input
from shared.pruning import put
from shared.tensors import Subnet, Tensors

Read: TypeAlias = Callable[[DataSettings], DeviceData]


@dataclass(frozen=True)
class Work:
    """What a plan means on this device. model: the run's initial one; shared, local: names that travel or stay."""

    algorithm: Algorithm
    hp: Hyperparameters
    model: nn.Module
    example: torch.Tensor
    layout: ChannelLayout | None
    shared: frozenset[str]
    local: frozenset[str]
    data: DeviceData


def prepare(job: Job, read: Read) -> Work:
    plan = job.task.plan
    for name in (plan.model, plan.algorithm):
        if ":" in name and name not in job.trust:
            raise ConfigError(f"this device was asked to import {name!r}, which its `trust` setting does not list")
    chosen = algorithm(plan.algorithm)
    hp = hyperparameters(chosen, plan.hyperparameters)
    hp = hp.model_copy(update={"batch_size": min(hp.batch_size, job.profile.training.batch_size)})
    model = build_model(plan.model, plan.model_options, seed=plan.seed)
    example = example_input(plan.model, plan.model_options)
    layout = channel_layout(model, example) if chosen.prunes else None
    if (layout and layout.digest) != plan.layout:
        raise ModelError(
            f"{plan.model} has another channel layout here than at the coordinator: "
            "run the same version of Talaria and of the model on both sides"
        )
    shared = shared_names(chosen, model, hp)
    work = Work(chosen, hp, model, example, layout, shared, frozenset(model.state_dict()) - shared, read(job.data))
    outputs = len(logits(model, example)[0])
    if work.data.shape != tuple(example.shape[1:]) or len(work.data.classes) > outputs:
        raise DataError(
            f"this device's data has inputs of shape {work.data.shape} and {len(work.data.classes)} classes, "
            f"{plan.model} takes {tuple(example.shape[1:])} and tells {outputs} apart: change the device's [data] or "
            "the run's [model]"
        )
    return work


def check_download(subnet: Subnet, work: Work) -> None:
    """MalformedPayload unless the tensors have the names, dtypes and (cut down) shapes of what the plan shares."""
    if subnet.tensors.keys() != work.shared:
        odd = sorted(subnet.tensors.keys() ^ work.shared)
        raise MalformedPayload(f"the download and what {work.algorithm.name} shares differ in {', '.join(odd[:5])}")
    if subnet.held is not None:
        if work.layout is None:
            raise MalformedPayload(f"the download holds only some channels, but {work.algorithm.name} does not prune")
        work.layout.check(subnet.held)
    state = work.model.state_dict()
    for name, found in subnet.tensors.items():
        expected = state[name].numpy()
        shape = expected.shape
        if subnet.held is not None and work.layout is not None:
            shape = work.layout.shape(name, shape, subnet.held)
        if found.shape != shape or found.dtype != expected.dtype:
            raise MalformedPayload(
                f"{name} of the download is {found.dtype}{list(found.shape)}, not {expected.dtype}{list(shape)}"
            )


@torch.inference_mode()
def logits(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """In eval mode; the model is left in the mode it was in."""
    training = model.training
    outputs: torch.Tensor = model.eval()(inputs)
    model.train(training)
    return outputs


def placed(tensors: Tensors, subnet: Subnet, layout: ChannelLayout | None) -> Tensors:
    """The dense tensors with the subnet's in their places."""
    if layout is None:
        return {**tensors, **subnet.tensors}
    put(tensors, subnet, layout)
    return tensors
